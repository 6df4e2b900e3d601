"""Decoders of a few lines, each with the same function written out plainly in numpy."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from aigc_jax.models import Decoder


class Toy(NamedTuple):
  decoder: Decoder
  params: Any
  full: Any  # window of tokens, 1-D -> logits of the next, [vocabulary]


VOCABULARY = 11


def windowed(context_length):
  """Logits from a sum over the window, each token turned by its position: a cache of slots, as attention has."""
  random = np.random.default_rng(0)
  params = {name: random.normal(size=(VOCABULARY, 6)).astype(np.float32) for name in ('embed', 'head')}

  def init_cache(batch_size, length):
    return jnp.zeros((batch_size, length), jnp.int32), jnp.int32(0), jnp.zeros(batch_size, jnp.int32)

  def step(params, cache, tokens, mask=None, memory=None):
    held, index, start = cache
    held = held.at[:, index + jnp.arange(tokens.shape[1])].set(tokens)
    start = start if mask is None else start + (~mask).sum(1)
    slots, here = jnp.arange(held.shape[1]), index + jnp.arange(tokens.shape[1])
    position = slots - start[:, None]  # [batch, slots]
    seen = (slots <= here[:, None]) & (position >= 0)[:, None]  # [batch, n, slots]
    turned = jnp.cos(position)[..., None] * params['embed'][held]
    hidden = jnp.tanh(jnp.einsum('bns,bsd->bnd', seen.astype(jnp.float32), turned))
    return 2 * hidden @ params['head'].T, (held, index + tokens.shape[1], start)

  def full(window):
    hidden = np.tanh(np.cos(np.arange(len(window))) @ params['embed'][window])
    return 2 * params['head'] @ hidden

  rewind = lambda cache, count: (cache[0], cache[1] - count, cache[2])
  return Toy(Decoder(init_cache, step, VOCABULARY, context_length, None, rewind), params, full)


def recurrent():
  """An Elman network (its hidden state is the cache), without a limit to its context."""
  random = np.random.default_rng(1)
  shapes = {'embed': (VOCABULARY, 6), 'head': (6, VOCABULARY), 'hidden': (6, 6)}
  params = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}

  def step(params, hidden, tokens, mask=None, memory=None):
    logits = []
    for t in range(tokens.shape[1]):
      new = jnp.tanh(hidden @ params['hidden'] + params['embed'][tokens[:, t]])
      hidden = new if mask is None else jnp.where(mask[:, t, None], new, hidden)
      logits.append(8 * hidden @ params['head'])
    return jnp.stack(logits, axis=1), hidden

  def full(window):
    hidden = np.zeros(6, np.float32)
    for token in window:
      hidden = np.tanh(hidden @ params['hidden'] + params['embed'][token])
    return 8 * hidden @ params['head']

  return Toy(
    Decoder(lambda batch_size, length: jnp.zeros((batch_size, 6)), step, VOCABULARY, None), params, full
  )


def scripted(script, vocabulary, context_length=None):
  """Says script[n - 1] after its n-th token, whatever the tokens were."""
  logits = np.zeros((len(script), vocabulary), np.float32)
  logits[np.arange(len(script)), script] = 50

  def step(params, count, tokens, mask=None, memory=None):
    counts = count[:, None] + jnp.cumsum(jnp.ones_like(tokens) if mask is None else mask, axis=1)
    return params[jnp.clip(counts - 1, 0, len(script) - 1)], counts[:, -1]

  init_cache = lambda batch_size, length: jnp.zeros(batch_size, jnp.int32)
  return Toy(Decoder(init_cache, step, vocabulary, context_length), logits, None)
