"""Where each worker of a sweep runs: which cores and devices are its own, and how it is started."""

import os
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

from aigc_jax import files, own_code

KILLED = -signal.SIGKILL  # the exit status of a worker that was killed


class Slot(NamedTuple):
  """The part of a machine that one worker at a time has."""

  cores: tuple  # numbers; empty: all
  devices: tuple  # of GPUs, as CUDA_VISIBLE_DEVICES has them; empty: all that are seen
  sharers: int = 1  # slots that have the same GPU


def visible_gpus(environment):
  """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them, without starting JAX."""
  if (given := environment.get('CUDA_VISIBLE_DEVICES')) is not None:
    return [name for name in given.split(',') if name.strip() not in ('', '-1')]
  if shutil.which('nvidia-smi') is None:
    return []
  try:
    listed = subprocess.run(
      ['nvidia-smi', '-L'], capture_output=True, text=True, timeout=30, check=True
    ).stdout
  except (OSError, subprocess.SubprocessError):
    return []
  return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith('GPU')]


def slots_of(jobs, environment=None, cores=None):
  """[Slot] of `jobs` workers: cores and GPUs dealt out in turn, or shared where there are fewer than workers."""
  gpus = visible_gpus(os.environ if environment is None else environment)
  if cores is None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  own = lambda items, i: (
    tuple(items[i::jobs]) if len(items) >= jobs else (items[i % len(items)],) if items else ()
  )
  if jobs == 1:
    return [Slot((), ())]
  sharers = -(-jobs // len(gpus)) if gpus else 1
  return [Slot(own(cores, i), own(gpus, i), sharers) for i in range(jobs)]


def command(folder, trials, slot, share, prunes=False):
  """What starts a worker on a group of trials. `prunes`: it stops those that a search finds poor."""
  names = ','.join(trial.name for trial in trials)
  options = [f'--share={share}', f'--cores={",".join(map(str, slot.cores))}', '--watched']
  options += ['--prune'] if prunes else []
  if modules := own_code.modules_of(*(trial.config for trial in trials)):  # imported here, so trusted
    options.append(f'--modules={",".join(modules)}')
  return [sys.executable, '-m', 'aigc_jax.sweeps.worker', str(folder), names, *options]


def environment_of(slot):
  """The environment of a worker: its GPUs, and its part of one that it shares."""
  changed = {}
  if slot.devices:
    changed['CUDA_VISIBLE_DEVICES'] = ','.join(slot.devices)
  if slot.sharers > 1:
    changed['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / slot.sharers:.2f}'
  return os.environ | changed


class Here:
  """Starts worker processes on this machine, each in a session of its own, so that Ctrl-C reaches the driver alone."""

  seconds = 0.1  # between looks at the workers
  outlives = False  # whether workers go on when the driver ends

  def __init__(self, jobs, prunes):
    self.jobs, self.prunes = jobs, prunes

  def slots(self, count):
    """[Slot] for at most `count` jobs."""
    return slots_of(self.jobs)

  def found(self, folder):
    """[(names, worker)] of a driver before this one: none outlive it here."""
    return []

  def start(self, folder, pairs):
    """[(trials, slot)] -> [worker]. Raises StorageError."""
    return [self.start_one(folder, trials, slot) for trials, slot in pairs]

  def start_one(self, folder, trials, slot):
    log = folder / 'groups' / f'{trials[0].name}-{len(trials)}.log'
    with files.storage_errors(log):
      log.parent.mkdir(exist_ok=True)
      with open(log, 'ab') as output:
        process = subprocess.Popen(
          command(folder, trials, slot, self.jobs, self.prunes),
          stdin=subprocess.PIPE,
          stdout=output,
          stderr=subprocess.STDOUT,
          env=environment_of(slot),
          start_new_session=True,
        )
    return Process(process, log)


class Process:
  """A worker of this machine."""

  def __init__(self, process, log):
    self.process, self.log = process, log

  def poll(self):
    """The exit status, or None while it goes on."""
    return self.process.poll()

  def stop(self):
    """Asks it to save and end."""
    self.process.send_signal(signal.SIGTERM)

  def kill(self):
    self.process.kill()
    self.process.wait()

  def reason(self):
    """One line on why it ended with a status that is not 0."""
    code = self.process.returncode
    if code < 0:
      name = signal.Signals(-code).name
      return f'killed by {name}' + (', perhaps for its memory' if name == 'SIGKILL' else '')
    lines = [line for line in self.log.read_text('utf-8', 'replace').splitlines() if line.strip()]
    return lines[-1].removeprefix('aigc: ') if lines else f'ended with status {code}'
