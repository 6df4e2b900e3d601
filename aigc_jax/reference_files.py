"""What the config files hold, made of the files: what they say of themselves, their variants, sweeps and searches."""

import glob
import inspect
import os
import re
import runpy
from typing import NamedTuple

from aigc_jax import config_files
from aigc_jax.errors import UsageError, listed
from aigc_jax.reference import markdown_table

CONFIGS_PAGE = """# The config files

Made by `aigc config configs --format=markdown` of the files in `configs/`; edit those, not this page.

A variant stands after the file's name and a colon, `--config=configs/rnn_lm.py:gru`; without one, the first line of a
table is meant. A sweep is chosen by its name, `aigc sweep --config=... --sweep=NAME`, and so is what a search draws
from, with `--search=optuna --trials=N` besides. What the fields mean: [config.md](config.md).

"""


class ConfigFile(NamedTuple):
  """What a config file holds."""

  path: str
  doc: str
  variants: list  # of (name, its config, as the file has it)
  sweeps: list  # of (name, what is said of it, its trials)
  searches: list  # of (name, what is said of it, {key: Between})


def config_files_in(path):
  """The ConfigFiles of a folder, or of one file. Raises UsageError where there are none."""
  paths = sorted(glob.glob(os.path.join(path, '*.py'))) if os.path.isdir(path) else [path]
  if not paths:
    raise UsageError(f'config {path}: a folder without config files')
  return [config_file(each) for each in paths]


def config_file(path):
  """Raises UsageError for a file that is no config file."""
  config_files.load_file(path)  # which says what is wrong with it
  there = runpy.run_path(path)
  variants = [
    (name, config_files.load_file(f'{path}:{name}' if name else path))
    for name in there.get('VARIANTS', ('',))
  ]
  named = lambda prefix: [
    (name.removeprefix(prefix), (value.__doc__ or '').strip(), value())
    for name, value in there.items()
    if name.startswith(prefix) and inspect.isfunction(value) and value.__module__ == '<run_path>'
  ]
  return ConfigFile(path, there['__doc__'] or '', variants, named('sweep_'), named('search_'))


def config_files_markdown(files):
  """ConfigFiles as Markdown: what they say of themselves, their variants, sweeps and searches."""
  lines = []
  for file in files:
    lines += [f'## {file.path}', '', *documented(file.doc), '']
    lines += [*markdown_table(VARIANT, [variant_row(*variant) for variant in file.variants]), '']
    if file.sweeps:
      rows = [[f'`{name}`', str(len(trials)), swept(trials), said] for name, said, trials in file.sweeps]
      lines += [*markdown_table(['sweep', 'trials', 'fields', ''], rows), '']
    if file.searches:
      rows = [[f'`{name}`', listed(f'`{key}`' for key in space), said] for name, said, space in file.searches]
      lines += [*markdown_table(['search', 'fields', ''], rows), '']
  return '\n'.join(lines)


VARIANT = ['variant', 'task', 'model', 'data', 'optimizer', 'batch', 'steps']


def variant_row(name, config):
  """The cells of VARIANT; '-' for what the file leaves to the defaults, or to `init_from`."""
  fields = ('task.name', 'model.name', 'data.source', 'optimizer.name', 'data.batch_size', 'training.steps')
  cells = [config.get(section, {}).get(field, '-') for section, field in (key.split('.') for key in fields)]
  return [f'`{name}`' if name else '(none)', *map(str, cells)]


def swept(trials):
  """The fields that trials set."""
  return listed(f'`{key}`' for key in dict.fromkeys(key for trial in trials for key in trial))


def documented(text):
  """A docstring as Markdown: indented lines are code."""
  lines, inside = [], False
  for line in inspect.cleandoc(text).split('\n'):
    if line.startswith('  ') != inside and line:
      inside = not inside
      lines.append('```' if not inside else '```bash')
    lines.append(commented(line.removeprefix('  ')) if inside else line)
  lines = lines + ['```'] * inside
  # a blank line before the end of code belongs behind it
  for i, line in enumerate(lines):
    if line == '```' and i and not lines[i - 1]:
      lines[i - 1], lines[i] = line, ''
  return lines


def commented(line):
  """A command with what is said of it, set apart by spaces, behind a '#'."""
  return re.sub(r'^(aigc .*?\S {2,})(?=[^ ])', r'\1# ', line, count=1)
