"""The rehearsal: every toy task through the one step, five ways, with the same numbers wherever the design says so.

`python -m tests.training.test_rehearsal` prints the table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.config import Schemas, floats_of, resolve
from aigc_jax.data.pipeline import TextData
from aigc_jax.errors import UsageError
from aigc_jax.task import Context
from aigc_jax.training import step as step_module
from aigc_jax.training.optimizer import OptimizerConfig
from aigc_jax.training.parallel import make_parallel
from tests.compilations import count_compilations
from tests.training.toys import TOYS, ToyConfig, batch_at

STEPS = 8
RATES = (1e-2, 3e-2, 1e-1)
# A lane has a key of its own, and its own part of every other float, so that one that gets another's is seen. The
# other ways are those of lane 1, which has the floats of the config.
KEYS, PARTS = (4, 3, 5), (0.9, 1.0, 0.8)
WAYS = ('mesh of 4', 'fsdp of 4', 'pmap of 4', '3 lanes', '2 microbatches')
# What differs from one device by nature: pmap draws other noise (by the design), and statistics that a microbatch
# takes of itself are those of a small batch. They are held against `part_by_part`.
BY_NATURE = {
  ('variational', 'pmap of 4'): 'other noise',
  ('variational', '2 microbatches'): 'other noise',
  ('bandit', 'pmap of 4'): 'other noise',
  ('batch_statistics', '2 microbatches'): 'small batches',
  ('codebook', '2 microbatches'): 'small batches',
}
REFUSED = ('contrastive', '2 microbatches')


def toy_config(name, rate=RATES[1], **sections):
  config = {'task': {'name': name}, 'model': {'name': 'none'}, 'data': {'batch_size': 16}}
  config['optimizer'] = {
    'name': 'adamw',
    'learning_rate': rate,
    'clip_norm': 1.0,
    'warmup_steps': 2,
    'average': 0.9,
    'final_fraction': 0.1,
  }
  config['training'] = {'steps': STEPS, 'freeze': 'base' if name == 'frozen' else None}
  for section, values in sections.items():
    config.setdefault(section, {}).update(values)
  schemas = Schemas(
    dict.fromkeys(TOYS, ToyConfig), {'none': ToyConfig}, OptimizerConfig, lambda task, source: TextData
  )
  return resolve(config, schemas)


@functools.cache
def compiled(name, devices=1, **sections):
  """The placed program of a toy, compiled once for all the tests that differ only in floats."""
  config = toy_config(name, **{section: dict(values) for section, values in sections.items()})
  return config, make_parallel(config, TOYS[name], jax.devices()[:devices])


def floats_of_lane(config, lane):
  """{dotted key: value} of a lane."""
  floats = {name: value * PARTS[lane] for name, value in floats_of(config).items()}
  return floats | {'optimizer.learning_rate': RATES[lane]}


@functools.cache
def run(name, lane=1, devices=1, **sections):
  """(losses [steps], last State, evaluation {name: mean}); nothing compiles after the first step."""
  config, program = compiled(name, devices, **sections)
  floats = program.put_floats(floats_of_lane(config, lane))
  state, losses = program.init(floats, jax.random.key(KEYS[lane]), batch_at(0)), []
  if lane != 1:  # lanes share what is frozen
    state = state._replace(frozen=jax.tree.map(jnp.copy, run(name)[1].frozen))
  for i in range(STEPS):
    with count_compilations() as later:
      state, metrics = program.step(floats, state, program.put_batch(batch_at(i)))
      losses.append(float(metrics['loss']))  # awaited, since many pretended devices share two cores
    assert i == 0 or not later
  return np.array(losses), state, evaluation(program, floats, state)


def evaluation(program, floats, state):
  sums = program.evaluate(floats, state, program.put_batch(batch_at(99)))[0]
  return {name: float(value / weight) for name, (value, weight) in sums.items()}


def run_lanes(name):
  """Three lanes of one program -> [what `run` returns of each]."""
  config = toy_config(name)
  init, step, evaluate = step_module.lanes(step_module.make_program(config, TOYS[name]))
  stack = lambda *values: jnp.asarray(values, jnp.float32)
  floats = jax.tree.map(stack, *(floats_of_lane(config, lane) for lane in range(3)))
  keys = jax.vmap(jax.random.key)(jnp.asarray(KEYS))
  state, step, losses = jax.jit(init)(floats, keys, batch_at(0)), jax.jit(step), []
  frozen = jax.tree.map(lambda leaf: leaf[1], state.frozen)
  state = state._replace(frozen=frozen)
  for i in range(STEPS):
    state, metrics = step(floats, state, batch_at(i))
    losses.append(np.asarray(metrics['loss']))
  sums, _ = jax.jit(evaluate)(floats, state, batch_at(99))
  own = state._replace(frozen=None), {name: value / weight for name, (value, weight) in sums.items()}
  found = []
  for lane, lane_losses in enumerate(np.stack(losses, 1)):
    state, means = jax.tree.map(lambda leaf: leaf[lane], own)
    found.append((lane_losses, state._replace(frozen=frozen), means))
  return found


def sections_of(way):
  """How `run` is asked to go another way than on one device."""
  if way == '2 microbatches':
    return dict(training=(('microbatches', 2),))
  if way == 'fsdp of 4':  # every array of the state in parts
    return dict(devices=4, parallel=(('data', 2), ('fsdp', 2)))
  return dict(devices=4, parallel=(('mode', way.split()[0]),))


def pairs(name, way):
  """[(what `run` returns this way, what it returns on one device)]: one of each lane, else a single one."""
  if way == '3 lanes':
    return [(found, run(name, lane)) for lane, found in enumerate(run_lanes(name))]
  return [(run(name, **sections_of(way)), run(name))]


def difference(name, way):
  """Largest relative difference of the losses to those on one device."""
  return max(np.abs(found[0] - alone[0]).max() / np.abs(alone[0]).max() for found, alone in pairs(name, way))


@pytest.mark.parametrize(
  ('name', 'way'), [(n, w) for n in TOYS for w in WAYS if (n, w) not in BY_NATURE and (n, w) != REFUSED]
)
def test_same_numbers(name, way):
  for (losses, state, means), (alone, expected, expected_means) in pairs(name, way):
    # Sums in another order, magnified by eight steps of Adam, which magnifies rounding of tiny gradients most.
    np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-4 * np.abs(alone).max())
    for ours, theirs in zip(jax.tree.leaves(state[:-1]), jax.tree.leaves(expected[:-1]), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(expected.key).tolist()
    assert means == pytest.approx(expected_means, rel=1e-4)


def devices_one_by_one(task, params, state, batch):
  """([(total, weight)], extra): each device has its block of the rows, and its number folded into the step's key."""
  sums, extras = [], []
  for device in range(4):
    block = lambda leaf: leaf.reshape(4, -1, *leaf.shape[1:])[device]
    extra, rows = jax.tree.map(block, (state.extra, batch))
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), device)
    collect_key, loss_key = jax.random.split(key)
    context = Context(collect_key, state.step, True)
    extra, rows = task.collect(jax.lax.stop_gradient(params), extra, rows, context)
    total, (weight, extra, _) = task.loss(params, extra, rows, context._replace(key=loss_key))
    sums.append((total, weight))
    extras.append(extra)
  return sums, jax.tree.map(lambda *blocks: jnp.concatenate(blocks), *extras)


def microbatches_one_by_one(task, params, state, batch):
  """([(total, weight)], extra): each has every second row, its number in its key, the extra that the last one left."""
  extra, sums = state.extra, []
  _, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))  # (none of these collects)
  for i in range(2):
    rows = jax.tree.map(lambda leaf: leaf[i::2], batch)
    context = Context(jax.random.fold_in(loss_key, i), state.step, True)
    total, (weight, extra, _) = task.loss(params, extra, rows, context)
    sums.append((total, weight))
  return sums, extra


def part_by_part(name, way):
  """state, batch -> (loss, gradient norm, extra) of a step, by the design and without any code of `step`."""
  task = TOYS[name](toy_config(name))
  parts = devices_one_by_one if way == 'pmap of 4' else microbatches_one_by_one

  def mean(params, state, batch):
    sums, extra = parts(task, params, state, batch)
    total, weight = map(sum, zip(*sums, strict=True))
    return total / weight, extra

  def step(state, batch):
    (loss, extra), gradients = jax.value_and_grad(mean, has_aux=True)(state.params, state, batch)
    return loss, optax.tree.norm(gradients), extra

  return jax.jit(step)


@pytest.mark.parametrize(('name', 'way'), BY_NATURE)
def test_what_differs_by_nature_differs_as_designed(name, way):
  config, program = compiled(name, **sections_of(way))
  floats, expected_step = program.put_floats(floats_of(config)), part_by_part(name, way)
  state = program.init(floats, jax.random.key(3), batch_at(0))
  for i in range(3):
    before = jax.device_put(jax.tree.map(jnp.copy, state), jax.devices()[0])  # the step donates its state
    state, metrics = program.step(floats, state, program.put_batch(batch_at(i)))
    loss, norm, extra = expected_step(before, batch_at(i))
    assert float(metrics['loss']) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics['gradient_norm']) == pytest.approx(float(norm), rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.extra, extra)
  assert difference(name, way) > 1e-3, 'what differs by nature does differ, else the exception is not needed'
  # Evaluation has neither noise nor microbatches: one device finds the same of the state that this way ended in.
  _, state, means = run(name, **sections_of(way))
  config, program = compiled(name)
  alone = jax.device_put(state, program.shardings(state))
  assert evaluation(program, program.put_floats(floats_of(config)), alone) == pytest.approx(means, rel=1e-4)


def test_microbatches_are_refused_where_the_loss_looks_across_the_batch():
  name, way = REFUSED
  config = toy_config(name, **{section: dict(values) for section, values in sections_of(way).items()})
  with pytest.raises(UsageError, match='whole batch'):
    step_module.check(config, TOYS[name](config))


def test_frozen_parameters_never_change():
  config, program = compiled('frozen')
  first = program.init(program.put_floats(floats_of(config)), jax.random.key(KEYS[1]), batch_at(0))
  _, last, _ = run('frozen')
  np.testing.assert_array_equal(first.frozen['base']['w'], last.frozen['base']['w'])
  assert last.params['base']['w'] is None
  assert np.abs(first.params['head']['w'] - last.params['head']['w']).max() > 1e-2


def test_batch_of_weight_zero_changes_nothing():
  config, program = compiled('batch_statistics')
  floats = program.put_floats(floats_of(config))
  state = program.init(floats, jax.random.key(3), batch_at(0))
  state, _ = program.step(floats, state, program.put_batch(batch_at(0)))
  before = jax.tree.map(np.array, state._replace(step=0, key=0))
  empty = batch_at(1) | {'mask': np.zeros(16, np.float32)}
  state, metrics = program.step(floats, state, program.put_batch(empty))
  assert float(metrics['weight']) == 0
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, state._replace(step=0, key=0)))


def test_changing_a_float_does_not_recompile():
  config, program = compiled('codebook')
  ends = []
  for i, rate in enumerate(RATES):
    with count_compilations() as compiled_now:
      floats = program.put_floats(
        floats_of(config) | {'optimizer.learning_rate': rate, 'task.decay': 1 - rate}
      )
      state = program.init(floats, jax.random.key(3), batch_at(0))
      ends.append(float(program.step(floats, state, program.put_batch(batch_at(0)))[1]['parameter_norm']))
    assert i == 0 or not compiled_now
  assert len(set(ends)) == 3


def table():
  """Markdown: relative difference to one device, for each toy task and way of running."""
  lines = ['| toy task | ' + ' | '.join(WAYS) + ' |', '|---' * (len(WAYS) + 1) + '|']
  for name in TOYS:
    cells = []
    for way in WAYS:
      if (name, way) == REFUSED:
        cells.append('refused')
        continue
      note = BY_NATURE.get((name, way))
      cells.append(f'{difference(name, way):.0e}' + (f' ({note})' if note else ''))
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  from tests import conftest  # noqa: F401 (the pretended devices)

  print(table())
