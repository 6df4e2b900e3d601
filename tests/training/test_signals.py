"""Runs broken by signals and resumed, in processes of their own: they end where the unbroken run ends."""

import os
import random
import signal

import pytest

from aigc_jax import run
from aigc_jax.training import checkpoint
from tests import kill_and_resume, tiny

pytestmark = pytest.mark.usefixtures('cached_programs')


@pytest.fixture(scope='module')
def processes(tmp_path_factory, cached_programs):
  """(folder, options of a subprocess, config file, its unbroken run): 160 steps, a checkpoint every 10."""
  folder = tmp_path_factory.mktemp('processes')
  training = {'steps': 160, 'log_every': 3, 'evaluate_every': 20, 'checkpoint_every': 10}
  source = tiny.write_corpus(folder / 'words.txt')
  config = tiny.write_config(folder / 'tiny.py', source, training=training, optimizer={'average': 0.9})
  cache = {
    'JAX_COMPILATION_CACHE_DIR': str(cached_programs),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  options = {
    'env': os.environ | {'JAX_PLATFORMS': 'cpu'} | cache,
    'stderr': open(folder / 'stderr.txt', 'ab'),  # noqa: SIM115 (for the processes of all the tests)
  }
  process = kill_and_resume.start('train', f'--config={config}', f'--workdir={folder}/whole', **options)
  assert process.wait() == 0
  return folder, options, config


def test_kill_and_then_sigterm_end_where_the_unbroken_run_ends(processes, tmp_path):
  folder, options, config = processes
  draw = random.Random()
  process = kill_and_resume.start('train', f'--config={config}', f'--workdir={tmp_path}/run', **options)
  status, killed = kill_and_resume.end_at(
    process, tmp_path / 'run', draw.randint(1, 70), signal.SIGKILL, draw.uniform(0, 0.02)
  )
  assert status == -signal.SIGKILL
  assert run.open_run(tmp_path / 'run').read_status()['state'] == 'interrupted'
  process = kill_and_resume.start('resume', tmp_path / 'run', **options)
  status, ended = kill_and_resume.end_at(process, tmp_path / 'run', draw.randint(80, 120), signal.SIGTERM)
  here = f'killed after step {killed}, terminated after step {ended}'
  assert status == 75, here
  said = run.open_run(tmp_path / 'run').read_status()
  assert (said['state'], said['checkpoint']) == ('interrupted', said['step']), here
  assert checkpoint.latest(tmp_path / 'run/checkpoints') == said['step'], here
  assert kill_and_resume.start('resume', tmp_path / 'run', **options).wait() == 0, here
  assert kill_and_resume.differences(tmp_path / 'run', folder / 'whole') == [], here


@pytest.mark.slow
@pytest.mark.parametrize('attempt', range(3))
def test_three_random_kills(processes, tmp_path, attempt):
  folder, options, config = processes
  draw, arguments = random.Random(), [f'--config={config}']
  lines = list(kill_and_resume.kill_and_resume(arguments, tmp_path / 'run', 3, draw, 160, **options))
  assert [line.rpartition(' ')[2] for line in lines] == ['-9', '-9', '-9', '0']
  assert kill_and_resume.differences(tmp_path / 'run', folder / 'whole') == [], lines
