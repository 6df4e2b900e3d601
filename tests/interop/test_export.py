"""What is exported has the same logits and tokens in `transformers`; what was imported comes out byte for byte."""

import json

import numpy as np
import pytest
import torch
import transformers

import aigc_jax
from aigc_jax import exporting
from aigc_jax.data import pairs, pretrained_tokenizers, tokenizers
from aigc_jax.errors import UsageError
from aigc_jax.interop import folders, tokenizer_files
from aigc_jax.schemas import resolved
from tests import tiny
from tests.data.test_pretrained_tokenizers import write_llama
from tests.interop import peers


@pytest.mark.parametrize('architecture', peers.MAKERS)
def test_import_then_export_is_the_identity(architecture, tmp_path):
  """Byte for byte of the weights, and every field of the config; also where nothing is tied."""
  for seed in (0, 1):
    there, back = tmp_path / f'{seed}', tmp_path / f'{seed}-back'
    peers.save(peers.make(architecture, seed), there)
    run = aigc_jax.from_pretrained(there, tmp_path / f'{seed}-run', quiet=True)
    aigc_jax.export(run, back)
    assert json.loads((back / 'config.json').read_text()) == json.loads((there / 'config.json').read_text())
    if (architecture, seed) in UNUSED_BIAS:
      continue
    assert (back / 'model.safetensors').read_bytes() == (there / 'model.safetensors').read_bytes()


# untied heads of these have a second bias in the file that nothing reads; it is not kept
UNUSED_BIAS = {('bert', 0), ('roberta', 0)}


def test_half_precision_comes_out_as_it_came_in(tmp_path):
  peers.save(peers.make('qwen2', 1).to(torch.bfloat16), tmp_path / 'there')
  run = aigc_jax.from_pretrained(tmp_path / 'there', tmp_path / 'run', quiet=True)
  aigc_jax.export(run, tmp_path / 'back')
  read = lambda name: (tmp_path / name / 'model.safetensors').read_bytes()
  assert read('back') == read('there')
  assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'back').dtype == torch.bfloat16


OURS = {
  'gpt2': {'activation': 'gelu_tanh'},
  'gpt2 with other parts': {'activation': 'relu', 'tie_embeddings': False, 'mlp_width': 24},
  'llama': {
    'positions': 'rotary',
    'normalization': 'rms_norm',
    'activation': 'swiglu',
    'bias': False,
    'tie_embeddings': False,
    'key_value_heads': 1,
    'rotary_scaling': 'yarn',
    'rotary_factor': 3.0,
    'rotary_context': 8,
    'rotary_high': 32.0,
  },
  'qwen2': {
    'positions': 'rotary',
    'normalization': 'rms_norm',
    'activation': 'swiglu',
    'bias': False,
    'query_key_value_bias': True,
    'head_width': 6,
  },
}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')


def trained(corpus, folder, model, tokenizer='characters', task='language', **fields):
  config = {
    'task': {'name': task},
    'model': {'layers': 2, 'heads': 2, 'width': 8} | model,
    'data': {'source': corpus, 'tokenizer': tokenizer, 'sequence_length': 16, 'batch_size': 2},
    'optimizer': {'learning_rate': 0.01},
    'training': {'steps': 3, 'evaluate_every': None, 'sample_every': None, 'tensorboard': False},
  } | fields
  return aigc_jax.train(config, folder, quiet=True)


@pytest.mark.parametrize(
  'name', [name if name == 'llama' else pytest.param(name, marks=pytest.mark.slow) for name in OURS]
)
def test_a_run_of_ours_writes_the_same_tokens_in_transformers(name, corpus, tmp_path):
  tokenizer = {'gpt2': 'bpe:300', 'llama': 'bytes'}.get(name, 'characters')
  run = trained(corpus, tmp_path / 'run', {'name': 'transformer'} | OURS[name], tokenizer)
  aigc_jax.export(run, tmp_path / 'out')
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
  assert peer.config.model_type == name.split()[0]
  # for qwen2 AutoTokenizer takes that architecture's own, whatever the files name
  reader = transformers.PreTrainedTokenizerFast if name == 'qwen2' else transformers.AutoTokenizer
  known = reader.from_pretrained(tmp_path / 'out')
  text = 'the sea and'
  tokens = run.tokenizer.encode(text)
  assert known(text)['input_ids'] == tokens.tolist()
  assert known.decode(known(text)['input_ids']) == text
  with torch.no_grad():
    theirs = peer(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
  ours = run.model.apply({'params': run.params}, tokens[None])[0]
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
  (completion,) = run.generate(text, strategy='greedy', max_new_tokens=5)
  inputs = known(text, return_tensors='pt')
  written = peer.generate(**inputs, max_new_tokens=5, do_sample=False)[0, len(tokens) :]
  assert completion.tokens == written.tolist()


def test_instructions_are_put_by_the_chat_template_as_they_were_learned(tmp_path):
  """A Llama comes in, learns answers, and gives the same ones in transformers, asked by its chat template."""
  torch.manual_seed(0)
  sizes = {'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 2}
  sizes |= {'vocab_size': 400, 'max_position_embeddings': 64, 'bos_token_id': 1, 'eos_token_id': 2}
  peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
  peers.save(peer, write_llama(tmp_path / 'there'))
  template = 'Q: "{source}" 🐳\nA:'
  (tmp_path / 'pairs.tsv').write_text('ab\tcd\nb\tdca\nabcab\td\n' * 4)
  data = {'source': f'tsv:{tmp_path}/pairs.tsv', 'source_length': 48, 'target_length': 8, 'batch_size': 4}
  training = {'steps': 3, 'evaluate_every': None, 'sample_every': None, 'tensorboard': False}
  config = {'task': {'name': 'translation'}, 'init_from': str(tmp_path / 'there'), 'training': training}
  config |= {'data': data | {'source_template': template}, 'optimizer': {'learning_rate': 0.01}}
  run = aigc_jax.train(config, tmp_path / 'run', quiet=True)
  aigc_jax.export(run, tmp_path / 'out')
  known = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  asked = known.apply_chat_template([{'role': 'user', 'content': 'ab'}], return_dict=False)
  (read,) = run.task.prompts(run.tokenizer, ['ab']).tokens
  assert asked == read.tolist()
  (completion,) = run.generate('ab', strategy='greedy', max_new_tokens=6)
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
  written = peer.generate(torch.tensor([asked]), max_new_tokens=6, do_sample=False)[0, len(asked) :]
  assert completion.tokens == written.tolist()
  whole = [{'role': 'user', 'content': 'ab'}, {'role': 'assistant', 'content': 'cd'}]
  assert known.apply_chat_template(whole, tokenize=False).endswith('\nA:cd' + known.eos_token)
  again = aigc_jax.from_pretrained(tmp_path / 'out', tmp_path / 'again', quiet=True)
  aigc_jax.export(again, tmp_path / 'back')
  read = lambda name: (tmp_path / name / 'chat_template.jinja').read_text()
  assert read('back') == read('out')


@pytest.mark.parametrize('scheme', ['always', 'first', 'never'])
@pytest.mark.parametrize('template', ['{source}', ' {source}', 'a\\"b\n{{ {source} {% x %}é🐳'])
def test_a_question_is_the_same_tokens_by_the_chat_template(scheme, template, tmp_path):
  """However a tokenizer of Llama's kind marks the beginning of a text."""
  folder = write_llama(tmp_path / 'there')
  library = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))
  spaces = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': scheme, 'split': False}
  library |= {'normalizer': None, 'pre_tokenizer': spaces}
  (folder / 'tokenizer.json').write_text(json.dumps(library), encoding='utf-8')
  saved = pretrained_tokenizers.read_folder(folder, folders.read_json, folders.inside)
  ours = tokenizers.pretrained(saved)
  (folder / 'chat_template.jinja').write_text(
    tokenizer_files.chat_template(ours, template)['chat_template.jinja'], encoding='utf-8'
  )
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for text in ('Call me', ' two  spaces', 'x'):
    (read,), _ = pairs.read_sources(ours, [text], {'source_template': template})
    asked = theirs.apply_chat_template([{'role': 'user', 'content': text}], return_dict=False)
    assert asked == read.tolist()
  assert ours.prefix == (1,) == tuple(read[:1])


def test_an_encoder_of_ours_is_a_bert(corpus, tmp_path):
  bert = {'name': 'transformer_encoder', 'norm_position': 'post', 'embedding_norm': True, 'token_types': 2}
  run = trained(corpus, tmp_path / 'run', bert | {'head_transform': True}, task='masked_language')
  aigc_jax.export(run, tmp_path / 'out')
  peer = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / 'out').eval()
  known = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  tokens = run.tokenizer.encode_masked('the s[MASK]a')
  assert known('the s[MASK]a')['input_ids'] == tokens.tolist()
  with torch.no_grad():
    theirs = peer(torch.tensor(tokens[None].astype(np.int64))).logits.numpy()
  ours = run.model.apply({'params': run.params}, tokens[None])
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_a_model_without_a_counterpart_is_refused():
  cases = {
    'model.activation': {'activation': 'relu2'},
    'model.query_key_norm': {'positions': 'rotary', 'normalization': 'rms_norm', 'query_key_norm': True}
    | {'activation': 'swiglu', 'bias': False},
    'model.window': {'window': 3},
    'model.positions': {'positions': 'none'},
  }
  for field, model in cases.items():
    complete = resolved({'task': {'name': 'language'}, 'model': {'name': 'transformer'} | model})['model']
    with pytest.raises(UsageError, match=rf'^config\.{field}: .* cannot be exported'):
      exporting.kind_for(complete)


def test_only_an_empty_folder_is_written_to(corpus, tmp_path):
  run = trained(corpus, tmp_path / 'run', {'name': 'transformer'})
  with pytest.raises(UsageError, match='is not empty; export into a new folder'):
    aigc_jax.export(run, tmp_path / 'run')
