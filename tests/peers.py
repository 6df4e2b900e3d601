"""Models of transformers with random weights, and ours with the same: the oracles of models and of decoding."""

import numpy as np
import torch
from transformers import (
  GPT2Config,
  GPT2LMHeadModel,
  LlamaConfig,
  LlamaForCausalLM,
  MarianConfig,
  MarianMTModel,
)


def numpy_weights(model, seed, deviation=0.3):
  """Random weights large enough that every part matters, as {name: array}."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'embed_positions' not in name:  # Marian's sinusoids
        parameter.normal_(0, deviation if parameter.ndim > 1 else 0.3 * deviation, generator=generator)
      if 'norm.weight' in name or ('.ln_' in name and name.endswith('weight')):
        parameter += 1
  return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def into_heads(dense, heads):
  """A kernel [width, heads * head_width] as ours, [width, heads, head_width]; the bias stays."""
  return dense | {'kernel': dense['kernel'].reshape(len(dense['kernel']), heads, -1)}


def from_heads(dense, heads):
  """A kernel [heads * head_width, width] as ours, [heads, head_width, width]; the bias stays."""
  return dense | {'kernel': dense['kernel'].reshape(heads, -1, dense['kernel'].shape[1])}


def gpt2(vocabulary_size=17, context_length=12, seed=0, layers=2, heads=4, width=16, deviation=0.3):
  """(config of our model, its params, GPT-2 of transformers) with the same random weights."""
  config = {
    'vocabulary_size': vocabulary_size,
    'context_length': context_length,
    'layers': layers,
    'heads': heads,
    'width': width,
  }
  model = GPT2LMHeadModel(
    GPT2Config(
      vocab_size=vocabulary_size,
      n_positions=context_length,
      n_layer=layers,
      n_head=heads,
      n_embd=width,
      bos_token_id=None,
      eos_token_id=None,
    )
  )
  w = {name.removeprefix('transformer.'): a for name, a in numpy_weights(model, seed, deviation).items()}
  dense = lambda name: {'kernel': w[f'{name}.weight'], 'bias': w[f'{name}.bias']}
  norm = lambda name: {'scale': w[f'{name}.weight'], 'bias': w[f'{name}.bias']}
  params = {'embed': {'token': w['wte.weight'], 'position': w['wpe.weight']}, 'final_norm': norm('ln_f')}
  for i in range(layers):
    joined = dense(f'h.{i}.attn.c_attn')  # query, key and value side by side
    thirds = zip(np.split(joined['kernel'], 3, axis=1), np.split(joined['bias'], 3), strict=True)
    names = zip(('query', 'key', 'value'), thirds, strict=True)
    attention = {name: into_heads({'kernel': kernel, 'bias': bias}, heads) for name, (kernel, bias) in names}
    params[f'block_{i}'] = {
      'attention_norm': norm(f'h.{i}.ln_1'),
      'attention': attention | {'output': from_heads(dense(f'h.{i}.attn.c_proj'), heads)},
      'mlp_norm': norm(f'h.{i}.ln_2'),
      'mlp': {'up': dense(f'h.{i}.mlp.c_fc'), 'down': dense(f'h.{i}.mlp.c_proj')},
    }
  return {'name': 'transformer', **config, 'activation': 'gelu_tanh'}, params, model.eval()


def llama(vocabulary_size=17, context_length=12, seed=1):
  """(config of our model, its params, Llama of transformers) with the same random weights."""
  config = {
    'vocabulary_size': vocabulary_size,
    'context_length': context_length,
    'layers': 2,
    'heads': 4,
    'key_value_heads': 2,
    'width': 16,
    'mlp_width': 40,
    'positions': 'rotary',
    'rotary_base': 500.0,
    'normalization': 'rms_norm',
    'normalization_epsilon': 1e-6,
    'activation': 'swiglu',
    'bias': False,
    'tie_embeddings': False,
  }
  model = LlamaForCausalLM(
    LlamaConfig(
      vocab_size=vocabulary_size,
      max_position_embeddings=context_length,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      hidden_size=16,
      intermediate_size=40,
      rope_parameters={'rope_type': 'default', 'rope_theta': 500.0},
      rms_norm_eps=1e-6,
      attn_implementation='eager',
    )
  )
  w = {name.removeprefix('model.'): a for name, a in numpy_weights(model, seed).items()}
  dense = lambda name: {'kernel': w[f'{name}.weight'].T}
  norm = lambda name: {'scale': w[f'{name}.weight']}
  params = {
    'embed': {'token': w['embed_tokens.weight']},
    'final_norm': norm('norm'),
    'head': dense('lm_head'),
  }
  for i in range(2):
    at = lambda name, i=i: f'layers.{i}.{name}'
    into = {
      name: into_heads(dense(at(f'self_attn.{name[0]}_proj')), heads)
      for name, heads in (('query', 4), ('key', 2), ('value', 2))
    }
    params[f'block_{i}'] = {
      'attention_norm': norm(at('input_layernorm')),
      'attention': into | {'output': from_heads(dense(at('self_attn.o_proj')), 4)},
      'mlp_norm': norm(at('post_attention_layernorm')),
      'mlp': {name: dense(at(f'mlp.{name}_proj')) for name in ('up', 'gate', 'down')},
    }
  return {'name': 'transformer', **config}, params, model.eval()


def marian(
  vocabulary_size=17, context_length=24, seed=1, layers=2, heads=4, width=16, deviation=0.3, end_token=3
):
  """(config of our model, its params, Marian of transformers): the original Transformer, with the same random weights.

  Marian has all sines before all cosines, where Vaswani et al. have them in turn, so our channels are theirs reordered.
  """
  config = {
    'vocabulary_size': vocabulary_size,
    'context_length': context_length,
    'layers': layers,
    'heads': heads,
    'width': width,
    'positions': 'sinusoidal',
    'norm_position': 'post',
    'scale_embeddings': True,
    'source_vocabulary_size': vocabulary_size,  # each side its own vectors, and the output too: tied random vectors
    'tie_embeddings': False,  # say one token again and again
    'activation': 'relu',
  }
  sides = {
    f'{side}_{name}': value
    for side in ('encoder', 'decoder')
    for name, value in (('layers', layers), ('attention_heads', heads), ('ffn_dim', 4 * width))
  }
  model = MarianMTModel(
    MarianConfig(
      vocab_size=vocabulary_size,
      max_position_embeddings=context_length,
      d_model=width,
      activation_function='relu',
      scale_embedding=True,
      tie_word_embeddings=False,
      share_encoder_decoder_embeddings=False,
      pad_token_id=0,
      eos_token_id=end_token,
      decoder_start_token_id=end_token,
      forced_eos_token_id=None,
      **sides,
    )
  )
  w = {name.removeprefix('model.'): a for name, a in numpy_weights(model, seed, deviation).items()}
  order = np.arange(width).reshape(2, -1).T.reshape(-1)
  vector = lambda name: w[name][order]
  norm = lambda name: {'scale': vector(f'{name}.weight'), 'bias': vector(f'{name}.bias')}
  into = lambda name: {'kernel': w[f'{name}.weight'].T[order], 'bias': w[f'{name}.bias']}
  out = lambda name: {'kernel': w[f'{name}.weight'].T[:, order], 'bias': vector(f'{name}.bias')}

  def attention(name):
    parts = {part: into_heads(into(f'{name}.{part[0]}_proj'), heads) for part in ('query', 'key', 'value')}
    return parts | {'output': from_heads(out(f'{name}.out_proj'), heads)}

  params = {
    'embed': {'token': w['decoder.embed_tokens.weight'][:, order]},
    'source_embed': {'token': w['encoder.embed_tokens.weight'][:, order]},
    'head': {'kernel': w['lm_head.weight'].T[order]},
  }
  for side, crosses in (('encoder', False), ('decoder', True)):
    for i in range(layers):
      at = f'{side}.layers.{i}'
      params[f'{side}_block_{i}'] = {
        'attention': attention(f'{at}.self_attn'),
        'attention_norm': norm(f'{at}.self_attn_layer_norm'),
        'mlp': {'up': into(f'{at}.fc1'), 'down': out(f'{at}.fc2')},
        'mlp_norm': norm(f'{at}.final_layer_norm'),
      }
      if crosses:
        params[f'{side}_block_{i}'] |= {
          'cross_attention': attention(f'{at}.encoder_attn'),
          'cross_attention_norm': norm(f'{at}.encoder_attn_layer_norm'),
        }
  return {'name': 'transformer_encoder_decoder', **config}, params, model.eval()
