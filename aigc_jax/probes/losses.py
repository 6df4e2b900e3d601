"""How hard each token of a document was: -log2 of its probability, on the text itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.probes.lens import log_softmax, quoted, shown_each
from aigc_jax.probes.panels import Text
from aigc_jax.probes.result import Probe

SHOWN = 5  # tokens told of each place
NOTES = (
  'The colour of a token is its surprise, -log2 of the probability that the model gave it. {how} Hover for what was '
  'likelier.'
)
HOW = {
  'language': 'It saw all that stands before.',
  'masked_language': 'It saw all other tokens, and this one hidden (Salazar et al. 2020).',
  'translation': 'It saw the source, and all of the target that stands before.',
}
AT_ONCE = 16  # rows of a masked text


def probe(run, reading):
  """Bits of each token of a Reading whose tokens are predicted.

  Arrays: bits [time] (NaN where none is predicted), ranks [time], tokens [time]. Raises UsageError for others.
  """
  task = run.config['task']['name']
  if reading.targets is None:
    raise UsageError(f'{run.path}: its task, {task}, predicts no tokens')
  read = jax.jit(lambda variables, inputs: reading.module.apply(variables, *inputs, **reading.settings))
  logits_of = functools.partial(
    read, reading.variables
  )  # inputs of the program: as constants they make XLA slow
  if task == 'masked_language':
    logits = hidden_in_turn(run, reading, logits_of)
  else:
    logits = np.asarray(logits_of(reading.inputs))[0]
  vocabulary, tokenizer = run.tokenizer.target.vocabulary_size, run.tokenizer.target
  nats, goal = log_softmax(logits[:, :vocabulary]), np.clip(reading.targets, 0, vocabulary - 1)
  own = nats[np.arange(len(goal)), goal]
  bits = np.where(reading.counted, -own / np.log(2), np.nan)
  ranks = np.where(reading.counted, (nats > own[:, None]).sum(-1) + 1, 0)
  details = [told(tokenizer, *row) for row in zip(nats, goal, ranks, strict=True)]
  words = shown_each(tokenizer, goal)
  kept = {'bits': bits, 'ranks': ranks.astype(np.int32), 'tokens': goal.astype(np.int32)}
  chosen = np.flatnonzero(reading.counted)
  if not len(chosen):
    raise UsageError('text: has no token that is predicted; a longer one has')
  text = Text(
    f'bits of each token, {np.nanmean(bits):.3f} in the mean',
    [words[i] for i in chosen],
    bits[chosen],
    (),
    details=[details[i] for i in chosen],
    unit='bits',
  )
  return Probe('loss', 'surprise of each token', [text], kept, NOTES.format(how=HOW[task]))


def hidden_in_turn(run, reading, logits_of):
  """Logits [time, vocabulary] of each token when it alone is hidden."""
  tokens, mask = np.asarray(reading.inputs[0])[0], run.tokenizer.mask_token
  found, places = [], np.arange(len(tokens))
  for first in range(0, len(tokens), AT_ONCE):
    some = np.minimum(first + np.arange(AT_ONCE), len(tokens) - 1)  # one shape, one compilation
    rows = np.where(places == some[:, None], mask, tokens)
    logits = np.asarray(logits_of((jnp.asarray(rows),)))
    found.append(logits[np.arange(AT_ONCE), some])
  return np.concatenate(found)[: len(tokens)]


def told(tokenizer, nats, goal, rank):
  """Lines on a place: its token, the rank of it, and what was likelier."""
  best = np.argsort(-nats)[:SHOWN]
  likely = (
    f'{quoted(w)}  {np.exp(n):.3f}' for w, n in zip(shown_each(tokenizer, best), nats[best], strict=True)
  )
  own = quoted(shown_each(tokenizer, [goal])[0])
  return '\n'.join([f'{own}: probability {np.exp(nats[goal]):.3g}, rank {rank}', *likely])
