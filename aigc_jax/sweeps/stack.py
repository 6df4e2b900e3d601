"""The trials of a group on their devices: stacked floats and keys, their data, and the way in which their steps run."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax import tasks
from aigc_jax.config import floats_of
from aigc_jax.data import batches
from aigc_jax.sweeps import turns, vmapped
from aigc_jax.sweeps.lane_data import Data, data_of
from aigc_jax.sweeps.vmapped import LANES, spec
from aigc_jax.task import RESIDENT
from aigc_jax.training import attention, initials, placement, step

# of a solo step, where lanes stop paying on 2 cores (benchmarks/lane_steps.py); fixed, so that a sweep repeats itself
BUSY_FLOPS = 2e9


class Stack(NamedTuple):
  """The program of a group of trials, not yet compiled."""

  mesh: Any
  way: Any  # vmapped.Way or turns.Way: what they have in common is described in `vmapped`
  evaluate: Callable  # floats, state, batch -> {name: (sums, weights)}, extra
  floats: Any  # {dotted key: [lanes] float32}
  keys: Any  # [lanes] PRNG keys
  data: Data
  resident: Any  # as `placement.Prepared` has it
  target: Any  # State of ShapeDtypeStruct with shardings, [lanes, ...]: what a checkpoint holds
  config: dict  # of the program: that of the first trial, its attention settled
  count: int  # lanes, those that fill up included
  part: Any = batches.WHOLE

  def put_batch(self, batch):
    return jax.device_put(batch, NamedSharding(self.mesh, spec(self.data.rows)))


def place(configs, datasets, devices):
  """The Stack of trials.

  Args:
    configs: complete, of each trial; they differ in floats and seeds alone.
    datasets: of each trial, see `lane_data.data_of`.
    devices: as many as there are lanes are used, and lanes are filled up to a multiple of them.
  """
  devices = devices[: len(configs)]
  count = -(-len(configs) // len(devices)) * len(devices)
  filled = lambda items: [*items, *items[-1:] * (count - len(items))]
  configs, data = filled(configs), data_of(filled(datasets))
  mesh = jax.make_mesh((len(devices),), (LANES,), axis_types=(AxisType.Auto,), devices=devices)
  config = settled(configs[0], datasets[0].example(), devices)
  frozen = None if config['init_from'] else 0  # what a seed draws is each lane's own
  put = lambda array: jax.device_put(array, NamedSharding(mesh, P(LANES)))
  floats = {name: put(np.float32([floats_of(c)[name] for c in configs])) for name in floats_of(config)}
  bits = np.stack([np.asarray(jax.random.key_data(jax.random.key(c['seed']))) for c in configs])
  keys, resident = jax.random.wrap_key_data(put(bits)), {}
  if held := data.resident_arrays():
    resident = {RESIDENT: jax.device_put(held, NamedSharding(mesh, spec(data.resident)))}
  single = step.make_program(config, tasks.build)
  example = row_of(data, datasets[0].train_batch(0) | resident)
  state = jax.eval_shape(single.init, *jax.tree.map(unstacked, (floats, keys)), example)
  one_by_one = len(devices) == 1 and devices[0].platform == 'cpu'
  if one_by_one:
    shapes = jax.tree.map(unstacked, floats), state, example
    one_by_one = slower_together(jax.make_jaxpr(single.step)(*shapes).jaxpr)
  way = turns if one_by_one else vmapped
  made = way.make(single, mesh, data, frozen, floats, keys)
  target = target_of(state, mesh, frozen, count)
  return Stack(mesh, made, made.evaluate, floats, keys, data, resident, target, config, count)


def unstacked(leaf):
  return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def row_of(data, batch):
  """Shapes of the batch of one lane, given its rows and the resident arrays of all."""
  own = lambda leaf: unstacked(leaf) if data.resident == 0 else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
  return {name: jax.tree.map(own if name == RESIDENT else shape, leaf) for name, leaf in batch.items()}


def slower_together(jaxpr):
  """Whether a CPU takes a step of lanes side by side more slowly than in turns.

  Convolutions do: together they are one grouped convolution, at a third of the speed. So do steps that keep the cores
  busy by themselves: side by side the lanes only drive one another's arrays out of the cache.
  """
  convolves, flops = work_of(jaxpr)
  return convolves or flops > BUSY_FLOPS


def work_of(jaxpr):
  """(whether it convolves, FLOPs of its matrix products) of all of a jaxpr, loops and functions in it included."""
  convolves, flops = False, 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      flops += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    convolves |= equation.primitive.name == 'conv_general_dilated'
    times = equation.params['length'] if equation.primitive.name == 'scan' else 1
    for inner in jaxprs_in_params(equation.params):
      found = work_of(inner)
      convolves, flops = convolves | found[0], flops + times * found[1]
  return convolves, flops


def settled(config, example, devices):
  """The config with its attention as lanes can have it: cuDNN takes no lengths of rows under vmap."""
  found, choice = attention.settled(config, example, devices[:1])
  if choice is not None and choice.implementation == 'cudnn' and config['model']['name'] != 'transformer':
    return attention.attending(config, 'xla')
  return found


def target_of(state, mesh, frozen, count):
  """The State of all lanes, given the shapes of one's."""
  lane, whole = NamedSharding(mesh, P(LANES)), NamedSharding(mesh, P())
  stacked = lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=lane)
  shared = lambda leaf: leaf.update(sharding=whole)
  held = jax.tree.map(stacked if frozen == 0 else shared, state.frozen)
  return jax.tree.map(stacked, state._replace(frozen=None))._replace(frozen=held)


def first_state(stack):
  """The State before any step, with the parameters that `config.init_from` names."""
  state, config = stack.way.init(stack.data.train_batch(0) | stack.resident), stack.config
  if not config['init_from']:
    return state
  initial, state = initials.find(config['init_from']), stack.way.together(state)
  (params,), frozen = initials.overlay((state.params,), initial, lanes=1), None
  if stack.target.frozen is not None:
    frozen = initials.placed(initial, stack.target.frozen)
  average = None if state.average is None else jax.tree.map(jnp.copy, params)
  return stack.way.apart(state._replace(params=params, frozen=frozen, average=average))


def compile_steps(stack):
  """({shape of a batch: compiled step}, bytes on a device of the largest)."""
  compiled, peaks = {}, []
  for example in stack.data.shapes():
    rows = {name: array for name, array in example.items() if name != RESIDENT}
    dtype = lambda array: jax.dtypes.canonicalize_dtype(array.dtype)
    where = NamedSharding(stack.mesh, spec(stack.data.rows))
    batch = {name: jax.ShapeDtypeStruct(a.shape, dtype(a), sharding=where) for name, a in rows.items()}
    step_of_shape, peak = stack.way.compile(stack.target, batch | stack.resident)
    compiled[placement.shape_of(batch)] = step_of_shape
    peaks.append(peak)
  return compiled, max(peaks)


def batch_at(stack, at):
  """The batch of a step on the devices."""
  return stack.put_batch(stack.data.train_batch(at)) | stack.resident
