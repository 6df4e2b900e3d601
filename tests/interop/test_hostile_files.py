"""Files that somebody made to harm, or broke: one line that says what and where; nothing allocated, nothing left."""

import json
import os
import resource
import struct

import numpy as np
import pytest
import safetensors.numpy

from aigc_jax import cli
from aigc_jax.errors import AigcError
from aigc_jax.interop import checkpoints
from tests.interop import peers


@pytest.fixture
def folder(tmp_path):
  peers.save(peers.make('llama', 1), tmp_path / 'model')
  return tmp_path / 'model'


def rewrite(folder, change):
  """Reads the tensors, changes their dict, and writes them again."""
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def header(folder, change):
  """Rewrites a file's header."""
  path = folder / 'model.safetensors'
  data = path.read_bytes()
  (size,) = struct.unpack('<Q', data[:8])
  found = json.loads(data[8 : 8 + size])
  change(found)
  text = json.dumps(found).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + size :])


def config(folder, **fields):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def huge_header(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(struct.pack('<Q', 2**62) + path.read_bytes()[8:])


def overlapping(found):
  first, second = [name for name in found if name != '__metadata__'][:2]
  found[second]['data_offsets'][0] = found[first]['data_offsets'][0]


def huge_shape(found):
  next(entry for name, entry in found.items() if name != '__metadata__')['shape'] = [2**62, 2**62]


def shards(folder, **where):
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': where}))


def linked(folder):
  outside = folder.parent / 'elsewhere.safetensors'
  os.replace(folder / 'model.safetensors', outside)
  os.symlink(outside, folder / 'model.safetensors')


def pickled(folder):
  os.remove(folder / 'model.safetensors')
  (folder / 'pytorch_model.bin').write_bytes(b'\x80\x04')


def numbered(number):
  """A tokenizer.json of one word."""
  return {'version': '1.0', 'model': {'type': 'WordLevel', 'vocab': {'a': number}, 'unk_token': 'a'}}


NAME = 'model.layers.0.self_attn.q_proj.weight'
CASES = {
  'a header of 2^62 bytes': (huge_header, 'no whole safetensors file: header too large'),
  'overlapping offsets': (lambda f: header(f, overlapping), 'invalid offset for tensor'),
  'a shape whose bytes overflow': (lambda f: header(f, huge_shape), 'overflow'),
  'a header that is no JSON': (
    lambda f: (f / 'model.safetensors').write_bytes(struct.pack('<Q', 5) + b'{"a":'),
    'invalid JSON',
  ),
  'an empty file': (lambda f: (f / 'model.safetensors').write_bytes(b''), 'header too small'),
  'a file cut short': (
    lambda f: (f / 'model.safetensors').write_bytes((f / 'model.safetensors').read_bytes()[:-9]),
    'not fully covered',
  ),
  'a shard outside': (lambda f: shards(f, **{NAME: '../model.safetensors'}), 'is no name of a file in it'),
  'an absolute shard': (lambda f: shards(f, **{NAME: '/etc/passwd'}), 'is no name of a file in it'),
  'a shard that is a list': (lambda f: shards(f, **{NAME: ['a']}), 'which is not there'),
  'a shard that is not there': (lambda f: shards(f, **{NAME: 'a.safetensors'}), 'which is not there'),
  'a shard without its tensor': (lambda f: shards(f, x='model.safetensors'), "says that tensor 'x' is in"),
  'an index that is no index': (
    lambda f: (f / 'model.safetensors.index.json').write_text('[]'),
    'has no "weight_map"',
  ),
  'a link that leads out': (linked, 'is a link that leads out of the folder'),
  'pickled weights': (pickled, 'unpickling may run any code'),
  'no weights': (lambda f: os.remove(f / 'model.safetensors'), 'has neither model.safetensors nor'),
  'a wrong type': (lambda f: rewrite(f, lambda t: t.update({NAME: t[NAME].astype(np.int32)})), 'of type I32'),
  'a wrong shape': (
    lambda f: rewrite(f, lambda t: t.update({NAME: t[NAME][:-1]})),
    'and by its config.json [',
  ),
  'a missing tensor': (lambda f: rewrite(f, lambda t: t.pop(NAME)), f'tensor {NAME!r} is missing'),
  'a tensor too many': (
    lambda f: rewrite(f, lambda t: t.update(more=np.zeros(3, np.float32))),
    'that its config.json has no place for',
  ),
  'a config that is no JSON': (lambda f: (f / 'config.json').write_text('{'), 'config.json: is no JSON'),
  'a config of bytes': (
    lambda f: (f / 'config.json').write_bytes(b'\xff\xfe\xff'),
    'config.json: is no JSON',
  ),
  'a config so deep that it overflows': (
    lambda f: (f / 'config.json').write_text('[' * 100_000),
    'is no JSON',
  ),
  'a config that is a list': (lambda f: (f / 'config.json').write_text('[]'), 'names no "model_type"'),
  'another architecture': (lambda f: config(f, model_type='mamba'), "model_type 'mamba' is not read here"),
  'another class': (lambda f: config(f, architectures=['LlamaForTokenClassification']), 'is not read here'),
  'a class that is an object': (lambda f: config(f, architectures=[{}]), 'is not read here'),
  'a scaling that is a list': (
    lambda f: config(f, rope_parameters={'rope_type': ['yarn']}),
    'is not supported; there are',
  ),
  'a token of number 2^31': (
    lambda f: (f / 'tokenizer.json').write_text(json.dumps(numbered(2**31))),
    'its tokenizer cannot be used: it numbers a token 2,147,483,648',
  ),
  'no config': (lambda f: os.remove(f / 'config.json'), 'config.json: no such file'),
  'a billion layers': (
    lambda f: config(f, num_hidden_layers=10**9),
    'config.model.layers: 1000000000, but its',
  ),
  'a vocabulary of 10^15': (
    lambda f: config(f, vocab_size=10**15),
    'config.model.vocabulary_size: 1000000000000000, but',
  ),
  'a width that is a text': (
    lambda f: config(f, hidden_size='wide'),
    "config.model.width: 'wide' is not an int",
  ),
  'heads of 0': (lambda f: config(f, num_attention_heads=0), 'config.model.heads: 0 is out of range'),
  'an unknown scaling': (
    lambda f: config(f, rope_parameters={'rope_type': 'longrope'}),
    "rope_type 'longrope'",
  ),
  'scaling that is a text': (
    lambda f: config(f, rope_parameters='long'),
    'rope_parameters is no JSON object',
  ),
  'an option that is not read': (
    lambda f: config(f, hidden_act='gelu'),
    "hidden_act = 'gelu' is not supported",
  ),
  'a tokenizer that is none': (
    lambda f: (f / 'tokenizer.json').write_text('{}'),
    'its tokenizer cannot be used',
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_it_is_refused_in_one_line_and_nothing_is_left(case, folder, tmp_path, capsys):
  change, wanted = CASES[case]
  change(folder)
  run = tmp_path / 'runs' / 'run'
  assert cli.main(['import', str(folder), str(run)]) in (64, 65)
  said = capsys.readouterr()
  assert wanted in said.err
  assert said.err.startswith('aigc: ')
  assert said.err.count('\n') == 1
  assert said.out == ''
  assert not run.parent.exists()


@pytest.mark.parametrize(
  'case', ['a header of 2^62 bytes', 'a shape whose bytes overflow', 'a vocabulary of 10^15']
)
def test_it_is_refused_before_anything_is_allocated(case, folder):
  """With 1 GB of room above what the process has, which an allocation would exceed."""
  CASES[case][0](folder)
  with open('/proc/self/statm') as file:
    now = int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
  limits = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), limits[1]))
  try:
    with pytest.raises(AigcError):
      checkpoints.open_folder(folder)
  finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_link_into_the_hubs_own_cache_is_followed(folder, tmp_path):
  """Its snapshots are links to blobs beside them."""
  cache = tmp_path / 'models--a--b'
  (cache / 'blobs').mkdir(parents=True)
  (cache / 'snapshots').mkdir()
  os.replace(folder, cache / 'snapshots' / 'revision')
  snapshot = cache / 'snapshots' / 'revision'
  os.replace(snapshot / 'model.safetensors', cache / 'blobs' / 'abc')
  os.symlink('../../blobs/abc', snapshot / 'model.safetensors')
  assert checkpoints.open_folder(snapshot).rows


def test_a_tokenizer_of_another_model_is_refused(folder, capsys, tmp_path):
  """GPT-2's has 50,257 tokens and this Llama a few dozen vectors."""
  from aigc_jax.data import tokenizers

  (folder / 'tokenizer.json').write_text(tokenizers.gpt2_library().to_str())
  assert cli.main(['import', str(folder), str(tmp_path / 'run')]) == 65
  assert 'its tokenizer has 50,257 tokens and its model vectors for' in capsys.readouterr().err
