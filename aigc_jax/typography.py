"""How text of any script is laid out: columns of a terminal, fonts of a picture."""

import unicodedata

# Fonts with Chinese characters, of which the first that is installed is used: matplotlib comes with none
CHINESE = (
  'Noto Sans CJK SC',
  'Source Han Sans SC',
  'PingFang SC',
  'Microsoft YaHei',
  'WenQuanYi Zen Hei',
  'SimHei',
)

# What stands for what cannot be seen: a line's end, a tab, other white space at an end, nothing, the end of a text
BREAK, TAB, SPACE, EMPTY, END = '⏎', '⇥', '␣', '∅', '∎'
UNKNOWN = '□'  # for a character that no installed font has


def visible(text: str) -> str:
  """A token with the white space at its ends visible, and its lines' ends; spaces within it stay."""
  if not text:
    return EMPTY
  first = len(text) - len(text.lstrip())
  last = max(first, len(text.rstrip()))
  shown = lambda part: ''.join({'\n': BREAK, '\t': TAB}.get(character, SPACE) for character in part)
  return shown(text[:first]) + text[first:last].replace('\n', BREAK) + shown(text[last:])


def columns(text: str) -> int:
  """Columns of a terminal that a text takes: two for wide characters, none for marks on others."""
  wide = lambda character: 2 if unicodedata.east_asian_width(character) in 'WF' else 1
  return sum(0 if unicodedata.combining(character) else wide(character) for character in text)


def fonts_for(text: str) -> tuple[list[str], set[str]]:
  """Font families of matplotlib that together have the characters of a text, and those that no installed one has."""
  from matplotlib import font_manager

  missing, families = set(text), []
  for family in ('DejaVu Sans', *CHINESE):
    try:
      font = font_manager.get_font(font_manager.findfont(family, fallback_to_default=False))
    except ValueError:  # not installed
      continue
    if has := {character for character in missing if font.get_char_index(ord(character))}:
      missing, families = missing - has, [*families, family]
  return families or ['DejaVu Sans'], missing
