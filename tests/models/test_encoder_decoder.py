"""Encoder-decoders: what may see what, padding, the cache, and a recurrent one written out in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aigc_jax import models

SMALL = {'vocabulary_size': 13, 'width': 16}
ATTENTION = SMALL | {
  'name': 'transformer_encoder_decoder',
  'context_length': 24,
  'layers': 2,
  'heads': 2,
  'init_scale': 0.3,
}
CONFIGS = {
  'pre-norm, learned': ATTENTION,
  'post-norm, sinusoidal': ATTENTION
  | {'norm_position': 'post', 'positions': 'sinusoidal', 'scale_embeddings': True, 'activation': 'relu'},
  'rotary, grouped, two vocabularies': ATTENTION
  | {'positions': 'rotary', 'key_value_heads': 1, 'source_vocabulary_size': 17, 'encoder_layers': 1}
  | {'query_key_norm': True, 'normalization': 'rms_norm', 'tie_embeddings': False},
  'lstm': SMALL | {'name': 'rnn_encoder_decoder', 'layers': 2, 'init_scale': 0.5},
  'gru, two vocabularies': SMALL
  | {'name': 'rnn_encoder_decoder', 'cell': 'gru', 'source_vocabulary_size': 17, 'init_scale': 0.5},
}
LENGTHS = jnp.array([9, 5, 1])


@pytest.fixture(params=list(CONFIGS), scope='module')
def made(request):
  """(module, params, apply) and sources [3, 9], tokens [3, 7] of random numbers."""
  module, key = models.build(CONFIGS[request.param]), jax.random.key(1)
  sources, tokens = jax.random.randint(key, (3, 9), 0, 13), jax.random.randint(key, (3, 7), 0, 13)
  params = module.init(key, sources, tokens, lengths=LENGTHS)['params']
  apply = jax.jit(lambda params, *inputs, lengths: module.apply({'params': params}, *inputs, lengths=lengths))
  return module, params, apply, sources, tokens


def test_a_target_sees_its_past_alone_and_all_of_its_source(made):
  _, params, apply, sources, tokens = made
  logits = apply(params, sources, tokens, lengths=LENGTHS)
  assert logits.shape == (3, 7, 13)
  for place in (0, 3, 6):
    changed = tokens.at[:, place].set((tokens[:, place] + 1) % 13)
    moved = np.abs(apply(params, sources, changed, lengths=LENGTHS) - logits).max(axis=(0, 2))
    np.testing.assert_allclose(moved[:place], 0, atol=1e-6)
    assert moved[place] > 1e-4
  for place in (0, 8):  # of the first source, which is 9 long
    changed = sources.at[0, place].set((sources[0, place] + 1) % 13)
    moved = np.abs(apply(params, changed, tokens, lengths=LENGTHS) - logits).max(axis=2)
    assert (moved[0] > 1e-6).all()
    np.testing.assert_allclose(moved[1:], 0, atol=1e-6)


def test_padding_of_sources_changes_nothing(made):
  _, params, apply, sources, tokens = made
  logits = apply(params, sources, tokens, lengths=LENGTHS)
  behind = jnp.arange(9) >= LENGTHS[:, None]
  other = apply(params, jnp.where(behind, 12, sources), tokens, lengths=LENGTHS)
  np.testing.assert_allclose(other, logits, atol=1e-6)
  wider = apply(params, jnp.pad(sources, ((0, 0), (0, 4)), constant_values=5), tokens, lengths=LENGTHS)
  np.testing.assert_allclose(wider, logits, atol=1e-5)  # other sizes, other orders of adding
  alone = apply(params, sources[1:2, :5], tokens[1:2], lengths=jnp.array([5]))
  np.testing.assert_allclose(alone[0], logits[1], atol=1e-5)


def test_cached_steps_are_the_whole_pass(made):
  """Token by token, and a prompt of unequal lengths padded on the left, in one call, then tokens."""
  module, params, apply, sources, tokens = made
  decoder = models.decoder(module)
  encode, step = jax.jit(decoder.encode), jax.jit(decoder.step)
  logits, memory = apply(params, sources, tokens, lengths=LENGTHS), encode(params, sources, LENGTHS)
  cache, found = decoder.init_cache(3, 16), []
  for i in range(7):
    new, cache = step(params, cache, tokens[:, i : i + 1], None, memory)
    found.append(new[:, 0])
  np.testing.assert_allclose(jnp.stack(found, axis=1), logits, atol=1e-5)
  given = np.array([4, 2, 3])  # tokens of each prompt
  prompt, mask = np.zeros((3, 4), np.int32), np.arange(4) >= 4 - given[:, None]
  for row, n in enumerate(given):
    prompt[row, 4 - n :] = tokens[row, :n]
  new, cache = step(params, decoder.init_cache(3, 16), prompt, mask, memory)
  for row, n in enumerate(given):
    np.testing.assert_allclose(new[row, 4 - n :], logits[row, :n], atol=1e-5)
  for i in range(3):
    following = jnp.stack([tokens[row, n + i] for row, n in enumerate(given)])
    new, cache = step(params, cache, following[:, None], None, memory)
    for row, n in enumerate(given):
      np.testing.assert_allclose(new[row, 0], logits[row, n + i], atol=1e-5)


def test_gradients_are_finite_and_dropout_draws_from_its_key(made):
  module, params, _, sources, tokens = made
  noisy = module.clone(dropout=0.5)

  @jax.jit
  def run(params, key):
    rngs = {'dropout': key}
    return noisy.apply({'params': params}, sources, tokens, lengths=LENGTHS, train=True, rngs=rngs)

  a, b = run(params, jax.random.key(0)), run(params, jax.random.key(1))
  assert np.abs(a - b).max() > 1e-3
  np.testing.assert_array_equal(a, run(params, jax.random.key(0)))
  loss = lambda params: jax.nn.logsumexp(run(params, jax.random.key(0)) * jnp.arange(13)).sum()
  slopes = jax.tree.leaves(jax.grad(loss)(params))
  assert all(np.isfinite(slope).all() for slope in slopes)
  assert sum(float(np.abs(slope).max()) > 0 for slope in slopes) == len(slopes)


def test_a_prefix_is_seen_both_ways_and_the_rest_is_causal():
  config = {
    'name': 'transformer',
    'vocabulary_size': 13,
    'context_length': 24,
    'width': 16,
    'heads': 2,
    'layers': 2,
  }
  module = models.build(config | {'bidirectional_prefix': True, 'init_scale': 0.3})
  tokens, prefix = jax.random.randint(jax.random.key(2), (3, 8), 0, 13), np.array([4, 2, 3])
  params = module.init(jax.random.key(0), tokens)['params']
  apply = jax.jit(lambda tokens: module.apply({'params': params}, tokens, prefix=prefix))
  logits = apply(tokens)
  moved = lambda place: np.abs(apply(tokens.at[0, place].set((tokens[0, place] + 1) % 13)) - logits)[0].max(1)
  assert (moved(3)[:4] > 1e-5).all()  # the prefix of row 0 is its first 4 tokens
  np.testing.assert_allclose(moved(5)[:5], 0, atol=1e-6)
  decoder = models.decoder(module)
  prompt, mask = np.zeros((3, 4), np.int32), np.arange(4) >= 4 - prefix[:, None]
  for row, n in enumerate(prefix):
    prompt[row, 4 - n :] = tokens[row, :n]
  step = jax.jit(decoder.step)
  _, cache = step(params, decoder.init_cache(3, 16), prompt, mask)
  for i in range(4):
    following = jnp.stack([tokens[row, n + i] for row, n in enumerate(prefix)])
    new, cache = step(params, cache, following[:, None])
    for row, n in enumerate(prefix):
      np.testing.assert_allclose(new[row, 0], logits[row, n + i], atol=1e-5)


def as_torch(x):
  return torch.tensor(np.asarray(x))


def torch_lstm(params, directions, width):
  """torch's LSTM with the weights of our Stack; its gates have our order, and its two biases add up to ours."""
  layers, inputs = len(params) // directions, params['layer_0']['input'].shape[0]
  peer = torch.nn.LSTM(inputs, width, layers, batch_first=True, bidirectional=directions == 2)
  state = peer.state_dict()
  for i in range(layers):
    for mark in ('', '_reverse')[:directions]:
      ours = params[f'layer_{i}' + ('_reversed' if mark else '')]
      state[f'weight_ih_l{i}{mark}'] = as_torch(ours['input']).T
      state[f'weight_hh_l{i}{mark}'] = as_torch(ours['recurrent']).T
      state[f'bias_ih_l{i}{mark}'] = as_torch(ours['bias'])
      state[f'bias_hh_l{i}{mark}'] = torch.zeros(4 * width)
  peer.load_state_dict(state)
  return peer


def test_the_recurrent_one_is_luongs_attention_written_out_in_torch():
  module, key, width = models.build(CONFIGS['lstm']), jax.random.key(5), 16
  sources, tokens = jax.random.randint(key, (3, 9), 0, 13), jax.random.randint(key, (3, 7), 0, 13)
  params = module.init(key, sources, tokens, lengths=LENGTHS)['params']
  ours = module.apply({'params': params}, sources, tokens, lengths=LENGTHS)
  with torch.no_grad():
    table = as_torch(params['embed']['token'])
    encoder, decoder = torch_lstm(params['encoder'], 2, width), torch_lstm(params['decoder'], 1, width)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
      table[as_torch(sources)], as_torch(LENGTHS), batch_first=True, enforce_sorted=False
    )
    outputs, (h, c) = encoder(packed)
    values = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)[
      0
    ]  # [batch, source, 2 * width]
    first = []
    for n, last in enumerate((h, c)):
      both = last.reshape(2, 2, 3, width).permute(0, 2, 1, 3).reshape(2, 3, 2 * width)  # [layers, batch, ...]
      dense = [params[f'bridge_{i}_{n}'] for i in range(2)]
      first.append(
        torch.stack([both[i] @ as_torch(d['kernel']) + as_torch(d['bias']) for i, d in enumerate(dense)])
      )
    states = decoder(table[as_torch(tokens)], tuple(first))[0]
    scores = states @ (values @ as_torch(params['key']['kernel'])).mT / width**0.5
    scores = scores.masked_fill((torch.arange(9) >= as_torch(LENGTHS)[:, None])[:, None], -torch.inf)
    found = scores.softmax(-1) @ values
    mixed = torch.tanh(torch.cat([found, states], -1) @ as_torch(params['attentional']['kernel']))
    theirs = mixed @ as_torch(params['head']['kernel']) + as_torch(params['head']['bias'])
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_original_transformer_is_that_of_torch():
  """Vaswani et al. 2017 as settings: torch's encoder and decoder layers, without the final norms torch adds."""
  width, heads = 16, 2
  module = models.build(CONFIGS['post-norm, sinusoidal'] | {'normalization_epsilon': 1e-5})
  sources, tokens = (
    jax.random.randint(jax.random.key(3), (3, 9), 0, 13),
    jax.random.randint(jax.random.key(4), (3, 7), 0, 13),
  )
  params = module.init(jax.random.key(0), sources, tokens, lengths=LENGTHS)['params']
  noise = iter(jax.random.split(jax.random.key(9), 500))  # biases and scales that matter too
  params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(noise), leaf.shape), params)
  ours = module.apply({'params': params}, sources, tokens, lengths=LENGTHS)
  settings = dict(d_model=width, nhead=heads, dim_feedforward=4 * width, dropout=0.0, batch_first=True)
  angles = np.arange(24)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
  places = torch.tensor(
    np.stack([np.sin(angles), np.cos(angles)], -1).reshape(24, width), dtype=torch.float32
  )
  table = as_torch(params['embed']['token'])
  embed = lambda x: table[as_torch(x)] * width**0.5 + places[: x.shape[1]]
  ignored = torch.arange(9) >= as_torch(LENGTHS)[:, None]
  with torch.no_grad():
    x = embed(sources)
    for i in range(2):
      layer = torch.nn.TransformerEncoderLayer(**settings).eval()
      load(layer, params[f'encoder_block_{i}'], width, {'attention': 'self_attn'}, ('attention', 'mlp'))
      x = layer(x, src_key_padding_mask=ignored)
    y, causal = embed(tokens), torch.nn.Transformer.generate_square_subsequent_mask(7)
    for i in range(2):
      layer = torch.nn.TransformerDecoderLayer(**settings).eval()
      names = {'attention': 'self_attn', 'cross_attention': 'multihead_attn'}
      load(layer, params[f'decoder_block_{i}'], width, names, ('attention', 'cross_attention', 'mlp'))
      y = layer(y, x, tgt_mask=causal, memory_key_padding_mask=ignored)
    theirs = y @ table.T
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max().item())


def load(layer, ours, width, attentions, parts):
  """Our block's weights into a layer of torch."""
  flat = lambda array, *shape: as_torch(array).reshape(*shape)
  state = layer.state_dict()
  for name, theirs in attentions.items():
    found = [ours[name][part] for part in ('query', 'key', 'value')]
    state[f'{theirs}.in_proj_weight'] = torch.cat([flat(part['kernel'], width, width).T for part in found])
    state[f'{theirs}.in_proj_bias'] = torch.cat([flat(part['bias'], width) for part in found])
    state[f'{theirs}.out_proj.weight'] = flat(ours[name]['output']['kernel'], width, width).T
    state[f'{theirs}.out_proj.bias'] = as_torch(ours[name]['output']['bias'])
  for theirs, part in (('linear1', 'up'), ('linear2', 'down')):
    state[f'{theirs}.weight'] = as_torch(ours['mlp'][part]['kernel']).T
    state[f'{theirs}.bias'] = as_torch(ours['mlp'][part]['bias'])
  for i, part in enumerate(parts, 1):
    state[f'norm{i}.weight'] = as_torch(ours[f'{part}_norm']['scale'])
    state[f'norm{i}.bias'] = as_torch(ours[f'{part}_norm']['bias'])
  layer.load_state_dict(state)
