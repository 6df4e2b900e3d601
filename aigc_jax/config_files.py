"""Config files: Python that is run for what its functions return, and never imported."""

import importlib.util
import os
import sys
import traceback
import types

from aigc_jax.errors import UsageError, listed, nearest


def load_file(text):
  """'path.py' or 'path.py:variant' -> what its get_config returns, a ConfigDict or dict. Raises UsageError."""
  _, colon, variant = text.partition('.py:')
  config = call(text, 'get_config', *([variant] if colon else []))
  if not hasattr(config, 'items'):
    raise UsageError(f'{path_of(text)}: get_config() returns {config!r}; it takes a ConfigDict or a dict')
  return config


def call(text, name, *arguments):
  """What a function of a config file 'path.py' or 'path.py:variant' returns. Raises UsageError."""
  path = path_of(text)
  if not os.path.isfile(path):
    folder = os.path.dirname(path) or '.'
    there = sorted(f for f in os.listdir(folder) if f.endswith('.py')) if os.path.isdir(folder) else []
    close = nearest(os.path.basename(path), there)
    raise UsageError(
      f'--config={text}: no such file; {close}config files in {folder}: {listed(there) or "none"}'
    )
  module = types.ModuleType('aigc_config')  # not imported: that would leave a folder of bytecode beside it
  module.__file__ = path
  try:
    with open(path, 'rb') as file:
      exec(compile(importlib.util.decode_source(file.read()), path, 'exec'), vars(module))
    if not hasattr(module, name):
      prefix = name.partition('_')[0] + '_'
      close = nearest(name, [other for other in vars(module) if other.startswith(prefix)])
      raise UsageError(f'{path}: has no function {name}(); {close}'.rstrip('; '))
    return getattr(module, name)(*arguments)
  except UsageError:
    raise
  except Exception as error:
    where = [f for f in traceback.extract_tb(sys.exc_info()[2]) if f.filename == path]
    line = f':{where[-1].lineno}' if where else ''
    raise UsageError(f'{path}{line}: {type(error).__name__}: {error}') from error


def path_of(text):
  """'path.py:variant' -> 'path.py'."""
  path, colon, _ = text.partition('.py:')
  return path + '.py' if colon else text
