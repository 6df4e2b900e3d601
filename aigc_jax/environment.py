"""What can make one start of a run differ from another: code, versions, machine, settings."""

import datetime
import os
import pathlib
import platform
import socket
import subprocess
import sys

PACKAGES = ('aigc-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tokenizers')
DIFF_LIMIT = 1 << 20  # characters of `git diff` that are kept


def now():
  """UTC, e.g. 2026-11-22T04:23:00+00:00."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def environment(devices):
  """What can make one start differ from another, as JSON."""
  package = pathlib.Path(__file__).parent
  checkouts = [git_state(package, tracked='__init__.py'), git_state(pathlib.Path.cwd())]
  if checkouts[0] and checkouts[1] and checkouts[0]['folder'] == checkouts[1]['folder']:
    checkouts.pop()
  settings = {
    k: v for k, v in sorted(os.environ.items()) if k.startswith(('JAX_', 'XLA_', 'OMP_NUM_THREADS'))
  }
  return {
    'started': now(),
    'argv': sys.argv,
    'folder': str(pathlib.Path.cwd()),
    'python': platform.python_version(),
    'packages': {name: package_version(name) for name in PACKAGES},
    'platform': platform.platform(),
    'host': socket.gethostname(),
    'cores': os.cpu_count(),
    'usable_cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'devices': [str(device) for device in devices],
    'settings': settings,
    'git': [checkout for checkout in checkouts if checkout],
  }


def package_version(name):
  import importlib.metadata  # slow to import, and no reading verb needs it

  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def git_state(folder, tracked='.'):
  """Commit, changes and new files around `folder`; None if git does not know `tracked` there."""

  def git(*arguments):
    command = ['git', '-C', str(folder), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=10).stdout.decode(
      'utf-8', 'replace'
    )

  try:
    if not git('ls-files', '--', tracked).strip():
      return None
    top = git('rev-parse', '--show-toplevel').strip()
    commit = git('rev-parse', 'HEAD').strip()
    diff = git('diff', 'HEAD')
    new = git('ls-files', '--others', '--exclude-standard').splitlines()
  except (OSError, subprocess.SubprocessError):
    return None
  if len(diff) > DIFF_LIMIT:
    diff = f'{diff[:DIFF_LIMIT]}\n[cut here: the whole diff has {len(diff)} characters]\n'
  return {'folder': top, 'commit': commit, 'diff': diff, 'untracked': new[:100]}
