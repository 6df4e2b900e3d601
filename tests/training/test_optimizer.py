import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from aigc_jax import models
from aigc_jax.config import fields_of
from aigc_jax.training.muon import COEFFICIENTS, orthogonalize_all, scale_by_muon
from aigc_jax.training.optimizer import (
  OptimizerConfig,
  build,
  decay_mask,
  into_heads,
  learning_rate_at,
  muon_labels,
)

NAMES = fields_of(OptimizerConfig)['name'].kind
STEPS = 30


def config_of(**changes):
  return {name: field.default for name, field in fields_of(OptimizerConfig).items()} | changes


def with_arrays(config, lanes=None):
  """The config with its floats as float32 arrays, [lanes] or ()."""
  array = lambda v: jnp.full((lanes,) if lanes else (), v, jnp.float32)
  return {k: array(v) if isinstance(v, float) else v for k, v in config.items()}


PARAMS = {
  'embed': {'token': jnp.ones((5, 4))},
  'block_0': {'mlp': {'up': {'kernel': jnp.eye(4, 8)}, 'down': {'kernel': 0.5 * jnp.eye(8, 4)}}},
  'final_norm': {'scale': jnp.ones(4)},
  'frozen': None,
}


def quadratic(params, target=0.3):
  return sum(jnp.sum((leaf - target) ** 2) for leaf in jax.tree.leaves(params))


def train(config, steps=STEPS, params=PARAMS, floats=None):
  """The final parameters after `steps` steps down the quadratic; `floats` stand in for the config's own."""
  optimizer = build(config | (floats or {}), steps)

  def one(_, carry):
    params, state = carry
    updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
    return optax.apply_updates(params, updates), state

  return jax.lax.fori_loop(0, steps, one, (params, optimizer.init(params)))[0]


@pytest.mark.parametrize('name', NAMES)
def test_floats_may_be_traced_and_vmapped(name):
  config = config_of(
    name=name,
    learning_rate=0.02,
    adam_learning_rate=0.03,
    weight_decay=0.01,
    clip_norm=1.0,
    momentum=0.5,
    nesterov=True,
    schedule='warmup_stable_decay',
    warmup_steps=3,
  )
  solo = jax.jit(lambda: train(config))()
  assert quadratic(solo) < 0.9 * quadratic(PARAMS)
  compiled = []

  def run(floats):
    compiled.append(name)
    return train(config, floats=floats)

  pick = lambda tree: {k: v for k, v in tree.items() if isinstance(v, jax.Array)}
  traced = jax.jit(run)(pick(with_arrays(config)))
  lanes = pick(with_arrays(config, 3)) | {'learning_rate': jnp.array([0.01, 0.02, 0.04])}
  compiled.clear()
  mapped = jax.jit(jax.vmap(run))
  result = mapped(lanes)
  mapped(lanes | {'beta1': lanes['beta1'] * 0.9, 'weight_decay': lanes['weight_decay'] * 0})
  assert len(compiled) == 1
  # Reassociated sums differ in the last bits, and Lion's sign magnifies none of them here.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), solo, traced)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=2e-4, atol=2e-5), solo, result)
  assert float(quadratic(jax.tree.map(lambda x: x[0], result))) != float(quadratic(solo))


def test_state_structure_does_not_depend_on_floats():
  shapes = lambda config: jax.eval_shape(lambda: build(config, STEPS).init(PARAMS))
  for name in NAMES:
    one = shapes(config_of(name=name, weight_decay=0.0, momentum=0.0, clip_norm=1.0))
    other = shapes(config_of(name=name, weight_decay=0.1, momentum=0.9, clip_norm=2.0, learning_rate=0.0))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == jax.tree.leaves(other)


TORCH = {
  'adamw': (torch.optim.AdamW, {'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 0.1}),
  'adam': (torch.optim.Adam, {'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 0.1}),
  'sgd': (torch.optim.SGD, {'momentum': 0.9, 'nesterov': True, 'weight_decay': 0.1}),
  'rmsprop': (torch.optim.RMSprop, {'alpha': 0.99, 'eps': 1e-8, 'momentum': 0.9, 'weight_decay': 0.1}),
}


@pytest.mark.parametrize('name', TORCH)
def test_equals_pytorch_over_20_steps(name):
  start = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  config = config_of(
    name=name,
    learning_rate=1e-2,
    beta2=0.99,
    weight_decay=0.1,
    momentum=0.9,
    nesterov=name == 'sgd',
    schedule='constant',
  )
  ours = jax.jit(lambda: train(config, 20, jnp.asarray(start)))()
  theirs = torch.nn.Parameter(torch.tensor(start))
  maker, options = TORCH[name]
  optimizer = maker([theirs], lr=1e-2, **options)
  for _ in range(20):
    optimizer.zero_grad()
    ((theirs - 0.3) ** 2).sum().backward()
    optimizer.step()
  # RMSprop's first step is the sign of the gradient times 10, so its rounding errors are ten times as large.
  tolerance = 1e-5 if name == 'rmsprop' else 1e-6
  np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


def nanogpt(step, warmup, end, peak, least):
  """The schedule as nanoGPT's train.py states it."""
  if step < warmup:
    return peak * (step + 1) / (warmup + 1)
  if step > end:
    return least
  ratio = (step - warmup) / (end - warmup)
  return least + 0.5 * (1 + math.cos(math.pi * ratio)) * (peak - least)


def test_cosine_is_nanogpts_schedule():
  config = config_of(
    schedule='cosine', learning_rate=1e-3, final_fraction=0.1, warmup_steps=100, decay_steps=2000
  )
  rates = [
    float(learning_rate_at(config, 9999, step)) for step in (0, 1, 99, 100, 101, 777, 1999, 2000, 2500)
  ]
  wanted = [nanogpt(step, 100, 2000, 1e-3, 1e-4) for step in (0, 1, 99, 100, 101, 777, 1999, 2000, 2500)]
  np.testing.assert_allclose(rates, wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ('schedule', 'landmarks'),
  [
    ('constant', {0: 1 / 11, 9: 10 / 11, 10: 1, 99: 1, 500: 1}),
    ('linear', {0: 1 / 11, 10: 1, 55: 0.6, 100: 0.2, 500: 0.2}),
    ('cosine', {0: 1 / 11, 10: 1, 55: 0.6, 100: 0.2, 500: 0.2}),
    ('warmup_stable_decay', {0: 1 / 11, 10: 1, 60: 1, 80: 0.6, 100: 0.2, 500: 0.2}),
  ],
)
def test_schedules_at_landmarks(schedule, landmarks):
  config = config_of(
    schedule=schedule, learning_rate=1.0, warmup_steps=10, final_fraction=0.2, decay_fraction=0.4
  )
  rates = [float(learning_rate_at(config, 100, step)) for step in landmarks]
  np.testing.assert_allclose(rates, list(landmarks.values()), rtol=1e-5)


def test_decay_ends_at_decay_steps_and_a_long_warmup_is_the_whole_run():
  rate = lambda step, **changes: float(learning_rate_at(config_of(learning_rate=1.0, **changes), 100, step))
  assert rate(50, schedule='linear', decay_steps=50) == 0
  assert rate(50, schedule='linear') == pytest.approx(0.5)
  for schedule in ('constant', 'cosine', 'linear', 'warmup_stable_decay'):
    assert rate(99, schedule=schedule, warmup_steps=399) == pytest.approx(0.25)
  for fraction in (0.0, 1.0):
    assert 0 <= rate(100, schedule='warmup_stable_decay', decay_fraction=fraction) <= 1
  assert rate(99, schedule='warmup_stable_decay', decay_fraction=0.0) == 1


def test_weight_decay_pulls_on_what_decay_on_names():
  names = {'matrices': {'embed', 'mlp', 'conv'}, 'hidden': {'mlp', 'conv'}}
  params = {'embed': {'token': jnp.ones((3, 2))}, 'mlp': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  params['conv'] = jnp.ones((3, 3, 2, 2))
  for decay_on, wanted in (names | {'all': set(params)}).items():
    masks = decay_mask(decay_on, params)
    assert {name for name in params if jax.tree.leaves(masks[name])[0]} == wanted
    config = config_of(
      name='adamw', learning_rate=0.1, weight_decay=0.5, decay_on=decay_on, schedule='constant'
    )
    optimizer = build(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for name in params:
      expected = -0.05 if name in wanted else 0
      np.testing.assert_allclose(jax.tree.leaves(updates[name])[0], expected, rtol=1e-6)


def test_biases_and_norms_are_no_matrices():
  model = models.build({'name': 'transformer', 'vocabulary_size': 8, 'context_length': 4, 'bias': True})
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
  decays, rules = jax.tree.leaves(decay_mask('matrices', params)), jax.tree.leaves(muon_labels(params))
  paths = [str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  vectors = [i for i, name in enumerate(paths) if name in ('bias', 'scale')]
  assert paths.count('bias') == 4 * 8 + 1
  assert not any(decays[i] for i in vectors)
  assert {rules[i] for i in vectors} == {'other'}
  assert all(decays[i] for i, name in enumerate(paths) if name == 'kernel')


def test_gradients_are_clipped_by_their_global_norm():
  config = config_of(name='sgd', learning_rate=1.0, clip_norm=1.0, schedule='constant')
  optimizer = build(config, 10)
  for scale, norm in ((10.0, 1.0), (0.1, 0.5)):
    grads = {'a': scale * jnp.array([3.0, 0.0]), 'b': scale * jnp.array([[4.0]])}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    assert float(optax.tree.norm(updates)) == pytest.approx(norm)
    assert float(updates['b'][0, 0] / updates['a'][0]) == pytest.approx(4 / 3)


@pytest.mark.parametrize('iterations', COEFFICIENTS)
def test_muon_orthogonalizes(iterations):
  rng = np.random.default_rng(iterations)
  shapes = [(16, 16), (16, 64), (64, 16), (16, 16), (24, 32)]
  matrices = []
  for shape in shapes:
    rank = min(shape)
    left, right = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in shape)
    # From a tenth of the largest: what the fewest iterations promise, given the bound that they start from.
    matrices.append(jnp.asarray(left * np.geomspace(0.15, 1, rank) @ right.T, jnp.float32))
  results = orthogonalize_all([1e-3 * m for m in matrices], iterations)
  for matrix, result in zip(matrices, results, strict=True):
    left, _, right = np.linalg.svd(np.asarray(matrix), full_matrices=False)
    scale = max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5
    values = np.linalg.svd(np.asarray(result) / scale, compute_uv=False)
    assert values.min() > 0.85
    assert values.max() < 1.15
    # The singular vectors stay: U^T (result) V is diagonal.
    core = left.T @ np.asarray(result) @ right.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=2e-4 * scale)


def test_muon_orthogonalizes_heads_one_by_one():
  heads = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
  (together,) = orthogonalize_all([heads], 3)
  alone = jnp.stack(orthogonalize_all([heads[i, j] for i in range(2) for j in range(3)], 3))
  # One head alone is scaled by sqrt(8 / 4); six, whose 24 inputs add up, by 1.
  np.testing.assert_allclose(together.reshape(6, 4, 8), alone / 2**0.5, rtol=1e-6, atol=1e-6)


def test_muon_finds_the_heads_that_lie_side_by_side():
  gradient = jax.random.normal(jax.random.key(0), (8, 3, 4))  # [width, heads, head_width]
  params = {'attention': {name: {'kernel': gradient} for name in ('query', 'output')}}
  transform = scale_by_muon(0.0, 3, into_heads)
  updates, _ = transform.update(params, transform.init(params))
  alone = jnp.stack(orthogonalize_all([gradient[:, i] for i in range(3)], 3), axis=1)
  np.testing.assert_allclose(updates['attention']['query']['kernel'], alone, rtol=1e-6, atol=1e-6)
  (above,) = orthogonalize_all([gradient], 3)
  np.testing.assert_allclose(updates['attention']['output']['kernel'], above, rtol=1e-6, atol=1e-6)


def test_muon_leaves_a_zero_gradient_at_zero():
  (result,) = orthogonalize_all([jnp.zeros((4, 8))], 3)
  np.testing.assert_array_equal(result, 0)


def test_muon_takes_hidden_matrices_and_adam_the_rest():
  params = PARAMS | {'head': {'kernel': jnp.ones((4, 5))}, 'codebook': jnp.ones((6, 4))}
  labels = muon_labels(params)
  assert labels['codebook'] == 'other', 'a table of symbols, as embeddings are'
  assert labels['embed']['token'] == labels['head']['kernel'] == labels['final_norm']['scale'] == 'other'
  assert labels['block_0']['mlp'] == {'up': {'kernel': 'hidden'}, 'down': {'kernel': 'hidden'}}
  config = config_of(name='muon', learning_rate=0.0, adam_learning_rate=0.1, schedule='constant')
  optimizer = build(config, 10)
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  assert not np.any(updates['block_0']['mlp']['up']['kernel'])
  np.testing.assert_allclose(updates['embed']['token'], -0.1, rtol=1e-5)  # Adam's first step is the sign


def test_muon_is_optax_muon_but_for_the_iterations():
  """On well-conditioned matrices the two agree, up to optax's bias correction of the momentum."""
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(rng.normal(size=(16, 32)), jnp.float32)}
  grads = [{'w': jnp.asarray(rng.normal(size=(16, 32)), jnp.float32)} for _ in range(3)]
  ours = build(config_of(name='muon', learning_rate=0.1, muon_iterations=5, schedule='constant'), 10)
  theirs = optax.contrib.muon(0.1, beta=0.95, ns_coeffs=COEFFICIENTS[5])
  states = [ours.init(params), theirs.init(params)]
  for gradient in grads:
    (one, states[0]), (other, states[1]) = (
      optimizer.update(gradient, state, params)
      for optimizer, state in zip((ours, theirs), states, strict=True)
    )
  cosine = jnp.vdot(one['w'], other['w']) / jnp.linalg.norm(one['w']) / jnp.linalg.norm(other['w'])
  assert cosine > 0.98
  assert float(jnp.linalg.norm(one['w']) / jnp.linalg.norm(other['w'])) == pytest.approx(1, abs=0.05)
