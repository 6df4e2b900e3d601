"""Perplexity of a text per token, word, character and byte: one likelihood, by four counts."""

import math

from aigc_jax.evaluation import words
from aigc_jax.evaluation.scores import Score

LARGEST = 700.0  # nats that exp can take


def perplexities(nats: float, tokens: int, text: str) -> list[Score]:
  """exp(nats / count) for each way to count `text`, whose `tokens` tokens have -log probabilities of `nats` in sum."""
  counts = {
    'token': (tokens, 'tokens that are predicted, ends of text included'),
    'word': (words.count_words(text), 'words between white space, each East Asian character a word'),
    'character': (len(text), 'Unicode characters, white space included'),
    'byte': (len(text.encode('utf-8')), 'bytes of UTF-8'),
  }
  protocol = 'exp of the sum of nats of all tokens by the number of'
  return [
    Score(
      f'perplexity_per_{name}', math.exp(min(nats / max(count, 1), LARGEST)), f'{protocol} {what}: {count:,}'
    )
    for name, (count, what) in counts.items()
  ]
