"""Tokenizers of pretrained models: the ids of `transformers`, from each kind of file; bytes, frames, special tokens."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from aigc_jax import data, generation
from aigc_jax.data import pretrained_tokenizers, tokenizers
from aigc_jax.errors import DataError, UsageError
from aigc_jax.interop import folders
from aigc_jax.tasks import language

TEXTS = [
  'Call me Ishmael. Some years ago, never mind how long precisely!',
  '  two  spaces, a tab\tand\na line end\n',
  '大江东去，浪淘尽，千古风流人物。',
  'naïve café 🐳 ¿qué?',
  '',
]
WORDS = [
  '[PAD]',
  '[UNK]',
  '[CLS]',
  '[SEP]',
  '[MASK]',
  'call',
  'me',
  'ish',
  '##mael',
  'some',
  'years',
  'ago',
  '##s',
]
WORDS += [
  ',',
  '.',
  '!',
  'never',
  'mind',
  'how',
  'long',
  'cafe',
  '大',
  '江',
  'a',
  '##b',
  'tab',
  'two',
  'line',
  'and',
]


def read(folder):
  saved = pretrained_tokenizers.read_folder(folder, folders.read_json, folders.inside)
  return tokenizers.pretrained(saved)


def write_gpt2(folder):
  folder.mkdir()
  library = tokenizers.gpt2_library()
  library.model.save(str(folder))
  (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'GPT2Tokenizer'}))
  return folder


def write_roberta(folder):
  """GPT-2's merges with RoBERTa's special tokens before and behind."""
  folder.mkdir()
  vocabulary = tokenizers.gpt2_library().get_vocab(with_added_tokens=False)
  special = ['<s>', '<pad>', '</s>', '<unk>']
  ordered = [token for token in sorted(vocabulary, key=vocabulary.get) if token != tokenizers.END_OF_TEXT]
  numbers = {token: i for i, token in enumerate([*special, *ordered, '<mask>'])}
  tokenizers.gpt2_library().model.save(str(folder))
  (folder / 'vocab.json').write_text(json.dumps(numbers))
  settings = {
    'tokenizer_class': 'RobertaTokenizer',
    'mask_token': '<mask>',
    'eos_token': '</s>',
    'bos_token': '<s>',
  }
  (folder / 'tokenizer_config.json').write_text(
    json.dumps(settings | {'pad_token': '<pad>', 'unk_token': '<unk>'})
  )
  return folder


def write_bert(folder):
  folder.mkdir()
  (folder / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'BertTokenizer', 'do_lower_case': True})
  )
  return folder


def write_llama(folder):
  """As Llama 2's: spaces as U+2581, unknown characters as bytes, <s> before a text."""
  folder.mkdir()
  special, of_bytes = ['<unk>', '<s>', '</s>'], [f'<0x{byte:02X}>' for byte in range(256)]
  library = Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
  library.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, *of_bytes], show_progress=False)
  library.train_from_iterator(TEXTS[:1] * 3, trainer)
  described = json.loads(library.to_str())
  described['added_tokens'] = [token for token in described['added_tokens'] if token['content'] in special]
  library = Tokenizer.from_str(json.dumps(described))
  library.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  library.post_processor = processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
  )
  library.enable_truncation(3)  # as some have it that were saved for one use
  library.save(str(folder / 'tokenizer.json'))
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': {'__type': 'AddedToken', 'content': '</s>'},
    'bos_token': '<s>',
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder


WRITERS = {'gpt2': write_gpt2, 'roberta': write_roberta, 'bert': write_bert, 'llama': write_llama}


@pytest.fixture(scope='module', params=WRITERS)
def pair(request, tmp_path_factory):
  """(kind, ours, that of transformers)."""
  folder = WRITERS[request.param](tmp_path_factory.mktemp('tokenizer') / request.param)
  return request.param, read(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_are_those_of_transformers(pair):
  _, ours, theirs = pair
  theirs.backend_tokenizer.no_truncation()
  for text, ids in zip(TEXTS, ours.encode_all(TEXTS), strict=True):
    assert ids.tolist() == theirs(text, add_special_tokens=False)['input_ids']
    assert ours.framed(ids).tolist() == theirs(text)['input_ids']


def test_bytes_of_tokens_add_up_to_the_text(pair):
  """But for what a lower-casing WordPiece loses, and the space that Llama puts before all."""
  kind, ours, theirs = pair
  for text in TEXTS[:4]:
    ids = ours.encode(text)
    if kind == 'bert':
      words = ' '.join(theirs.convert_ids_to_tokens(ids.tolist())).replace(' ##', '')
      assert ours.decode(ids).replace('[UNK]', ' [UNK]').lstrip() == words
    else:
      assert ours.decode(ids) == (f' {text}' if kind == 'llama' else text)


def test_special_tokens_stand_for_no_text(pair):
  kind, ours, theirs = pair
  names = {'gpt2': [tokenizers.END_OF_TEXT], 'llama': ['<unk>', '<s>', '</s>']}
  names |= {'roberta': ['<s>', '<pad>', '</s>', '<unk>', '<mask>'], 'bert': WORDS[:5]}
  assert ours.special_tokens == tuple(sorted(theirs.convert_tokens_to_ids(names[kind])))
  assert not ours.character_counts[list(ours.special_tokens)].any()
  ends = {'gpt2': tokenizers.END_OF_TEXT, 'llama': '</s>', 'roberta': '</s>', 'bert': '[SEP]'}
  assert ours.end_of_text == theirs.convert_tokens_to_ids(ends[kind])


def test_masks_are_put_where_transformers_puts_them(pair):
  kind, ours, theirs = pair
  if kind not in ('bert', 'roberta'):
    assert ours.mask_token is None
    return
  for prompt in ('Call me [MASK].', '[MASK] me, [MASK]', 'no mask at all'):
    wanted = theirs(prompt.replace('[MASK]', theirs.mask_token))['input_ids']
    assert ours.encode_masked(prompt).tolist() == wanted


def test_masked_text_stands_within_the_frame(pair, tmp_path):
  """Documents as transformers encodes them, and windows of their stream between the same tokens."""
  _, ours, theirs = pair
  texts = [text.strip() or 'a' for text in TEXTS for _ in range(2)]
  path = tmp_path / 'texts.jsonl'
  path.write_text('\n'.join(json.dumps({'text': text}) for text in texts), encoding='utf-8')
  source = f'jsonl:{path}'
  config = {'source': source, 'validation_source': source, 'batch_size': 2, 'sequence_length': 64}
  load = lambda **fields: data.load(config | fields, ours, form='masked_text')
  found = set()
  for batch in load(packing='documents').validation_batches():
    for inputs, segments in zip(batch['inputs'], batch['segments'], strict=True):
      found |= {tuple(inputs[segments == n].tolist()) for n in range(1, segments.max() + 1)}
  end = (ours.end_of_text,)  # where a text has no end as transformers frames it
  expected = {tuple(theirs(text)['input_ids']) for text in texts}
  assert found == {ids if ids[-1:] == end else ids + end for ids in expected}
  if ours.prefix:  # so is the only document of a source
    (tmp_path / 'one.txt').write_text(texts[0], encoding='utf-8')
    one = dict.fromkeys(('source', 'validation_source'), f'text:{tmp_path}/one.txt')
    batches = load(packing='documents', **one, sequence_length=4).validation_batches()
    ids = [i for batch in batches for i in batch['inputs'][batch['segments'] > 0].tolist()]
    assert ids == [*ours.prefix, *ours.encode(texts[0]).tolist(), *end]
  windows = load(sequence_length=16)
  before, after = ours.prefix, ours.suffix
  stream = []
  for batch in windows.validation_batches():
    for inputs, length in zip(batch['inputs'].tolist(), batch['lengths'].tolist(), strict=True):
      if length:
        assert tuple(inputs[: len(before)]) == before
        assert tuple(inputs[length - len(after) : length]) == after
        stream += inputs[len(before) : length - len(after)]
  ids = [i for text in texts for i in (*ours.encode(text).tolist(), *ours.separator)]
  assert stream == [ours.separator[-1], *ids]
  assert (windows.train_batch(0)['lengths'] == 16).all()
  with pytest.raises(UsageError, match=f'use {len(before + after) + 1} or more') if before else nullcontext():
    load(sequence_length=len(before + after) or 1)


def test_what_is_saved_with_a_run_is_the_same(pair, tmp_path):
  _, ours, _ = pair
  ours.save(tmp_path / 'tokenizer.json')
  again = tokenizers.load(tmp_path / 'tokenizer.json')
  assert again.sha256 == ours.sha256
  assert (again.special_tokens, again.prefix, again.suffix) == (ours.special_tokens, ours.prefix, ours.suffix)
  for a, b in zip(again.encode_all(TEXTS), ours.encode_all(TEXTS), strict=True):
    np.testing.assert_array_equal(a, b)


def test_files_that_cannot_be_used_are_refused(tmp_path):
  assert pretrained_tokenizers.read_folder(tmp_path, folders.read_json, folders.inside) is None
  (tmp_path / 'tokenizer.model').write_bytes(b'\x0a')
  with pytest.raises(UsageError, match="sentencepiece's own file"):
    read(tmp_path)
  (tmp_path / 'vocab.txt').write_text('a\nb\n')
  with pytest.raises(DataError, match=r'vocab\.txt: has no \[UNK\]'):
    read(tmp_path)
  (tmp_path / 'vocab.txt').write_bytes(b'a\xff\n')
  with pytest.raises(DataError, match=r'vocab\.txt: is not UTF-8 at byte 1'):
    read(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version": "1.0"}')
  with pytest.raises(DataError, match='its tokenizer cannot be used'):
    read(tmp_path)


def write_plain(folder, begin=None):
  """Words alone, without any special token but, where it is named, one that texts begin with."""
  folder.mkdir()
  words = ['a', 'call', 'me', *([begin] if begin else [])]
  library = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
  library.pre_tokenizer = pre_tokenizers.Whitespace()
  library.save(str(folder / 'tokenizer.json'))
  settings = {'tokenizer_class': 'PreTrainedTokenizerFast'} | ({'bos_token': begin} if begin else {})
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder


def test_a_text_without_tokens_is_the_token_that_texts_begin_with_or_refused(tmp_path):
  plain, begins = read(write_plain(tmp_path / 'plain')), read(write_plain(tmp_path / 'begins', '<start>'))
  assert generation.prompts_of(begins, ['', 'me'])[1] == [[3], [2]]
  assert generation.prompts_of(plain, ['call me'])[1][0].tolist() == [1, 2]
  with pytest.raises(UsageError, match=r"prompt '': has no tokens, .* give a prompt, as in --prompt="):
    generation.prompts_of(plain, ['me', ''])
  with pytest.raises(UsageError, match=r'cannot encode the text: .*UNK'):
    generation.prompts_of(plain, ['whale'])
  (tmp_path / 'a.txt').write_text('me call me call me call')
  source = f'text:{tmp_path}/a.txt'
  config = {'source': source, 'validation_source': source, 'batch_size': 2, 'sequence_length': 4}
  begun = language.sample_prompts('', data.load(config, plain))
  assert (begun.texts, [ids.tolist() for ids in begun.tokens]) == (['me'], [[2]]), 'samples of training runs'
