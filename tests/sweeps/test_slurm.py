"""Groups as jobs: by submitit's local executor for real, and by a Slurm that is played by scripts on PATH."""

import os
import pathlib
import pickle

import pytest

from aigc_jax.errors import UsageError
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import launch, slurm
from aigc_jax.sweeps.trials import trials_of
from aigc_jax.training.console import Console
from tests import tiny

submitit = pytest.importorskip('submitit')

# sbatch writes down what it was given and says a number; sacct says the state that the test has written.
PLAYED = {
  'sbatch': 'cp "$1" "$PLAYED/submitted.$(ls "$PLAYED" | grep -c submitted).sh"; echo "Submitted batch job 4242"',
  'sacct': 'cat "$PLAYED/sacct"',
  'scancel': 'echo "$@" >> "$PLAYED/cancelled"',
  'squeue': 'true',
  'srun': 'true',
}


@pytest.fixture
def played(tmp_path, monkeypatch):
  """The folder in which the scripts keep what they were told."""
  programs, kept = tmp_path / 'bin', tmp_path / 'played'
  programs.mkdir()
  kept.mkdir()
  for name, line in PLAYED.items():
    (programs / name).write_text(f'#!/bin/sh\n{line}\n')
    (programs / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{programs}{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.setenv('PLAYED', str(kept))
  say(kept, 'RUNNING')
  submitit.SlurmJob.watcher.clear()
  return kept


def say(kept, state):
  rows = [f'4242_{i}|{state}|node1' for i in range(2)]
  (kept / 'sacct').write_text('\n'.join(['JobID|State|NodeList', *rows]) + '\n')


def seeds(source, layers=(1, 2)):
  """A group of two seeds for each number of layers."""
  config = tiny.config(source, training={'steps': 4})
  return trials_of(config, [{'model.layers': count, 'seed': seed} for count in layers for seed in range(2)])


@pytest.fixture
def source(tmp_path):
  return tiny.write_corpus(tmp_path / 'words.txt')


def groups(trials):
  return [(trials[:2], None), (trials[2:], None)]


def test_what_waits_is_one_array(played, source, tmp_path):
  parameters = {'partition': 'gpu', 'timeout_min': 90, 'gpus_per_node': 1}
  starter = slurm.Slurm(tmp_path / 'sweep', launch.Options(jobs=2), parameters)
  trials = seeds(source)
  made = starter.start(tmp_path / 'sweep', groups(trials))
  (script,) = played.glob('submitted.*')
  text = script.read_text()
  for line in ('--array=0-1%2', '--partition=gpu', '--time=90', '--gpus-per-node=1', '--signal=USR2@'):
    assert line in text
  assert [worker.job.job_id for worker in made] == ['4242_0', '4242_1']
  assert [worker.poll() for worker in made] == [None, None]


def test_a_driver_takes_up_the_jobs_of_another(played, source, tmp_path):
  trials, folder = seeds(source), tmp_path / 'sweep'
  slurm.Slurm(folder, launch.Options(), {}).start(folder, groups(trials))
  again = slurm.Slurm(folder, launch.Options(), {})
  assert [names for names, _ in again.found(folder)] == [
    [t.name for t in trials[:2]],
    [t.name for t in trials[2:]],
  ]
  assert len(list(played.glob('submitted.*'))) == 1
  running = [launch.attached(folder, trials, *found) for found in again.found(folder)]
  assert [[t.name for t in each.job.trials] for each in running] == [
    names for names, _ in again.found(folder)
  ]


@pytest.mark.parametrize('state', ['OUT_OF_MEMORY', 'TIMEOUT', 'NODE_FAIL', 'FAILED'])
def test_a_job_that_died_says_how(played, source, tmp_path, state):
  folder = tmp_path / 'sweep'
  (worker, _) = slurm.Slurm(folder, launch.Options(), {}).start(folder, groups(seeds(source)))
  say(played, state)
  submitit.SlurmJob.watcher.update()
  worker.job._results_timeout_s = 0
  assert worker.poll() == slurm.KILLED
  assert f'its job 4242_0 ended as {state}' in worker.reason()
  worker.kill()
  assert '4242_0' in (played / 'cancelled').read_text()


def test_a_preempted_job_is_queued_again(source, tmp_path):
  job = slurm.GroupJob(tmp_path, ['a', 'b'], prunes=True)
  again = pickle.loads(pickle.dumps(job.checkpoint().function))
  assert (again.folder, again.names, again.prunes) == (str(tmp_path), ['a', 'b'], True)


def test_without_slurm(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UsageError, match='no sbatch on this machine'):
    slurm.Slurm(tmp_path, launch.Options(), {})
  assert not list(tmp_path.iterdir())


def test_unknown_parameters(played, tmp_path):
  with pytest.raises(UsageError, match='--slurm: '):
    slurm.Slurm(tmp_path / 'sweep', launch.Options(), {'partitoin': 'gpu'})
  assert not (tmp_path / 'sweep').exists()


@pytest.mark.slow
def test_a_sweep_by_jobs(source, tmp_path, monkeypatch):
  """For real, as processes that submitit starts and this driver does not."""
  monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(__file__).parents[2]))
  monkeypatch.setattr(slurm.Slurm, 'seconds', 0.2)
  trials, folder = seeds(source), tmp_path / 'sweep'
  starter = slurm.Slurm(folder, launch.Options(), {}, cluster='local')
  with sweep_folder.opened(folder, None, trials), Console(quiet=True) as console:
    assert launch.launch(folder, trials, launch.Options(), console, starter) == {}
  assert all(sweep_folder.state_of(folder / trial.name)['state'] == 'done' for trial in trials)
