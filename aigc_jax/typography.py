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
