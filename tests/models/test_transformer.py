"""Properties of the decoder-only Transformer, over the variants of its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.errors import UsageError

# Weights this large make attention and feed-forward matter in models of this size.
TINY = {
  'name': 'transformer',
  'vocabulary_size': 13,
  'context_length': 12,
  'layers': 2,
  'heads': 4,
  'width': 16,
  'init_scale': 0.4,
  'residual_init': 'normal',
}
LLAMA = {
  'positions': 'rotary',
  'normalization': 'rms_norm',
  'activation': 'swiglu',
  'bias': False,
  'tie_embeddings': False,
}
VARIANTS = {
  'gpt2': {'activation': 'gelu_tanh'},
  'llama': {**LLAMA, 'key_value_heads': 2},
  'window': {**LLAMA, 'key_value_heads': 1, 'window': 3, 'query_key_norm': True},
  'no_positions': {
    'positions': 'none',
    'activation': 'relu2',
    'window': 5,
    'head_width': 6,
    'logit_cap': 2.0,
  },
}


@pytest.fixture(scope='module', params=VARIANTS)
def variant(request):
  """(module, params, tokens [3, 12], jitted tokens -> logits)."""
  module = models.build({**TINY, **VARIANTS[request.param]})
  tokens = jax.random.randint(jax.random.key(1), (3, 12), 0, 13)
  params = jax.jit(module.init)(jax.random.key(0), tokens)['params']
  return module, params, tokens, jax.jit(lambda t: module.apply({'params': params}, t))


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_logits_depend_on_earlier_tokens_only(variant):
  module, _, tokens, logits = variant
  before = np.asarray(logits(tokens))
  for t in range(12):
    after = np.asarray(logits(tokens.at[:, t].set((tokens[:, t] + 1) % 13)))
    changed = abs(after - before).max(axis=(0, 2)) > 1e-6
    reach = 12 if module.window is None else t + module.layers * (module.window - 1) + 1
    assert not changed[:t].any()
    assert changed[t]
    assert not changed[reach:].any()
    assert changed[t:reach].sum() > 1 or t == 11


@pytest.mark.parametrize('chunks', [[1] * 12, [5, 3, 1, 1, 2]], ids=['tokens', 'chunks'])
def test_cached_steps_give_the_full_logits(variant, chunks):
  module, params, tokens, logits = variant
  decoder = models.decoder(module)
  step, cache, seen = jax.jit(decoder.step), decoder.init_cache(3, 12), []
  for piece in np.split(tokens, np.cumsum(chunks)[:-1], axis=1):
    out, cache = step(params, cache, piece)
    seen.append(out)
  close(np.concatenate(seen, axis=1), logits(tokens))


def test_left_padded_prompts_give_each_rows_own_logits(variant):
  module, params, tokens, logits = variant
  decoder, lengths = models.decoder(module), np.array([8, 3, 5])
  prompts = np.full((3, 8), 7)
  for row, length in enumerate(lengths):
    prompts[row, 8 - length :] = tokens[row, :length]
  mask = np.arange(8) >= 8 - lengths[:, None]
  step = jax.jit(decoder.step)
  out, cache = step(params, decoder.init_cache(3, 12), prompts, mask)
  full = np.asarray(logits(tokens))
  for row, length in enumerate(lengths):
    close(out[row, 8 - length :], full[row, :length])
  for i in range(4):  # each row goes on at its own position
    out, cache = step(params, cache, np.array(tokens)[np.arange(3), lengths + i][:, None])
    close(out[:, 0], full[np.arange(3), lengths + i])


def test_packed_documents_do_not_see_each_other(variant):
  module, params, tokens, logits = variant
  segments = np.array([[1] * 12, [1] * 5 + [2] * 7, [3] * 4 + [4] * 5 + [0] * 3])
  packed = np.asarray(jax.jit(lambda: module.apply({'params': params}, tokens, segments=segments))())
  for row, first, last in [(0, 0, 12), (1, 0, 5), (1, 5, 12), (2, 0, 4), (2, 4, 9)]:
    alone = np.zeros((3, 12), np.int32)
    alone[0, : last - first] = tokens[row, first:last]
    close(packed[row, first:last], logits(alone)[0, : last - first])
  assert np.isfinite(packed).all()


def test_what_follows_a_row_changes_nothing(variant):
  *_, tokens, logits = variant
  close(logits(tokens)[:, :6], logits(tokens.at[:, 6:].set(0))[:, :6], 1e-6)


def test_bfloat16_is_close_and_parameters_stay_float32(variant):
  module, params, tokens, logits = variant
  half = module.clone(dtype='bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), tokens))} == {
    jnp.dtype('float32')
  }
  out = jax.jit(lambda: half.apply({'params': params}, tokens))()
  assert out.dtype == jnp.float32
  full = logits(tokens)
  # bfloat16 keeps 8 bits; over two layers of these large weights the errors add up to a few of its steps.
  assert np.sqrt(np.mean((out - full) ** 2)) < 0.04 * np.std(full)


def test_remat_changes_no_gradient():
  tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 13)
  grads = []
  for remat in 'none', 'full', 'dots':
    module = models.build({**TINY, 'dropout': 0.2, 'remat': remat})
    params = jax.jit(module.init)(jax.random.key(0), tokens)['params']
    loss = lambda p, m=module: m.apply(
      {'params': p}, tokens, train=True, rngs={'dropout': jax.random.key(3)}
    ).std()
    grads.append(jax.jit(jax.grad(loss))(params))
  for other in grads[1:]:
    jax.tree.map(lambda a, b: close(a, b, 1e-5), grads[0], other)


def test_traced_floats_in_lanes_equal_each_alone():
  tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 13)
  names = 'dropout', 'init_scale', 'normalization_epsilon', 'rotary_base', 'logit_cap'

  @jax.jit
  def run(floats):
    module = models.build({**TINY, **LLAMA, **floats})
    params = module.init(jax.random.key(0), tokens)['params']
    loss = lambda p: module.apply(
      {'params': p}, tokens, train=True, rngs={'dropout': jax.random.key(3)}
    ).std()
    value, grads = jax.value_and_grad(loss)(params)
    return value, jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))

  lanes = np.array(
    [[0.1, 0.3, 1e-5, 1e4, 5.0], [0.4, 0.3, 1e-3, 1e4, 5.0], [0.0, 0.5, 1e-5, 50.0, 30.0]], np.float32
  )
  together = np.stack(jax.jit(jax.vmap(run))(dict(zip(names, lanes.T, strict=True))), axis=1)
  alone = np.array([run(dict(zip(names, lane, strict=True))) for lane in lanes])
  assert len({round(float(v), 4) for v in alone[:, 0]}) == 3
  close(together, alone, 1e-4)  # the gradient's norm adds up hundreds of terms in another order


def test_initial_weights():
  config = {**TINY, 'layers': 2, 'width': 128, 'init_scale': 0.02, 'residual_init': 'scaled', 'bias': True}
  tokens = jnp.zeros((1, 4), int)
  build = lambda **fields: jax.jit(models.build({**config, **fields}).init)(jax.random.key(0), tokens)
  params = build()['params']
  for path, deviation in [('query', 0.02), ('key', 0.02), ('value', 0.02), ('output', 0.02 / 2)]:
    assert abs(np.std(params['block_1']['attention'][path]['kernel']) / deviation - 1) < 0.06
  assert abs(np.std(params['block_1']['mlp']['down']['kernel']) / (0.02 / 2) - 1) < 0.06
  assert abs(np.std(params['embed']['token']) / 0.02 - 1) < 0.1
  assert not build(residual_init='zero')['params']['block_0']['mlp']['down']['kernel'].any()
  shapes = jax.eval_shape(models.build({**config, 'bias': False}).init, jax.random.key(0), tokens)
  assert 'bias' not in str(jax.tree.structure(shapes))
  assert set(params) == {'embed', 'final_norm', *(f'block_{i}' for i in range(2))}


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'heads': 3}, 'config.model.heads: 3'),
    ({'key_value_heads': 3}, 'config.model.key_value_heads: 3'),
    ({'positions': 'rotary', 'head_width': 5}, 'config.model.head_width: 5'),
  ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, said):
  defaults = {'heads': 4, 'width': 16, 'key_value_heads': None, 'head_width': None, 'positions': 'learned'}
  models.check({'name': 'transformer', **defaults})
  with pytest.raises(UsageError, match=said) as raised:
    models.check({'name': 'transformer', **defaults, **fields})
  assert '\n' not in str(raised.value)
