"""Losses as pure functions of arrays; they return one number per example and leave the adding to the task."""

import jax
import jax.numpy as jnp


def softmax_cross_entropy(logits, targets):
  """-log softmax(logits)[target] in nats, [..., vocabulary] and integer [...] -> float32 [...]."""
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen


def smoothed_cross_entropy(logits, labels, smoothing=None):
  """Cross-entropy in nats, [..., classes] and integer [...] -> float32 [...], of labels partly spread evenly.

  `smoothing`: the part that goes to all classes alike (Szegedy et al. 2016, section 7); None: none.
  """
  nats = softmax_cross_entropy(logits, labels)
  if smoothing is None:
    return nats
  logits = logits.astype(jnp.float32)
  even = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
  return (1 - smoothing) * nats + smoothing * even
