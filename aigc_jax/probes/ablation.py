"""What each attention head is worth: the metrics without it (Michel et al. 2019, section 3).

A head is taken out by zeros in its rows of the output weights, so that it writes nothing into the vectors between
layers; the rest of the model is as it was.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import data, tasks
from aigc_jax.errors import UsageError
from aigc_jax.probes.panels import Axis, Bars, Heat, numbered
from aigc_jax.probes.result import Probe
from aigc_jax.task import Context
from aigc_jax.training.state_leaves import flat

BATCHES = 4  # of the validation split
PATH = re.compile(r'(?P<stack>.*?)_(?P<layer>\d+)/(?P<part>\w+)/output/kernel$')
NOTES = (
  'The change of the loss when one head writes nothing (zero ablation, Michel et al. 2019), over {rows}. Above 0 the '
  'model needs the head; heads may stand in for one another, so that two small changes can be a large one together.'
)


def kernels(params):
  """{path: kernel [heads, head_width, width]} of what the heads of each attention write."""
  return {path: array for path, array in flat(params).items() if PATH.search(path) and array.ndim == 3}


def without(params, path, head):
  """The parameters with one head silent; `path` of its kernel, as `kernels` has it."""
  *names, last = path.split('/')

  def at(tree, names):
    if not names:
      return tree | {last: tree[last].at[head].set(0)}
    return tree | {names[0]: at(tree[names[0]], names[1:])}

  return at(params, names)


def probe(run, source=None, batches=BATCHES):
  """Metrics with all heads, and without each.

  Args:
    source: other data, such as 'text:PATH'; None: the validation split.
    batches: how many of it.

  Returns a Probe with arrays 'loss' () and 'change' [layers, heads] (of other stacks 'change_NAME').
  Raises UsageError for models without heads.
  """
  params, found = run.params, kernels(run.params)
  if not found:
    raise UsageError(
      f'{run.path}: its model, {run.config["model"]["name"]}, has no attention heads to take out'
    )
  measure, rows = measurer(run, source, batches)
  before = measure(params)
  stacks = {}
  for path, kernel in found.items():
    match = PATH.search(path)
    losses = [measure(without(params, path, head))['loss'] for head in range(len(kernel))]
    stacks.setdefault(stack_name(match), {})[int(match['layer'])] = np.array(losses) - before['loss']
  panels, kept = [], {'loss': np.float64(before['loss'])}
  for name, layers in stacks.items():
    change = np.stack([layers[i] for i in sorted(layers)])  # [layers, heads]
    kept['_'.join(['change', *name.split()])] = change
    axes = numbered('layer', len(change)), numbered('head', change.shape[1])
    title = f'change of the loss ({before["loss"]:.4f}) without a head' + (f', {name}' if name else '')
    details = [[f'loss {before["loss"] + value:.4f}' for value in row] for row in change]
    panels.append(Heat(title, change, axes, colours='diverging', details=details))
    order = np.argsort(-change, axis=None)
    labels = [f'{i}.{j}' for i, j in itertools.product(*map(range, change.shape))]
    worth = f'heads by what they are worth{name and ", " + name}'
    panels.append(
      Bars(worth, change.ravel()[order], Axis('layer.head', [labels[i] for i in order]), 'change of the loss')
    )
  return Probe('ablation', 'what each head is worth', panels, kept, NOTES.format(rows=rows))


def stack_name(match):
  """'' where there is one stack; 'encoder', 'decoder', 'decoder cross' of two."""
  stack = match['stack'].rpartition('/')[2].removesuffix('block').rstrip('_')
  return f'{stack} cross' if match['part'] == 'cross_attention' else stack


def measurer(run, source, batches):
  """(params -> {metric: value}, words for what it is measured on)."""
  config, form = run.config, tasks.form_of(run.config)
  if source is None and run.imported:
    raise UsageError(f'{run.path}: was imported, and has no data of its own; give data (--data=text:FILE)')
  dataset = data.load(config['data'], run.tokenizer, form) if source is None else run.other_data(source)
  task, extra = run.task, jax.tree.map(jnp.asarray, run.state.extra)
  rows = list(itertools.islice(dataset.validation_batches(), batches))
  context = Context(jax.random.key(0), jnp.int32(0), False)

  @jax.jit
  def sums(params, batch):
    if task.evaluate is not None:
      return task.evaluate(params, extra, batch, context)
    total, (weight, _, metrics) = task.loss(params, extra, batch, context)
    return {'loss': (total, weight), **metrics}

  def measure(params):
    added = jax.tree.map(lambda *parts: sum(parts), *jax.device_get([sums(params, batch) for batch in rows]))
    return {name: np.asarray(total) / np.maximum(weight, 1e-9) for name, (total, weight) in added.items()}

  return measure, f'{len(rows)} batches of {source or "the validation split"}'
