"""Fills in the masks of texts: what a masked language model finds likely behind each (Devlin et al. 2019, 3.1).

All masks of a text are filled from one forward pass, each as if the others stayed hidden: where there are several, the
best tokens are each the best alone, and need not be the best together.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.data.tokenizers import MASK
from aigc_jax.errors import DataError, UsageError
from aigc_jax.generation import decode
from aigc_jax.generation.processors import round_up
from aigc_jax.generation.strategies import Sampling


class Candidate(NamedTuple):
  """A token that may stand behind a mask."""

  text: str
  token: int
  probability: float  # among tokens that stand for text


class Filled(NamedTuple):
  """A prompt and what is behind its masks."""

  prompt: str
  text: str  # with the best candidate of each mask
  masks: list  # for each mask, from left to right, its candidates: [Candidate], the best first


def fill(model, params, tokenizer, prompts, candidates: int = 5, batch_size: int = 8) -> list[Filled]:
  """Fills in each '[MASK]' of `prompts` (strings), all masks of a prompt at once.

  Args:
    model: a `TransformerEncoder`, which maps tokens [batch, time] and segments to logits of each place.
    params: its parameters.
    tokenizer: one with a mask token.
    candidates: how many of each mask, fewer where the vocabulary has fewer.
    batch_size: prompts read at once, those of similar length together.

  Raises UsageError, before compiling, for a prompt without a mask or longer than the model's context, and for
  characters that the tokenizer lacks; DataError for logits that are not finite.
  """
  decode.check(Sampling(), candidates=candidates, batch_size=batch_size)
  encoded = [encode(tokenizer, prompt, model.context_length) for prompt in prompts]
  candidates = min(candidates, tokenizer.vocabulary_size - len(tokenizer.special_tokens))
  order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
  size = math.ceil(len(order) / math.ceil(len(order) / batch_size)) if order else 1
  found = {}
  for first in range(0, len(order), size):
    rows = order[first : first + size]
    tokens = np.zeros((size, round_up(len(encoded[rows[-1]]))), np.int32)
    segments = np.zeros_like(tokens)
    for row, i in enumerate(rows):
      tokens[row, : len(encoded[i])], segments[row, : len(encoded[i])] = encoded[i], 1
    best = jax.device_get(
      rank(
        model,
        candidates,
        tokenizer.vocabulary_size,
        tokenizer.special_tokens,
        params,
        tokens,
        segments,
      )
    )
    for row, i in enumerate(rows):
      found[i] = _filled(tokenizer, prompts[i], encoded[i], *(array[row] for array in best))
  return [found[i] for i in range(len(encoded))]


def encode(tokenizer, prompt: str, context_length: int) -> np.ndarray:
  """A prompt's tokens [time]. Raises UsageError where it has no mask, or no room in the context."""
  if tokenizer is None or tokenizer.mask_token is None:
    raise UsageError(f'the tokenizer has no {MASK}; runs of the task masked_language have one')
  if MASK not in prompt:
    raise UsageError(f'prompt {shortened(prompt)!r} has no {MASK} to fill in')
  tokens = tokenizer.encode_masked(prompt)
  if len(tokens) > context_length:
    raise UsageError(
      f'prompt {shortened(prompt)!r} has {len(tokens):,} tokens, and the model reads {context_length:,} at most; '
      'shorten it'
    )
  return tokens


def shortened(text, most=40):
  return text if len(text) <= most else text[: most - 3] + '...'


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def rank(model, candidates, vocabulary_size, special_tokens, params, tokens, segments):
  """The likeliest ordinary tokens of each place, best first.

  Args:
    candidates: how many. vocabulary_size: tokens that there are. special_tokens: those that stand for no text.
    tokens, segments: [batch, time] int32; segment 0 is padding.

  Returns:
    (log-probabilities [batch, time, candidates] float32, tokens [batch, time, candidates] int32).
  """
  logits = model.apply({'params': params}, tokens, segments=segments)[..., :vocabulary_size]
  logits = logits.at[..., list(special_tokens)].set(-jnp.inf)
  return jax.lax.top_k(jax.nn.log_softmax(logits), candidates)


def _filled(tokenizer, prompt, tokens, log_probabilities, choices):
  """The Filled of one prompt [time], from what `rank` found for its row."""
  places = np.flatnonzero(tokens == tokenizer.mask_token)
  if not np.isfinite(log_probabilities[places]).all():
    raise DataError(f'the model gave logits that are not finite for prompt {shortened(prompt)!r}')
  masks = [
    [
      Candidate(tokenizer.decode([token]), token, math.exp(nats))
      for token, nats in zip(choices[place].tolist(), log_probabilities[place].tolist(), strict=True)
    ]
    for place in places
  ]
  best = tokens.copy()
  best[places] = choices[places, 0]
  framed = slice(len(tokenizer.prefix), len(best) - len(tokenizer.suffix))
  return Filled(prompt, tokenizer.decode(best[framed]), masks)
