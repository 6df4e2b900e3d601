"""Speculative decoding writes what the target alone would: token for token, and in distribution."""

import collections
import itertools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from aigc_jax import models
from aigc_jax.data import tokenizers
from aigc_jax.errors import UsageError
from aigc_jax.generation import Sampling, decode, generate_text, prompts_of, speculative, strategies
from aigc_jax.generation.processors import RepetitionPenalty
from tests.compilations import count_compilations
from tests.generation import toys

SIZE, NEW = 5, 3


@pytest.fixture(scope='module')
def pair():
  """A target and a draft of the same vocabulary, both Transformers, and a recurrent draft."""
  shape = {
    'name': 'transformer',
    'vocabulary_size': 11,
    'context_length': 64,
    'heads': 2,
    'width': 16,
    'init_scale': 0.5,
  }
  found = []
  for seed, config in enumerate(
    [
      shape | {'layers': 2},
      shape | {'layers': 1},
      {'name': 'rnn', 'vocabulary_size': 11, 'width': 12, 'init_scale': 1.0},
    ]
  ):
    module = models.build(config)
    params = module.init(jax.random.key(seed), np.zeros((1, 4), np.int32))['params']
    found.append((models.decoder(module), params))
  return found


@pytest.mark.parametrize('draft', [0, 1, 2], ids=['itself', 'transformer', 'recurrent'])
@pytest.mark.parametrize('chain', [(), (RepetitionPenalty(1.3),)], ids=['plain', 'penalty'])
def test_greedy_is_the_targets_greedy_on_100_prompts(pair, draft, chain):
  target, sampling = pair[0], Sampling(greedy=True, processors=chain)
  generator = np.random.default_rng(0)
  prompts = [generator.integers(0, 11, n) for n in generator.integers(1, 12, 100)]
  settings = {'end_token': 4}
  plain = decode.generate(*target, prompts, jax.random.key(0), sampling, 20, **settings)
  same = 0
  for first in range(0, 100, 25):  # rows go on together, so few of them together keep more
    found = speculative.generate(
      *target,
      *pair[draft],
      prompts[first : first + 25],
      jax.random.key(0),
      sampling,
      20,
      draft_tokens=3,
      **settings,
    )
    for row in range(25):
      length = plain.lengths[first + row]
      assert found.generated.lengths[row] == length
      tokens = found.generated.tokens[row, :length]
      np.testing.assert_array_equal(tokens, plain.tokens[first + row, :length])
      nats = found.generated.log_probabilities[row, :length]
      np.testing.assert_allclose(nats, plain.log_probabilities[first + row, :length], atol=1e-4)
      same += 1
    assert draft != 0 or found.acceptance_rate == 1
    assert draft == 0 or found.acceptance_rate < 1
  assert same == 100


def enumerated(toy, prompt, sampling):
  """{text: probability} of all texts of NEW tokens, in float64."""
  beginnings = [text for n in range(NEW) for text in itertools.product(range(SIZE), repeat=n)]
  logits = np.stack([toy.full(np.array([*prompt, *text]))[:SIZE] for text in beginnings]).astype(np.float32)
  shares = np.asarray(jax.nn.softmax(strategies.process(logits, sampling)), np.float64)
  following = dict(zip(beginnings, shares, strict=True))
  return {
    text: math.prod(following[text[:i]][token] for i, token in enumerate(text))
    for text in itertools.product(range(SIZE), repeat=NEW)
  }


@pytest.mark.parametrize('draft', [toys.recurrent, lambda: toys.windowed(None)], ids=['bad', 'itself'])
@pytest.mark.parametrize(
  'sampling',
  [Sampling(temperature=2.0), Sampling(temperature=2.0, top_k=3), Sampling(temperature=3.0, top_p=0.9)],
)
def test_sampled_texts_have_the_targets_distribution(draft, sampling):
  """Chi-square over 2,000 texts, in batches of 8, whose rows hold each other up."""
  toy, other, prompt, count = toys.windowed(None), draft(), np.array([7, 1]), 2000
  expected = enumerated(toy, prompt, sampling)
  run = lambda key: speculative.generate(
    toy.decoder,
    toy.params,
    other.decoder,
    other.params,
    [prompt] * 8,
    key,
    sampling,
    NEW,
    draft_tokens=2,
    vocabulary_size=SIZE,
  )
  texts, rates = collections.Counter(), []
  for seed in range(count // 8):
    found = run(jax.random.key(seed))
    texts.update(map(tuple, found.generated.tokens.tolist()))
    rates.append(found.acceptance_rate)
  assert not [text for text in texts if expected[text] == 0]
  common = [text for text in expected if count * expected[text] >= 5]
  observed = [texts[text] for text in common] + [count - sum(texts[text] for text in common)]
  wanted = [count * expected[text] for text in common]
  wanted += [max(count - sum(wanted), 1e-9)]
  if wanted[-1] < 5:
    observed, wanted = [*observed[:-2], sum(observed[-2:])], [*wanted[:-2], sum(wanted[-2:])]
  assert len(observed) > 5
  assert stats.chisquare(observed, np.array(wanted) * sum(observed) / sum(wanted)).pvalue > 1e-3
  assert (
    np.mean(rates) == pytest.approx(1, abs=1e-3) if draft is not toys.recurrent else np.mean(rates) < 0.95
  )


def test_texts_with_a_draft_are_the_targets_texts(pair):
  """Through strings, prompts of mixed length, with an end; two shapes for both models."""
  known = tokenizers.build('characters', 'abcdefgh ', lambda: (), separated=True)  # 11 tokens
  texts = ['abc'[: i % 3] + 'defgh' * (i % 4) for i in range(12)]
  prompts, sampling = prompts_of(known, texts), Sampling(greedy=True)
  options = {'max_new_tokens': 16, 'sampling': sampling}
  plain = generate_text(*pair[0], known, prompts, **options)
  with count_compilations() as compiled:
    found = speculative.speculative_text(*pair[0], *pair[1], known, prompts, **options, draft_tokens=3)
  assert [c.tokens for c in found.completions] == [c.tokens for c in plain]
  assert [c.text for c in found.completions] == [c.text for c in plain]
  assert [c.finish_reason for c in found.completions] == [c.finish_reason for c in plain]
  assert 0 <= found.acceptance_rate < 1 <= found.tokens_per_pass < 4
  assert len([name for name in compiled if 'speculate' in name or 'fill' in name]) <= 6


def test_what_cannot_be_drafted_is_refused(pair):
  target, toy = pair[0], toys.recurrent()
  small = toy.decoder._replace(vocabulary_size=7)
  run = lambda draft, prompt, new, **options: speculative.generate(
    *target, draft, toy.params, [prompt], jax.random.key(0), Sampling(), new, **options
  )
  with pytest.raises(UsageError, match='draft: its vocabulary has 7 tokens and the target 11'):
    run(small, np.array([1]), 3)
  with pytest.raises(UsageError, match='use a max_new_tokens of at most 5'):
    run(toy.decoder, np.zeros(60, int), 6)
  with pytest.raises(UsageError, match='draft_tokens must be a whole number'):
    run(toy.decoder, np.array([1]), 3, draft_tokens=0)
