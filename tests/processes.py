"""Starts the processes of one run on this machine, and tells how they end.

  python -m tests.processes

trains one small language model in one process, in two and in four, by several layouts; kills a process of each run in
the middle and lets the run go on with as many, with fewer and alone; and prints how far the curves are apart.
"""

import os
import pathlib
import signal
import socket
import sys
import tempfile
import time

from aigc_jax.run import read_metrics
from aigc_jax.training import checkpoint
from tests import kill_and_resume, tiny

# A stack of C++ frames comes before the line for people where JAX ends a process.
SLURM = {'SLURM_JOB_ID': '4242', 'SLURM_STEP_NODELIST': '127.0.0.1', 'JAX_PLATFORMS': 'cpu'}


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def start(count, *arguments, folder):
  """[process, ...] of `aigc ARGUMENTS`; what each prints goes to FOLDER/process_N.txt."""
  port, started = free_port(), []
  for number in range(count):
    flags = (f'--coordinator=127.0.0.1:{port}', f'--process_id={number}', f'--num_processes={count}')
    flags = ('--distributed', *flags) if count > 1 else ()
    with open(folder / f'process_{number}.txt', 'w', encoding='utf-8') as file:
      started.append(
        kill_and_resume.start(*arguments, *flags, stderr=file, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
      )
  return started


def start_by_slurm(count, *arguments, folder):
  """The same, as a job step of Slurm would start them."""
  started = []
  job = {**os.environ, **SLURM, 'SLURM_JOB_ID': str(free_port()), 'SLURM_NTASKS': str(count)}
  for number in range(count):
    task = {'SLURM_PROCID': str(number), 'SLURM_LOCALID': str(number)}
    with open(folder / f'process_{number}.txt', 'w', encoding='utf-8') as file:
      started.append(
        kill_and_resume.start(*arguments, '--distributed', stdout=file, stderr=file, env=job | task)
      )
  return started


def last_line(folder, number):
  return (folder / f'process_{number}.txt').read_text(encoding='utf-8').splitlines()[-1]


def wait(started):
  """Their exit statuses."""
  return [process.wait(timeout=300) for process in started]


def kill(started, run, victim, step, number=signal.SIGKILL):
  """Sends a signal to one once the run has come to a step; (statuses of all, seconds until the last one has ended)."""
  while kill_and_resume.last_step(run) < step:
    if any(process.poll() is not None for process in started):
      break  # one has ended too early; the caller sees by what
    time.sleep(0.01)
  started[victim].send_signal(number)
  began = time.perf_counter()
  return wait(started), time.perf_counter() - began


def curve(run):
  """{(step, name): value} of metrics.jsonl, without clocks."""
  return {
    (row['step'], name): value
    for row in read_metrics(run)
    for name, value in row.items()
    if name != 'step' and not name.startswith('time/')
  }


def difference(run, other):
  """The largest relative difference of anything in metrics.jsonl to a run at least as long, of the same lines."""
  ours, theirs = curve(run), curve(other)
  assert ours.keys() <= theirs.keys(), sorted(ours.keys() - theirs.keys())[:3]
  return max(abs(value - theirs[key]) / max(abs(theirs[key]), 1e-9) for key, value in ours.items())


def config(source, **training):
  """Dropout, a moving average, evaluations and checkpoints; its batch divides over 4 and its layers over 2.

  Its rate is constant, so that shorter runs are the beginnings of longer ones.
  """
  training = {'log_every': 1, 'evaluate_every': 10, 'checkpoint_every': 10, 'sample_every': 20} | training
  return tiny.config(
    source,
    model={
      'name': 'transformer',
      'layers': 1,
      'heads': 2,
      'width': 16,
      'vocabulary_size': 32,
      'dropout': 0.1,
    },
    data={'batch_size': 8},
    optimizer={
      'name': 'adamw',
      'learning_rate': 3e-3,
      'schedule': 'constant',
      'average': 0.9,
      'clip_norm': 1.0,
    },
    training=training,
    parallel={'data': -1},
  )


def write_config(folder, **training):
  made = config(tiny.write_corpus(folder / 'words.txt'), **training)
  path = folder / 'config.py'
  path.write_text(f'def get_config(variant=""):\n  return {made!r}\n', encoding='utf-8')
  return f'--config={path}'


ENDLESS = '--config.training.steps=100000'  # so that a kill comes in the middle


def later_than(step):
  """A step to go on to, where the reference has evaluated too."""
  return (step // 10 + 2) * 10


# (processes, fields of config.parallel, how many go on after a kill)
RUNS = (
  (2, (), 2),
  (2, (), 1),
  (2, ('fsdp=2',), 1),
  (2, ('tensor=2',), 2),
  (2, ('mode=pmap',), 1),
  (4, (), 2),
  (4, ('fsdp=2', 'tensor=2'), 4),
  (4, ('fsdp=4',), 1),
)


def unbroken_and_killed(folder, typed, count, later, victim):
  """(an unbroken run of 100 steps, a run killed and gone on with, seconds until the others had ended)."""
  whole, broken = folder / 'whole', folder / 'broken'
  statuses = wait(start(count, *typed, '--config.training.steps=100', f'--workdir={whole}', folder=folder))
  assert statuses == [0] * count, last_line(folder, 0)
  started = start(count, *typed, ENDLESS, f'--workdir={broken}', folder=folder)
  statuses, seconds = kill(started, broken, victim, 25)
  assert statuses == [-9 if n == victim else 75 for n in range(count)], statuses
  steps = later_than(checkpoint.latest(broken / 'checkpoints'))
  statuses = wait(start(later, 'resume', broken, f'--steps={steps}', folder=folder))
  assert statuses == [0] * later, last_line(folder, 0)
  return whole, broken, seconds


def main():
  folder = pathlib.Path(tempfile.mkdtemp(prefix='processes-'))
  typed = ['train', write_config(folder, steps=3000)]
  plain = '--config.model.dropout=none'  # under pmap each device draws its own noise
  wait(start(1, *typed, f'--workdir={folder / "one"}', folder=folder))
  wait(start(1, *typed, plain, f'--workdir={folder / "plain"}', folder=folder))
  print(
    '| processes | config.parallel | unbroken | killed; others gone after | went on with | largest difference |'
  )
  print('|---' * 6 + '|', flush=True)
  for i, (count, layout, later) in enumerate(RUNS):
    flags = [f'--config.parallel.{field}' for field in layout] + [plain] * ('mode=pmap' in layout)
    expected, place = folder / ('plain' if 'mode=pmap' in layout else 'one'), folder / str(i)
    place.mkdir()
    whole, broken, seconds = unbroken_and_killed(place, typed + flags, count, later, i % count)
    cells = [
      count,
      ', '.join(layout) or 'data=-1',
      f'{difference(whole, expected):.0e}',
      f'{i % count}; {seconds:.0f} s',
    ]
    cells += [later, f'{difference(broken, expected):.0e}']
    print(f'| {" | ".join(map(str, cells))} |', flush=True)


if __name__ == '__main__':
  sys.exit(main())
