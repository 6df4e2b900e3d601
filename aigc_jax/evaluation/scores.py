"""Scores of predictions by their references: BLEU, chrF (sacrebleu), ROUGE (rouge-score), exact match, distinct-n."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aigc_jax.errors import DataError, UsageError, listed, nearest
from aigc_jax.evaluation import words


class Score(NamedTuple):
  name: str
  value: float
  protocol: str  # how it was made, for people who compare it


def check(names: Sequence[str]) -> None:
  """Raises UsageError for a name that is no score."""
  for name in names:
    if name not in SCORES:
      raise UsageError(f'metrics: {name!r} is no score; {nearest(name, SCORES)}there are {listed(SCORES)}')


def score(names: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> list[Score]:
  """Scores of a corpus, one prediction and one reference for each source. Raises UsageError and DataError."""
  check(names)
  if not predictions or len(predictions) != len(references):
    raise DataError(f'{len(predictions)} predictions and {len(references)} references make no scores')
  return [found for name in names for found in SCORES[name](list(predictions), list(references))]


def bleu(predictions, references):
  """BLEU of the corpus, 0 to 100 (Papineni et al. 2002; Post 2018); Chinese references are parted by characters."""
  from sacrebleu.metrics import BLEU

  metric = BLEU(tokenize='zh' if words.is_chinese(references) else '13a')
  value = metric.corpus_score(predictions, [references]).score
  return [Score('bleu', value, f'sacrebleu {metric.get_signature()}')]


def chrf(predictions, references):
  """chrF2 of the corpus, 0 to 100 (Popović 2015)."""
  from sacrebleu.metrics import CHRF

  metric = CHRF()
  value = metric.corpus_score(predictions, [references]).score
  return [Score('chrf', value, f'sacrebleu {metric.get_signature()}')]


class _Words:
  """The tokenizer that rouge-score asks for: its own drops every character but a to z and digits."""

  tokenize = staticmethod(words.words)


def rouge(predictions, references):
  """F1 of common words, common pairs of words and the longest common subsequence (Lin 2004), 0 to 100."""
  from rouge_score.rouge_scorer import RougeScorer

  kinds = {'rouge1': 'ROUGE-1', 'rouge2': 'ROUGE-2', 'rougeL': 'ROUGE-L'}
  scorer = RougeScorer(list(kinds), tokenizer=_Words())
  found = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
  protocol = lambda name: f'{name} F1 by rouge-score, mean over texts, no stemming; {words.PROTOCOL}'
  mean = lambda kind: 100 * sum(scores[kind].fmeasure for scores in found) / len(found)
  return [Score(kind.lower(), mean(kind), protocol(name)) for kind, name in kinds.items()]


def exact_match(predictions, references):
  """The share of predictions that are the reference itself, 0 to 100."""
  pairs = zip(predictions, references, strict=True)
  hits = sum(prediction.strip() == reference.strip() for prediction, reference in pairs)
  protocol = 'share of predictions equal to the reference, but for white space around them'
  return [Score('exact_match', 100 * hits / len(predictions), protocol)]


def distinct(predictions, references=()):
  """distinct-1 and distinct-2 (Li et al. 2016): different n-grams of all predictions, as a part of all n-grams."""
  del references
  parted = [words.words(prediction) for prediction in predictions]
  return [_distinct(parted, n) for n in (1, 2)]


def _distinct(parted, n):
  grams = [tuple(text[i : i + n]) for text in parted for i in range(len(text) - n + 1)]
  value = len(set(grams)) / len(grams) if grams else 0.0
  protocol = f'different {n}-grams of all predictions by their number; {words.PROTOCOL}'
  return Score(f'distinct_{n}', value, protocol)


SCORES: dict[str, Callable[..., Any]] = {
  'bleu': bleu,
  'chrf': chrf,
  'rouge': rouge,
  'exact_match': exact_match,
  'distinct': distinct,
}
