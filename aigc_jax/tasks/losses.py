"""Losses as pure functions of arrays; they return one number per example and leave the adding to the task."""

import jax
import jax.numpy as jnp


def softmax_cross_entropy(logits, targets):
  """-log softmax(logits)[target] in nats, [..., vocabulary] and integer [...] -> float32 [...]."""
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen
