"""Lanes against the solo runs that they stand for, and what is left of a group that ends in one way or another."""

import json
import math
import os
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import api, run
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import group, lane_hooks, lanes, stack
from aigc_jax.sweeps.trials import trials_of
from aigc_jax.training import checkpoint, memory_use, session
from aigc_jax.training.console import Console
from tests import equality, kill_and_resume, tiny
from tests.sweeps import lane_equality

CLOSE = 1e-5  # relative, of float32 sums in another order, after so few steps
QUICK = ('transformer', 'cnn')  # side by side, and in turns


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('data') / 'words.txt')


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with tiny.compile_cache(tmp_path_factory.mktemp('cache')):
    yield


def few(source, rates=(1e-2, 3e-3, 1e-3), **sections):
  return trials_of(tiny.config(source, **sections), [{'optimizer.learning_rate': rate} for rate in rates])


def run_all(folder, trials, quiet=True):
  with Console(quiet=quiet) as console:
    lanes.run_lanes(pathlib.Path(folder), trials, console)


def numbers(path):
  """metrics.jsonl without clocks."""
  return [{k: v for k, v in row.items() if not k.startswith('time/')} for row in run.read_metrics(path)]


def state_of(path, name):
  return sweep_folder.state_of(pathlib.Path(path) / name)


def assert_close(ours, theirs):
  assert [row.keys() for row in ours] == [row.keys() for row in theirs]
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=CLOSE, atol=1e-6)


@pytest.mark.parametrize('family', QUICK)
def test_lanes_are_the_solo_runs(family, source):
  trials = lane_equality.trials_of_family(family, source)
  found = lane_equality.differences(trials, steps=8)
  assert np.max(found) < CLOSE
  losses, _ = lane_equality.run_lanes(trials, jax.local_devices()[:1], steps=2)
  assert len(set(losses[1])) == 3  # or the lanes would be equal to one another


@pytest.mark.slow
@pytest.mark.parametrize('family', equality.FAMILIES)
def test_lanes_are_the_solo_runs_over_100_steps(family, source):
  assert np.max(lane_equality.differences(lane_equality.trials_of_family(family, source))) < CLOSE


def test_what_is_slower_together_takes_turns():
  """Convolutions, and steps of many FLOPs: those of loops and gradients count each time around."""

  def loop(length, weights):
    step = lambda h, x: (jnp.tanh(h @ weights + x), None)
    return jax.lax.scan(step, jnp.ones((8, 256)), jnp.ones((length, 256)))[0].sum()

  weights, kernel = jnp.ones((256, 256)), jnp.ones((1, 1, 3, 3))
  looping = lambda length: jax.make_jaxpr(jax.jit(jax.grad(partial(loop, length))))(weights).jaxpr
  convolving = jax.make_jaxpr(lambda x: jax.lax.conv(x, kernel, (1, 1), 'SAME'))(jnp.ones((1, 1, 8, 8))).jaxpr
  once = 2 * 8 * 256 * 256  # and twice that backward
  assert stack.work_of(looping(7)) == (False, 7 * 3 * once)
  assert [stack.slower_together(looping(n)) for n in (600, 660)] == [False, True]
  assert stack.slower_together(convolving)


@pytest.mark.slow
def test_lanes_on_two_devices_are_those_on_one(source):
  """Three lanes, and one that fills up."""
  trials = lane_equality.trials_of_family('transformer', source)
  one, two = (lane_equality.run_lanes(trials, jax.local_devices()[:n], steps=3)[0] for n in (1, 2))
  np.testing.assert_allclose(one, two[:, :3], rtol=1e-6)


@pytest.fixture(scope='module')
def both(source, tmp_path_factory):
  """(folder of a group, folder of the same trials alone, trials)."""
  folder = tmp_path_factory.mktemp('both')
  trials = few(source, training={'sample_every': 8, 'steps': 12})
  run_all(folder / 'lanes', trials)
  for trial in trials:
    session.start(trial.config, folder / 'alone' / trial.name, 'run', 0.0, quiet=True)
  return folder / 'lanes', folder / 'alone', trials


def test_folders_are_those_of_solo_runs(both):
  ours, theirs, trials = both
  for trial in trials:
    a, b = ours / trial.name, theirs / trial.name
    assert_close(numbers(a), numbers(b))
    files = lambda path: {str(p.relative_to(path)) for p in path.rglob('*') if 'checkpoints' not in p.parts}
    assert files(b) - files(a) == {'plots/loss.png'}
    assert files(a) <= files(b)
    assert checkpoint.metrics_of(a / 'checkpoints').keys() == checkpoint.metrics_of(b / 'checkpoints').keys()
    assert run.open_run(a).config == run.open_run(b).config
    wanted = run.Run(b).read_status() | {'updated': None}
    assert run.Run(a).read_status() | {'updated': None} == wanted
    assert json.loads((a / 'env.json').read_text())[0]['lanes'] == 3
  assert not list((ours / 'groups').glob('*/checkpoints'))


def test_a_trial_goes_on_as_a_run_of_its_own(both):
  ours, _, trials = both
  path = ours / trials[0].name
  found = api.load_run(path)
  assert math.isfinite(found.evaluate()['loss'])
  assert found.generate('ship', num=1, max_new_tokens=3, seed=0)
  api.resume(path, steps=14, quiet=True)
  assert run.Run(path).read_status()['step'] == 14


def test_a_lane_that_is_not_finite_ends_alone(source, tmp_path):
  """The others give what they give without it."""
  trials = few(source, rates=(1e-2, 1e30, 1e-3))
  run_all(tmp_path / 'a', trials)
  states = [state_of(tmp_path / 'a', trial.name) for trial in trials]
  assert [state['state'] for state in states] == ['done', 'non-finite', 'done']
  assert 'is nan' in states[1]['message'] or 'is inf' in states[1]['message']
  rows = numbers(tmp_path / 'a' / trials[1].name)
  assert all(math.isfinite(value) for row in rows for value in row.values())
  assert len(rows) < 12
  good = [trials[0], trials[2]]
  run_all(tmp_path / 'b', good)
  for trial in good:
    assert_close(numbers(tmp_path / 'a' / trial.name), numbers(tmp_path / 'b' / trial.name))


def test_each_lane_has_its_own_patience(source, tmp_path):
  """A rate of 0 never improves."""
  trials = few(source, rates=(1e-2, 0.0), training={'evaluate_every': 2, 'patience': 2})
  run_all(tmp_path, trials)
  first, second = (state_of(tmp_path, trial.name) for trial in trials)
  assert (first['step'], first['message']) == (12, 'done')
  assert (second['state'], second['step'], second['message']) == ('done', 6, 'early stop')
  assert checkpoint.latest(tmp_path / trials[1].name / 'checkpoints') == 6


def test_lanes_that_are_left_go_on_in_a_smaller_program(both, source, tmp_path, monkeypatch):
  """Two of three end at step 4; what the third one gives is what it gives beside them."""
  ours, _, trials = both
  monkeypatch.setattr(lane_hooks, 'REPACKING', 0)
  sizes, real = [], lanes.plan
  monkeypatch.setattr(
    lanes, 'plan', lambda folder, group, *rest: sizes.append(len(group)) or real(folder, group, *rest)
  )
  prune = lambda lane, step, found: None if lane.name == trials[2].name else f'pruned at step {step}'
  with Console(quiet=True) as console:
    lanes.run_lanes(tmp_path, trials, console, prune=prune)
  assert sizes == [3, 1]
  states = [state_of(tmp_path, trial.name) for trial in trials]
  assert [(state['message'], state['step']) for state in states] == [('pruned at step 4', 4)] * 2 + [
    ('done', 12)
  ]
  assert_close(numbers(tmp_path / trials[2].name), numbers(ours / trials[2].name))
  kept = [checkpoint.steps(place / trials[2].name / 'checkpoints') for place in (tmp_path, ours)]
  assert kept[0] == kept[1]


class Killed(BaseException):
  """Ends a group as `kill -9` would: nothing catches it."""


def killed_at(step, monkeypatch):
  real = lane_hooks.save

  def save(group, at, state):
    real(group, at, state)
    group.checkpointer.wait()
    if at == step:
      raise Killed

  monkeypatch.setattr(lane_hooks, 'save', save)


def test_a_killed_group_goes_on_bit_for_bit(both, source, tmp_path, monkeypatch):
  ours, _, trials = both
  with monkeypatch.context() as patched:
    killed_at(8, patched)
    with pytest.raises(Killed):
      run_all(tmp_path, trials)
  assert state_of(tmp_path, trials[0].name)['state'] == 'interrupted'
  run_all(tmp_path, trials)
  for trial in trials[1:]:  # (the first one was made longer)
    assert numbers(tmp_path / trial.name) == numbers(ours / trial.name)
    a, b = (kill_and_resume.final_state(place / trial.name) for place in (tmp_path, ours))
    assert a[0] == b[0] == 12
    assert a[1].keys() == b[1].keys()
    assert all(np.array_equal(a[1][path], b[1][path]) for path in a[1])


def test_trials_that_are_grouped_otherwise_go_on(both, tmp_path, monkeypatch):
  """Two of three lanes as a group, and the third alone."""
  ours, _, trials = both
  with monkeypatch.context() as patched:
    killed_at(8, patched)
    with pytest.raises(Killed):
      run_all(tmp_path, trials)
  sweep_folder.write(tmp_path, None, trials)
  with Console(quiet=True) as console:
    group.run_group(tmp_path, [trials[1].name, trials[2].name], console)
    group.run_group(tmp_path, [trials[0].name], console)
  for trial in trials[1:]:
    assert_close(numbers(tmp_path / trial.name), numbers(ours / trial.name))
  assert all(state_of(tmp_path, trial.name)['state'] == 'done' for trial in trials)
  log = (tmp_path / trials[0].name / 'log.txt').read_text()
  assert 'resuming after step 8' in log


@pytest.mark.slow
def test_a_group_that_is_too_large_runs_in_parts(source, tmp_path, monkeypatch):
  trials = few(source, training={'steps': 4})
  sweep_folder.write(tmp_path, None, trials)
  whole = lanes.plan(tmp_path, trials).peak
  monkeypatch.setattr(memory_use, 'capacity', lambda devices: int(whole * 0.8))
  with pytest.raises(lanes.Apart) as caught:
    lanes.plan(tmp_path, trials)
  assert caught.value.lanes == 2
  with Console(quiet=True) as console:
    group.run_group(tmp_path, [trial.name for trial in trials], console)
  assert all(state_of(tmp_path, trial.name)['state'] == 'done' for trial in trials)


def test_lanes_share_what_is_frozen(both, tmp_path):
  """One array of the base for all lanes, and one file of it."""
  ours, _, trials_there = both
  base = tiny.config(trials_there[0].config['data']['source'], training={'steps': 4, 'freeze': 'block'})
  trials = trials_of(base | {'init_from': str(ours / trials_there[1].name)}, [{'seed': 0}, {'seed': 1}])
  made = lanes.plan(tmp_path, trials)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(made.stack.target.params)} == {2}
  whole = checkpoint.flat(api.load_run(ours / trials_there[1].name).params)
  shared = checkpoint.flat(made.stack.target.frozen)
  assert {path: leaf.shape for path, leaf in shared.items()} == {
    path: leaf.shape for path, leaf in whole.items() if 'block' in path
  }
  run_all(tmp_path, trials)
  kept = [
    checkpoint.restore_fields(tmp_path / t.name / 'checkpoints', ('frozen', 'params'))[1] for t in trials
  ]
  same = jax.tree.map(lambda a, b: bool((a == b).all()), kept[0]['frozen'], kept[1]['frozen'])
  assert all(jax.tree.leaves(same))
  files = [next((tmp_path / t.name / 'checkpoints/frozen').glob('manifest.json')) for t in trials]
  assert os.stat(files[0]).st_ino == os.stat(files[1]).st_ino
  session.start(trials[1].config, tmp_path / 'alone', 'run', 0.0, quiet=True)
  assert_close(numbers(tmp_path / trials[1].name), numbers(tmp_path / 'alone'))
