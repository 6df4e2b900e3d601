"""Branches of a text over one cache: each has the logits of its own text, however they part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.generation import beam, branches, decode
from aigc_jax.generation.beam import Beam
from aigc_jax.generation.processors import MinimumLength, NoRepeatedNgrams, RepetitionPenalty

SMALL = {'vocabulary_size': 13, 'width': 16, 'init_scale': 0.4}
ATTENTION = {'context_length': 64, 'layers': 2, 'heads': 4}
CONFIGS = {
  'learned': SMALL | ATTENTION | {'name': 'transformer'},
  'rotary, grouped, window': SMALL
  | ATTENTION
  | {'name': 'transformer', 'positions': 'rotary', 'key_value_heads': 2, 'window': 4},
  'encoder-decoder': SMALL | ATTENTION | {'name': 'transformer_encoder_decoder', 'positions': 'sinusoidal'},
  'rnn': SMALL | {'name': 'rnn', 'cell': 'gru', 'layers': 1},
  'recurrent encoder-decoder': SMALL | {'name': 'rnn_encoder_decoder', 'cell': 'lstm'},
}
PROMPTS = [[5, 2, 7, 1], [3, 9], [8, 8, 0]]
SOURCES = [[1, 4, 4, 12, 6], [2], [7, 7, 3]]


@pytest.fixture(scope='module', params=CONFIGS)
def made(request):
  """(decoder, params, sources or None, text, row -> logits behind each of the text's tokens, in one pass)."""
  module, key = models.build(CONFIGS[request.param]), jax.random.key(2)
  decoder = models.decoder(module)
  tokens = jax.random.randint(key, (3, 8), 0, 13)
  if decoder.encode is None:
    params = module.init(key, tokens)['params']
    apply = jax.jit(lambda tokens, row: module.apply({'params': params}, tokens))
    return decoder, params, None, lambda text, row: whole(apply, text, row)
  params = module.init(key, tokens, tokens)['params']
  sources, lengths = map(jnp.asarray, decode.padded(decoder, SOURCES, 3))
  apply = jax.jit(
    lambda tokens, row: module.apply(
      {'params': params}, sources[row][None], tokens, lengths=lengths[row][None]
    )
  )
  return decoder, params, SOURCES, lambda text, row: whole(apply, text, row)


def whole(apply, text, row):
  logits = apply(jnp.asarray([[*text, *[0] * (16 - len(text))]]), row)  # padding behind changes nothing
  return np.asarray(logits)[0, : len(text)]


def test_each_branch_has_the_logits_of_its_own_text(made):
  """4 branches a row go on for 6 tokens from prompts of unequal length; who follows whom is drawn at random."""
  decoder, params, sources, logits_of = made
  tokens, mask = np.zeros((2, 3, 3), np.int32)
  for row, prompt in enumerate(PROMPTS):
    tokens[row, 4 - len(prompt) :], mask[row, 4 - len(prompt) :] = prompt[:-1], 1
  mask = mask.astype(bool)
  cache, memory = decode.fill(decoder, 3, params, tokens, mask, decode.padded(decoder, sources, 3))
  held, memory = branches.start(decoder, cache, memory, mask, 4, 6)
  step = jax.jit(lambda held, last: branches.step(decoder, params, held, last, memory))
  texts = [[list(prompt)] * 4 for prompt in PROMPTS]
  random = np.random.default_rng(0)
  for room in (2, 2, 6, 6, 6, 6):  # what is held grows on the way
    held = branches.with_room(decoder, held, 3, room)
    logits, held = step(held, np.array([[text[-1] for text in row] for row in texts]))
    for row in range(3):
      for branch in range(4):
        expected = logits_of(texts[row][branch], row)[-1]
        np.testing.assert_allclose(logits[row, branch], expected, rtol=1e-4, atol=1e-4)  # float32, other sums
    parents, new = random.integers(0, 4, (3, 4)), random.integers(0, 13, (3, 4))
    held = branches.follow(held, jnp.asarray(parents, jnp.int32))
    texts = [[[*texts[row][parents[row, i]], int(new[row, i])] for i in range(4)] for row in range(3)]


def test_beams_over_one_cache_are_those_over_copies(made):
  """Texts of 34 to 48 tokens, so that the cache grows twice; processors follow the beams too."""
  decoder, params, sources, _ = made
  chain = RepetitionPenalty(1.2), NoRepeatedNgrams(3), MinimumLength(34, 1)
  search = lambda decoder: beam.search(
    decoder, params, PROMPTS, Beam(4, 1.0, 'never', 3, chain), 48, sources=sources, end_token=1
  )
  shared, copied = search(decoder), search(decoder._replace(branch=None))
  np.testing.assert_array_equal(shared.lengths, copied.lengths)
  np.testing.assert_array_equal(shared.tokens, copied.tokens)
  np.testing.assert_allclose(shared.scores, copied.scores, rtol=1e-4)
  assert shared.lengths.max() > 32
