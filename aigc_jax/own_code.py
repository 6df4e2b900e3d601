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


def trust(modules):
  """Imports modules, from the working directory or wherever Python finds them. Raises UsageError."""
  here = os.getcwd()
  if (
    modules and here not in sys.path and '' not in sys.path
  ):  # a command's own folder is not there, as of `python -m`
    sys.path.insert(0, here)
  for module in modules:
    if module in sys.modules:
      continue
    try:
      importlib.import_module(module)
    except Exception as error:  # whatever the user's code raises
      last = traceback.extract_tb(error.__traceback__)[-1]
      where = (
        f' at {os.path.basename(last.filename)}:{last.lineno}' if 'importlib' not in last.filename else ''
      )
      raise UsageError(f'{module}: cannot be imported{where}: {type(error).__name__}: {error}') from error


def found(section, name, kind, what):
  """What `name`, 'module:name', is, of a module that is imported already.

  Args:
    section: of the config, 'model'. kind: what it has to be an instance of, or, of a class, a subclass of.
    what: words for that.

  Raises UsageError where it is not trusted, not there, or of another kind.
  """
  key, (module, _, attribute) = f'config.{section}.name: {name!r}', name.partition(':')
  if module not in sys.modules:
    raise UsageError(
      f"{key} is code of the user's own, and runs where it is trusted: add --trust (trust=True)"
    )
  there = vars(sys.modules[module])
  if attribute not in there:
    close = nearest(attribute, [known for known, value in there.items() if is_kind(value, kind)])
    raise UsageError(f'{key}: {module} has no {attribute!r}; {close}'.rstrip('; '))
  if not is_kind(there[attribute], kind):
    raise UsageError(f'{key} is {there[attribute]!r}, and it has to be {what}')
  return there[attribute]


def is_kind(value, kind):
  return issubclass(value, kind) if isinstance(value, type) else isinstance(value, kind)
