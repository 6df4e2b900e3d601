"""Text to token ids and back: characters, bytes, byte-level BPE (trained on the corpus), GPT-2's own BPE, and others'.

BPE is the `tokenizers` library's; characters and bytes are tables; 'huggingface' is what a pretrained model came with,
see `pretrained_tokenizers`. A tokenizer is saved as one JSON file.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from aigc_jax import errors, files
from aigc_jax.data import image_codes, pretrained_tokenizers, sources
from aigc_jax.errors import StorageError, UsageError, nearest

FORMAT = 1
END_OF_TEXT = '<|endoftext|>'
MASK = '[MASK]'
LEAST_BPE_SIZE = 257  # the 256 bytes and END_OF_TEXT
SPECIFICATIONS = ('characters', 'bytes', 'bpe:SIZE', 'gpt2')
GPT2_MERGES = ('gpt2_merges.txt.gz', '73d4084f490dd2487d4b623986ff7e144e3380fc8f8792301e2604f7734b258e')


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A vocabulary and the way from text into it. Token `i` stands for the bytes `pieces[i]`."""

  name: str  # as written in the config: 'characters', 'bytes', 'bpe:4096', 'gpt2', 'huggingface'
  pieces: Sequence[bytes]
  encode_all: Callable[[Sequence[str]], list[np.ndarray]]  # texts -> int32 ids of each
  separator: tuple[int, ...]  # the tokens between documents: END_OF_TEXT; without one, an empty line
  end_of_text: int | None  # the token that means the end of a document and no text
  saved: dict[str, Any]  # the content of tokenizer.json
  mask_token: int | None = None  # stands for one that is hidden; ordinary text never holds it
  prefix: tuple[int, ...] = ()  # what a model that reads a whole text, or begins to write one, has before it
  suffix: tuple[int, ...] = ()  # and behind a whole one
  special: tuple[int, ...] = ()  # tokens that stand for no text, besides `end_of_text` and `mask_token`
  # text with '[MASK]' -> int32 [tokens], `prefix` and `suffix` included; None: as `encode_masked` does it by itself
  encode_whole_masked: Callable[[str], np.ndarray] | None = None

  @property
  def vocabulary_size(self) -> int:
    return len(self.pieces)

  @property
  def source(self) -> 'Tokenizer':
    """Of what a model reads; `target`: of what it writes. Two in a PairTokenizer."""
    return self

  target = source

  @functools.cached_property
  def special_tokens(self) -> tuple[int, ...]:
    """Tokens that stand for no text, in order: never hidden, never put in, never proposed."""
    named = (token for token in (self.end_of_text, self.mask_token) if token is not None)
    return tuple(sorted({*self.special, *named}))

  def framed(self, ids) -> np.ndarray:
    """A whole text as a model reads it, int32 [tokens]: between `prefix` and `suffix`."""
    return np.concatenate([self.prefix, ids, self.suffix]).astype(np.int32)

  def encode(self, text: str) -> np.ndarray:
    """int32 [tokens]. UsageError where a character vocabulary lacks a character of `text`."""
    return self.encode_all([text])[0]

  def encode_masked(self, text: str) -> np.ndarray:
    """As `encode`, but each '[MASK]' in `text` is the mask token, and needs a tokenizer that has one.

    BPE's tokens begin with the space before their word, so a space before a mask belongs to what the mask hides.
    """
    if self.encode_whole_masked is not None:
      return self.encode_whole_masked(text)
    *parts, last = text.split(MASK)
    if self.name not in ('characters', 'bytes'):
      parts = [part.removesuffix(' ') for part in parts]
    ids = self.encode_all([*parts, last])
    mask = np.array([self.mask_token], np.int32)
    return np.concatenate([piece for part in ids[:-1] for piece in (part, mask)] + ids[-1:])

  def decode_bytes(self, ids) -> bytes:
    """The UTF-8 bytes of `ids`; a single token may hold a part of a character."""
    return b''.join([self.pieces[i] for i in np.asarray(ids, np.int64).reshape(-1).tolist()])

  def decode(self, ids) -> str:
    """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
    return self.decode_bytes(ids).decode('utf-8', 'replace')

  @functools.cached_property
  def character_counts(self) -> np.ndarray:
    """Characters each token stands for, float32 [vocabulary]: its lead bytes, so sums over text are exact."""
    counts = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces], np.float32)
    counts[list(self.special_tokens)] = 0
    return counts

  @functools.cached_property
  def sha256(self) -> str:
    return hashlib.sha256(_to_json(self.saved).encode('utf-8')).hexdigest()

  def save(self, path) -> None:
    """Writes one JSON file, whole or not at all. StorageError where that fails."""
    files.write_atomically(path, _to_json(self.saved))


class PairTokenizer(NamedTuple):
  """Two vocabularies, of what a model reads and of what it writes; where one is meant, it is the latter."""

  source: Tokenizer
  target: Tokenizer

  @property
  def name(self) -> str:
    return self.target.name

  @property
  def vocabulary_size(self) -> int:
    return self.target.vocabulary_size

  @property
  def saved(self) -> dict[str, Any]:
    return {'format': FORMAT, 'name': 'pair', 'source': self.source.saved, 'target': self.target.saved}

  @property
  def sha256(self) -> str:
    return hashlib.sha256(_to_json(self.saved).encode('utf-8')).hexdigest()

  def save(self, path) -> None:
    """As Tokenizer.save."""
    files.write_atomically(path, _to_json(self.saved))


def load(path) -> Tokenizer | PairTokenizer:
  """The tokenizer that `save` wrote. StorageError where the file is missing or not one."""
  try:
    with open(path, encoding='utf-8') as stream:
      saved = json.load(stream)
    if saved['format'] != FORMAT:
      raise StorageError(f'{path}: format {saved["format"]}, and this version reads format {FORMAT}')
    if saved['name'] == 'pair':
      return PairTokenizer(_made_of(saved['source']), _made_of(saved['target']))
    return _made_of(saved)
  except FileNotFoundError:
    raise StorageError(f'{path}: there is no such tokenizer file') from None
  except OSError as error:
    raise StorageError(f'{path}: the tokenizer cannot be read: {error.strerror}') from None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise StorageError(
      f'{path}: not a tokenizer file of this package ({type(error).__name__}: {error})'
    ) from None


def _made_of(saved):
  end_of_text = saved.get('end_of_text', False)
  if saved['name'] == image_codes.NAME:
    return image_codes.ImageTokenizer(saved)
  plain = {name: value for name, value in saved.items() if name != 'mask_token'}
  found = {
    'characters': lambda: characters(saved['characters'], end_of_text),
    'bytes': lambda: byte_values(end_of_text),
    'bpe': lambda: _from_bpe(plain),
    'gpt2': gpt2,
    pretrained_tokenizers.NAME: lambda: pretrained(plain),
  }[saved['name'].partition(':')[0]]()
  return with_mask(found) if saved.get('mask_token') else found


def check(specification: str) -> tuple[str, int | None]:
  """(kind, size) of what `data.tokenizer` says. UsageError where it says nothing known."""
  kind, colon, size = specification.partition(':')
  if kind == 'bpe':
    if not (size.isascii() and size.isdigit() and int(size) >= LEAST_BPE_SIZE):
      raise UsageError(f'data.tokenizer {specification!r}: write bpe:SIZE, SIZE from {LEAST_BPE_SIZE} up')
    return kind, int(size)
  if kind == pretrained_tokenizers.NAME:
    raise UsageError(
      f'data.tokenizer {specification!r}: belongs to a pretrained model; start from one by --config.init_from=FOLDER'
    )
  if colon or kind not in SPECIFICATIONS:
    hint = f'{nearest(kind, SPECIFICATIONS)}there are {errors.listed(SPECIFICATIONS)}'
    raise UsageError(f'data.tokenizer {specification!r} is unknown; {hint}')
  return kind, None


def build(
  specification: str, alphabet: str, texts: Callable[[], Iterable[str]], separated: bool = False
) -> Tokenizer:
  """The tokenizer that `specification` names.

  `alphabet`: the distinct characters of the corpus, for 'characters'; `texts()`: what BPE is trained on;
  `separated`: the corpus has several documents, so that characters and bytes need END_OF_TEXT too.
  """
  kind, size = check(specification)
  if kind == 'bpe':
    return trained_bpe(size, texts())
  return {
    'characters': lambda: characters(alphabet, separated),
    'bytes': lambda: byte_values(separated),
    'gpt2': gpt2,
  }[kind]()


def with_mask(tokenizer: Tokenizer) -> Tokenizer:
  """The tokenizer with a mask token, as its last; all other tokens keep their numbers."""
  if tokenizer.mask_token is not None:
    return tokenizer
  return dataclasses.replace(
    tokenizer,
    pieces=[*tokenizer.pieces, MASK.encode()],
    mask_token=len(tokenizer.pieces),
    saved=tokenizer.saved | {'mask_token': True},
  )


def without_mask(tokenizer: Tokenizer) -> Tokenizer:
  """The tokenizer that `with_mask` was given."""
  if not tokenizer.saved.get('mask_token'):
    return tokenizer
  saved = {name: value for name, value in tokenizer.saved.items() if name != 'mask_token'}
  return dataclasses.replace(tokenizer, pieces=tokenizer.pieces[:-1], mask_token=None, saved=saved)


def with_end(tokenizer: Tokenizer) -> Tokenizer:
  """A tokenizer of characters or bytes with END_OF_TEXT, as its last; any other, or one with a mask, as it is."""
  if tokenizer.end_of_text is not None or tokenizer.saved.get('mask_token'):
    return tokenizer
  if tokenizer.name not in ('characters', 'bytes'):
    return tokenizer
  return _made_of(tokenizer.saved | {'end_of_text': True})


def characters(alphabet: str, end_of_text: bool = False) -> Tokenizer:
  """One token a character, in code point order; END_OF_TEXT comes last, if there is to be one.

  The line end always is one: without END_OF_TEXT documents are set apart by it.
  """
  alphabet = ''.join(sorted(set(alphabet) | {'\n'}))
  points = _code_points(alphabet)
  table = np.full(int(points[-1]) + 2, -1, np.int32)  # code point -> id; the last entry stands for all above
  table[points] = np.arange(len(points), dtype=np.int32)

  def encode(text):
    ids = table[np.minimum(_code_points(text), len(table) - 1)]
    if ids.size and ids.min() < 0:
      raise UsageError(_unknown_characters(text, ids, len(alphabet)))
    return ids

  pieces = [character.encode('utf-8') for character in alphabet]
  saved = {'format': FORMAT, 'name': 'characters', 'characters': alphabet}
  return _from_table(pieces, encode, int(table[ord('\n')]), end_of_text, saved)


def _from_table(pieces, encode, newline, end_of_text, saved):
  """A Tokenizer of symbols looked up one by one."""
  end = len(pieces) if end_of_text else None
  return Tokenizer(
    name=saved['name'],
    pieces=[*pieces, END_OF_TEXT.encode()] if end_of_text else pieces,
    encode_all=lambda texts: [encode(text) for text in texts],
    separator=(end,) if end_of_text else (newline, newline),
    end_of_text=end,
    saved=saved | {'end_of_text': True} if end_of_text else saved,
  )


def _unknown_characters(text, ids, size):
  unknown = np.flatnonzero(ids < 0)
  return (
    f'{listed(text[i] for i in unknown)} (first at character {unknown[0] + 1:,} of the text) is outside the '
    f'vocabulary of {size:,} characters'
  )


def listed(found: Iterable[str]) -> str:
  """Characters for a message: distinct, quoted, the unprintable escaped, eight at most."""
  distinct = list(dict.fromkeys(found))
  quoted = [repr(c) if c.isprintable() else ascii(c) for c in distinct[:8]]
  return ', '.join(quoted) + (f' and {len(distinct) - 8:,} more' if len(distinct) > 8 else '')


def byte_values(end_of_text: bool = False) -> Tokenizer:
  """One token a byte of UTF-8; END_OF_TEXT is number 256, if there is to be one."""

  def encode(text):
    return np.frombuffer(sources.whole_characters(text).encode('utf-8'), np.uint8).astype(np.int32)

  saved = {'format': FORMAT, 'name': 'bytes'}
  return _from_table([bytes([i]) for i in range(256)], encode, ord('\n'), end_of_text, saved)


def trained_bpe(size: int, texts: Iterable[str]) -> Tokenizer:
  """Byte-level BPE of `size` tokens, fewer where `texts` hold fewer pairs to merge."""
  from tokenizers import pre_tokenizers, trainers

  library = _byte_level([], {})
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  library.train_from_iterator(texts, trainer)
  return _from_bpe({'format': FORMAT, 'name': f'bpe:{size}', 'bpe': json.loads(library.to_str())})


def gpt2() -> Tokenizer:
  """GPT-2's BPE, 50,257 tokens: Radford et al. 2019, section 2.2."""
  return _from_library(gpt2_library(), {'format': FORMAT, 'name': 'gpt2'})


def gpt2_library():
  """The same, as the `tokenizers` library has it."""
  lines = sources.read_bundled(*GPT2_MERGES).decode('utf-8').splitlines()[1:]  # the first names the version
  merges = [tuple(line.split(' ')) for line in lines]
  tokens = [
    *pretrained_tokenizers.byte_symbols().values(),
    *(first + second for first, second in merges),
    END_OF_TEXT,
  ]
  return _byte_level(merges, {token: i for i, token in enumerate(tokens)})


def pretrained(saved: dict[str, Any]) -> Tokenizer:
  """The tokenizer of what `pretrained_tokenizers.read_folder` gives. ValueError where it is none."""
  return Tokenizer(**pretrained_tokenizers.parts(saved | {'format': FORMAT}))


def _from_bpe(saved):
  from tokenizers import Tokenizer as Library

  try:
    return _from_library(Library.from_str(json.dumps(saved['bpe'])), saved)
  except StorageError:
    raise
  except Exception as error:  # the library raises plain Exception at a broken description
    raise ValueError(error) from None


def _byte_level(merges, vocabulary):
  """An untrained byte-level BPE of the `tokenizers` library, with GPT-2's pre-tokenizer."""
  from tokenizers import Tokenizer as Library
  from tokenizers import decoders, models, pre_tokenizers

  library = Library(models.BPE(vocab=vocabulary, merges=merges))
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.decoder = decoders.ByteLevel()
  if END_OF_TEXT in vocabulary:
    library.add_special_tokens([END_OF_TEXT])
  return library


def _from_library(library, saved):
  values = {symbol: byte for byte, symbol in pretrained_tokenizers.byte_symbols().items()}
  vocabulary = library.get_vocab(with_added_tokens=True)
  pieces = [b''] * len(vocabulary)
  for token, i in vocabulary.items():
    pieces[i] = bytes(values[symbol] for symbol in token) if token != END_OF_TEXT else END_OF_TEXT.encode()
  end = vocabulary[END_OF_TEXT]

  def encode_all(texts):
    found = library.encode_batch_fast(
      [sources.whole_characters(text) for text in texts], add_special_tokens=False
    )
    return [np.array(encoding.ids, np.int32) for encoding in found]

  return Tokenizer(saved['name'], pieces, encode_all, (end,), end, saved)


def _code_points(text):
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)


def _to_json(saved):
  return json.dumps(saved, ensure_ascii=False, indent=None, sort_keys=True)
