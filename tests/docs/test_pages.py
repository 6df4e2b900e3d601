"""The pages say what is so: links lead somewhere, references are current, commands parse, code runs."""

import ast
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from aigc_jax import cli, reference, schemas
from aigc_jax.run import open_run, read_metrics

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])
RENEWED = {'config.md': [], 'configs.md': ['configs']}
RUN = [ROOT / 'docs/ideas.md', ROOT / 'docs/sweeps.md', *sorted((ROOT / 'docs/how_to').glob('*.md'))]
named = lambda path: str(path.relative_to(ROOT))


def blocks(path, language):
  return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(encoding='utf-8'), re.M | re.S)


def anchors(path):
  """Those that GitHub gives a page's headings."""
  heads = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S), re.M)
  return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


def commands(path):
  text = '\n'.join(blocks(path, 'bash')).replace('\\\n', ' ')
  for line in text.split('\n'):
    for part in re.split(r';\s+(?=aigc )', re.split(r'\s#\s', line)[0].strip()):
      if part.startswith('aigc ') and ' ... ' not in f'{part} ' and '=...' not in part:
        yield shlex.split(part.replace('<', '').replace('>', ''))[1:]


def inline_commands(path):
  """Commands in running text, but for those that only name a verb, or a verb and a flag."""
  text = re.sub(r'^```.*?^```', '', path.read_text(encoding='utf-8'), flags=re.M | re.S)
  for found in re.findall(r'`(aigc [a-z][^`]*)`', text):
    part = ' '.join(re.split(r'\s#\s', found)[0].split())
    named_only = re.fullmatch(r'aigc [a-z]+( --\w+)*', part) and part != 'aigc list'
    if not named_only and '...' not in part:
      yield shlex.split(part.replace('=KEY', '=1'))[1:]


def own_files(path):
  """{name: source} of the files that a page tells its reader to write.

  A `py` block that begins with a file's name is that file; the module that a command names is the page's first Python
  and what other `py` blocks add to it.
  """
  shown = re.findall(r'--config\.(?:task|model)\.name=(\w+):\w+', path.read_text(encoding='utf-8'))
  parts = blocks(path, 'py')
  files = {part.split()[1]: part for part in parts if re.match(r'# \w+\.py\n', part)}
  rest = [part for part in parts if part not in files.values()]
  return files | {f'{name}.py': '\n'.join([*blocks(path, 'python')[:1], *rest]) for name in shown}


@pytest.mark.parametrize('page', PAGES, ids=named)
def test_links_lead_somewhere(page):
  text = page.read_text(encoding='utf-8')
  for link in re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'src="([^"]+)"', text):
    if '://' not in link:  # those of the web are not followed
      place, _, anchor = link.partition('#')
      target = (page.parent / place).resolve() if place else page
      assert target.exists(), f'{link}: no such file'
      assert not anchor or anchor in anchors(target), f'{link}: no such heading'


@pytest.mark.parametrize('name', RENEWED)
def test_references_are_current(name, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  arguments = ['config', *RENEWED[name], '--format=markdown']
  assert cli.main(arguments) == 0
  renew = f'aigc {" ".join(arguments)} > docs/{name}'
  assert capsys.readouterr().out == (ROOT / 'docs' / name).read_text(encoding='utf-8'), f'renew it: {renew}'


def test_every_field_has_a_meaning():
  without = [f'{e.name}.{row.field}' for e in reference.entries() for row in e.rows if not row.meaning]
  assert not without, 'write a comment beside the field in its schema'


@pytest.mark.parametrize('page', PAGES, ids=named)
def test_commands_parse(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  found = list(commands(page))
  assert len(found) > 40 or page.name != 'README.md'
  for arguments in found:
    overrides, others = cli.split_overrides(arguments)
    options = cli.parser().parse_args(others)
    path = getattr(options, 'config', '') or ''
    known = path.startswith('configs/') and not getattr(options, 'trust', False)  # that is run, further down
    if known and not any(key == 'init_from' for key, _ in overrides):
      schemas.read_config(path, overrides)


@pytest.mark.parametrize('page', PAGES, ids=named)
def test_commands_in_running_text_parse(page):
  for arguments in inline_commands(page):
    _, others = cli.split_overrides(arguments)
    cli.parser().parse_args(others)


@pytest.mark.parametrize('page', PAGES, ids=named)
def test_fields_that_are_named_exist(page):
  fields = {(e.name.partition('.')[0], row.field) for e in reference.entries() for row in e.rows}
  fields |= {('task', 'name'), ('model', 'name')}
  sections = '|'.join({section for section, _ in fields} - {'root'})
  for section, field in re.findall(rf'config\.({sections})\.(\w+)', page.read_text(encoding='utf-8')):
    assert (section, field) in fields, f'config.{section}.{field}: no such field'


@pytest.mark.parametrize(
  ('page', 'section', 'name'),
  [('add_a_model', 'model', 'my_model:Linear'), ('add_a_task', 'task', 'my_task:KIND')],
)
def test_code_of_the_readers_own_trains(page, section, name, tmp_path, monkeypatch):
  """The files that the page shows, in a folder of their own, and the very command that it shows."""
  how_to = ROOT / 'docs/how_to'
  for file, source in {**own_files(how_to / 'add_a_model.md'), **own_files(how_to / f'{page}.md')}.items():
    (tmp_path / file).write_text(source, encoding='utf-8')
  [command] = [arguments for arguments in commands(how_to / f'{page}.md') if '--trust' in arguments]
  short = ['steps=2', 'log_every=1', 'evaluate_every=none', 'sample_every=none', 'tensorboard=false']
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  try:
    assert cli.main([*command, *(f'--config.training.{field}' for field in short), '--workdir=run']) == 0
  finally:
    for module in ('my_model', 'my_task'):
      sys.modules.pop(module, None)
  losses = [row['train/loss'] for row in read_metrics('run') if 'train/loss' in row]
  assert len(losses) == 2
  assert np.isfinite(losses).all()
  assert open_run('run').config[section]['name'] == name


def test_rooms_import_from_rooms_below():
  """The table of `ideas.md`, from the roof down."""
  rows = re.findall(r'^\| (`.*?) \|', (ROOT / 'docs/ideas.md').read_text(encoding='utf-8'), re.M)
  floors = {
    name.removesuffix('.py').rstrip('/*').rstrip('_'): floor
    for floor, row in enumerate(rows)
    for name in re.findall(r'`([^`]+)`', row)
  }
  room_of = lambda name: 'cli' if name.startswith('cli') else name
  package, crossed = ROOT / 'aigc_jax', 0
  for path in package.rglob('*.py'):
    here = room_of(path.relative_to(package).with_suffix('').parts[0])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if not isinstance(node, ast.ImportFrom) or (node.module or '').split('.')[0] != 'aigc_jax':
        continue
      below = node.module.split('.')[1:2] or [alias.name for alias in node.names]
      for there in map(room_of, below):
        if here != there and here in floors and there in floors:
          assert floors[here] <= floors[there], f'{path.name}: {here} is below {there}'
          crossed += 1
  assert crossed > 100


@pytest.mark.parametrize('page', RUN, ids=named)
def test_code_runs(page, monkeypatch):
  from aigc_jax import models, tasks
  from aigc_jax.data import synthetic_pairs

  for table in (models.SCHEMAS, tasks.KINDS, tasks.SCHEMAS, synthetic_pairs.KINDS):
    for name, value in list(table.items()):
      monkeypatch.setitem(table, name, value)  # put back afterwards
  before = [
    (table, set(table)) for table in (models.SCHEMAS, tasks.KINDS, tasks.SCHEMAS, synthetic_pairs.KINDS)
  ]
  try:
    code = '\n'.join(blocks(page, 'python'))
    assert code
    exec(compile(code, str(page), 'exec'), {'__name__': 'page'})
  finally:
    for table, names in before:
      for name in set(table) - names:
        del table[name]
