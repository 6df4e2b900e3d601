"""README.md and README.zh-CN.md cannot drift apart: what needs no translation is the same in both, in order."""

import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = 'README.md', 'README.zh-CN.md'
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
NUMBER = re.compile(r'\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?')
COMMENT = re.compile(r'(^|\s+)#\s.*$')


def without_code(text):
  return FENCE.sub('', text)


def headings(text):
  """Their levels; words differ."""
  return [(marks, f'"{title}"') for marks, title in re.findall(r'^(#+) (.*)$', without_code(text), re.M)]


def code(text):
  """Lines of all code blocks, without comments and without the blanks before them."""
  found = []
  for language, body in FENCE.findall(text):
    lines = [COMMENT.sub('', line) if language in ('bash', 'python') else line for line in body.splitlines()]
    found += [(line, f'line of ```{language}: {line}') for line in (f'```{language}', *lines) if line]
  return found


def images(text):
  paths = re.findall(r'!\[[^\]]*\]\(([^)]+)\)|<img src="([^"]+)"', text)
  return [(path, path) for path in (first or second for first, second in paths)]


def rows(text):
  """Columns and numbers of each row of each table, numbers sorted, for a language may turn a sentence round."""
  lines = [line for line in without_code(text).splitlines() if line.startswith('|')]
  return [((line.count('|'), sorted(NUMBER.findall(line))), line) for line in lines]


def sections(text):
  """Code spans and links of each section and how often they stand there, in whatever order."""
  found = []
  for section in re.split(r'^(?=## )', without_code(text), flags=re.M):
    prose = re.sub(r'`([^`]+)`', lambda span: f'`{" ".join(span[1].split())}`', section)
    links = re.findall(r'\]\(([^)]+)\)', prose)
    parts = Counter(
      re.findall(r'`[^`]+`', prose) + [link for link in links if link not in (ENGLISH, CHINESE)]
    )
    found.append((parts, section.split('\n', 1)[0]))
  return found


def parting(part, english, chinese):
  """Where two READMEs first part in what `part` finds there, in words; None where they do not."""
  for index, (ours, theirs) in enumerate(zip_longest(part(english), part(chinese))):
    if ours is None or theirs is None:
      return (
        f'{part.__name__} {index + 1}: {ENGLISH} has {ours and ours[1]}, {CHINESE} has {theirs and theirs[1]}'
      )
    if ours[0] != theirs[0]:
      difference = ''
      if isinstance(ours[0], Counter):
        difference = (
          f'; only the first: {[*(ours[0] - theirs[0])]}; only the second: {[*(theirs[0] - ours[0])]}'
        )
      return f'{part.__name__} {index + 1}: {ENGLISH} has {ours[1]}, {CHINESE} has {theirs[1]}{difference}'
  return None


@pytest.mark.parametrize('part', [headings, code, images, rows, sections], ids=lambda part: part.__name__)
def test_both_readmes_agree(part):
  english, chinese = ((ROOT / name).read_text(encoding='utf-8') for name in (ENGLISH, CHINESE))
  assert part(english), f'{ENGLISH} has no {part.__name__}'
  message = parting(part, english, chinese)
  assert message is None, message


def test_each_readme_leads_to_the_other():
  english, chinese = ((ROOT / name).read_text(encoding='utf-8').splitlines() for name in (ENGLISH, CHINESE))
  assert english[:3] == ['# aigc_jax', '', f'English | [简体中文]({CHINESE})']
  assert chinese[:3] == ['# aigc_jax', '', f'[English]({ENGLISH}) | 简体中文']


@pytest.mark.parametrize(
  ('part', 'old', 'new'),
  [
    (headings, '## B', '### B'),
    (code, '--steps=3', '--steps=4'),
    (code, 'bash', 'python'),
    (images, 'docs/a.png', 'docs/b.png'),
    (rows, '1.25', '1.26'),
    (rows, '| y | 2 |\n', ''),
    (sections, '`f(x)`', '`f(y)`'),
    (sections, '](docs/c.md)', '](docs/d.md)'),
  ],
)
def test_a_difference_is_seen_and_named(part, old, new):
  text = (
    '# A\n\n## B\n\n```bash\naigc --steps=3  # words\n```\n\n![words](docs/a.png)\n\n'
    '| x | 1.25 |\n|---|---|\n| y | 2 |\n\n`f(x)` [words](docs/c.md)\n'
  )
  assert parting(part, text, text.replace('words', '词')) is None
  assert part.__name__ in parting(part, text, text.replace(old, new))
