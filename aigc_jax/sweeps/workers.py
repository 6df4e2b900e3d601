"""Where each worker of a sweep runs: which cores and devices are its own, and how it is started."""

import os
import shutil
import subprocess
import sys
from typing import NamedTuple


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
  return [sys.executable, '-m', 'aigc_jax.sweeps.worker', str(folder), names, *options]


def environment_of(slot):
  """The environment of a worker: its GPUs, and its part of one that it shares."""
  changed = {}
  if slot.devices:
    changed['CUDA_VISIBLE_DEVICES'] = ','.join(slot.devices)
  if slot.sharers > 1:
    changed['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / slot.sharers:.2f}'
  return os.environ | changed
