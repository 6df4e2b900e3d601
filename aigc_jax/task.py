"""The contract between what is learned and how: `Task`, and the `State` and `Context` its functions see.

A task is a few pure functions. The training step divides, adds over devices and microbatches, and calls the optimizer;
a task never does. Losses and metrics are sums with their weights, so that padding, uneven batches, microbatches, one
device and many give the same numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

RESIDENT = 'resident'  # the entry of a batch that is no row of it: a data set that lives on the device, whole


class State(NamedTuple):
  """Everything that a checkpoint holds. Under lanes every leaf but `frozen` has a leading lane axis."""

  step: Any  # () int32: optimizer steps taken
  params: Any  # what gradients change
  frozen: (
    Any  # parameters that never change, a tree of the same shape with holes; merged before a task sees them
  )
  opt: Any  # optax state
  average: Any  # moving average of `params`, or None
  extra: Any  # what changes without gradients: batch statistics, RNN carry, codebooks, replay, target network
  key: Any  # () PRNG key; each step folds `step` into it


class Context(NamedTuple):
  """Where and when a task's function is called.

  Under jit the whole batch is seen and the collectives are identities; under pmap each device sees its rows, and
  `axis` names the mapped axis that `sum`, `max` and `gather` work over.
  """

  key: Any  # () PRNG key of this call
  step: Any  # () int32
  train: bool
  axis: str | None = None

  def sum(self, tree):
    """Adds every leaf over the devices. What must agree everywhere (statistics, codebooks) goes through it."""
    import jax

    return jax.lax.psum(tree, self.axis) if self.axis else tree

  def max(self, tree):
    """The largest of every leaf, place by place, over the devices."""
    import jax

    return jax.lax.pmax(tree, self.axis) if self.axis else tree

  def gather(self, array):
    """All devices' rows, [rows, ...] -> [devices * rows, ...]."""
    import jax

    return jax.lax.all_gather(array, self.axis, tiled=True) if self.axis else array

  def places(self, rows):
    """Where this device's `rows` rows are among those that `gather` gives, int32 [rows]."""
    import jax

    own = jax.numpy.arange(rows)
    return own + rows * jax.lax.axis_index(self.axis) if self.axis else own


def keep_batch(params, extra, batch, context):
  """The default `collect`: learn from the batch as it came."""
  del params, context
  return extra, batch


class Task(NamedTuple):
  """What is learned, as pure functions of arrays.

  init(key, batch) -> (params, extra).
  loss(params, extra, batch, context) -> (total, (weight, extra, metrics)): `total` () the sum of losses over what
    counts, `weight` () how much counts, `metrics` {name: (sum, weight)}. In an evaluation, `extra` is handed on to
    the next batch of the split and forgotten after the last.
  collect(params, extra, batch, context) -> (extra, batch): makes the batch to learn from (masks tokens, draws views,
    acts in an environment). Sees the whole step's batch, before microbatches; no gradient passes through it. Where
    the data set lives on the device, batch['resident'] is all of it, and batch['rows'] are those to take; beside rows
    of a larger set, 'resident' is but the first of each class. What is returned has rows alone.
  evaluate(params, extra, batch, context) -> {name: (sum, weight)} over one validation batch; None: the loss's
    metrics and its 'loss'. Here, and in the loss where it does not train, sums and weights may be arrays (one for
    each class).
  report(metrics) -> metrics: host floats made from the divided metrics (perplexity of a mean loss), which are
    arrays where their sums are.
  show(params, extra, data, key) -> {name: text or image array}: what people look at, on the host; None: nothing.
  draw(params, extra, data, key, num, label=None, interpolate=False) -> image [height, width, channels]: what
    `aigc generate` writes for a task that makes pictures; of `data` it may read the tokenizer and the facts. None:
    it makes none.
  prompts(tokenizer, texts) -> generation.text.Prompts: how its models, by `models.decoder`, write from texts. Raises
    UsageError. None: they write no text.
  answers: what they write stands by itself, as a translation does, and does not go on from the text.
  fills_masks: its models fill in the masks of text, by `generation.fill`.
  layout: how `extra` lies: 'replicated'; 'rows', split over the devices (replay, environments); 'batch', its rows
    belong to the rows of the batch and go with them to devices and microbatches (a carried hidden state); or a tree
    of these, shaped like `extra` or a prefix of it.
  unit: what the weight of the loss counts, for people ('tokens').
  loss_unit: what the loss is in, for people.
  higher_is_better: names of metrics of which more is better ('accuracy'); of all others less is.
  whole_batch: the loss looks across the batch, so microbatches are refused.
  """

  init: Callable
  loss: Callable
  collect: Callable = keep_batch
  evaluate: Callable | None = None
  report: Callable = dict
  show: Callable | None = None
  draw: Callable | None = None
  prompts: Callable | None = None
  answers: bool = False
  fills_masks: bool = False
  layout: Any = 'replicated'
  whole_batch: bool = False
  unit: str = 'examples'
  loss_unit: str = 'nats'
  higher_is_better: tuple = ()
