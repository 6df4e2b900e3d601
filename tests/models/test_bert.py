"""BERT is settings of the encoder: the logits of `transformers` with random weights mapped over, with padding."""

import jax
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from aigc_jax import models
from aigc_jax.data import tokenizers
from aigc_jax.generation.fill import fill

VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH, HIDDEN = 23, 14, 3, 4, 16, 40
LENGTHS = np.array([14, 9, 1, 5])


@pytest.fixture(scope='module')
def peer():
  """A BertForMaskedLM whose weights, biases and norms are all random, large enough that every part matters."""
  config = BertConfig(
    vocab_size=VOCABULARY,
    max_position_embeddings=CONTEXT,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    hidden_size=WIDTH,
    intermediate_size=HIDDEN,
    hidden_act='gelu',
    attn_implementation='eager',
  )
  model, generator = BertForMaskedLM(config).eval(), torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0, 0.5, generator=generator)
  return model


@pytest.fixture(scope='module')
def module():
  return models.build(
    {
      'name': 'transformer_encoder',
      'vocabulary_size': VOCABULARY,
      'context_length': CONTEXT,
      'layers': LAYERS,
      'heads': HEADS,
      'width': WIDTH,
      'mlp_width': HIDDEN,
      'norm_position': 'post',
      'normalization_epsilon': 1e-12,
      'embedding_norm': True,
      'token_types': 2,
      'head_transform': True,
    }
  )


@pytest.fixture(scope='module')
def params(peer):
  w = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
  dense = lambda name: {'kernel': w[f'{name}.weight'].T, 'bias': w[f'{name}.bias']}
  norm = lambda name: {'scale': w[f'{name}.weight'], 'bias': w[f'{name}.bias']}
  vectors = lambda name: w[f'bert.embeddings.{name}_embeddings.weight']
  made = {
    'embed': {'token': vectors('word'), 'position': vectors('position'), 'token_type': vectors('token_type')},
    'embed_norm': norm('bert.embeddings.LayerNorm'),
    'masked_head': {
      'transform': dense('cls.predictions.transform.dense'),
      'norm': norm('cls.predictions.transform.LayerNorm'),
      'bias': w['cls.predictions.bias'],
    },
  }
  for i in range(LAYERS):
    layer = f'bert.encoder.layer.{i}'
    names = {name: dense(f'{layer}.attention.self.{name}') for name in ('query', 'key', 'value')}
    attention = {n: d | {'kernel': d['kernel'].reshape(WIDTH, HEADS, -1)} for n, d in names.items()}
    output = dense(f'{layer}.attention.output.dense')
    attention['output'] = output | {'kernel': output['kernel'].reshape(HEADS, -1, WIDTH)}
    made[f'block_{i}'] = {
      'attention': attention,
      'attention_norm': norm(f'{layer}.attention.output.LayerNorm'),
      'mlp': {'up': dense(f'{layer}.intermediate.dense'), 'down': dense(f'{layer}.output.dense')},
      'mlp_norm': norm(f'{layer}.output.LayerNorm'),
    }
  return made


def logits_of(peer, tokens, lengths, token_types=None):
  mask = torch.tensor(np.arange(tokens.shape[1]) < lengths[:, None])
  types = None if token_types is None else torch.tensor(token_types)
  with torch.no_grad():
    return peer(torch.tensor(tokens), attention_mask=mask.long(), token_type_ids=types).logits.numpy()


def test_the_parameters_are_all_of_ours(module, params):
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 3), np.int32))['params']
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


def test_logits_are_those_of_bert_with_texts_of_unequal_lengths(peer, module, params):
  draw = np.random.default_rng(0)
  tokens = draw.integers(0, VOCABULARY, (4, CONTEXT))
  types = draw.integers(0, 2, (4, CONTEXT))
  inside = np.arange(CONTEXT) < LENGTHS[:, None]
  apply = jax.jit(module.apply)
  ours, plain = (apply({'params': params}, tokens, lengths=LENGTHS, token_types=t) for t in (types, None))
  for found, given in ((ours, types), (plain, None)):
    theirs = logits_of(peer, tokens, LENGTHS, given)
    assert np.abs(theirs[inside]).max() > 1
    # float32 on both sides, sums in another order
    np.testing.assert_allclose(found[inside], theirs[inside], rtol=1e-4, atol=1e-4)
  assert np.abs(ours - plain)[inside].max() > 0.1, 'types matter'
  other = np.where(inside, tokens, (tokens + 1) % VOCABULARY)
  changed = apply({'params': params}, other, lengths=LENGTHS, token_types=types)
  np.testing.assert_array_equal(changed[inside], ours[inside], 'padding is never seen')
  full = apply({'params': params}, tokens, token_types=types)
  assert np.abs(full - ours)[1][: LENGTHS[1]].max() > 0.01, 'and would be seen without lengths'


def test_segments_keep_packed_texts_apart_as_rows_of_their_own(module, params):
  draw = np.random.default_rng(1)
  first, second = draw.integers(0, VOCABULARY, 6), draw.integers(0, VOCABULARY, 5)
  apply = jax.jit(module.apply)
  packed = apply(
    {'params': params}, np.concatenate([first, second])[None], segments=np.array([[1] * 6 + [2] * 5])
  )
  for text, part in ((first, packed[0, :6]), (second, packed[0, 6:])):
    np.testing.assert_allclose(part, apply({'params': params}, text[None])[0], rtol=1e-4, atol=1e-4)


def test_masks_are_filled_with_what_bert_finds_likeliest(peer, module, params):
  tokenizer = tokenizers.with_mask(
    tokenizers.characters('abcdefghijklmnopqrstu')
  )  # and the line end: 22, then the mask
  assert tokenizer.vocabulary_size == VOCABULARY
  prompts = ['ab[MASK]de', 'a[MASK]cdefgh[MASK]j']
  for filled, prompt in zip(fill(module, params, tokenizer, prompts, 3), prompts, strict=True):
    tokens = tokenizer.encode_masked(prompt)
    theirs = logits_of(peer, tokens[None].astype(np.int64), np.array([len(tokens)]))[0]
    for mask, place in zip(filled.masks, np.flatnonzero(tokens == tokenizer.mask_token), strict=True):
      best = np.argsort(-theirs[place, : tokenizer.mask_token])[:3]
      assert [candidate.token for candidate in mask] == best.tolist()
