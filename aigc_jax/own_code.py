"""Models and tasks of the user's own, named 'module:name' in a config, and imported only where the user trusts them.

Trust is an import: `trust` imports the modules that configs name, and `found` takes from modules that are imported
already, and never imports. So a run folder of somebody else names code, and runs none.
"""

import importlib
import os
import sys
import traceback

from aigc_jax.errors import UsageError, nearest

NAMED = ('task', 'model')  # sections whose `name` may be 'module:name'


def is_own(name):
  return isinstance(name, str) and ':' in name


def modules_of(*configs, overrides=()):
  """Modules that nested dicts, or [(dotted key, value)], name for tasks and models, each once."""
  names = [config.get(section, {}) for config in configs for section in NAMED]
  names = [section.get('name') for section in names if hasattr(section, 'get')]
  names += [value for key, value in overrides if key in [f'{section}.name' for section in NAMED]]
  return list(dict.fromkeys(name.partition(':')[0] for name in names if is_own(name)))


def flag(config):
  """What a command about a run says besides where its config names such code: ' --trust', or ''."""
  return ' --trust' if modules_of(config) else ''


def trust(modules):
  """Imports modules, from the working directory or wherever Python finds them. Raises UsageError."""
  here = os.getcwd()
  if modules and here not in sys.path and '' not in sys.path:  # as of a command, unlike `python -m`
    sys.path.insert(0, here)
  for module in modules:
    if not all(part.isidentifier() for part in module.split('.')):
      raise UsageError(
        f"{module!r}: is no module; own code is named as Python imports it, 'package.module:NAME'"
      )
    if module in sys.modules:
      continue
    try:
      importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
      told = ' '.join(f'{type(error).__name__}: {error}'.split())
      raise UsageError(f'{module}: cannot be imported{place_of(error)}: {told}') from error


def place_of(error):
  """' at FILE.py:LINE', the line of a module that led to it; '' where none was begun, as of one that is not there."""
  lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == '<module>']
  return f' at {os.path.basename(lines[-1].filename)}:{lines[-1].lineno}' if lines else ''


def found(section, name, fits, what):
  """What `name`, 'module:name', is, of a module that is imported already.

  Args:
    section: of the config, 'model'. fits: value -> whether it can be one. what: words for that.

  Raises UsageError where it is not trusted, not there, or of another kind.
  """
  key, (module, _, attribute) = f'config.{section}.name: {name!r}', name.partition(':')
  if module not in sys.modules:
    raise UsageError(
      f"{key} is code of the user's own, and runs where it is trusted: add --trust (trust=True)"
    )
  there = vars(sys.modules[module])
  if attribute not in there:
    close = nearest(attribute, [known for known, value in there.items() if fits(value)])
    raise UsageError(f'{key}: {module} has no {attribute!r}; {close}'.rstrip('; '))
  if not fits(there[attribute]):
    raise UsageError(f'{key} is of type {type(there[attribute]).__name__}, and it has to be {what}')
  return there[attribute]
