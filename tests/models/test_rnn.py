"""Properties of the recurrent language model and classifier, over the variants of their fields."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.errors import UsageError
from aigc_jax.generation import decode
from aigc_jax.generation.strategies import Sampling
from aigc_jax.models import recurrence, rnn

TINY = {
  'name': 'rnn',
  'vocabulary_size': 11,
  'layers': 2,
  'width': 8,
  'embedding_width': 5,
  'init_scale': 0.6,  # weights this large make every part matter
}
VARIANTS = {
  'elman': {'cell': 'elman', 'recurrent_init': 'orthogonal'},
  'gru': {'cell': 'gru'},
  'lstm': {'cell': 'lstm'},
  'lstm_normalized': {'cell': 'lstm', 'layer_norm': True, 'bias': False},
  'gru_tied': {'cell': 'gru', 'layer_norm': True, 'tie_embeddings': True, 'embedding_width': None},
}


@pytest.fixture(scope='module', params=VARIANTS)
def variant(request):
  """(module, params, tokens [3, 12], jitted tokens -> logits)."""
  module = models.build({**TINY, **VARIANTS[request.param]})
  tokens = jax.random.randint(jax.random.key(1), (3, 12), 0, 11)
  params = jax.jit(module.init)(jax.random.key(0), tokens)['params']
  return module, params, tokens, jax.jit(lambda t: module.apply({'params': params}, t))


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(0, 0.7, shape).astype(np.float32)


def normed(x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def test_layer_norm_is_ba_et_als():
  """The LSTM and the GRU of the paper's supplement (eq. 20 to 25), in numpy, step by step."""
  tokens, sigmoid = np.random.default_rng(0).integers(0, 11, (2, 5)), lambda x: 1 / (1 + np.exp(-x))
  for cell in 'lstm', 'gru':
    module = models.build({**TINY, 'cell': cell, 'layers': 1, 'layer_norm': True})
    params = jax.jit(module.init)(jax.random.key(0), tokens)['params']
    params = jax.tree.map(lambda x: x + normal(x.size, *x.shape) / 4, params)  # scales of 1 would hide a lot
    p, x = (
      jax.tree.map(np.asarray, params['recurrent']['layer_0']),
      np.asarray(params['embed']['token'])[tokens],
    )
    h, c, outputs = np.zeros((2, 8)), np.zeros((2, 8)), []
    groups = (
      (lambda x: normed(x))
      if cell == 'lstm'
      else lambda x: np.concatenate([normed(x[:, :16]), normed(x[:, 16:])], 1)
    )
    for t in range(5):
      z = groups(x[:, t] @ p['input']) * p['input_scale'] + p['bias']
      u = groups(h @ p['recurrent']) * p['recurrent_scale']
      if cell == 'lstm':
        i, f, g, o = np.split(z + u, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(normed(c) * p['cell_scale'] + p['cell_shift'])
      else:
        (r, k), n = (sigmoid(z[:, a : a + 8] + u[:, a : a + 8]) for a in (0, 8)), z[:, 16:]
        h = (1 - k) * np.tanh(n + r * (u[:, 16:] + p['recurrent_bias'])) + k * h
      outputs.append(h @ np.asarray(params['head']['kernel']) + np.asarray(params['head']['bias']))
    close(jax.jit(module.apply)({'params': params}, tokens), np.stack(outputs, 1))


def test_both_ways_of_reading_tokens_are_one_function(variant):
  """The vocabulary's vectors multiplied and looked up (whole batches), or each token's (single steps)."""
  module, params, tokens, logits = variant
  width = module.embedding_width or module.width
  assert rnn.projects_vocabulary(11, 36 * 8, width)
  assert not rnn.projects_vocabulary(11, 3, width)
  close(logits(jnp.tile(tokens, (8, 1)))[:3], stepwise(module, params, tokens)[0])


def stepwise(module, params, tokens, mask=None):
  """Logits and the last state by cached steps of one token, in one compiled loop."""
  decoder = models.decoder(module)
  mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)

  def step(cache, inputs):
    token, valid = inputs
    logits, cache = decoder.step(params, cache, token[:, None], valid[:, None])
    return cache, logits[:, 0]

  steps = jnp.asarray(tokens).T, mask.T
  cache, logits = jax.jit(partial(jax.lax.scan, step))(decoder.init_cache(len(tokens), 12), steps)
  return logits.swapaxes(0, 1), cache


def carried_logits(module, params, tokens, carry):
  x, carry = module.apply({'params': params}, tokens, carry, method='carried')
  return module.apply({'params': params}, x, method='logits'), carry


def test_carried_halves_and_cached_steps_are_the_whole(variant):
  module, params, tokens, logits = variant
  carried = jax.jit(partial(carried_logits, module, params))
  first, carry = carried(tokens[:, :6], module.init_carry(3))
  second, carry = carried(tokens[:, 6:], carry)
  close(np.concatenate([first, second], axis=1), logits(tokens))
  stepped, cache = stepwise(module, params, tokens)
  close(stepped, logits(tokens))
  jax.tree.map(close, carry, cache)
  assert {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(carry)} == {((3, 8), jnp.dtype('float32'))}


def test_logits_depend_on_earlier_tokens_only(variant):
  *_, tokens, logits = variant
  before = np.asarray(logits(tokens))
  for t in 0, 5, 11:
    changed = abs(logits(tokens.at[:, t].set((tokens[:, t] + 1) % 11)) - before).max(axis=(0, 2)) > 1e-6
    assert not changed[:t].any()
    assert changed[t:].all()


def test_left_padded_prompts_give_each_rows_own_logits(variant):
  module, params, tokens, logits = variant
  lengths, prompts = np.array([8, 3, 5]), np.full((3, 8), 7)
  for row, length in enumerate(lengths):
    prompts[row, 8 - length :] = tokens[row, :length]
  decoder, full = models.decoder(module), np.asarray(logits(tokens))
  step = jax.jit(decoder.step)
  out, cache = step(params, decoder.init_cache(3, 12), prompts, np.arange(8) >= 8 - lengths[:, None])
  for row, length in enumerate(lengths):
    close(out[row, 8 - length :], full[row, :length])
  out, cache = step(params, cache, np.array(tokens)[np.arange(3), lengths][:, None])
  close(out[:, 0], full[np.arange(3), lengths])


def test_packed_documents_do_not_see_each_other(variant):
  module, params, tokens, logits = variant
  segments = np.array([[1] * 12, [1] * 5 + [2] * 7, [3] * 4 + [4] * 5 + [0] * 3])
  packed = np.asarray(jax.jit(lambda: module.apply({'params': params}, tokens, segments=segments))())
  for row, first, last in [(0, 0, 12), (1, 0, 5), (1, 5, 12), (2, 0, 4), (2, 4, 9)]:
    alone = np.zeros((3, 12), np.int32)
    alone[0, : last - first] = tokens[row, first:last]
    close(packed[row, first:last], logits(alone)[0, : last - first])


def test_greedy_generation_is_the_largest_logit_of_the_whole_text(variant):
  module, params, tokens, logits = variant
  prompts = [np.asarray(tokens[0, :5]), np.asarray(tokens[1, :2])]
  decoder = models.decoder(module)
  assert decoder.context_length is None
  made = decode.generate(decoder, params, prompts, jax.random.key(0), Sampling(greedy=True), 7)
  for prompt, new in zip(prompts, made.tokens, strict=True):
    text = np.zeros((3, 12), np.int32)
    text[0, : len(prompt) + 7] = np.concatenate([prompt, new])
    largest = np.asarray(logits(text))[0].argmax(-1)
    np.testing.assert_array_equal(new, largest[len(prompt) - 1 : len(prompt) + 6])


@pytest.mark.parametrize('variant', ['gru', 'lstm_normalized'], indirect=True)
def test_bfloat16_is_close_and_parameters_and_states_stay_float32(variant):
  module, params, tokens, logits = variant
  half = module.clone(dtype='bfloat16')
  loss = lambda m: lambda p: jnp.square(m.apply({'params': p}, tokens)).mean()
  out, carry = jax.jit(partial(carried_logits, half, params))(tokens, None)
  grads, full = jax.jit(lambda p: (jax.grad(loss(half))(p), jax.grad(loss(module))(p)))(params)
  assert {leaf.dtype for leaf in jax.tree.leaves((out, carry, grads))} == {jnp.dtype('float32')}
  # bfloat16 keeps 8 bits; over two layers and 12 steps the errors add up to a few of its steps.
  assert np.sqrt(np.mean((out - logits(tokens)) ** 2)) < 0.04 * np.std(logits(tokens))
  distance = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
  # A normalized cell that is nearly 0 magnifies: weights rounded to bfloat16 alone move these gradients by 0.19.
  limit = 0.3 if module.layer_norm and module.cell == 'lstm' else 0.05
  assert max(jax.tree.leaves(jax.tree.map(distance, grads, full))) < limit


def test_traced_floats_in_lanes_equal_each_alone():
  tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 11)
  names = 'dropout', 'variational_dropout', 'init_scale', 'forget_bias', 'normalization_epsilon'

  def run(layer_norm, floats):
    module = models.build(
      {**TINY, **floats, 'layer_norm': layer_norm, 'cell': 'gru' if layer_norm else 'lstm'}
    )
    params = module.init(jax.random.key(0), tokens)['params']
    loss = lambda p: module.apply(
      {'params': p}, tokens, train=True, rngs={'dropout': jax.random.key(3)}
    ).std()
    value, grads = jax.value_and_grad(loss)(params)
    return value, jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))

  lanes = np.array(
    [[0.1, 0.2, 0.6, 1.0, 1e-5], [0.4, 0.2, 0.6, 0.0, 1e-5], [0.0, 0.5, 0.9, 1.0, 0.3]], np.float32
  )
  for layer_norm in False, True:
    run_here = jax.jit(partial(run, layer_norm))
    together = jax.jit(jax.vmap(partial(run, layer_norm)))(dict(zip(names, lanes.T, strict=True)))
    alone = np.array([run_here(dict(zip(names, lane, strict=True))) for lane in lanes])
    assert len({round(float(v), 4) for v in alone[:, 0]}) == 3
    close(np.stack(together, axis=1), alone, 1e-4)  # the norm adds up hundreds of terms in another order


def test_variational_dropout_drops_the_same_units_at_all_steps():
  """An Elman network whose kernels are the unit matrix: what is dropped shows in the outputs."""
  width, batch, time, rate = 64, 32, 5, 0.3
  layer = partial(rnn.Layer, 'elman', width, False, False, 1e-5, None, 'uniform', 0.0, jnp.float32)
  stack = rnn.Stack(layer, 'elman', 1, width, (False,), None, jnp.float32(rate), jnp.float32)
  small = 1e-3  # where tanh is the identity to within 1e-6 of itself
  apply = lambda recurrent, first, table: stack.apply(
    {'params': {'layer_0': {'input': jnp.eye(width), 'recurrent': recurrent * jnp.eye(width)}}},
    jnp.full((2, width), table),
    jnp.zeros((time, batch), int),
    ((jnp.full((batch, width), first),),),
    recurrence.Steps(),
    True,
    rngs={'dropout': jax.random.key(0)},
  )[0]
  inputs = np.asarray(apply(0.0, 0.0, small)) / small  # h_t = d x_t: factors on what is read
  states = np.asarray(apply(1.0, small, 0.0)) / small  # h_t = d h_{t-1}: factors on the state
  for found in inputs[0], states[0]:
    np.testing.assert_allclose(found[found != 0], 1 / (1 - rate), rtol=1e-4)
    deviation = np.sqrt(rate * (1 - rate) / found.size)
    assert abs((found == 0).mean() - rate) < 5 * deviation
    assert abs(found.mean() - 1) < 5 * deviation / (1 - rate)
  for t in range(time):
    np.testing.assert_allclose(inputs[t], inputs[0], rtol=1e-5)
    np.testing.assert_allclose(states[t], states[0] ** (t + 1), rtol=1e-3)
  assert ((inputs[0] == 0) != (states[0] == 0)).any()


def test_dropout_acts_between_layers_and_keeps_the_mean():
  """Two layers with unit kernels and no recurrence hand on small values as they are, but for dropout between."""
  width, rate, small = 64, 0.4, 1e-3
  layer = partial(rnn.Layer, 'elman', width, False, False, 1e-5, None, 'uniform', 0.0, jnp.float32)
  weights = {'input': jnp.eye(width), 'recurrent': jnp.zeros((width, width))}

  def outputs(layers, train):
    stack = rnn.Stack(layer, 'elman', layers, width, (False,), jnp.float32(rate), None, jnp.float32)
    params = {f'layer_{i}': weights for i in range(layers)}
    states = ((jnp.zeros((32, width)),),) * layers
    tokens, table = jnp.zeros((6, 32), int), jnp.full((2, width), small)
    steps, key = recurrence.Steps(), {'dropout': jax.random.key(0)}
    return (
      np.asarray(stack.apply({'params': params}, table, tokens, states, steps, train, rngs=key)[0]) / small
    )

  np.testing.assert_allclose(outputs(1, True), 1, rtol=1e-4)
  np.testing.assert_allclose(outputs(2, False), 1, rtol=1e-4)
  found = outputs(2, True)
  np.testing.assert_allclose(found[found != 0], 1 / (1 - rate), rtol=1e-4)
  deviation = np.sqrt(rate * (1 - rate) / found.size)
  assert abs((found == 0).mean() - rate) < 5 * deviation
  assert (found[0] != found[1]).any()  # drawn anew at each step


CLASSIFIER = {'name': 'rnn_classifier', 'vocabulary_size': 11, 'classes': 3, 'width': 6, 'init_scale': 0.6}


@pytest.mark.parametrize(
  ('direction', 'pooling', 'layers'),
  [
    ('forward', 'last', 1),
    ('reversed', 'mean', 1),
    ('bidirectional', 'max', 1),
    ('bidirectional', 'last', 2),
  ],
)
def test_padding_changes_no_class(direction, pooling, layers):
  module = models.build(
    {**CLASSIFIER, 'cell': 'gru', 'layers': layers, 'direction': direction, 'pooling': pooling}
  )
  tokens, lengths = np.random.default_rng(0).integers(0, 11, (3, 7)), np.array([7, 2, 5])
  params = jax.jit(module.init)(jax.random.key(0), tokens)
  apply = jax.jit(lambda tokens, lengths: module.apply(params, tokens, lengths=lengths))
  logits = apply(tokens, lengths)
  assert logits.shape == (3, 3)
  assert np.ptp(logits, axis=0).min() > 1e-3
  other = np.where(np.arange(7) < lengths[:, None], tokens, 9)
  close(apply(other, lengths), logits)
  close(apply(np.pad(other, ((0, 0), (0, 3))), lengths), logits)
  close(jax.jit(module.apply)(params, tokens[1:2, :2]), logits[1:2])


def test_a_carry_of_another_batch_is_refused():
  module = models.build({**TINY, 'layers': 1})
  params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int))['params']
  with pytest.raises(UsageError, match=r'4 rows and the inputs of 3') as raised:
    jax.eval_shape(
      lambda p: module.apply({'params': p}, jnp.zeros((3, 2), int), module.init_carry(4), method='carried'),
      params,
    )
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'dropout': 0.1}, 'config.model.dropout: 0.1'),
    ({'tie_embeddings': True, 'embedding_width': 5}, 'config.model.embedding_width: 5'),
  ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, said):
  fine = {
    'name': 'rnn',
    'layers': 1,
    'width': 8,
    'embedding_width': None,
    'tie_embeddings': True,
    'dropout': None,
  }
  models.check(fine)
  with pytest.raises(UsageError, match=said) as raised:
    models.check({**fine, **fields})
  assert '\n' not in str(raised.value)


def test_the_forget_gates_are_open_at_first():
  module = models.build({**TINY, 'layers': 1, 'width': 64, 'init_scale': 0.1, 'forget_bias': 2.0})
  bias = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2), int))['params']['recurrent']['layer_0'][
    'bias'
  ]
  np.testing.assert_allclose(bias.reshape(4, 64).mean(1), [0, 2, 0, 0], atol=0.05)
