"""Processors of logits: against transformers on random prompts, and against enumeration over a tiny vocabulary."""

import collections
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from aigc_jax import models
from aigc_jax.data import tokenizers
from aigc_jax.errors import UsageError
from aigc_jax.generation import Sampling, beam, constraints, decode, processors
from aigc_jax.generation.beam import Beam
from aigc_jax.generation.constraints import AllowedStrings, ForbiddenText, ForbiddenWords, ForcedWords
from aigc_jax.generation.processors import CountPenalty, MinimumLength, NoRepeatedNgrams, RepetitionPenalty
from tests import peers
from tests.generation import toys

END, NEW = 7, 12
FORBIDDEN = [(4,), (5, 12), (3, 10, 15), (16,), (18, 18)]
CHAINS = {
  'none': ((), {}),
  'repetition': ((RepetitionPenalty(1.4),), {'repetition_penalty': 1.4}),
  'ngrams_1': ((NoRepeatedNgrams(1),), {'no_repeat_ngram_size': 1}),
  'ngrams_2': ((NoRepeatedNgrams(2),), {'no_repeat_ngram_size': 2}),
  'ngrams_3': ((NoRepeatedNgrams(3),), {'no_repeat_ngram_size': 3}),
  'forbidden': ((ForbiddenWords.of(FORBIDDEN),), {'bad_words_ids': [list(s) for s in FORBIDDEN]}),
  'minimum': ((MinimumLength(6, END),), {'min_new_tokens': 6}),
  'all': (
    (RepetitionPenalty(0.8), NoRepeatedNgrams(2), ForbiddenWords.of(FORBIDDEN), MinimumLength(3, END)),
    {
      'repetition_penalty': 0.8,
      'no_repeat_ngram_size': 2,
      'bad_words_ids': [list(s) for s in FORBIDDEN],
      'min_new_tokens': 3,
    },
  ),
}


@pytest.fixture(scope='module')
def llama():
  config, params, model = peers.llama(vocabulary_size=23, context_length=40)
  return models.decoder(models.build(config)), jax.tree.map(np.copy, params), model


def prompts_of(generator, count):
  """Prompts of one length in each group of 25, since transformers counts padding as text."""
  return [generator.integers(8, 23, (25, generator.integers(1, 9))) for _ in range(count // 25)]


@pytest.mark.parametrize('name', list(CHAINS))
def test_each_processor_writes_the_tokens_of_transformers_on_200_prompts(llama, name):
  """Greedy, the end in play."""
  decoder, params, model = llama
  chain, choices = CHAINS[name]
  generator, texts, unlike = np.random.default_rng(len(name)), 0, 0
  for group in prompts_of(generator, 200):
    sampling = Sampling(greedy=True, processors=chain)
    ours = decode.generate(decoder, params, list(group), jax.random.key(0), sampling, NEW, end_token=END)
    plain = decode.generate(
      decoder, params, list(group), jax.random.key(0), Sampling(greedy=True), NEW, end_token=END
    )
    theirs = of_transformers(model, group, **choices)
    for row in range(25):
      text = ours.tokens[row, : ours.lengths[row]].tolist()
      assert text == theirs[row]
      texts, unlike = texts + 1, unlike + (text != plain.tokens[row, : plain.lengths[row]].tolist())
  assert texts == 200
  assert name == 'none' or unlike >= 10  # the processor had something to do


@pytest.mark.parametrize('name', ['repetition', 'ngrams_2', 'forbidden', 'minimum'])
def test_processors_go_with_beams_as_in_transformers(llama, name):
  decoder, params, model = llama
  chain, choices = CHAINS[name]
  for group in prompts_of(np.random.default_rng(9), 50):
    search = Beam(3, 1.0, False, processors=chain)
    ours = beam.search(decoder, params, list(group), search, NEW, end_token=END)
    theirs = of_transformers(model, group, num_beams=3, **choices)
    assert [ours.tokens[r, 0, : ours.lengths[r, 0]].tolist() for r in range(25)] == theirs


def of_transformers(model, group, **choices):
  made = model.generate(
    torch.tensor(group),
    attention_mask=torch.ones(group.shape, dtype=torch.long),
    do_sample=False,
    max_new_tokens=NEW,
    eos_token_id=END,
    pad_token_id=0,
    **choices,
  )
  rows = made[:, group.shape[1] :].tolist()
  return [row[: row.index(END) + 1] if END in row else row for row in rows]


def test_count_penalties_are_subtracted_for_drawn_tokens_alone():
  penalty, logits = CountPenalty(0.5, 0.25), jnp.arange(6.0)[None]
  state = penalty.start([np.array([1, 1, 2])], 6, 10)
  np.testing.assert_array_equal(penalty.apply(state, logits, None), logits)
  for token in (3, 5, 3):
    state = penalty.advance(state, jnp.array([token]))
  expected = np.arange(6.0) - np.array([0, 0, 0, 0.5 + 2 * 0.25, 0, 0.5 + 0.25])
  np.testing.assert_allclose(penalty.apply(state, logits, None)[0], expected)


def distribution(full, prompt, size, longest, rule):
  """{text: probability}, each step's softmax over the tokens that `rule(text so far)` leaves."""
  found, open_ = {}, {(): 1.0}
  for _ in range(longest):
    grown = collections.defaultdict(float)
    for text, probability in open_.items():
      logits = np.asarray(full(np.array([*prompt, *text])), np.float64)[:size]
      allowed = rule(text)
      logits = np.where([token in allowed for token in range(size)], logits, -np.inf)
      shares = np.exp(logits - logits.max())
      for token in allowed:
        grown[(*text, token)] += probability * shares[token] / shares.sum()
    found |= {text: p for text, p in grown.items() if text[-1] == 2 or len(text) == longest}
    open_ = {text: p for text, p in grown.items() if text[-1] != 2 and len(text) < longest}
  return found


ALLOWED = [(0,), (0, 1), (3, 3), (1, 0, 3)]  # and the end: 4 tokens at most
RULES = {
  'forbidden': (
    ForbiddenWords.of([(1, 3), (0,)]),
    lambda text: {1, 2, 3} - ({3} if text[-1:] == (1,) else set()),
  ),
  'minimum': (MinimumLength(2, 2), lambda text: {0, 1, 3} if len(text) < 2 else {0, 1, 2, 3}),
  'ngrams': (
    NoRepeatedNgrams(2),
    lambda text: {t for t in range(4) if (5, *text, t)[-2:] not in list(itertools.pairwise((5, *text)))},
  ),
  'allowed': (
    AllowedStrings.of(ALLOWED, 2),
    lambda text: {(*s, 2)[len(text)] for s in ALLOWED if (*s, 2)[: len(text)] == text},
  ),
}


@pytest.mark.parametrize('name', list(RULES))
def test_sampled_texts_have_the_distribution_of_all_texts_enumerated(name):
  """Chi-square over 6,000 samples of up to 4 tokens from 4."""
  processor, rule = RULES[name]
  toy, prompt, count = toys.recurrent(), np.array([5]), 6000
  expected = distribution(toy.full, prompt, 4, 4, rule)
  assert sum(expected.values()) == pytest.approx(1)
  sampling = Sampling(temperature=1.0, processors=(processor,))
  settings = {'vocabulary_size': 4, 'end_token': 2}
  made = decode.generate(
    toy.decoder, toy.params, [prompt] * count, jax.random.key(1), sampling, 4, **settings
  )
  texts = collections.Counter(tuple(made.tokens[i, : made.lengths[i]].tolist()) for i in range(count))
  assert set(texts) <= set(expected)
  common = [text for text in expected if count * expected[text] >= 5]
  rare = count - sum(texts[text] for text in common)
  observed = [texts[text] for text in common] + [rare]
  wanted = [count * expected[text] for text in common]
  wanted += [count - sum(wanted)]
  if wanted[-1] < 5:
    observed, wanted = [*observed[:-2], sum(observed[-2:])], [*wanted[:-2], sum(wanted[-2:])]
  assert len(observed) > 3
  assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize('length', [9, 12, 400])
def test_forced_words_all_occur_before_the_end(length):
  """Words that overlap, one that ends as another begins, and one that repeats itself."""
  words = [(1, 1, 3), (3, 1), (8,), (0, 0)]
  toy, count = toys.recurrent(), 300
  sampling = Sampling(temperature=8.0, processors=(ForcedWords.of(words, END),))
  prompts = [np.array([i % 11]) for i in range(count)]
  made = decode.generate(toy.decoder, toy.params, prompts, jax.random.key(2), sampling, length, end_token=END)
  occurs = lambda text, word: any(text[i : i + len(word)] == word for i in range(len(text)))
  early = 0
  for tokens, n in zip(made.tokens, made.lengths, strict=True):
    text = tuple(tokens[:n].tolist())
    assert all(occurs(text, word) for word in words)
    assert text.count(END) <= 1
    early += n < length
  assert length < 400 or early > 10  # the model may end by itself, once all are there
  with pytest.raises(UsageError, match='use a max_new_tokens of 9 or more'):
    decode.generate(toy.decoder, toy.params, prompts, jax.random.key(2), sampling, 8, end_token=END)


def test_a_text_that_cannot_be_spelled_is_named():
  known = tokenizers.build('characters', 'abc ', lambda: (), separated=True)
  with pytest.raises(UsageError, match="allow: 'aé' cannot be spelled"):
    constraints.spell(known, 'aé', 'allow')


class Known(NamedTuple):
  """A vocabulary whose tokens part words in many ways."""

  pieces: list
  end_of_text: int | None

  @property
  def vocabulary_size(self):
    return len(self.pieces)


@pytest.mark.parametrize('words', [['ab'], ['aab', 'ba'], ['abab', 'b', 'cc'], ['春a', 'c春']])
def test_forbidden_text_never_occurs_however_tokens_part_it_and_nothing_else_is_ruled_out(words):
  """Every token behind 400 random texts of tokens that overlap, by Python's own search."""
  spring = '春'.encode()
  known = Known([b'a', b'b', b'ab', b'ba', b'c', b'cc', spring[:1], spring[1:], spring + b'a', b'<end>'], 9)
  rule, generator = ForbiddenText.of(words, known), np.random.default_rng(0)
  banned = allowed = 0
  for _ in range(400):
    prompt = generator.integers(0, 10, generator.integers(1, 4))
    text = b''.join(b'|' if t == 9 else known.pieces[t] for t in prompt)
    state = rule.start([prompt], 10, 5)
    for _ in range(5):
      logits = np.asarray(rule.apply(state, jnp.zeros((1, 10)), None))[0]
      for token in range(9):
        grown = text + known.pieces[token]
        new = any(grown.find(w.encode(), max(0, len(text) - len(w.encode()) + 1)) >= 0 for w in words)
        assert np.isinf(logits[token]) == new, (text, token)
        banned, allowed = banned + new, allowed + (not new)
      assert logits[9] == 0
      choice = generator.choice(np.flatnonzero(np.isfinite(logits)))
      state = rule.advance(state, jnp.array([choice]))
      text += b'|' if choice == 9 else known.pieces[choice]
  assert banned > 500
  assert allowed > 500


def test_another_value_compiles_nothing():
  """Penalties are inputs of the program; other words of like number and length too."""
  toy, key = toys.windowed(30), jax.random.key(0)
  run = lambda *chain: decode.generate(
    toy.decoder, toy.params, [np.array([1, 2])], key, Sampling(processors=chain), 5
  )
  run(RepetitionPenalty(1.1), CountPenalty(0.1, 0.2), ForbiddenWords.of([(1,), (2, 3)]))
  before = decode._advance._cache_size()
  run(RepetitionPenalty(1.5), CountPenalty(0.0, 1.0), ForbiddenWords.of([(5, 6), (0,)]))
  assert decode._advance._cache_size() == before


@pytest.mark.parametrize(
  ('processor', 'message'),
  [
    (CountPenalty(float('inf'), 0.0), 'presence_penalty must be a number'),
    (CountPenalty(0.0, 'x'), 'frequency_penalty must be a number'),
    (MinimumLength(0, 1), 'min_new_tokens must be a whole number'),
    (NoRepeatedNgrams(0), 'no_repeat_ngram_size must be a whole number'),
  ],
)
def test_values_that_mean_nothing_are_refused(processor, message):
  with pytest.raises(UsageError, match=message):
    processor.validate()
  processors.check_count('n', 1)
