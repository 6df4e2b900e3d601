"""A process that runs one group of a sweep: `python -m aigc_jax.sweeps.worker FOLDER NAME,NAME ...`.

It ends with the status that `aigc train` would end with, and at once when the process that started it has gone.
"""

import argparse
import os
import signal
import sys
import threading
import time

from aigc_jax.errors import AigcError


def parser():
  found = argparse.ArgumentParser(description=__doc__)
  found.add_argument('folder')
  found.add_argument('names', help='of trials, with commas')
  found.add_argument('--share', type=int, default=1, help='workers that share the memory of this machine')
  found.add_argument('--cores', default='', help='numbers with commas; none: all')
  found.add_argument(
    '--watched', action='store_true', help='standard input ends when the one that watches does'
  )
  found.add_argument('--modules', default='', help="of the user's own code, with commas")
  found.add_argument('--prune', action='store_true', help='stop the trials that the search finds poor')
  return found


def end_with_parent():
  """Ends this process when standard input does: its other end is held by the process that started it.

  At once, by a signal that nothing can hold up: what is on the disk is what a resumed run needs.
  """

  def wait():
    while os.read(0, 1024):
      pass
    os.kill(os.getpid(), signal.SIGKILL)

  threading.Thread(target=wait, daemon=True).start()


def work(folder, names, share, prunes, began, modules=()):
  """Runs a group in this process, with the user's own code in `modules`. Raises AigcError."""
  from aigc_jax import own_code
  from aigc_jax.sweeps import group, search
  from aigc_jax.training.console import Console
  from aigc_jax.training.experiment import set_up

  set_up()
  own_code.trust(modules)
  with Console() as console:
    prune = search.pruner(folder) if prunes else group.never
    group.run_group(folder, names, console, share, began, prune)


def main(arguments=None):
  began = time.perf_counter()
  options = parser().parse_args(arguments)
  if options.watched:
    end_with_parent()
  if options.cores and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, [int(core) for core in options.cores.split(',')])  # before JAX counts them
  try:
    modules = list(filter(None, options.modules.split(',')))
    work(options.folder, options.names.split(','), options.share, options.prune, began, modules)
  except AigcError as error:
    print(f'aigc: {error}', file=sys.stderr)
    return error.status
  return 0


if __name__ == '__main__':
  sys.exit(main())
