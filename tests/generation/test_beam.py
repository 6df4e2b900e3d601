"""Beam search against all texts of a tiny vocabulary, and token for token against transformers."""

import itertools

import jax
import numpy as np
import pytest
import torch

from aigc_jax import models
from aigc_jax.errors import UsageError
from aigc_jax.generation import Sampling, beam, decode
from aigc_jax.generation.beam import Beam
from tests import peers
from tests.generation import toys

END = 2


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def all_texts(full, prompt, size, longest, penalty):
  """{text: score} of every text of tokens below `size` that ends in END, or has `longest` tokens."""
  found = {}
  for length in range(1, longest + 1):
    for text in itertools.product(range(size), repeat=length):
      if END in text[:-1] or (length < longest and text[-1] != END):
        continue
      nats = [log_softmax(full(np.array([*prompt, *text[:i]])))[token] for i, token in enumerate(text)]
      found[text] = sum(nats) / length**penalty
  return found


@pytest.mark.parametrize('make', [lambda: toys.windowed(20), toys.recurrent], ids=['attention', 'recurrent'])
@pytest.mark.parametrize('penalty', [-0.5, 0.0, 1.0, 2.0])
def test_a_full_beam_finds_the_best_of_all_texts(make, penalty):
  toy, size, longest = make(), 4, 3
  prompts = [np.array([5]), np.array([9, 1, 7]), np.array([3, 3])]
  wide = Beam(size**longest, penalty, 'never', num=5)
  found = beam.search(toy.decoder, toy.params, prompts, wide, longest, vocabulary_size=size, end_token=END)
  for row, prompt in enumerate(prompts):
    scores = all_texts(toy.full, prompt, size, longest, penalty)
    best = sorted(scores, key=scores.get, reverse=True)[:5]
    texts = [tuple(found.tokens[row, n, : found.lengths[row, n]].tolist()) for n in range(5)]
    assert texts == best
    np.testing.assert_allclose(found.scores[row], [scores[text] for text in best], rtol=1e-4)  # float32 sums
    for n, text in enumerate(texts):
      nats = [log_softmax(toy.full(np.array([*prompt, *text[:i]])))[t] for i, t in enumerate(text)]
      np.testing.assert_allclose(found.log_probabilities[row, n, : len(text)], nats, rtol=1e-3, atol=1e-4)


def test_one_beam_is_greedy_decoding():
  toy = toys.recurrent()
  prompts = [np.array(p) for p in ([1], [4, 5], [8, 0, 3], [7, 7, 7, 7])]
  settings = {'vocabulary_size': 9, 'end_token': END}
  greedy = decode.generate(
    toy.decoder, toy.params, prompts, jax.random.key(0), Sampling(greedy=True), 12, **settings
  )
  found = beam.search(toy.decoder, toy.params, prompts, Beam(1), 12, **settings)
  np.testing.assert_array_equal(found.lengths[:, 0], greedy.lengths)
  width = found.tokens.shape[2]
  np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens[:, :width])
  np.testing.assert_allclose(found.log_probabilities[:, 0], greedy.log_probabilities[:, :width], atol=1e-5)


SETTINGS = [
  (2, 1.0, False),
  (3, 0.0, True),
  (4, 2.0, 'never'),
  (5, -0.5, False),
  (4, 0.6, True),
  (3, 1.0, 'never'),
  (5, 2.0, False),
  (2, -0.5, 'never'),
]


@pytest.mark.parametrize(
  ('make', 'end'),
  [
    pytest.param(peers.gpt2, 3, marks=pytest.mark.slow, id='gpt2'),  # as long as Llama's, which stays
    pytest.param(peers.llama, 7, id='llama'),
  ],
)
def test_beams_are_those_of_transformers_on_200_prompts(make, end):
  """8 settings, each on 200 prompts of unequal length: the n best texts token for token, with their scores."""
  config, params, model = make(vocabulary_size=23, context_length=40)
  generator, ended = np.random.default_rng(4), 0
  for setting in SETTINGS:
    prompts = [generator.integers(3, 23, n) for n in generator.integers(1, 9, 200)]
    ended += compared(models.decoder(models.build(config)), params, model, setting, prompts, None, end)
  assert 0.1 < ended / 3200 < 0.9  # the end is in play, and so is the limit


@pytest.mark.slow
def test_beams_of_an_encoder_decoder_are_those_of_transformers_on_200_sources():
  """The same for the original Transformer, as Marian is: every text begins with the end token."""
  config, params, model = peers.marian(vocabulary_size=23, end_token=3)
  generator, ended = np.random.default_rng(5), 0
  for setting in SETTINGS:
    sources = [generator.integers(4, 23, n) for n in generator.integers(1, 9, 200)]
    decoder = models.decoder(models.build(config))
    ended += compared(decoder, params, model, setting, [np.array([3])] * 200, sources, 3)
  assert 0.1 < ended / 3200 < 0.9


def compared(decoder, params, model, setting, prompts, sources, end):
  """Asserts that the 2 best texts of each prompt are equal, with their scores; returns how many of them ended."""
  size, penalty, stopping = setting
  params, ended = jax.tree.map(np.copy, params), 0
  way = Beam(size, penalty, stopping, num=2)
  ours = beam.search(decoder, params, prompts, way, 10, sources=sources, end_token=end)
  theirs, scores = of_transformers(model, prompts, sources, end, size, penalty, stopping)
  for row in range(len(prompts)):
    for n in range(2):
      text = ours.tokens[row, n, : ours.lengths[row, n]].tolist()
      assert text == theirs[row][n], (setting, row, n)
      ended += text[-1] == end
  np.testing.assert_allclose(ours.scores, scores, rtol=1e-3, atol=1e-3)  # float32, two ways of adding
  return ended


def of_transformers(model, prompts, sources, end, size, penalty, stopping):
  """([prompts][2] lists of new tokens through the first end, scores [prompts, 2]): prompts are padded on the left."""
  read = prompts if sources is None else sources
  width = max(map(len, read))
  tokens = torch.zeros((len(read), width), dtype=torch.long)
  mask = torch.zeros_like(tokens)
  for row, text in enumerate(read):
    inside = slice(width - len(text), width) if sources is None else slice(len(text))
    tokens[row, inside], mask[row, inside] = torch.tensor(text), 1
  choices = {
    'num_beams': size,
    'length_penalty': penalty,
    'early_stopping': stopping,
    'num_return_sequences': 2,
  }
  made = model.generate(
    tokens,
    attention_mask=mask,
    do_sample=False,
    max_new_tokens=10,
    eos_token_id=end,
    pad_token_id=0,
    return_dict_in_generate=True,
    output_scores=True,
    **choices,
  )
  rows = made.sequences[:, width if sources is None else 1 :].tolist()
  cut = [row[: row.index(end) + 1] if end in row else row for row in rows]
  return [cut[i : i + 2] for i in range(0, len(cut), 2)], made.sequences_scores.numpy().reshape(-1, 2)


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    ({'beam_size': 0}, 'beam_size must be a whole number'),
    ({'beam_size': 2, 'num': 3}, 'num: 3 texts do not come from a beam_size of 2'),
    ({'length_penalty': float('nan')}, 'length_penalty must be a number'),
    ({'early_stopping': 'maybe'}, 'early_stopping must be true, false or never'),
  ],
)
def test_choices_that_mean_nothing_are_refused(choices, message):
  with pytest.raises(UsageError, match=message):
    beam.check(Beam(**choices))


def test_a_text_longer_than_the_context_is_refused_before_compiling():
  toy = toys.windowed(6)
  with pytest.raises(UsageError, match='use a max_new_tokens of at most 4'):
    beam.search(toy.decoder, toy.params, [np.array([1, 2, 3])], Beam(2), 5)
