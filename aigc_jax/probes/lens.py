"""What a Transformer would say after each of its layers: the logit lens (nostalgebraist 2020).

The vectors between layers go through the model's own last norm and output weights, as those of the last layer do.
"""

import jax
import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.probes.panels import Axis, Heat
from aigc_jax.probes.reading import shown
from aigc_jax.probes.result import Probe

SHOWN = 5  # tokens told of each place
FIRST = ('embed_norm', 'embed')  # whose vectors the first block reads: the first of these that there is
NOTES = (
  'A column is a place of the text, a row the vectors after a layer, read by the norm and the output weights of the '
  'model (the logit lens, nostalgebraist 2020). In a cell: the likeliest token. The last row is what the model says. '
  'Divergence is KL(last layer || this layer) in bits.'
)


def stream(arrays):
  """[(words, vectors [time, width])] between the layers, from the token vectors on, of what `capture` found."""
  stack = 'decoder_block_' if 'decoder_block_0' in arrays else 'block_'
  count = sum(path.startswith(stack) and '/' not in path for path in arrays)
  first = next(name for name in FIRST if name in arrays)
  found = [('tokens', arrays[first])]
  return [*found, *((f'layer {i}', arrays[f'{stack}{i}']) for i in range(count))]


def probe(run, reading):
  """The lens on a Reading of one text. Arrays: log_probabilities of the told tokens, their ids, divergences.

  Raises UsageError where the model has no vectors of one kind between its layers, or writes no tokens.
  """
  if not hasattr(reading.module, 'normed') or not reading.tokens:
    raise UsageError(
      f'{run.path}: its model, {run.config["model"]["name"]}, does not write tokens from vectors between layers'
    )
  _, arrays = reading.capture()
  names, vectors = zip(*stream(arrays), strict=True)
  vocabulary, tokenizer = run.tokenizer.target.vocabulary_size, run.tokenizer.target
  read = lambda module, x: module.logits(module.normed(x))
  # parameters go in as inputs: as constants of a program they make XLA slow
  logits_of = jax.jit(lambda variables, x: reading.module.apply(variables, x, method=read))
  nats = np.stack(
    [log_softmax(np.asarray(logits_of(reading.variables, x))[0, :, :vocabulary]) for x in vectors]
  )
  told = np.argsort(-nats, axis=-1)[..., :SHOWN]  # [layers, time, SHOWN]
  of_told = np.take_along_axis(nats, told, -1)
  last = nats[-1]
  divergence = (np.exp(last) * (last - nats)).sum(-1) / np.log(2)  # [layers, time]
  words = [[shown_each(tokenizer, ids) for ids in row] for row in told]  # [layers][time][SHOWN]
  details = [
    [
      '\n'.join(f'{quoted(w)}  {np.exp(n):.3f}' for w, n in zip(*pair, strict=True))
      for pair in zip(*rows, strict=True)
    ]
    for rows in zip(words, of_told, strict=True)
  ]
  axes = Axis('after', list(names)), Axis('token', reading.tokens)
  best = [[place[0] for place in row] for row in words]
  panels = [
    Heat('likeliest token and its probability', np.exp(of_told[..., 0]), axes, details=details, cells=best)
  ]
  kept = {'log_probabilities': of_told, 'tokens': told.astype(np.int32), 'divergence': divergence}
  if reading.targets is not None:
    goal = np.clip(reading.targets, 0, vocabulary - 1)
    of_goal = np.take_along_axis(nats, np.broadcast_to(goal[None, :, None], (*nats.shape[:2], 1)), -1)[..., 0]
    of_goal = np.where(reading.counted, of_goal, np.nan)
    kept['target_log_probabilities'] = of_goal
    goals = [quoted(word) for word in shown_each(tokenizer, goal)]
    panels.append(
      Heat('probability of the right token', np.exp(of_goal), axes, details=[goals for _ in names])
    )
  panels.append(Heat('divergence from the last layer, bits', divergence, axes))
  return Probe('lens', 'logit lens', panels, kept, NOTES)


def log_softmax(logits):
  """float32 [..., vocabulary] -> float64 of the same shape."""
  logits = logits.astype(np.float64)
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def shown_each(tokenizer, ids):
  """Each of some tokens by itself, as text."""
  return [shown(tokenizer, [token])[0] for token in np.asarray(ids).tolist()]


def quoted(text):
  return repr(text)[1:-1] if text.isspace() or not text else text
