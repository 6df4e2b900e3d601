"""The pages say what is so: links lead somewhere, references are current, commands parse, code runs."""

import re
import shlex
from pathlib import Path

import pytest

from aigc_jax import cli, reference, schemas

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
    known = path.startswith('configs/') and not getattr(options, 'trust', False)
    if known and not any(key == 'init_from' for key, _ in overrides):
      schemas.read_config(path, overrides)


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
