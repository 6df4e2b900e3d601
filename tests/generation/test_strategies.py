"""Strategies against transformers' logits processors and against distributions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aigc_jax.errors import UsageError
from aigc_jax.generation import processors, strategies
from aigc_jax.generation.processors import RepetitionPenalty
from aigc_jax.generation.strategies import Sampling

process = jax.jit(strategies.process, static_argnums=1)
narrow = jax.jit(strategies.narrow, static_argnums=1)
choose = jax.jit(strategies.choose, static_argnums=1)


def normal(*shape, scale=3.0, seed=0):
  return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def theirs(logits, tokens, sampling):
  """What transformers makes of logits, with the processors in the order of its `_get_logits_processor`."""
  torch = pytest.importorskip('torch')
  from transformers.generation import logits_process as t

  processors = [
    ('temperature', t.TemperatureLogitsWarper),
    ('top_k', t.TopKLogitsWarper),
    ('top_p', t.TopPLogitsWarper),
    ('min_p', t.MinPLogitsWarper),
  ]
  scores = torch.tensor(logits)
  for penalty in sampling.processors:
    scores = t.RepetitionPenaltyLogitsProcessor(penalty.penalty)(torch.tensor(tokens), scores)
  for name, processor in processors:
    if getattr(sampling, name) is not None:
      scores = processor(getattr(sampling, name))(torch.tensor(tokens), scores)
  return scores.numpy()


@pytest.mark.parametrize(
  'sampling',
  [
    Sampling(processors=(RepetitionPenalty(1.3),)),
    Sampling(processors=(RepetitionPenalty(0.7),)),
    Sampling(temperature=0.6),
    Sampling(top_k=1),
    Sampling(top_k=17),
    Sampling(top_k=1000),
    Sampling(top_p=0.5),
    Sampling(top_p=0.95),
    Sampling(top_p=0.001),
    Sampling(min_p=0.05),
    Sampling(temperature=0.7, top_k=40, top_p=0.9),
    Sampling(temperature=1.5, top_k=50, top_p=0.8, min_p=0.02, processors=(RepetitionPenalty(1.2),)),
  ],
  ids=lambda sampling: ' '.join(f'{k}={v}' for k, v in sampling._asdict().items() if v),
)
def test_masks_and_probabilities_are_those_of_transformers(sampling):
  logits, tokens = normal(6, 200), np.random.default_rng(1).integers(0, 200, (6, 30))
  chain = sampling.processors
  penalized = processors.apply(chain, processors.start(chain, tokens, 200, 1), jnp.asarray(logits), None)
  ours = np.asarray(process(penalized, sampling._replace(processors=())))
  reference = theirs(logits, tokens, sampling)
  np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(reference))
  softmax = lambda x: np.asarray(jax.nn.softmax(x, axis=-1))
  np.testing.assert_allclose(
    softmax(ours), softmax(reference), rtol=1e-5
  )  # float32, one shifted by its maximum


@pytest.mark.parametrize('sampling', [Sampling(top_k=5), Sampling(top_k=5, top_p=0.7, temperature=0.5)])
def test_narrowed_rows_keep_the_same_tokens(sampling):
  logits = normal(8, 5003)
  few, columns = narrow(jnp.asarray(logits), sampling.top_k)
  assert few.shape == (8, 5 * 64)
  whole, few = process(logits, sampling), process(few, sampling)
  for row in range(8):
    kept = np.isfinite(few[row])
    assert sorted(columns[row][kept].tolist()) == np.flatnonzero(np.isfinite(whole[row])).tolist()
    np.testing.assert_allclose(whole[row][columns[row][kept]], few[row][kept], rtol=1e-6)


def test_narrowing_survives_ties_and_impossible_tokens():
  tied = np.zeros((1, 1000), np.float32)
  blocked = np.full((1, 1000), -np.inf, np.float32)
  blocked[0, 777] = 1
  for logits in tied, blocked:
    few, columns = narrow(jnp.asarray(logits), 3)
    assert len(set(columns[0].tolist())) == 192
    np.testing.assert_array_equal(few[0], logits[0, columns[0]])
  assert 777 in columns[0]


@pytest.mark.parametrize('size', [2, 9, 50])
def test_a_draw_has_the_softmax_probabilities(size):
  """A grid over the two uniform numbers: every token's share of it, up to the grid's steps."""
  steps, logits = 300, normal(1, size, scale=1.0)
  grid = (np.arange(steps) + 0.5).astype(np.float32) / steps
  uniform = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
  tokens = jax.jit(strategies.draw)(jnp.broadcast_to(logits, (len(uniform), size)), uniform)
  shares = np.bincount(tokens, minlength=size) / len(uniform)
  np.testing.assert_allclose(shares, jax.nn.softmax(logits[0]), atol=2.5 / steps)


@pytest.mark.parametrize('size', [60, 5003])
def test_choices_follow_the_processed_distribution(size):
  """Chi-square over 40,000 draws, with the row narrowed (5,003 columns) or not (60)."""
  sampling = Sampling(temperature=1.2, top_k=12, top_p=0.95, min_p=0.01)
  logits, count = normal(1, size, scale=1.0), 40_000
  expected = np.asarray(jax.nn.softmax(process(logits, sampling), axis=-1), np.float64)[0]
  one = lambda uniform: strategies.choose(jnp.asarray(logits), sampling, uniform[None])[0]
  tokens = np.asarray(jax.jit(jax.vmap(one))(jax.random.uniform(jax.random.key(0), (count, 2))))
  counts, kept = np.bincount(tokens, minlength=size), expected > 0
  assert not counts[~kept].any()
  assert 3 < kept.sum() <= 12
  assert stats.chisquare(counts[kept], count * expected[kept] / expected[kept].sum()).pvalue > 1e-3


def test_extreme_uniform_numbers_never_draw_what_was_ruled_out():
  logits = process(normal(64, 1000), Sampling(top_p=0.9))
  largest = 1 - 2**-24
  for pair in [(0, 0), (0, largest), (largest, 0), (largest, largest)]:
    tokens = jax.jit(strategies.draw)(logits, np.tile(np.float32(pair), (64, 1)))
    assert np.isfinite(np.take_along_axis(np.asarray(logits), np.asarray(tokens)[:, None], 1)).all()


def test_at_least_one_token_stays_and_ties_stay_together():
  logits = np.stack(
    [np.zeros(50), np.where(np.arange(50) < 3, 1e30, -1e30), np.where(np.arange(50) == 7, 0, -np.inf)]
  )
  kept = lambda sampling: np.isfinite(process(logits.astype(np.float32), sampling)).sum(1).tolist()
  for sampling in Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(min_p=0.999):
    assert kept(sampling) == [50, 3, 1]
  assert kept(Sampling(top_p=0.5, top_k=2, min_p=0.5)) == [50, 3, 1]


def test_no_temperature_overflows():
  logits = np.array([[1e4, 1e4 - 1, -np.inf]], np.float32)
  for temperature in np.finfo(np.float32).tiny, 1e-10, 1e30:
    shares = np.asarray(jax.nn.softmax(strategies.temperature(logits, jnp.float32(temperature)), axis=-1))
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0] if temperature > 1 else [1, 0, 0]])


def test_a_row_does_not_depend_on_its_neighbours():
  sampling = Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01)
  logits, uniform = normal(16, 300), np.random.default_rng(0).random((16, 2), np.float32)
  together = choose(logits, sampling, uniform)
  alone = [choose(logits[i : i + 1], sampling, uniform[i : i + 1])[0] for i in (0, 9)]
  assert alone == [together[0], together[9]]


@pytest.mark.parametrize(
  ('field', 'values'),
  [
    ('temperature', [0, -1.0, float('nan'), float('inf'), 1e-50, '1', True]),
    ('top_k', [0, -3, 2.0, True, '5']),
    ('top_p', [0, 1.01, -0.1, float('nan')]),
    ('min_p', [-0.1, 1, float('nan')]),
    ('repetition_penalty', [0, -1.0, float('nan'), float('inf')]),
  ],
)
def test_values_that_mean_nothing_are_refused(field, values):
  for value in values:
    penalty = field == 'repetition_penalty'
    choices = {'processors': (RepetitionPenalty(value),)} if penalty else {field: value}
    with pytest.raises(UsageError, match=field) as raised:
      strategies.validate(Sampling(**choices))
    assert '\n' not in str(raised.value)
  strategies.validate(Sampling(temperature=1, top_k=5, top_p=1, min_p=0, processors=(RepetitionPenalty(1),)))
