"""Tokenizers of folders, and ours as files that transformers' AutoTokenizer reads: tokenizer.json and its settings."""

import json

from aigc_jax.data import pairs, pretrained_tokenizers, tokenizers
from aigc_jax.data.pretrained_tokenizers import CHAT, LIBRARY, NAME, SETTINGS, byte_symbols
from aigc_jax.data.tokenizers import END_OF_TEXT, MASK
from aigc_jax.errors import DataError, UsageError
from aigc_jax.interop import folders

# the class of transformers that takes tokenizer.json as it is, by the name that all versions know
TOKENIZER_CLASS = 'PreTrainedTokenizerFast'


def tokenizer_of(found):
  """The Tokenizer of a Checkpoint's folder, or None. Raises DataError where it has tokens that the model has not."""
  saved = pretrained_tokenizers.read_folder(found.folder, folders.read_json, folders.inside)
  known = found.model['vocabulary_size']
  if saved is None and found.config['model_type'] == 'gpt2' and known == 50257:
    return tokenizers.gpt2()
  if saved is None:
    return None
  tokenizer = tokenizers.pretrained(saved)
  if tokenizer.vocabulary_size > known:
    raise DataError(
      f'{found.folder}: its tokenizer has {tokenizer.vocabulary_size:,} tokens and its model vectors for {known:,}; '
      'they do not belong together'
    )
  return tokenizer


def tokenizer_files(tokenizer, context_length, source_template=None):
  """{file name: content} of a tokenizer; {} where there is none. Raises UsageError for one of images or pairs.

  source_template: how a model was asked that learned from pairs; it becomes the template of a conversation.
  """
  if tokenizer is None:
    return {}
  saved = tokenizer.saved
  if saved['name'] == NAME:
    return {LIBRARY: saved['library']} | saved['files'] | chat_template(tokenizer, source_template)
  kind = saved['name'].partition(':')[0]
  makers = {'characters': characters, 'bytes': byte_values, 'bpe': trained, 'gpt2': trained}
  if kind not in makers:
    raise UsageError(f'the tokenizer {tokenizer.name!r} has no counterpart among those of Hugging Face')
  library = makers[kind](tokenizer)
  known = {END_OF_TEXT: tokenizer.end_of_text, MASK: tokenizer.mask_token}
  special = [text for text, token in known.items() if token is not None]
  library.add_special_tokens(special)
  settings = {'tokenizer_class': TOKENIZER_CLASS, 'clean_up_tokenization_spaces': False}
  if context_length is not None:
    settings['model_max_length'] = context_length
  if END_OF_TEXT in special:
    settings |= {'eos_token': END_OF_TEXT, 'bos_token': END_OF_TEXT, 'unk_token': END_OF_TEXT}
  if MASK in special:
    settings['mask_token'] = MASK
  files = {LIBRARY: json.loads(library.to_str()), SETTINGS: settings}
  return files | chat_template(tokenizer, source_template)


def chat_template(tokenizer, source_template):
  """The file by which transformers' apply_chat_template puts a question as `config.data.source_template` did."""
  if source_template is None:
    return {}
  quoted = lambda text: json.dumps(text, ensure_ascii=False)
  before, after = source_template.split(pairs.SOURCE)
  whole = f"{quoted(before)} + message['content'] + {quoted(after)}"
  end = () if tokenizer.end_of_text is None else [tokenizer.end_of_text]
  first, end = tokenizer.decode(tokenizer.prefix), tokenizer.decode(end)
  return {
    CHAT: (
      f'{{{{ {quoted(first)} }}}}'
      "{% for message in messages %}{% if message['role'] == 'assistant' %}"
      f"{{{{ message['content'] + {quoted(end)} }}}}{{% else %}}{{{{ {whole} }}}}{{% endif %}}{{% endfor %}}"
    )
  }


def vocabulary_of(tokenizer, symbols):
  """{token: number} of all tokens but the special ones, which come last."""
  ordinary = ((piece, i) for i, piece in enumerate(tokenizer.pieces) if i not in tokenizer.special_tokens)
  vocabulary = {symbols(piece): i for piece, i in ordinary}
  return vocabulary | {tokenizer.pieces[i].decode(): i for i in tokenizer.special_tokens}


def characters(tokenizer):
  """Each character a token; one that is none of them is an error, as there is no token that stands for it."""
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

  library = Tokenizer(models.WordLevel(vocabulary_of(tokenizer, bytes.decode), unk_token='[UNK]'))
  library.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
  library.decoder = decoders.Fuse()
  return library


def byte_values(tokenizer):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  symbols = byte_symbols()
  vocabulary = vocabulary_of(tokenizer, lambda piece: symbols[piece[0]])
  library = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  library.decoder = decoders.ByteLevel()
  return library


def trained(tokenizer):
  """BPE by the library: its own description."""
  from tokenizers import Tokenizer

  saved = tokenizer.saved.get('bpe')
  return tokenizers.gpt2_library() if saved is None else Tokenizer.from_str(json.dumps(saved))
