"""The driver with workers that are not there: what is tried again, what is given up, and who has which cores."""

import json
import time

import pytest

from aigc_jax.errors import Interrupted, StorageError, UsageError
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import launch, workers
from aigc_jax.sweeps.trials import trials_of
from aigc_jax.sweeps.workers import KILLED, Slot
from aigc_jax.training.console import Console

CONFIG = {'task': {'name': 'language'}, 'model': {'name': 'transformer'}, 'data': {}, 'optimizer': {}}
CONFIG['training'] = {'steps': 10}


class Worker:
  """Ends at once, as it is told."""

  def __init__(self, code, why, log):
    self.code, self.why, self.log, self.killed = code, why, log, False

  def poll(self):
    return self.code

  def kill(self):
    self.killed = True

  def stop(self):
    pass

  def reason(self):
    return self.why


class Plays:
  """Starts workers that do what `play(folder, names, number of the start)` does and gives: (exit status, why)."""

  seconds, outlives = 0.0, False

  def __init__(self, play, count=1):
    self.play, self.count, self.started = play, count, []

  def slots(self, count):
    return [Slot((), ())] * self.count

  def found(self, folder):
    return []

  def start(self, folder, pairs):
    made = []
    for trials, _ in pairs:
      names = [trial.name for trial in trials]
      self.started.append(names)
      made.append(Worker(*self.play(folder, names, len(self.started)), folder / 'none.log'))
    return made


def write_trial(folder, name, state='done', step=10, message='done'):
  path = folder / name
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps({'format': 2}))
  status = {'state': state, 'step': step, 'checkpoint': step, 'message': message}
  (path / 'status.json').write_text(json.dumps(status))


def save(folder, name, step):
  place = folder / name / 'checkpoints' / str(step)
  place.mkdir(parents=True)
  (place / 'manifest.json').write_text('{}')


def run(folder, play, count=4, jobs=1, **options):
  """(starter, failures) after a sweep of `count` seeds."""
  trials, starter = trials_of(CONFIG, [{'seed': seed} for seed in range(count)]), Plays(play, jobs)
  with sweep_folder.opened(folder / 'sweep', None, trials) as path, Console(quiet=True) as console:
    failed = launch.launch(path, trials, launch.Options(jobs, **options), console, starter)
  return starter, failed, [trial.name for trial in trials]


def succeed(folder, names):
  for name in names:
    write_trial(folder, name)
  return 0, ''


def test_a_group_that_dies_is_tried_once_more(tmp_path):
  play = lambda folder, names, number: (KILLED, 'killed') if number == 1 else succeed(folder, names)
  starter, failed, names = run(tmp_path, play)
  assert starter.started == [names, names]
  assert failed == {}


def test_a_bad_trial_costs_itself_alone(tmp_path):
  """Whoever runs the third one dies: the group twice, then its halves, until it is alone."""
  third = trials_of(CONFIG, [{'seed': 2}])[0].name
  play = lambda folder, names, number: (KILLED, 'killed by it') if third in names else succeed(folder, names)
  starter, failed, names = run(tmp_path, play)
  assert failed == {third: {'message': 'killed by it', 'attempts': 2}}
  assert json.loads((tmp_path / 'sweep/failures.json').read_text()) == failed
  assert [len(group) for group in starter.started] == [4, 4, 2, 2, 2, 1, 1, 1]
  assert all(sweep_folder.has_ended(tmp_path / 'sweep' / name) for name in names if name != third)


def test_typed_again_takes_up_what_failed_and_nothing_else(tmp_path):
  third = trials_of(CONFIG, [{'seed': 2}])[0].name
  run(tmp_path, lambda folder, names, number: (KILLED, 'x') if third in names else succeed(folder, names))
  starter, failed, _ = run(tmp_path, lambda folder, names, number: succeed(folder, names))
  assert starter.started == [[third]]
  assert failed == {}
  assert json.loads((tmp_path / 'sweep/failures.json').read_text()) == {}
  starter, _, _ = run(tmp_path, lambda *_: pytest.fail('nothing is left'))
  assert starter.started == []


def test_progress_gives_new_tries(tmp_path):
  def play(folder, names, number):
    if number < 6:
      save(folder, names[0], number)
      return KILLED, 'killed'
    return succeed(folder, names)

  starter, failed, names = run(tmp_path, play)
  assert starter.started == [names] * 6
  assert failed == {}


@pytest.mark.parametrize('code', [64, 65])
def test_what_is_wrong_by_itself_is_not_tried_again(tmp_path, code):
  starter, failed, names = run(tmp_path, lambda *_: (code, 'config.x: wrong'))
  assert starter.started == [names]
  assert {found['message'] for found in failed.values()} == {'config.x: wrong'}
  assert len(failed) == 4


def test_a_full_disk_ends_the_sweep(tmp_path):
  with pytest.raises(StorageError, match='no space'):
    run(tmp_path, lambda *_: (74, 'no space left'))


def test_a_lane_that_failed_does_not_touch_the_others(tmp_path):
  def play(folder, names, number):
    succeed(folder, names)
    write_trial(folder, names[1], 'failed', 4, 'step 4: ValueError: bad sample')
    return 0, ''

  _, failed, names = run(tmp_path, play)
  assert failed == {names[1]: {'message': 'step 4: ValueError: bad sample', 'attempts': 1}}


def test_a_worker_without_a_sign_of_life_is_killed(tmp_path):
  began = time.time()
  play = lambda folder, names, number: (None, '') if number < 3 else succeed(folder, names)
  starter, failed, _ = run(tmp_path, play, count=1, timeout=0.2)
  assert list(failed.values()) == [{'message': 'no sign of life for 0.2 s', 'attempts': 2}]
  assert len(starter.started) == 2
  assert 0.4 <= time.time() - began < 10


def test_groups_for_all_workers(tmp_path):
  """Eight trials of one structure are two groups for two workers, and of at most three lanes each three."""
  play = lambda folder, names, number: succeed(folder, names)
  starter, _, _ = run(tmp_path / 'a', play, count=8, jobs=2)
  assert [len(names) for names in starter.started] == [4, 4]
  starter, _, _ = run(tmp_path / 'b', play, count=8, lanes=3)
  assert [len(names) for names in starter.started] == [3, 3, 2]


def test_a_folder_of_another_sweep(tmp_path):
  play = lambda folder, names, number: succeed(folder, names)
  run(tmp_path, play, count=3)
  with pytest.raises(
    UsageError, match='holds another sweep: 1 of its 3 trials are not in this one, such as seed=2'
  ):
    run(tmp_path, play, count=2)
  starter, _, names = run(tmp_path, play, count=5)  # more of the same is the same
  assert starter.started == [names[3:]]


def test_interrupted(tmp_path):
  import os
  import signal

  def play(folder, names, number):
    os.kill(os.getpid(), signal.SIGTERM)
    return 75, 'interrupted'

  with pytest.raises(Interrupted, match='type the same command again'):
    run(tmp_path, play)


def test_cores_and_gpus_are_dealt_out():
  slots = lambda jobs, gpus, cores: workers.slots_of(jobs, {'CUDA_VISIBLE_DEVICES': gpus}, cores)
  assert slots(1, '0,1', [0, 1]) == [Slot((), ())]
  assert slots(2, '', [0, 1, 2, 3]) == [Slot((0, 2), ()), Slot((1, 3), ())]
  assert slots(2, '0,1,2,3', [0, 1]) == [Slot((0,), ('0', '2')), Slot((1,), ('1', '3'))]
  three = slots(3, '5', [0])
  assert three == [Slot((0,), ('5',), 3)] * 3
  assert workers.environment_of(three[0])['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.30'
  assert workers.environment_of(three[0])['CUDA_VISIBLE_DEVICES'] == '5'
