"""Cached generation against plain recomputation of every token from its window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.errors import DataError, UsageError
from aigc_jax.generation import Sampling, decode, generate
from aigc_jax.generation.processors import RepetitionPenalty
from tests.generation import toys

GREEDY = Sampling(greedy=True)
KEY = jax.random.key(0)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3]]


def transformer(positions):
  fields = dict(vocabulary_size=11, context_length=8, layers=2, heads=2, width=16, init_scale=0.3)
  module = models.build({'name': 'transformer', 'positions': positions, **fields})
  params = module.init(KEY, jnp.zeros((1, 8), jnp.int32))['params']
  apply = jax.jit(lambda tokens: module.apply({'params': params}, tokens))

  def full(window):  # causal, so padding on the right changes nothing before it
    padded = np.zeros((1, 8), np.int32)
    padded[0, : len(window)] = window
    return np.asarray(apply(padded))[0, len(window) - 1]

  return toys.Toy(models.decoder(module), params, full)


TOYS = {
  'windowed': lambda: toys.windowed(8),
  'recurrent': toys.recurrent,
  'learned': lambda: transformer('learned'),
}


@pytest.fixture(scope='module')
def windowed():
  return toys.windowed(8)


def log_softmax(x):
  x = x - x.max()
  return x - np.log(np.exp(x).sum())


@pytest.mark.parametrize('name', TOYS)
def test_each_token_is_the_best_of_the_whole_window_recomputed(name):
  toy = TOYS[name]()
  generated = generate(toy.decoder, toy.params, PROMPTS, KEY, GREEDY, 30, chunk_size=7)
  assert generated.lengths.tolist() == [30] * 3
  for prompt, new, log_probabilities in zip(
    PROMPTS, generated.tokens, generated.log_probabilities, strict=True
  ):
    text = list(prompt)
    for token, log_probability in zip(new, log_probabilities, strict=True):
      expected = log_softmax(toy.full(text[decode.window_start(len(text), toy.decoder.context_length) :]))
      assert expected[token] > expected.max() - 1e-5
      assert log_probability == pytest.approx(expected[token], abs=2e-5)  # float32, sums in another order
      text.append(token)


def test_the_window_keeps_its_last_half_when_it_is_full():
  for context in (1, 2, 3, 8, 9):
    start = 0
    for count in range(1, 50):
      if count - start > context:
        start = count - max(1, context // 2)
      assert decode.window_start(count, context) == start
  assert decode.window_start(10**9, None) == 0


SAMPLING = Sampling(temperature=1.3, top_k=9, top_p=0.97, min_p=0.01, processors=(RepetitionPenalty(1.2),))


@pytest.fixture(scope='module')
def together(windowed):
  return generate(windowed.decoder, windowed.params, PROMPTS, KEY, SAMPLING, 30).tokens


@pytest.mark.parametrize('chunk_size', [1, 7])
def test_chunks_change_nothing(windowed, together, chunk_size):
  again = generate(windowed.decoder, windowed.params, PROMPTS, KEY, SAMPLING, 30, chunk_size=chunk_size)
  np.testing.assert_array_equal(again.tokens, together)


def test_a_row_is_the_same_in_any_batch(windowed, together):
  for rows in [1], [2]:
    prompts = [PROMPTS[row] for row in rows]
    alone = generate(windowed.decoder, windowed.params, prompts, KEY, SAMPLING, 30, rows=rows)
    np.testing.assert_array_equal(alone.tokens, together[rows])


def test_text_goes_on_as_if_it_had_never_been_interrupted(windowed):
  whole = generate(windowed.decoder, windowed.params, PROMPTS, KEY, GREEDY, 30).tokens
  prompts = [np.concatenate([prompt, new[:13]]) for prompt, new in zip(PROMPTS, whole, strict=True)]
  np.testing.assert_array_equal(
    generate(windowed.decoder, windowed.params, prompts, KEY, GREEDY, 17).tokens, whole[:, 13:]
  )


def test_rows_and_seeds_draw_differently_and_repeatably(windowed):
  draw = lambda seed: (
    generate(windowed.decoder, windowed.params, [[3]] * 4, jax.random.key(seed), Sampling(), 20).tokens
  )
  first = draw(0)
  np.testing.assert_array_equal(first, draw(0))
  assert len({row.tobytes() for row in np.concatenate([first, draw(1)])}) == 8


def test_limits_of_the_strategies_are_greedy(windowed):
  run = lambda sampling: generate(windowed.decoder, windowed.params, PROMPTS, KEY, sampling, 30).tokens
  best = run(GREEDY)
  for sampling in Sampling(top_k=1), Sampling(temperature=1e-30):
    np.testing.assert_array_equal(run(sampling), best)


def test_draws_follow_the_models_distribution(windowed):
  """The second token's frequencies, given the first, over many rows of one batch."""
  rows = 4000
  tokens = generate(windowed.decoder, windowed.params, [[3, 1]] * rows, KEY, Sampling(), 2).tokens
  first = np.bincount(tokens[:, 0]).argmax()
  counts = np.bincount(tokens[tokens[:, 0] == first, 1], minlength=toys.VOCABULARY)
  expected = np.exp(log_softmax(windowed.full([3, 1, first]))) * counts.sum()
  assert ((counts - expected) ** 2 / expected).sum() < 35  # chi-square, 10 degrees of freedom: 1 in 8,000


def test_one_compilation_for_temperatures_prompts_and_seeds(windowed, together):
  programs = lambda: (decode._advance._cache_size(), decode.fill._cache_size())
  before = programs()
  for seed, temperature, top_p in (1, 0.7, 0.9), (2, 2.0, 0.5):
    prompts = [prompt[: -seed or None] or [seed] for prompt in PROMPTS]
    sampling = SAMPLING._replace(
      temperature=temperature, top_p=top_p, processors=(RepetitionPenalty(1.0 + seed),)
    )
    generate(windowed.decoder, windowed.params, prompts, jax.random.key(seed), sampling, 30)
  assert programs() == before


def test_the_end_token_ends_a_row_and_all_rows_end_the_work():
  toy, looks = toys.scripted([5, 6, 7, 8] + [1] * 500, 11), []
  look = lambda tokens, log_probabilities, first: looks.append((first, tokens.shape[1]))
  generated = generate(
    toy.decoder, toy.params, [[1], [1, 1]], KEY, GREEDY, 500, end_token=8, chunk_size=16, on_chunk=look
  )
  assert generated.lengths.tolist() == [4, 3]
  assert generated.tokens[:, :5].tolist() == [[5, 6, 7, 8, 0], [6, 7, 8, 0, 0]]
  assert looks[-1][0] < 4  # the last chunk was begun before the last row's end
  assert not generated.tokens[:, 4:].any()
  assert not generated.log_probabilities[:, 4:].any()


def test_the_caller_ends_rows():
  toy, ends = toys.scripted([1] * 100, 11), []

  def ask(tokens, log_probabilities, first):
    ends.append(first + tokens.shape[1])
    return np.array([ends[-1] >= 5, False])

  generated = generate(toy.decoder, toy.params, [[1], [1]], KEY, GREEDY, 20, chunk_size=2, on_chunk=ask)
  assert generated.lengths.tolist() == [min(end for end in ends if end >= 5), 20]


def test_logits_that_are_not_finite_are_an_error(windowed):
  broken = windowed.params | {'head': np.full_like(windowed.params['head'], np.nan)}
  with pytest.raises(DataError, match='not finite'):
    generate(windowed.decoder, broken, [[1]], KEY, GREEDY, 12)


@pytest.mark.parametrize(
  ('prompts', 'sampling', 'count', 'said'),
  [
    ([[1]], GREEDY, 0, 'max_new_tokens'),
    ([[1]], GREEDY, 2.5, 'max_new_tokens'),
    ([[]], GREEDY, 5, 'at least one token'),
    ([[1]], Sampling(temperature=0.0), 5, 'temperature'),
    ([[1]], Sampling(top_k=0), 5, 'top_k'),
  ],
)
def test_bad_input_is_refused_before_compiling(windowed, prompts, sampling, count, said):
  before = decode._advance._cache_size(), decode.fill._cache_size()
  with pytest.raises(UsageError, match=said):
    generate(windowed.decoder, windowed.params, prompts, KEY, sampling, count)
  assert (decode._advance._cache_size(), decode.fill._cache_size()) == before
