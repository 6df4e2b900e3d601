"""The config reference, made of the schemas: each field with its type, default and meaning.

The meaning of a field is the comment at its source: after it on its line, or on the lines before it. So there is one
place to say what a field means, and the reference cannot differ from the code.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import io
import tokenize
from typing import NamedTuple

from aigc_jax import data, models, tasks
from aigc_jax.config import SECTIONS, Root, article, fields_of
from aigc_jax.errors import UsageError, listed, nearest
from aigc_jax.training.optimizer import OptimizerConfig


class Entry(NamedTuple):
  """One section of the reference."""

  name: str  # as it is asked for: 'optimizer', 'task.language'
  about: str  # the first paragraph of what describes it
  rows: list  # of Row


class Row(NamedTuple):
  field: str
  takes: str
  default: str
  meaning: str


def sections():
  """{name: schema} of all that a config can hold: 'root', 'task.NAME', 'model.NAME', 'data.FORM', 'optimizer', ..."""
  found = {'root': Root}
  found |= {f'task.{name}': schema for name, schema in tasks.SCHEMAS.items()}
  found |= {f'model.{name}': schema for name, schema in models.SCHEMAS.items()}
  found |= {f'data.{form}': data.schema(form) for form in data.FORMS}
  return found | {'optimizer': OptimizerConfig} | SECTIONS


def entries(which=None):
  """The Entries of 'optimizer', 'model' (all models), 'model.rnn', 'optimizer.beta2' or 'model.width'; None: all.

  Raises UsageError where there is none of that name.
  """
  known = sections()
  names = sections_of(which, known)
  if names:
    return [entry(name, known[name]) for name in names]
  section, _, field = which.rpartition('.')
  found = [entry(name, known[name]) for name in sections_of(section or 'root', known)]
  found = [item._replace(rows=[row for row in item.rows if row.field == field]) for item in found]
  if not any(item.rows for item in found):
    kinds = dict.fromkeys(name.partition('.')[0] for name in known)
    fields = [f'{name}.{field}' for name, schema in known.items() for field in fields_of(schema)]
    close = nearest(which, [*known, *kinds, *fields])
    raise UsageError(f'config {which}: no such section or field; {close}the sections are {listed(kinds)}')
  return [item for item in found if item.rows]


def sections_of(which, known):
  """The names of the section `which`, or of all of its kind; None: all."""
  return [name for name in known if which in (None, name, name.partition('.')[0])]


def entry(name, schema):
  comments = meanings(schema)
  rows = [
    Row(key, takes(field), default(field), comments.get(key, '')) for key, field in fields_of(schema).items()
  ]
  return Entry(name, about(schema), rows)


def about(schema):
  """What is said of a schema: its docstring, or where it has none its module's, the first paragraph in one line."""
  own = schema.__dict__.get('__doc__') or ''
  if own.startswith(f'{schema.__name__}('):  # which dataclasses write themselves
    own = ''
  text = inspect.cleandoc(own or importlib.import_module(schema.__module__).__doc__ or '')
  return ' '.join(text.split('\n\n')[0].split())


def takes(field):
  """The values of a Field, as a text: 'int above 0', "'mesh' or 'pmap'", 'list of ints, or none'."""
  kind = field.kind
  if isinstance(kind, tuple) and kind[0] == 'sequence':
    text = f'list of {kind[1].__name__}s'
  elif isinstance(kind, tuple):
    text = ', '.join(repr(value) for value in kind)
  else:
    text = article(kind).removeprefix('an ').removeprefix('a ')
  limits = f' {field.limits.text}' if field.limits else ''
  return text + limits + (', or none' if field.optional else '')


def default(field):
  if field.default is dataclasses.MISSING:
    return 'from the data'
  value = list(field.default) if isinstance(field.default, tuple) else field.default
  return 'none' if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def meanings(schema):
  """{field: the comment at its source} of a dataclass or Linen module, also of fields that it inherits."""
  found = {}
  for parent in reversed(schema.__mro__):
    if parent.__module__.startswith('aigc_jax.'):
      found |= comments_of_class(parent)
  return found


@functools.cache
def comments_of(path):
  """{line: (comment, whether nothing else is on its line)} of a source file."""
  found = {}
  with tokenize.open(path) as file:
    source = file.read()
  lines = source.splitlines()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      line, column = token.start
      found[line] = token.string.lstrip('# ').strip(), not lines[line - 1][:column].strip()
  return ast.parse(source), found


def comments_of_class(schema):
  tree, comments = comments_of(inspect.getsourcefile(schema))
  body = next(
    node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == schema.__name__
  )
  return {
    node.target.id: comment_of(node, comments)
    for node in body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
  }


def comment_of(node, comments):
  """The comments of the lines before a field, up to what is no comment, and of its own lines."""
  before, line = [], node.lineno - 1
  while line in comments and comments[line][1]:
    before.insert(0, comments[line][0])
    line -= 1
  own = [comments[line][0] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
  return ' '.join(before + own)


def markdown(found):
  """Entries as Markdown, with a table each."""
  lines = []
  for item in found:
    rows = [[f'`{row.field}`', row.takes, f'`{row.default}`', row.meaning] for row in item.rows]
    lines += [
      f'## {item.name}',
      '',
      item.about,
      '',
      *markdown_table(['field', 'takes', 'default', 'meaning'], rows),
      '',
    ]
  return '\n'.join(lines)


def markdown_table(head, rows):
  cells = lambda row: '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |'
  return [cells(head), '|' + '---|' * len(head), *(cells(row) for row in rows)]


CONFIG_PAGE = """# The fields of a config

Made by `aigc config --format=markdown` from the schemas in the code; edit the comments there, not this page.

A config has the sections `task`, `model`, `data`, `optimizer`, `training`, `parallel` and `lora`, and the fields of
`root`, which stand outside of them (`--config.seed=1`). `task.name` and `model.name` say which fields these two have,
and the task with `data.source` says which the data have. Floats of `task`, `model`, `optimizer` and `lora` are inputs
of the compiled program: changing one never recompiles. In a terminal: `aigc config optimizer`, `aigc config model.rnn`,
`aigc config data.text.packing`. The files that set these fields are listed in [configs.md](configs.md).

"""
