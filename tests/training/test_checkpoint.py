"""Checkpoints: what comes back is what was saved, bit for bit, or an error that names the damaged file."""

import json
import os
import random
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aigc_jax.errors import StorageError, UsageError
from aigc_jax.task import State
from aigc_jax.training import checkpoint
from aigc_jax.training.checkpoint import Checkpointer
from tests import equality, restores, tiny


def make_state(seed=0, width=8, frozen=None):
  """A State of all that is awkward: typed keys, optax's tuples, None, odd dtypes, -0.0, NaNs, no rows."""
  random_numbers = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(random_numbers.normal(size=shape), jnp.float32)
  params = {'block_0': {'up': {'kernel': draw(4, width), 'bias': jnp.zeros(width)}}, 'head': draw(width, 4)}
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.adamw(1e-3), jax.tree.map(lambda p: p.ndim > 1, params)),
  )
  extra = {
    'negative_zeros': jnp.full(3, -0.0),
    'payloads': jnp.asarray(np.array([0x7FC12345, 0xFFC00001, 0x7F800000], np.uint32).view(np.float32)),
    'half': jnp.asarray(random_numbers.normal(size=5), jnp.bfloat16),
    'small': jnp.asarray(np.ones(3, ml_dtypes.float8_e4m3fn)),
    'flags': jnp.array([True, False]),
    'empty': jnp.zeros((0, 3)),
    'keys': jax.random.split(jax.random.key(seed), 3),
    'rbg': jax.random.key(seed, impl='rbg'),
    'nothing': None,
  }
  step = jnp.int32(seed)
  return State(step, params, frozen or {}, optimizer.init(params), None, extra, jax.random.key(seed))


def as_bytes(tree):
  raw = lambda leaf: jax.random.key_data(leaf) if checkpoint.is_key(leaf) else leaf
  return {n: (str(a.dtype), a.shape, np.asarray(raw(a)).tobytes()) for n, a in checkpoint.flat(tree).items()}


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  assert as_bytes(a) == as_bytes(b)


def save(folder, *states, keep=9, metrics=()):
  """Saves states as steps 0, 1, ..."""
  with Checkpointer(folder, keep=keep) as saver:
    for step, state in enumerate(states):
      saver.save(step, state, dict(enumerate(metrics)).get(step))


def abstract(state):
  return jax.eval_shape(lambda: state)


def damage(file, kind):
  data = bytearray(file.read_bytes())
  if kind == 'flip':
    data[len(data) // 2] ^= 1
  file.write_bytes(data[:-2] if kind == 'cut' else data) if kind != 'gone' else file.unlink()


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A folder with steps 0, 1, 2, for tests that only read it."""
  folder = tmp_path_factory.mktemp('three')
  save(folder, *map(make_state, range(3)), metrics=(2.0, 1.0, float('nan')))
  return folder


def copy_of(folder, tmp_path):
  subprocess.run(['cp', '-r', str(folder), str(tmp_path / 'copy')], check=True)
  return tmp_path / 'copy'


def test_restores_every_bit_and_the_structure(three):
  for which, expected in (('latest', 2), ('best', 1), (0, 0), ('0', 0)):
    step, state = checkpoint.restore(three, abstract(make_state()), which)
    assert step == expected
    assert_same(state, make_state(expected))
  assert (checkpoint.steps(three), checkpoint.latest(three), checkpoint.best(three)) == ([0, 1, 2], 2, 1)


def test_saving_does_not_see_what_the_next_step_does_to_the_arrays(tmp_path):
  add = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  state, expected = {'x': jnp.arange(100000.0)}, {}
  with Checkpointer(tmp_path, keep=9) as saver:
    for step in range(4):
      expected[step] = as_bytes(state)
      saver.save(step, state)
      state = add(state)
  for step in range(4):
    assert as_bytes(checkpoint.restore(tmp_path, abstract(state), step)[1]) == expected[step]


def test_a_field_alone_needs_no_target_and_no_optimizer(three):
  step, fields = checkpoint.restore_fields(three, ('params', 'extra', 'average'))
  state = make_state(2)
  assert step == 2
  assert sorted(fields) == ['extra', 'params']
  assert_same(fields['params'], state.params)
  assert as_bytes(fields['extra']) == as_bytes(state.extra)
  _, some = checkpoint.restore(three, {'params': abstract(state.params)})
  assert_same(some['params'], state.params)


def test_restores_onto_a_mesh_and_from_it(tmp_path):
  if jax.device_count() < 2:
    pytest.skip('one device')
  mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
  state = {'params': {'kernel': jnp.arange(32.0).reshape(8, 4)}, 'key': jax.random.key(7)}
  split = {
    'params': {'kernel': NamedSharding(mesh, PartitionSpec('data'))},
    'key': NamedSharding(mesh, PartitionSpec()),
  }
  save(tmp_path, jax.device_put(state, split))
  target = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), abstract(state), split)
  for goal, devices in ((target, 2), (abstract(state), 1)):
    _, restored = checkpoint.restore(tmp_path, goal)
    assert_same(restored, state)
    assert [len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)] == [devices] * 2


def test_keeps_the_newest_and_the_best(tmp_path):
  with Checkpointer(tmp_path, keep=2) as saver:
    for step, metric in enumerate([3.0, 1.0, 2.0, None, 1.5, float('nan')]):
      saver.save(step * 10, {'x': jnp.float32(step)}, metric)
    saver.wait()
    assert checkpoint.steps(tmp_path) == [10, 40, 50]
  assert checkpoint.best(tmp_path) == 10
  assert sorted(os.listdir(tmp_path)) == ['10', '40', '50']
  with Checkpointer(tmp_path, keep=2, resumed_from=40) as saver:
    saver.save(60, {'x': jnp.float32(0)}, 0.5)
  assert sorted(os.listdir(tmp_path)) == ['40', '60']


def test_frozen_is_saved_once_and_merged(tmp_path):
  frozen = {'base': {'kernel': jnp.arange(6.0)}}
  save(tmp_path, make_state(0, frozen=frozen), make_state(1, frozen=frozen), keep=1)
  assert sorted(os.listdir(tmp_path)) == ['1', 'frozen']
  assert not [
    name for name in json.loads((tmp_path / '1/manifest.json').read_text())['leaves'] if 'base' in name
  ]
  state = make_state(1, frozen=frozen)
  assert_same(checkpoint.restore(tmp_path, abstract(state))[1], state)
  data = next(path for path in (tmp_path / 'frozen').rglob('*') if path.parent.name == 'd')
  damage(data, 'flip')
  with pytest.raises(StorageError, match=r'frozen.*damaged'):
    checkpoint.restore(tmp_path, abstract(state))


def test_every_damaged_file_is_noticed_and_passed_over_loudly(three, tmp_path):
  names = [path.relative_to(three / '2') for path in sorted((three / '2').rglob('*')) if path.is_file()]
  assert len(names) > 5
  target = {'params': abstract(make_state().params)}
  folder = copy_of(three, tmp_path)
  for name in names:
    whole = (folder / '2' / name).read_bytes()
    for kind in ('flip', 'cut', 'gone'):
      if not whole or (kind == 'gone' and name.name == 'manifest.json'):
        continue  # an empty file has no bit to flip; without a manifest there is no checkpoint
      damage(folder / '2' / name, kind)
      with pytest.raises(StorageError, match='is damaged') as error:
        checkpoint.verify(folder / '2')
      assert str(folder / '2' / name) in str(error.value)
      assert '\n' not in str(error.value)
      (folder / '2' / name).write_bytes(whole)
  lines = []
  damage(folder / '2' / names[-1], 'flip')
  assert checkpoint.restore(folder, target, 'latest', lines.append)[0] == 1
  assert str(names[-1]) in lines[0]
  assert 'checkpoint 1' in lines[1]
  with pytest.raises(StorageError, match=str(names[-1])):
    checkpoint.restore(folder, target, 2)
  damage(folder / '1' / 'manifest.json', 'flip')
  assert checkpoint.restore(folder, target, 'best', lines.append)[0] == 0
  damage(folder / '0' / names[-1], 'cut')
  with pytest.raises(StorageError, match='none of its 3 checkpoints is whole'):
    checkpoint.restore(folder, target, 'latest', lines.append)


def test_best_falls_back_to_a_checkpoint_without_a_metric(three, tmp_path):
  folder, target, lines = copy_of(three, tmp_path), {'params': abstract(make_state().params)}, []
  for step in '01':
    damage(next(path for path in (folder / step).rglob('d/*') if path.stat().st_size), 'flip')
  assert checkpoint.restore(folder, target, 'best', lines.append)[0] == 2
  assert len(lines) == 3


def test_another_shape_is_named_with_both(three):
  def message(target, which='latest'):
    with pytest.raises(UsageError) as error:
      checkpoint.restore(three, target, which)
    return str(error.value)

  text = message(abstract(make_state(width=16)))
  assert 'params/block_0/up/bias is [8] in the checkpoint and [16] in the config (and ' in text
  state = make_state()
  state.params['new'] = jnp.zeros(2)
  assert 'params/new is only in the config' in message(abstract(state))
  assert 'params/head is only in the checkpoint' in message({'params': {'block_0': state.params['block_0']}})
  half = {'params': {'block_0': state.params['block_0'], 'head': state.params['head'].astype(jnp.bfloat16)}}
  assert 'head is float32 [8, 4] in the checkpoint and bfloat16 [8, 4] in the config' in message(
    abstract(half)
  )
  assert "no checkpoint '7'; there are: 0, 1, 2" in message(abstract(make_state()), '7')


def test_no_checkpoint_yet(tmp_path):
  assert (checkpoint.latest(tmp_path / 'none'), checkpoint.best(tmp_path / 'none')) == (None, None)
  with pytest.raises(UsageError, match='there are: none'):
    checkpoint.restore(tmp_path / 'none', {})


def test_a_failed_save_comes_up_at_the_next_wait_and_leaves_the_former_whole(tmp_path):
  state = {'x': jnp.asarray(np.random.default_rng(0).normal(size=100000), jnp.float32)}
  saver = Checkpointer(tmp_path, keep=9)
  saver.save(0, state)
  saver.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100000, limits[1]))  # stands for a full disk
  try:
    saver.save(1, state)
    with pytest.raises(StorageError, match=r'1: cannot be written: [^\n]*$'):
      saver.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert os.listdir(tmp_path) == ['0']
  saver.save(1, state)
  saver.close()
  assert checkpoint.steps(tmp_path) == [0, 1]
  assert_same(checkpoint.restore(tmp_path, abstract(state))[1], state)


WRITER = """
import os, sys, time
import numpy as np
from orbax.checkpoint import v1 as ocp
from aigc_jax.training.checkpoint import Checkpointer, latest
folder, waits = sys.argv[1], [float(text) for text in sys.argv[2:]]
for number, wait in enumerate(waits):  # the imports take seconds: pay them once, and fork before JAX starts
  start = (latest(folder) or 0) + 1
  child = os.fork()
  if not child:
    with Checkpointer(folder, keep=2, resumed_from=start - 1) as saver:
      for step in range(start, 10**6):
        saver.save(step, {'a': np.full(200000, step, np.float32), 'b': {'c': np.arange(step, step + 9)}})
        saver.wait()
        os.write(1, b'.')
  while number % 2 == 0 and (latest(folder) or 0) < start:  # every other child gets at least one saved
    time.sleep(0.01)
  time.sleep(wait)
  os.kill(child, 9)
  os.waitpid(child, 0)
  print(flush=True)
  sys.stdin.readline()
"""


def test_kill_at_any_moment_leaves_a_whole_latest(tmp_path):
  waits = [random.Random(seed).uniform(0.0, 0.5) for seed in range(8)]
  command = [sys.executable, '-W', 'ignore', '-c', WRITER, str(tmp_path), *map(str, waits)]
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
  seen = []
  with subprocess.Popen(command, text=True, **pipes, env=os.environ | {'JAX_PLATFORMS': 'cpu'}) as writer:
    while line := writer.stdout.readline():
      failures = []
      step, fields = checkpoint.restore_fields(tmp_path, ('a', 'b'), 'latest', failures.append)
      assert not failures
      assert np.array_equal(fields['a'], np.full(200000, step, np.float32))
      assert np.array_equal(fields['b']['c'], np.arange(step, step + 9))
      assert step >= (seen[-1] if seen else 0) + line.count('.')  # what was committed stays
      seen.append(step)
      writer.stdin.write('\n')
      writer.stdin.flush()
  assert writer.returncode == 0
  assert len(seen) == len(waits)
  Checkpointer(tmp_path, keep=2).close()
  assert all(name.isdigit() for name in os.listdir(tmp_path))


@pytest.mark.slow
def test_what_is_saved_under_one_layout_goes_on_under_another(tmp_path):
  source = tiny.write_corpus(tmp_path / 'words.txt')
  config = equality.FAMILIES['transformer'](source)
  found = restores.matrix(config, [('pmap', 4), ('mixed', 8)], tmp_path)
  # Float32 sums in another order.
  assert found.max() < 1e-5
