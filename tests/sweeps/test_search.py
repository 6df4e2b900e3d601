"""A search by Optuna: poor lanes stop, the journal goes on where it was killed, and equal work is not done twice."""

import json
import pathlib

import pytest

from aigc_jax import sweeping
from aigc_jax.errors import UsageError
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import launch, search
from aigc_jax.sweeps.space import Between, parse_search
from aigc_jax.training.console import Console
from tests.sweeps.test_launch import CONFIG, Plays, write_trial

optuna = pytest.importorskip('optuna')

SPACE = {'optimizer.learning_rate': Between(1e-4, 1e-1, True), 'model.layers': [1, 2]}


def write_losses(path, name, losses, state='done', message='done'):
  write_trial(path, name, state, 10 * len(losses), message)
  rows = [{'step': 10 * i, 'validation/loss': loss} for i, loss in enumerate(losses, 1)]
  (path / name / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def loss_of(config):
  """Lowest at a learning rate of 0.01 and one layer."""
  import math

  return abs(math.log10(config['optimizer']['learning_rate']) + 2) + config['model']['layers'] - 1


def train(folder, names, number):
  """What a worker would do."""
  configs = json.loads((folder / 'configs.json').read_text())
  for name in names:
    write_losses(folder, name, [9.0, loss_of(configs[name])])
  return 0, ''


def run(path, count, play=train, space=SPACE):
  """(starter, study) after a search."""
  starter, wanted = Plays(play), search.Search(CONFIG, [], space, count)
  with sweep_folder.opened(path, None, [], {'space': 'x'}), Console(quiet=True) as console:
    search.run_search(pathlib.Path(path), wanted, launch.Options(lanes=4, prunes=True), console, starter)
  return starter, search.open_study(path, search.check(wanted))


def test_it_finds_what_is_good(tmp_path):
  starter, study = run(tmp_path / 's', 24)
  assert len(study.trials) == 24
  assert study.best_value < 0.3
  late = [trial.value for trial in study.trials[16:]]
  early = [trial.value for trial in study.trials[:8]]
  assert sum(late) / len(late) < sum(early) / len(early)
  assert len(json.loads((tmp_path / 's/sweep.json').read_text())['trials']) == len(
    {n for g in starter.started for n in g}
  )


def test_trials_in_flight_are_taken_up_again(tmp_path):
  class Killed(BaseException):
    pass

  def die(folder, names, number):
    if number == 3:
      raise Killed
    return train(folder, names, number)

  with pytest.raises(Killed):
    run(tmp_path / 's', 12, die)
  study = search.open_study(tmp_path / 's', search.check(search.Search(CONFIG, [], SPACE, 12)))
  running = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
  assert running
  starter, study = run(tmp_path / 's', 12)
  assert len(study.trials) == 12
  assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
  known = {trial.number: trial.params for trial in study.trials}
  assert all(known[trial.number] == trial.params for trial in running)
  assert starter.started  # those in flight first
  starter, _ = run(tmp_path / 's', 12)
  assert starter.started == []


def test_failed_trials_are_told(tmp_path):
  def play(folder, names, number):
    for name in names:
      write_losses(folder, name, [], 'non-finite', 'step 3: loss is nan')
    return 0, ''

  _, study = run(tmp_path / 's', 4, play)
  assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.FAIL}


def test_poor_lanes_are_pruned(tmp_path):
  """Five good ones are told; one that is far worse at the same step is to stop, one that is as good is not."""
  from types import SimpleNamespace

  def play(folder, names, number):
    prune = search.pruner(folder)
    configs = json.loads((folder / 'configs.json').read_text())
    for name in names:
      lane = SimpleNamespace(name=name, config=configs[name])
      assert prune(lane, 10, {'loss': 1.0}) is None
      write_losses(folder, name, [1.0])
    return 0, ''

  _, study = run(tmp_path / 's', 8, play)
  assert [trial.intermediate_values for trial in study.trials] == [{10: 1.0}] * 8
  asked = study.ask(search.distributions(SPACE))
  trial = search.trial_of(search.Search(CONFIG, [], SPACE, 9), asked.params)
  numbers = json.loads((tmp_path / 's/numbers.json').read_text()) | {trial.name: asked.number}
  (tmp_path / 's/numbers.json').write_text(json.dumps(numbers))
  prune = search.pruner(tmp_path / 's')
  lane = SimpleNamespace(name=trial.name, config=trial.config)
  assert prune(lane, 10, {'loss': 0.5}) is None
  assert prune(lane, 20, {'loss': 0.5}) is None
  (other,) = [study.ask(search.distributions(SPACE))]
  found = search.trial_of(search.Search(CONFIG, [], SPACE, 9), other.params)
  (tmp_path / 's/numbers.json').write_text(json.dumps(numbers | {found.name: other.number}))
  lane = SimpleNamespace(name=found.name, config=found.config)
  assert search.pruner(tmp_path / 's')(lane, 10, {'loss': 50.0}) == 'pruned at step 10'


def test_spaces_that_are_typed():
  found = parse_search('optimizer.learning_rate=log_uniform(1e-4,1e-2);model.layers=1..4;config.seed=3,5')
  assert found['optimizer.learning_rate'] == Between(1e-4, 1e-2, logarithmic=True)
  assert found['model.layers'] == Between(1, 4, whole=True)
  assert found['seed'] == ['3', '5']
  for text in ('a', 'a=', 'a=uniform(2,1)', 'a=log_uniform(0,1)', 'a=uniform(x,1)', '', 'a=1;a=2'):
    with pytest.raises(UsageError, match='--sweep='):
      parse_search(text)


def test_bad_spaces_are_refused_before_anything(tmp_path):
  refused = (
    ({'modl.layers': [1]}, 'no such key'),
    ({'model.layers': Between(0, 3, whole=True)}, 'out of range'),
  )
  for space, line in refused:
    with pytest.raises(UsageError, match=line):
      sweeping.search(CONFIG, space, 3, workdir=tmp_path / 's', quiet=True)
  with pytest.raises(UsageError, match='it takes 1 or more'):
    sweeping.search(CONFIG, SPACE, 0, workdir=tmp_path / 's', quiet=True)
  assert not (tmp_path / 's').exists()


def test_the_folder_of_another_search(tmp_path):
  run(tmp_path / 's', 4)
  with pytest.raises(UsageError, match='and this is another; choose another --workdir'):
    sweeping.search(CONFIG, {'seed': [1, 2]}, 2, workdir=tmp_path / 's', quiet=True)
