"""Task + optimizer -> init, step and evaluate: pure functions of (floats, state, batch), the same for every task.

They are written once, for one device that sees everything. `parallel.py` runs them over a mesh or as per-device
programs, where `axis` names the mapped device axis; `lanes` runs several trials at once.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from aigc_jax.config import with_floats
from aigc_jax.errors import UsageError
from aigc_jax.task import Context, State
from aigc_jax.tasks import lora
from aigc_jax.training import optimizer

EVALUATION = 2**32 - 1  # a step number that no run reaches


class Program(NamedTuple):
  """The pure functions of one experiment. Floats are {dotted key: float32 array}, see `config.floats_of`."""

  init: Callable  # floats, key, batch -> State
  step: Callable  # floats, state, batch -> State, {name: () array}
  evaluate: Callable  # floats, state, batch -> {name: (sum, weight)}, extra for the next batch of the split


def make_program(config, build_task, axis=None):
  """Args: config: resolved; build_task: config with floats -> Task; axis: the mapped device axis, or None."""
  builder = lambda floats: build_task(with_floats(config, floats))
  return Program(
    make_init(config, builder), make_step(config, builder, axis), make_evaluate(config, builder, axis)
  )


def check_rows(config):
  """Raises UsageError where microbatches would not have the same number of rows."""
  rows, microbatches = config['data']['batch_size'], config['training']['microbatches']
  if rows % microbatches:
    raise UsageError(
      f'config.data.batch_size: {rows} rows do not divide into config.training.microbatches = {microbatches}'
    )


def check_calls(config, shapes):
  """Raises UsageError where several steps in a call do not come out even; shapes: how many a batch may have."""
  training, stride = config['training'], config['training']['steps_per_call']
  for name in ('steps', 'evaluate_every', 'checkpoint_every', 'sample_every'):
    if (training[name] or 0) % stride:
      raise UsageError(
        f'config.training.{name}: {training[name]} is no multiple of config.training.steps_per_call = {stride}; use '
        f'{-(-training[name] // stride) * stride}'
      )
  if stride > 1 and shapes > 1:
    raise UsageError(
      f'config.training.steps_per_call: {stride}, but batches here have {shapes} shapes, and those of a call have one; '
      'use 1'
    )


def check(config, task):
  """Raises UsageError where a task forbids microbatches, or `freeze` is no pattern."""
  for key, pattern in (
    ('training.freeze', config['training']['freeze']),
    ('lora.targets', config['lora']['targets']),
    ('lora.trained', config['lora']['trained']),
  ):
    try:
      re.compile(pattern or '')
    except re.error as error:
      raise UsageError(f'config.{key}: {pattern!r} is no regular expression: {error}') from error
  microbatches = config['training']['microbatches']
  if task.whole_batch and microbatches > 1:
    name = config['task']['name']
    raise UsageError(
      f'config.training.microbatches: {microbatches}, but the loss of {name} looks across the whole batch; use 1'
    )


def split_frozen(params, pattern):
  """(params, frozen): two trees with holes (None); paths like 'block_0/mlp/up' that match `pattern` are frozen."""
  if pattern is None:
    return params, None
  frozen = lambda path: re.search(pattern, optimizer.joined(path)) is not None
  pick = lambda wanted: jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf if frozen(path) == wanted else None, params
  )
  return pick(False), pick(True)


def merge_frozen(params, frozen):
  """The whole tree of parameters, as a task sees it."""
  if frozen is None:
    return params
  is_hole = lambda leaf: leaf is None
  return jax.tree.map(lambda a, b: b if a is None else a, params, frozen, is_leaf=is_hole)


def make_init(config, builder):
  def init(floats, key, batch):
    filled, (params_key, run_key) = with_floats(config, floats), jax.random.split(key)
    params, extra = builder(floats).init(params_key, batch)
    params, frozen = split_frozen(params, lora.frozen_pattern(config))
    opt = optimizer.build(filled['optimizer'], config['training']['steps']).init(params)
    average = None if config['optimizer']['average'] is None else jax.tree.map(jnp.copy, params)
    return State(jnp.int32(0), params, frozen, opt, average, extra, run_key)

  return init


def make_step(config, builder, axis):
  microbatches = config['training']['microbatches']

  def step(floats, state, batch):
    task, filled = builder(floats), with_floats(config, floats)
    key, params = jax.random.fold_in(state.key, state.step), merge_frozen(state.params, state.frozen)
    if axis:  # each device draws its own noise
      key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    collect_key, loss_key = jax.random.split(key)
    context = Context(collect_key, state.step, True, axis)
    extra, batch = task.collect(params, state.extra, batch, context)
    context = context._replace(key=loss_key)
    sums, grads, extra = accumulate(task, state, extra, batch, context, microbatches)
    total, weight, metrics, grads = context.sum((*sums, grads))
    divide = lambda tree: jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), tree)
    metrics = {name: value / jnp.maximum(w, 1e-9) for name, (value, w) in metrics.items()}
    grads = divide(grads)
    new = update(filled, config['training']['steps'], state, grads)
    # A batch of weight 0 changes nothing: not even the optimizer's momenta decay.
    new = jax.tree.map(lambda after, before: jnp.where(weight > 0, after, before), new, keep(state))
    state = state._replace(**new, step=state.step + 1, extra=extra)
    metrics |= {'gradient_norm': optax.tree.norm(grads), 'parameter_norm': optax.tree.norm(state.params)}
    rate = optimizer.learning_rate_at(filled['optimizer'], config['training']['steps'], state.step - 1)
    return state, {'loss': divide(total), **metrics, 'learning_rate': rate, 'weight': weight}

  return step


def keep(state):
  return {'params': state.params, 'opt': state.opt, 'average': state.average}


def update(filled, steps, state, grads):
  """What one optimizer step makes of `params`, `opt` and `average`."""
  updates, opt = optimizer.build(filled['optimizer'], steps).update(grads, state.opt, state.params)
  params, average = optax.apply_updates(state.params, updates), state.average
  if average is not None:
    average = optax.incremental_update(params, average, 1 - filled['optimizer']['average'])
  return {'params': params, 'opt': opt, 'average': average}


def varying(tree, axis):
  """Marks values that agree everywhere as each device's own, or their gradients would be added once too often."""
  return jax.tree.map(lambda x: jax.lax.pcast(x, axis, to='varying'), tree)


def accumulate(task, state, extra, batch, context, microbatches):
  """((total, weight, metrics), grads, extra), added over microbatches; `extra` threads through them."""
  if context.axis:
    state = state._replace(
      params=varying(state.params, context.axis),
      frozen=None if state.frozen is None else varying(state.frozen, context.axis),
    )

  def loss(params, extra, batch, context):
    return task.loss(merge_frozen(params, state.frozen), extra, batch, context)

  def one(extra, batch, context):
    (total, (weight, extra, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
      state.params, extra, batch, context
    )
    return (total, weight, metrics), grads, extra

  if microbatches == 1:
    return one(extra, batch, context)
  shared, owned = split_extra(task.layout, extra)
  owned, batch = jax.tree.map(lambda x: deal(x, microbatches), (owned, batch))

  def body(carry, inputs):
    (sums, grads), shared = carry
    index, owned, batch = inputs
    context_here = context._replace(key=jax.random.fold_in(context.key, index))
    *added, extra = one(join_extra(task.layout, shared, owned), batch, context_here)
    shared, owned = split_extra(task.layout, extra)
    return (jax.tree.map(jnp.add, (sums, grads), tuple(added)), shared), owned

  first = jax.tree.map(lambda x: x[0], (jnp.arange(microbatches), owned, batch))
  shapes = jax.eval_shape(lambda i, o, b: one(join_extra(task.layout, shared, o), b, context)[:2], *first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  if context.axis:
    zeros = varying(zeros, context.axis)
  (added, shared), owned = jax.lax.scan(body, (zeros, shared), (jnp.arange(microbatches), owned, batch))
  return *added, join_extra(task.layout, shared, jax.tree.map(gather_dealt, owned))


def deal(array, microbatches):
  """[rows, ...] -> [microbatches, rows / microbatches, ...], row by row in turn, so that devices keep their rows."""
  return array.reshape(-1, microbatches, *array.shape[1:]).swapaxes(0, 1)


def gather_dealt(array):
  """The inverse of `deal`."""
  return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


def split_extra(layout, extra):
  """(shared, owned): what every microbatch sees whole, and what belongs to the rows of the batch ('batch')."""
  pick = lambda wanted: jax.tree.map(
    lambda where, part: part if (where == 'batch') == wanted else None, layout, extra
  )
  return pick(False), pick(True)


def join_extra(layout, shared, owned):
  return jax.tree.map(lambda where, a, b: b if where == 'batch' else a, layout, shared, owned)


def make_evaluate(config, builder, axis):
  def evaluate(floats, state, batch):
    task = builder(floats)
    params = state.params if state.average is None else state.average
    params = merge_frozen(params, state.frozen)
    key = jax.random.fold_in(state.key, EVALUATION)  # the same noise at every evaluation
    context = Context(key, state.step, False, axis)
    if task.evaluate is not None:
      return context.sum(task.evaluate(params, state.extra, batch, context)), state.extra
    total, (weight, extra, metrics) = task.loss(params, state.extra, batch, context)
    return context.sum({'loss': (total, weight), **metrics}), extra

  return evaluate


def lanes(program, batch=None, frozen=None):
  """The Program over a leading lane axis of floats, keys and states.

  `batch` and `frozen` say which of their leaves have that axis, too: None (shared by the lanes), 0, or for a batch
  {entry: None or 0}. It attends by XLA, unless it was made with 'cudnn' as `config.model.attention`, which is for
  models that read no lengths: under vmap jax hands cuDNN none that lanes share.
  """
  state = State(0, 0, frozen, 0, 0, 0, 0)
  return Program(
    jax.vmap(program.init, in_axes=(0, 0, batch)),
    jax.vmap(program.step, in_axes=(0, state, batch), out_axes=(state, 0)),
    jax.vmap(program.evaluate, in_axes=(0, state, batch)),
  )
