"""Vectors of texts by an encoder: the mean of its last states over a text's tokens (Reimers & Gurevych 2019)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.generation.processors import round_up

POOLINGS = ('mean', 'first')


def embed(model, params, tokenizer, texts, pooling='mean', normalize=True, batch_size=32):
  """Vectors [texts, width] float32.

  Args:
    model: a `TransformerEncoder`. params: its parameters. tokenizer: its Tokenizer.
    texts: strings; one longer than the model's context is cut.
    pooling: 'mean' over a text's tokens, those around it included; 'first': the state of the first one.
    normalize: to length 1, so that inner products are cosines.

  Raises UsageError.
  """
  if pooling not in POOLINGS:
    raise UsageError(f'pooling: {pooling!r} is not known; there are {", ".join(POOLINGS)}')
  room = model.context_length - len(tokenizer.prefix) - len(tokenizer.suffix)
  encoded = [tokenizer.framed(ids[:room]) for ids in tokenizer.encode_all(list(texts))]
  order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # those of similar length together
  found = np.zeros((len(encoded), model.width), np.float32)
  size = math.ceil(len(order) / math.ceil(len(order) / batch_size)) if order else 1
  for first in range(0, len(order), size):
    rows = order[first : first + size]
    tokens = np.zeros((size, min(round_up(len(encoded[rows[-1]])), model.context_length)), np.int32)
    lengths = np.zeros(size, np.int32)
    for row, i in enumerate(rows):
      tokens[row, : len(encoded[i])], lengths[row] = encoded[i], len(encoded[i])
    found[rows] = pooled(model, pooling, normalize, params, tokens, lengths)[: len(rows)]
  return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def pooled(model, pooling, normalize, params, tokens, lengths):
  """[batch, time], [batch] -> [batch, width]."""
  states = model.apply({'params': params}, tokens, lengths=lengths, method='hidden').astype(jnp.float32)
  if pooling == 'first':
    vectors = states[:, 0]
  else:
    real = jnp.arange(tokens.shape[1]) < lengths[:, None]  # [batch, time]
    vectors = jnp.where(real[..., None], states, 0).sum(1) / jnp.maximum(lengths[:, None], 1)
  if not normalize:
    return vectors
  return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
