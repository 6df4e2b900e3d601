"""Random models of `transformers`, saved as people save them, and their logits."""

import contextlib
import io

import numpy as np
import torch
import transformers
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

ROWS = 3


def gpt2(rng, tied):
  heads, of_head = int(rng.integers(1, 5)), int(rng.integers(2, 8))
  return transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=int(rng.integers(11, 90)),
      n_positions=int(rng.integers(9, 20)),
      n_layer=int(rng.integers(1, 4)),
      n_head=heads,
      n_embd=heads * of_head,
      n_inner=[None, int(rng.integers(5, 40))][rng.integers(2)],
      activation_function=str(rng.choice(['gelu_new', 'gelu', 'relu', 'silu', 'gelu_pytorch_tanh'])),
      layer_norm_epsilon=float(rng.choice([1e-5, 1e-3])),
      tie_word_embeddings=tied,
      bos_token_id=0,
      eos_token_id=0,
    )
  )


def rotary(rng, context):
  """`rope_parameters` of each kind in turn."""
  kind = str(rng.choice(['default', 'linear', 'llama3', 'yarn']))
  found = {'rope_type': kind, 'rope_theta': float(rng.choice([100.0, 10000.0, 5e5]))}
  if kind != 'default':
    found['factor'] = float(rng.uniform(1.5, 6))
  if kind in ('llama3', 'yarn'):
    found['original_max_position_embeddings'] = int(rng.integers(4, context))
  if kind == 'llama3':
    low = float(rng.uniform(0.5, 1.5))
    found |= {'low_freq_factor': low, 'high_freq_factor': low + float(rng.uniform(0.5, 4))}
  if kind == 'yarn' and rng.integers(2):
    found |= {'beta_slow': 0.5, 'beta_fast': 8.0}
  return found


def decoder_fields(rng, tied):
  groups, of_group, of_head = int(rng.integers(1, 4)), int(rng.integers(1, 4)), 2 * int(rng.integers(1, 6))
  context, heads = int(rng.integers(9, 20)), groups * of_group
  return {
    'vocab_size': int(rng.integers(11, 90)),
    'max_position_embeddings': context,
    'num_hidden_layers': int(rng.integers(1, 4)),
    'num_attention_heads': heads,
    'num_key_value_heads': groups,
    'hidden_size': heads * of_head,
    'intermediate_size': int(rng.integers(5, 40)),
    'rms_norm_eps': float(rng.choice([1e-6, 1e-3])),
    'rope_parameters': rotary(rng, context),
    'tie_word_embeddings': tied,
    'bos_token_id': 0,
    'eos_token_id': 0,
  }


def llama(rng, tied):
  fields = decoder_fields(rng, tied)
  if rng.integers(2):
    fields['head_dim'] = 2 * int(rng.integers(1, 8))
  biases = {'attention_bias': bool(rng.integers(2)), 'mlp_bias': bool(rng.integers(2))}
  return transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, **biases))


def qwen2(rng, tied):
  return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**decoder_fields(rng, tied)))


def encoder_fields(rng, tied):
  heads = int(rng.integers(1, 5))
  return {
    'vocab_size': int(rng.integers(11, 90)),
    'max_position_embeddings': int(rng.integers(12, 20)),
    'num_hidden_layers': int(rng.integers(1, 4)),
    'num_attention_heads': heads,
    'hidden_size': heads * int(rng.integers(2, 8)),
    'intermediate_size': int(rng.integers(5, 40)),
    'hidden_act': str(rng.choice(['gelu', 'relu', 'silu', 'gelu_new'])),
    'layer_norm_eps': float(rng.choice([1e-12, 1e-5])),
    'type_vocab_size': int(rng.integers(1, 4)),
    'tie_word_embeddings': tied,
  }


def bert(rng, tied):
  return transformers.BertForMaskedLM(transformers.BertConfig(**encoder_fields(rng, tied)))


def roberta(rng, tied):
  fields = encoder_fields(rng, tied) | {'hidden_act': 'gelu'}  # its head has no other
  return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**fields))


def bert_classifier(rng, tied):
  fields = encoder_fields(rng, True) | {'num_labels': int(rng.integers(2, 6))}
  return transformers.BertForSequenceClassification(transformers.BertConfig(**fields))


def roberta_classifier(rng, tied):
  fields = encoder_fields(rng, True) | {'num_labels': int(rng.integers(2, 6))}
  return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**fields))


def bert_pooler(rng, tied):
  return transformers.BertModel(transformers.BertConfig(**encoder_fields(rng, True)))


MAKERS = {
  'gpt2': gpt2,
  'llama': llama,
  'qwen2': qwen2,
  'bert': bert,
  'roberta': roberta,
  'bert_classifier': bert_classifier,
  'roberta_classifier': roberta_classifier,
  'bert_pooler': bert_pooler,
}


def make(architecture, seed):
  """A model of random settings whose weights, biases and norms are all random and large enough to matter."""
  rng = np.random.default_rng([seed, list(MAKERS).index(architecture)])
  model = MAKERS[architecture](rng, tied=bool(seed % 2)).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0, 0.4, generator=generator)
  return model


def save(model, folder, **options):
  with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
    model.save_pretrained(folder, **options)


def batch(model, seed, side):
  """(tokens [rows, time], mask [rows, time] bool): rows of several lengths, padded at 'left' or 'right'."""
  rng, config = np.random.default_rng([seed, 7]), model.config
  unused = 2 if config.model_type == 'roberta' else 0
  time = int(config.max_position_embeddings) - unused - int(rng.integers(0, 3))
  lengths = np.array([time, *rng.integers(1, time + 1, ROWS - 1)])
  places = np.arange(time)[None]
  mask = places < lengths[:, None] if side == 'right' else places >= time - lengths[:, None]
  tokens = rng.integers(3, config.vocab_size, (ROWS, time))
  padding = config.pad_token_id or 0
  return np.where(mask, tokens, padding), mask


def run(model, tokens, mask):
  """(logits of each token, or of each row; states after each layer [rows, time, width], the embeddings first)."""
  inputs = {'input_ids': torch.tensor(tokens), 'attention_mask': torch.tensor(mask.astype(np.int64))}
  if model.config.model_type != 'roberta':  # which finds positions by its padding token
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    inputs['position_ids'] = torch.tensor(positions)
  with torch.no_grad():
    found = model(**inputs, output_hidden_states=True)
  states = [state.numpy() for state in found.hidden_states]
  logits = found.logits if hasattr(found, 'logits') else found.pooler_output
  return logits.numpy(), states
