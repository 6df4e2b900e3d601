"""Text as words, for scores: Chinese, Japanese and Korean characters each stand for one."""

import re

# Han with its extensions, kana, hangul: written without spaces, so that each character counts as a word
_EAST_ASIAN = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff'
_WORDS = re.compile(f'[{_EAST_ASIAN}]|[^\\W{_EAST_ASIAN}]+')
_SPACED = re.compile(f'[{_EAST_ASIAN}]|[^\\s{_EAST_ASIAN}]+')
_HAN = re.compile('[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]')

PROTOCOL = 'words in lower case without punctuation, each Chinese, Japanese or Korean character a word'


def words(text: str) -> list[str]:
  """Words in lower case, without punctuation."""
  return _WORDS.findall(text.lower())


def count_words(text: str) -> int:
  """Words as white space parts them, punctuation included; each East Asian character is one."""
  return len(_SPACED.findall(text))


def is_chinese(texts) -> bool:
  """Whether Han characters are a fifth or more of what is not white space."""
  text = ''.join(''.join(texts).split())
  return 5 * len(_HAN.findall(text)) >= len(text) > 0
