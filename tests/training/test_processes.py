"""Several processes of one run: the numbers of one process, also after one of them is killed."""

import argparse
import signal

import pytest

from aigc_jax import api, cli_distributed, run
from aigc_jax.errors import UsageError
from aigc_jax.training import checkpoint
from tests import kill_and_resume, processes


def test_two_processes_one_of_which_is_killed_and_one_goes_on(tmp_path):
  typed, two = processes.write_config(tmp_path, checkpoint_every=5), tmp_path / 'two'
  flags = ('train', typed, processes.ENDLESS, f'--workdir={two}')
  started = processes.start_by_slurm(2, *flags, folder=tmp_path)
  statuses, seconds = processes.kill(started, two, 1, 21)
  assert statuses == [75, -signal.SIGKILL], processes.last_line(tmp_path, 0)
  assert seconds < 60
  line = processes.last_line(tmp_path, 0)
  assert line.startswith(
    'aigc: process 0 of the run was ended by SIGABRT, as when another process has died or'
  )
  assert run.open_run(two).read_status()['state'] == 'interrupted'
  saved = checkpoint.latest(two / 'checkpoints')
  parts = (two / f'checkpoints/{saved}/state').glob('ocdbt.process_*')
  assert {path.name for path in parts} == {'ocdbt.process_0', 'ocdbt.process_1'}
  steps = processes.later_than(saved)
  api.resume(two, steps, quiet=True)
  assert f'resuming after step {saved}' in (two / 'log.txt').read_text(encoding='utf-8')
  config = processes.config(f'text:{tmp_path / "words.txt"}', checkpoint_every=5, steps=steps)
  one = api.train(config | {'parallel': {'data': 1}}, tmp_path / 'one', quiet=True).path
  # Float32 sums in another order, by programs that are optimized and not, magnified by Adam.
  assert processes.difference(two, one) < 1e-4
  names = lambda folder: sorted(path.name for path in folder.rglob('*-sample.txt'))
  assert names(two) == names(one)


@pytest.mark.slow
def test_four_processes_end_together_by_a_signal_and_go_on_bit_for_bit(tmp_path):
  flags = (
    'train',
    processes.write_config(tmp_path),
    '--config.parallel.fsdp=2',
    '--config.parallel.tensor=2',
  )
  four = tmp_path / 'four'
  started = processes.start(4, *flags, processes.ENDLESS, f'--workdir={four}', folder=tmp_path)
  statuses, _ = processes.kill(started, four, 2, 12, signal.SIGTERM)
  assert statuses == [75] * 4
  status = run.open_run(four).read_status()
  assert status['state'] == 'interrupted'
  assert 12 < status['step'] == status['checkpoint']
  lines = {processes.last_line(tmp_path, number) for number in range(4)}
  assert lines == {f'aigc: interrupted after step {status["step"]}, saved; go on by `aigc resume {four}`'}
  steps = f'--steps={processes.later_than(status["step"])}'
  assert processes.wait(processes.start(4, 'resume', four, steps, folder=tmp_path)) == [0] * 4
  same = (f'--config.training.{steps[2:]}', f'--workdir={tmp_path / "whole"}')
  assert processes.wait(processes.start(4, *flags, *same, folder=tmp_path)) == [0] * 4
  assert not kill_and_resume.differences(four, tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 3])
def test_four_processes_one_of_which_is_killed(victim, tmp_path):
  typed = ['train', processes.write_config(tmp_path, steps=3000), '--config.parallel.fsdp=4']
  assert processes.wait(processes.start(1, *typed[:2], f'--workdir={tmp_path / "one"}', folder=tmp_path)) == [
    0
  ]
  whole, broken, seconds = processes.unbroken_and_killed(tmp_path, typed, 4, 2, victim)
  assert seconds < 60
  assert processes.difference(whole, tmp_path / 'one') < 1e-4  # a hundred steps of Adam
  assert processes.difference(broken, tmp_path / 'one') < 1e-3  # some hundreds


GOOD = {'coordinator': '10.0.0.1:8476', 'process_id': 1, 'num_processes': 2}


def check(environment=(), distributed=True, **given):
  options = argparse.Namespace(distributed=distributed, **dict.fromkeys(GOOD) | given)
  return cli_distributed.check(options, dict.fromkeys(environment, '1'))


def test_flags_or_slurm_say_which_process_this_is():
  assert check(**GOOD) == ('10.0.0.1:8476', 2, 1)
  assert check(cli_distributed.SLURM) == (None, None, None)
  assert check(distributed=False) == (None, None, None)


@pytest.mark.parametrize(
  ('given', 'environment', 'words'),
  [
    (
      {},
      (),
      '--coordinator, --process_id, --num_processes are missing, or, in a job step of Slurm, SLURM_JOB_ID',
    ),
    ({}, cli_distributed.SLURM[:3], 'SLURM_PROCID, SLURM_LOCALID in the environment'),
    (GOOD | {'process_id': None}, cli_distributed.SLURM, '--distributed: --process_id is missing'),
    (GOOD | {'process_id': 2}, (), '--process_id=2: of --num_processes=2 it takes a number from 0 to 1'),
    (GOOD | {'num_processes': 0}, (), '--num_processes=0'),
    (GOOD | {'coordinator': 'node7'}, (), '--coordinator=node7: it takes HOST:PORT'),
    (GOOD | {'coordinator': 'node7:99999'}, (), '--coordinator=node7:99999: it takes HOST:PORT'),
    (GOOD | {'distributed': False}, (), 'go with --distributed'),
  ],
)
def test_what_is_missing_or_impossible_is_one_line(given, environment, words):
  with pytest.raises(UsageError) as error:
    check(environment, **given)
  assert words in str(error.value)
  assert '\n' not in str(error.value)


def test_a_coordinator_that_does_not_listen_is_one_line():
  with pytest.raises(
    UsageError, match=r'--coordinator=127.0.0.1:\d+: no process listened there for 1 s \(Connection'
  ):
    cli_distributed.reach(f'127.0.0.1:{processes.free_port()}', 1)
