"""The tokenizer files of a pretrained model, as Hugging Face's libraries write them, and what ours need of them.

tokenizer.json is read by the `tokenizers` library; where there is none, it is made of vocab.json and merges.txt
(byte-level BPE, GPT-2 and RoBERTa) or vocab.txt (WordPiece, BERT).
"""

import json
import pathlib
from typing import Any

import numpy as np

from aigc_jax.data import sources
from aigc_jax.errors import DataError, UsageError, listed

NAME = 'huggingface'
LIBRARY, SETTINGS, SPECIAL = 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'
CHAT = 'chat_template.jinja'  # how a conversation is put; kept for the way back, and not read
MOST = 1 << 24  # tokens
MASK = '[MASK]'  # in prompts, whatever a tokenizer calls it
FILES = (LIBRARY, SETTINGS, SPECIAL, CHAT, 'vocab.json', 'merges.txt', 'vocab.txt', 'tokenizer.model')


def read_folder(folder, read_json, inside) -> dict[str, Any] | None:
  """What tokenizer.json of a run keeps of a folder's tokenizer; None where it has none.

  read_json(path) and inside(folder, name) -> path: read and refuse as the reader of the whole folder does.
  Raises UsageError, DataError.
  """
  there = {name: inside(folder, name) for name in FILES if (pathlib.Path(folder) / name).exists()}
  settings = {name: read_json(there[name]) for name in (SETTINGS, SPECIAL) if name in there}
  if any(not isinstance(value, dict) for value in settings.values()):
    raise DataError(f'{folder}: {listed(settings)} must hold JSON objects')
  if LIBRARY in there:
    library = read_json(there[LIBRARY])
  elif 'vocab.json' in there and 'merges.txt' in there:
    library = byte_level(read_json(there['vocab.json']), read_text(there['merges.txt']), settings)
  elif 'vocab.txt' in there:
    library = word_piece(read_text(there['vocab.txt']), settings)
  elif 'tokenizer.model' in there:
    raise UsageError(
      f"{there['tokenizer.model']}: is sentencepiece's own file, which is not read here; save {LIBRARY} beside it, by "
      "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
  else:
    return None
  if CHAT in there:
    settings[CHAT] = read_text(there[CHAT])
  saved = {'name': NAME, 'library': library, 'files': settings}
  try:
    parts(saved)
  except ValueError as error:
    raise DataError(f'{folder}: its tokenizer cannot be used: {error}') from None
  return saved


def read_text(path):
  try:
    return pathlib.Path(path).read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise DataError(f'{path}: is not UTF-8 at byte {error.start}') from None


def byte_level(vocabulary, merges, settings):
  """The content of a tokenizer.json for GPT-2's and RoBERTa's files."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

  pairs = [tuple(line.split(' ')) for line in merges.splitlines() if line and not line.startswith('#version')]
  try:
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
  except Exception as error:  # the library raises plain Exception
    raise DataError(f'vocab.json and merges.txt do not go together: {error}') from None
  space = bool(settings.get(SETTINGS, {}).get('add_prefix_space', False))
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
  library.decoder = decoders.ByteLevel()
  special = [token for token in ('<s>', '<pad>', '</s>', '<unk>', '<mask>') if token in vocabulary]
  if '<mask>' in special:  # RoBERTa
    library.add_special_tokens(special)
    ends = [(token, vocabulary[token]) for token in ('</s>', '<s>')]
    library.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=space)
  elif '<|endoftext|>' in vocabulary:
    library.add_special_tokens(['<|endoftext|>'])
  return json.loads(library.to_str())


def word_piece(text, settings):
  """The content of a tokenizer.json for BERT's vocab.txt."""
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

  vocabulary = {token: i for i, token in enumerate(text.splitlines())}
  given = settings.get(SETTINGS, {})
  library = Tokenizer(models.WordPiece(vocabulary, unk_token='[UNK]', max_input_chars_per_word=100))
  library.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=bool(given.get('tokenize_chinese_chars', True)),
    strip_accents=given.get('strip_accents'),
    lowercase=bool(given.get('do_lower_case', True)),
  )
  library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  library.decoder = decoders.WordPiece(prefix='##')
  if missing := [token for token in ('[UNK]', '[CLS]', '[SEP]') if token not in vocabulary]:
    raise DataError(f'vocab.txt: has no {missing[0]}, which BERT needs')
  library.add_special_tokens([t for t in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', MASK) if t in vocabulary])
  library.post_processor = processors.TemplateProcessing(
    single='[CLS]:0 $A:0 [SEP]:0',
    pair='[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1',
    special_tokens=[(token, vocabulary[token]) for token in ('[CLS]', '[SEP]')],
  )
  return json.loads(library.to_str())


def parts(saved) -> dict[str, Any]:
  """The fields of a `tokenizers.Tokenizer`. Raises ValueError where the library cannot make one of it."""
  from tokenizers import Tokenizer

  try:
    library = Tokenizer.from_str(json.dumps(saved['library']))
    library.no_truncation()
    library.no_padding()
    plain, framed = (library.encode('a', add_special_tokens=frame).ids for frame in (False, True))
  except Exception as error:  # the library raises plain Exception
    raise ValueError(str(error)) from None
  vocabulary = library.get_vocab(with_added_tokens=True)
  if max(vocabulary.values(), default=0) >= MOST:  # a list has a place for each number below
    raise ValueError(f'it numbers a token {max(vocabulary.values()):,}, and {MOST:,} is too many')
  special = [number for number, token in library.get_added_tokens_decoder().items() if token.special]
  named = lambda name, *usual: next(
    (vocabulary[t] for t in (named_token(saved, name), *usual) if t in vocabulary), None
  )
  mask = named('mask_token', MASK, '<mask>')
  end = named('eos_token', named_token(saved, 'sep_token'), '<|endoftext|>', '[SEP]', '</s>')
  one = lambda token: () if token is None else (token,)
  begin = named('bos_token', '<|begin_of_text|>', '<bos>', '<s>')
  at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
  prefix, suffix = tuple(framed[:at]), tuple(framed[at + len(plain) :])

  def encode_all(texts):
    whole = [sources.whole_characters(text) for text in texts]
    try:
      found = library.encode_batch_fast(whole, add_special_tokens=False)
    except Exception as error:  # of a vocabulary without a token for what it lacks
      raise UsageError(f'the tokenizer cannot encode the text: {error}') from None
    return [np.array(encoding.ids, np.int32) for encoding in found]

  def encode_whole_masked(text):
    found = library.encode(sources.whole_characters(text).replace(MASK, library.id_to_token(mask)))
    return np.array(found.ids, np.int32)

  return {
    'name': NAME,
    'pieces': pieces(vocabulary, special, saved['library']),
    'encode_all': encode_all,
    'separator': (one(end) + prefix) or one(begin),
    'end_of_text': end,
    'saved': saved,
    'mask_token': mask,
    'prefix': prefix,
    'suffix': suffix,
    'special': tuple(special),
    'encode_whole_masked': None if mask is None else encode_whole_masked,
  }


def named_token(saved, name):
  """The text of 'eos_token' and the like by tokenizer_config.json or special_tokens_map.json, or None."""
  for file in (SETTINGS, SPECIAL):
    found = saved['files'].get(file, {}).get(name)
    found = found.get('content') if isinstance(found, dict) else found
    if isinstance(found, str):
      return found
  return None


def pieces(vocabulary, special, library) -> list[bytes]:
  """The bytes that each token stands for, by the library's decoder; a first space is that before a word."""
  kinds = decoder_kinds(library.get('decoder'))
  of_bytes = {symbol: byte for byte, symbol in byte_symbols().items()}

  def piece(token):
    if 'ByteLevel' in kinds and all(symbol in of_bytes for symbol in token):
      return bytes(of_bytes[symbol] for symbol in token)
    if 'ByteFallback' in kinds and len(token) == 6 and token.startswith('<0x') and token.endswith('>'):
      return bytes([int(token[3:5], 16)])
    if 'WordPiece' in kinds:
      return (token.removeprefix('##') if token.startswith('##') else f' {token}').encode()
    if kinds & {'Metaspace', 'Replace'}:
      token = token.replace('\u2581', ' ')
    return token.encode()

  found = [b''] * (max(vocabulary.values(), default=-1) + 1)
  for token, i in vocabulary.items():
    found[i] = token.encode() if i in special else piece(token)
  return found


def decoder_kinds(decoder):
  if not isinstance(decoder, dict):
    return set()
  return {decoder.get('type')}.union(*map(decoder_kinds, decoder.get('decoders', [])))


def byte_symbols():
  """{byte: the printable character that stands for it in byte-level BPE}, in GPT-2's order of token ids."""
  printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
  others = [byte for byte in range(256) if byte not in printable]
  return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
