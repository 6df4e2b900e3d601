"""Imported models have the logits of `transformers`, whole or in shards, and are ordinary runs."""

import json
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

import aigc_jax
from aigc_jax import cli
from aigc_jax.errors import UsageError
from aigc_jax.interop import checkpoints
from tests import tiny
from tests.interop import logit_equality, peers


@pytest.mark.parametrize('architecture', peers.MAKERS)
def test_logits_are_those_of_transformers(architecture, tmp_path):
  """One configuration with tied and one with untied weights, padded right and left."""
  for seed, side in zip((0, 1), logit_equality.sides(architecture) * 2, strict=False):
    logit_equality.difference(architecture, seed, side, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize('architecture', peers.MAKERS)
def test_logits_of_many_configurations_are_those_of_transformers(architecture, tmp_path):
  for seed in range(2, logit_equality.CONFIGURATIONS):
    for side in logit_equality.sides(architecture):
      logit_equality.difference(architecture, seed, side, tmp_path / f'{seed}{side}')
  jax.clear_caches()


LAYERED = next(seed for seed in range(20) if peers.make('llama', seed).config.num_hidden_layers == 3)


def test_the_first_wrong_layer_is_named(tmp_path, monkeypatch):
  """The second of three layers reads another matrix for its keys."""
  original = peers.save

  def save(model, folder):
    with torch.no_grad():
      original(model, folder)
      path = folder / 'model.safetensors'
      tensors = safetensors.numpy.load_file(path)
      tensors['model.layers.1.self_attn.k_proj.weight'] *= -1
      safetensors.numpy.save_file(tensors, path)

  monkeypatch.setattr(peers, 'save', save)
  with pytest.raises(AssertionError, match='the first wrong layer is block_1'):
    logit_equality.difference('llama', LAYERED, 'right', tmp_path)


def flat_equal(a, b):
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_shards_are_read_as_one_file_is(tmp_path):
  peer = peers.make('qwen2', 0)
  peers.save(peer, tmp_path / 'one')
  peers.save(peer, tmp_path / 'shards', max_shard_size='2KB')
  assert (tmp_path / 'shards/model.safetensors.index.json').exists()
  one, shards = (
    dict(checkpoints.read(checkpoints.open_folder(tmp_path / name))) for name in ('one', 'shards')
  )
  flat_equal(one, shards)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_is_widened_without_a_change(dtype, tmp_path):
  peer = peers.make('llama', 1).to(getattr(torch, dtype))
  peers.save(peer, tmp_path / 'model')
  found = dict(checkpoints.read(checkpoints.open_folder(tmp_path / 'model')))
  theirs = peer.model.embed_tokens.weight.detach().float().numpy()
  assert found['embed/token'].dtype == np.float32
  np.testing.assert_array_equal(found['embed/token'], theirs)


def test_older_names_and_bare_models_are_known(tmp_path):
  """bert-base-uncased has LayerNorm.gamma and .beta; gpt2 has no prefix, and masks among its tensors."""
  for architecture, change in (
    (
      'bert',
      lambda n: n.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'),
    ),
    ('gpt2', lambda n: n.removeprefix('transformer.')),
  ):
    peers.save(peers.make(architecture, 1), tmp_path / architecture)
    plain = dict(checkpoints.read(checkpoints.open_folder(tmp_path / architecture)))
    path = tmp_path / architecture / 'model.safetensors'
    tensors = {change(name): tensor for name, tensor in safetensors.numpy.load_file(path).items()}
    if architecture == 'gpt2':
      tensors['h.0.attn.bias'] = np.tri(4, dtype=np.float32)[None, None]
    safetensors.numpy.save_file(tensors, path)
    flat_equal(plain, dict(checkpoints.read(checkpoints.open_folder(tmp_path / architecture))))


def test_a_config_of_before_the_fifth_version_is_the_same(tmp_path):
  """rope_theta and rope_scaling were beside each other."""
  peers.save(peers.make('llama', 0), tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  new = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
  new |= {'original_max_position_embeddings': 8}
  found = []
  for fields in ({'rope_parameters': new | {'rope_theta': 5e5}}, {'rope_theta': 5e5, 'rope_scaling': new}):
    kept = {name: value for name, value in config.items() if name != 'rope_parameters'}
    (tmp_path / 'config.json').write_text(json.dumps(kept | fields))
    found.append(checkpoints.open_folder(tmp_path).model)
  assert found[0] == found[1]
  assert (found[0]['rotary_base'], found[0]['rotary_scaling'], found[0]['rotary_factor']) == (
    5e5,
    'llama3',
    8.0,
  )


@pytest.fixture(scope='module')
def gpt2_folder(tmp_path_factory):
  """A tiny GPT-2 with the real one's tokenizer."""
  import transformers

  folder = tmp_path_factory.mktemp('gpt2') / 'files'
  config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=32)
  torch.manual_seed(0)
  peers.save(transformers.GPT2LMHeadModel(config).eval(), folder)
  return folder


def test_an_import_is_a_run_that_writes_and_is_evaluated(gpt2_folder, tmp_path, capsys):
  """Its greedy text is that of transformers' own generate."""
  import transformers

  path = str(tmp_path / 'run')
  assert cli.main(['import', str(gpt2_folder), path]) == 0
  assert 'gpt2: transformer, ' in capsys.readouterr().out
  run = aigc_jax.load_run(path)
  (completion,) = run.generate('Call me', strategy='greedy', max_new_tokens=12)
  prompt = run.tokenizer.encode('Call me')
  peer = transformers.GPT2LMHeadModel.from_pretrained(gpt2_folder)
  theirs = peer.generate(torch.tensor(prompt[None].astype(np.int64)), max_new_tokens=12, do_sample=False)
  assert completion.tokens == theirs[0, len(prompt) :].tolist()
  text = tmp_path / 'text.txt'
  text.write_text('Call me Ishmael. Some years ago, never mind how long precisely.\n' * 3)
  found = run.evaluate(f'text:{text}')
  tokens = torch.tensor(run.tokenizer.encode(text.read_text())[None].astype(np.int64))[:, :33]
  with torch.no_grad():
    nats = torch.nn.functional.cross_entropy(peer(tokens[:, :-1]).logits[0], tokens[0, 1:])
  assert found['loss'] == pytest.approx(float(nats), rel=0.05)  # it has one window more


def test_an_import_cannot_be_resumed_and_says_how_to_train(gpt2_folder, tmp_path):
  run = aigc_jax.from_pretrained(gpt2_folder, tmp_path / 'run', quiet=True)
  with pytest.raises(UsageError, match=r'train from it by --config\.init_from='):
    aigc_jax.resume(run.path, steps=5)
  with pytest.raises(UsageError, match='holds a run already'):
    aigc_jax.from_pretrained(gpt2_folder, tmp_path / 'run', quiet=True)
  assert run.parameter_count  # which is still there


def test_a_run_starts_from_the_files_as_from_their_import(gpt2_folder, tmp_path):
  """Settings, tokenizer and parameters; and a folder that cannot be read is one line."""
  config = {
    'task': {'name': 'language'},
    'data': {'source': tiny.write_corpus(tmp_path / 'words.txt'), 'sequence_length': 16, 'batch_size': 4},
    'optimizer': {'learning_rate': 0.0},
    'training': {'steps': 1, 'evaluate_every': None, 'sample_every': None, 'tensorboard': False},
    'init_from': str(gpt2_folder),
  }
  start = aigc_jax.from_pretrained(gpt2_folder, tmp_path / 'start', quiet=True)
  run = aigc_jax.train(config, tmp_path / 'run', quiet=True)
  assert run.config['model'] == start.config['model']
  assert run.tokenizer.sha256 == start.tokenizer.sha256
  jax.tree.map(np.testing.assert_array_equal, run.params, start.params)
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken' / 'config.json').write_text((gpt2_folder / 'config.json').read_text())
  with pytest.raises(UsageError, match=r'has neither model\.safetensors nor'):
    aigc_jax.train(config | {'init_from': str(tmp_path / 'broken')}, tmp_path / 'other', quiet=True)
  assert not (tmp_path / 'other').exists()


def test_an_import_that_was_killed_is_done_again(gpt2_folder, tmp_path):
  run = aigc_jax.from_pretrained(gpt2_folder, tmp_path / 'run', quiet=True)
  manifest = tmp_path / 'run/checkpoints/0/manifest.json'  # written last
  manifest.unlink()
  again = aigc_jax.from_pretrained(gpt2_folder, tmp_path / 'run', quiet=True)
  assert manifest.exists()
  assert again.parameter_count == aigc_jax.load_run(run.path).parameter_count


def test_a_checkpoint_imported_fine_tuned_and_exported_writes_the_same_in_transformers(gpt2_folder, tmp_path):
  import transformers

  start = aigc_jax.from_pretrained(gpt2_folder, tmp_path / 'start', quiet=True)
  config = {
    'task': {'name': 'language'},
    'data': {'source': tiny.write_corpus(tmp_path / 'words.txt'), 'sequence_length': 16, 'batch_size': 4},
    'optimizer': {'learning_rate': 0.02},
    'training': {
      'steps': 8,
      'evaluate_every': None,
      'sample_every': None,
      'tensorboard': False,
      'log_every': 1,
    },
    'init_from': str(start.path),
  }
  tuned = aigc_jax.train(config, tmp_path / 'tuned', quiet=True)
  assert tuned.config['model'] == start.config['model']
  losses = [row['train/loss'] for row in tuned.metrics if 'train/loss' in row]
  assert losses[-1] < losses[0] - 1  # it learned
  aigc_jax.export(tuned, tmp_path / 'out')
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  known = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  inputs = known('the whale and the', return_tensors='pt')
  theirs = peer.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs['input_ids'].shape[1] :]
  (completion,) = tuned.generate('the whale and the', strategy='greedy', max_new_tokens=12)
  assert completion.tokens == theirs.tolist()
  assert known.decode(theirs) == completion.text


def test_a_name_on_the_hub_is_fetched_and_what_goes_wrong_there_is_one_line(tmp_path, monkeypatch):
  """With a hub that is played: this machine has no network."""
  peers.save(peers.make('gpt2', 0), tmp_path / 'snapshot')
  asked = []

  def snapshot_download(name, allow_patterns):
    asked.append((name, allow_patterns))
    if name != 'someone/model':
      raise OSError(f'404 for {name}\nand a traceback')
    return str(tmp_path / 'snapshot')

  monkeypatch.setitem(
    sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=snapshot_download)
  )
  run = aigc_jax.from_pretrained('someone/model', tmp_path / 'run', quiet=True)
  assert run.config['model']['name'] == 'transformer'
  assert not any(name.endswith('.bin') for name in asked[0][1])
  with pytest.raises(
    UsageError, match='someone/else: no such folder, and the hub did not give it: 404'
  ) as raised:
    aigc_jax.from_pretrained('someone/else', tmp_path / 'other')
  assert '\n' not in str(raised.value)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UsageError, match=r'install `aigc-jax\[hub\]`'):
    aigc_jax.from_pretrained('someone/model', tmp_path / 'other')
  assert not (tmp_path / 'other').exists()
