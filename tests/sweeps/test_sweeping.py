"""A sweep as its users type it, with workers that are real."""

import os
import signal
import subprocess
import sys
import time

import pytest

import aigc_jax
from aigc_jax import cli, sweeping
from aigc_jax.sweeps import folder as sweep_folder
from tests import tiny


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('data') / 'words.txt')


def test_one_command(source, tmp_path, capsys):
  """Typed, reported on, and typed again; a trial that is not finite costs itself alone."""
  config = tiny.write_config(tmp_path / 'tiny.py', source)
  command = [
    'sweep',
    f'--config={config}',
    '--sweep=optimizer.learning_rate=1e-2,1e30',
    f'--workdir={tmp_path / "s"}',
  ]
  assert cli.main(command) == 0
  said = capsys.readouterr().err
  assert 'started: 2 trials as lanes' in said
  assert 'learning_rate=0.01: done, step 12' in said
  found = aigc_jax.load_sweep(tmp_path / 's')
  assert list(found['state']) == ['done', 'non-finite']
  assert 0 < found['validation/loss'][0] < 4
  assert found['cost_seconds'][0] > 0
  assert {'table.csv', 'table.md', 'report.html'} <= set(os.listdir(tmp_path / 's'))
  began = time.perf_counter()
  assert cli.main(command) == 0
  assert 'started' not in capsys.readouterr().err
  assert time.perf_counter() - began < 5


def test_dry_run_shows_trials_groups_and_cost(source, tmp_path, capsys):
  config = tiny.write_config(tmp_path / 'tiny.py', source)
  assert cli.main(['sweep', f'--config={config}', '--sweep=seed=0..1;model.layers=1,2', '--dry_run']) == 0
  out = capsys.readouterr().out
  assert out.count('2 lanes') == 2
  assert 'in all: 4 trials' in out
  assert 'ms a step, 12 steps' in out
  assert not (tmp_path / 'runs').exists()


def test_the_same_trials_have_the_same_folder(source):
  config = tiny.config(source)
  trials = lambda changes: sorted(trial.name for trial in sweeping.find_trials(config, changes, []))
  names = [trials([{'seed': 0}, {'seed': 1}]), trials([{'seed': 1}, {'seed': 0}]), trials([{'seed': 2}])]
  folders = [sweeping.default_folder('configs/a.py:b', found) for found in names]
  assert folders[0] == folders[1] != folders[2]
  assert folders[0].startswith('runs/a-b-sweep-')


@pytest.mark.slow
def test_workers_end_with_their_driver(source, tmp_path):
  """`kill -9` of the driver; no worker writes any more, and the same command goes on."""
  config = tiny.write_config(tmp_path / 'tiny.py', source, training={'steps': 4000, 'checkpoint_every': 50})
  command = [sys.executable, '-m', 'aigc_jax.cli', 'sweep', f'--config={config}', '--sweep=seed=0..1']
  command.append(f'--workdir={tmp_path / "s"}')
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 120
  while (
    not list((tmp_path / 's').glob('groups/*/checkpoints/*/manifest.json')) and time.monotonic() < deadline
  ):
    time.sleep(0.1)
  process.send_signal(signal.SIGKILL)
  process.wait()
  time.sleep(1)
  files = list((tmp_path / 's').glob('*/metrics.jsonl'))
  sizes = [file.stat().st_size for file in files]
  assert len(files) == 2
  assert all(sizes)
  time.sleep(1)
  assert [file.stat().st_size for file in files] == sizes
  states = [sweep_folder.state_of(file.parent)['state'] for file in files]
  assert states == ['interrupted', 'interrupted']
