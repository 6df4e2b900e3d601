"""`aigc config`: which fields a config has, and which config files there are; parsing and printing only."""

import os
import shutil
import textwrap

INDENT = 4


def add_options(add):
  """add: (name, text) -> the parser of a verb."""
  config = add('config', 'the fields of a config and what they mean, or the config files of a folder')
  config.add_argument(
    'what',
    nargs='?',
    metavar='SECTION[.NAME[.FIELD]]|FILE.py|FOLDER',
    help='such as optimizer, model.rnn, training.patience, configs/rnn_lm.py; left out: all fields',
  )
  config.add_argument('--format', choices=('text', 'markdown'), default='text')


def config(options):
  from aigc_jax import reference, reference_files

  what, markdown = options.what, options.format == 'markdown'
  if what is not None and (what.endswith('.py') or os.path.isdir(what)):
    files = reference_files.config_files_in(what)
    page = reference_files.CONFIGS_PAGE + reference_files.config_files_markdown(files)
    text = page if markdown else '\n'.join(map(file_text, files))
  else:
    entries = reference.entries(what)
    page = reference.CONFIG_PAGE + reference.markdown(entries)
    text = page if markdown else '\n'.join(map(entry_text, entries))
  print(text.rstrip('\n'))


def entry_text(entry):
  """A section for the terminal: a line for each field, and what it means below."""
  width = max(40, shutil.get_terminal_size((100, 24)).columns)
  lines = [f'config.{entry.name}'.replace('config.root', 'config'), *wrapped(entry.about, width, 0), '']
  names = max(len(row.field) for row in entry.rows)
  for row in entry.rows:
    lines.append(f'  {row.field:<{names}}  {row.takes}; default: {row.default}')
    lines += wrapped(row.meaning, width, names + INDENT)
  return '\n'.join([*lines, ''])


def wrapped(text, width, indent):
  return textwrap.wrap(
    text, max(width, indent + 40), initial_indent=' ' * indent, subsequent_indent=' ' * indent
  )


def file_text(file):
  """A config file for the terminal."""
  from aigc_jax import reference_files

  lines = [file.path, '', file.doc.strip(), '', 'variants:']
  for variant in file.variants:
    name, *cells = reference_files.variant_row(*variant)
    lines.append(
      f'  {name.strip("`"):<16}'
      + '  '.join(map(': '.join, zip(reference_files.VARIANT[1:], cells, strict=True)))
    )
  for title, found in (('sweeps', file.sweeps), ('searches', file.searches)):
    if found:
      lines += ['', f'{title}:']
      lines += [
        f'  {name:<28}{reference_files.swept([made] if title == "searches" else made)}'
        for name, _, made in found
      ]
  return '\n'.join([*lines, '']).replace('`', '')
