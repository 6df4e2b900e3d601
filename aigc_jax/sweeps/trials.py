"""The trials of a sweep: overrides -> resolved configs with names of their own, and which of them share a program."""

import hashlib
import json
from typing import Any, NamedTuple

from aigc_jax.config import floats_of, with_floats
from aigc_jax.config_files import call, load_file, path_of
from aigc_jax.errors import UsageError
from aigc_jax.schemas import read_config
from aigc_jax.sweeps import space

SEEDS = ('seed', 'data.seed')  # outside the program: they make keys and orders


class Trial(NamedTuple):
  """One run of a sweep."""

  name: str  # a hash of its resolved config
  overrides: dict  # {dotted key: value in the field's type}: what the sweep sets
  config: Any  # resolved


def trials_of(config, changes, overrides=(), trust=False):
  """[Trial] of a space, in order.

  Args:
    config: 'FILE.py:VARIANT', a ConfigDict or nested dicts.
    changes: [{dotted key: text or value}] of each trial, see `space`.
    overrides: [(dotted key, text or value)] of every trial.
    trust: as in `schemas.read_config`.

  Raises:
    UsageError: there is no trial, a field is unknown, a value is not what the field takes, or two trials are the same.
  """
  if not changes:
    raise UsageError('the sweep has no trials; it takes a list of override dicts, [{"seed": 0}, {"seed": 1}]')
  config, found = load_file(config) if isinstance(config, str) else config, {}
  for given in changes:
    complete = read_config(config, [*overrides, *given.items()], trust)
    swept = {key: value_at(complete, key) for key in given}
    trial = Trial(name_of(complete), swept, complete)
    if trial.name in found:
      raise UsageError(f'the sweep has the same trial twice: {shown(swept)}; give it once')
    found[trial.name] = trial
  return list(found.values())


def value_at(config, key):
  section, _, name = key.rpartition('.')
  return (config[section] if section else config)[name]


def shown(overrides):
  """'learning_rate=0.001 seed=0': for people, floats with four digits."""
  short = lambda value: f'{value:.4g}' if isinstance(value, float) else value
  return ' '.join(f'{key.rpartition(".")[2]}={short(value)}' for key, value in overrides.items())


def name_of(config):
  """Ten characters that tell a resolved config from others; keys may stand in any order."""
  return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def structure_of(config):
  """The resolved config as text without what may differ between the lanes of one program: traced floats and seeds."""
  blank = with_floats(config, dict.fromkeys(floats_of(config), 'float'))
  # batches of several shapes are of one shape at a step for those alone that have them in the same order
  for key in SEEDS[:1] if 'buckets' in config['data'] else SEEDS:
    section, _, name = key.rpartition('.')
    if section:
      blank[section] = blank[section] | {name: 'seed'}
    else:
      blank[name] = 'seed'
  return json.dumps(blank, sort_keys=True)


def groups_of(trials):
  """[[Trial, ...], ...]: those that one compiled program runs, in order of their first one."""
  groups = {}
  for trial in trials:
    groups.setdefault(structure_of(trial.config), []).append(trial)
  return list(groups.values())


def can_be_lanes(config):
  """Whether trials of this structure run as lanes: each has to fit a device, and to draw what one device draws."""
  places = config['parallel']
  return places['mode'] == 'mesh' and places['fsdp'] == 1 and places['tensor'] == 1


def differing(trials):
  """Dotted keys whose values differ among trials, in the order in which they are first swept."""
  keys = dict.fromkeys(key for trial in trials for key in trial.overrides)
  values = lambda key: {json.dumps(value_at(trial.config, key)) for trial in trials}
  return [key for key in keys if len(values(key)) > 1]


def space_of(config, sweep):
  """The space that is typed, 'KEY=VALUE,VALUE;...', or that the config file's function sweep_NAME() returns.

  Args:
    config: 'FILE.py:VARIANT'.
    sweep: what is typed, or NAME.
  """
  if '=' in sweep:
    return space.parse(sweep)
  found = call(config, f'sweep_{sweep}')
  if not isinstance(found, list) or not all(isinstance(trial, dict) for trial in found):
    raise UsageError(
      f'{path_of(config)}: sweep_{sweep}() returns {found!r}; it takes a list of override dicts'
    )
  return found


def search_space_of(config, sweep):
  """{dotted key: space.Between or [value]} that is typed, or that the config file's function search_NAME() returns."""
  if '=' in sweep:
    return space.parse_search(sweep)
  found = call(config, f'search_{sweep}')
  if not isinstance(found, dict) or not all(isinstance(v, list | space.Between) for v in found.values()):
    raise UsageError(
      f'{path_of(config)}: search_{sweep}() returns {found!r}; it takes a dict of lists and Betweens'
    )
  return found
