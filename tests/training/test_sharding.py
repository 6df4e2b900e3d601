"""How the arrays of a state lie on a mesh: by shapes alone, nothing is compiled."""

import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from aigc_jax.training import checkpoint, memory_use, mesh, sharding
from tests import equality, tiny_images

# Every size tells which it is, so that a parameter's shape alone says what of it is heads, hidden units or symbols.
SIZES = {'layers': 2, 'width': 36, 'heads': 6, 'head_width': 10, 'mlp_width': 88}
WIDE = {
  6,
  2,
  60,
  20,
  88,
  74,
  2050,
  2054,
  14,
}  # heads, of keys, times head_width, hidden, vocabularies, classes
NAMES = ('adamw', 'adam', 'sgd', 'lion', 'muon', 'adafactor', 'rmsprop', 'lamb')


def of_text(model, task='language', **sections):
  model = {'vocabulary_size': 74} | SIZES | model
  return lambda source: equality.text(source, model, **({'task': {'name': task}} | sections))


def of_pairs(model, **data):
  def make(source):
    config = equality.pairs(source, model)
    return config | {'model': config['model'] | {'vocabulary_size': 2050}, 'data': config['data'] | data}

  return make


ENCODER_DECODER = {'name': 'transformer_encoder_decoder', **SIZES}
SEPARATE = {'source_vocabulary_size': 2054}
MODELS = {
  'tied': of_text({'name': 'transformer'}),
  'untied': of_text(
    {'name': 'transformer', 'activation': 'swiglu', 'tie_embeddings': False, 'key_value_heads': 2}
    | {'positions': 'rotary', 'query_key_norm': True}
  ),
  'masked': of_text({'name': 'transformer_encoder', 'head_transform': True}, 'masked_language'),
  'masked, untied': of_text({'name': 'transformer_encoder', 'tie_embeddings': False}, 'masked_language'),
  'two vocabularies': of_pairs(ENCODER_DECODER | SEPARATE | {'tie_embeddings': False}, source_tokenizer='bytes'),
  'rnn': of_text({'name': 'rnn', 'cell': 'gru', 'tie_embeddings': False}),
  'rnn encoder-decoder': of_pairs({'name': 'rnn_encoder_decoder', 'width': 36} | SEPARATE, source_tokenizer='bytes'),
  'classifier': equality.images('mlp', model=tiny_images.MODELS['mlp'] | {'classes': 14}),
}  # fmt: skip
SIZES_OF_RNN = ('layers', 'heads', 'head_width', 'mlp_width')


@pytest.fixture(scope='module')
def targets(source):
  """{model: State of shapes with shardings} on 2 x 2 x 2 devices."""

  def of(make):
    config = make(source)
    if config['model']['name'] == 'rnn':
      config['model'] = {k: v for k, v in config['model'].items() if k not in SIZES_OF_RNN}
    return equality.prepared(config, 'mixed', 8)[1].target

  return {name: of(make) for name, make in MODELS.items()}


def test_every_wide_axis_lies_along_tensor_and_no_other(targets):
  """The oracle is a parameter's shape; that of the rules is its path."""
  found = 0
  for name, state in targets.items():
    for path, leaf in checkpoint.flat(state.params).items():
      if name == 'classifier' and not path.startswith('head'):
        continue  # (its sizes are of images)
      if name.startswith('rnn') and not re.search('token|head', path):
        continue  # gates are no part of what tensor parallelism splits
      wide = [i for i, n in enumerate(leaf.shape) if n in WIDE]
      spec = leaf.sharding.spec
      assert [i for i, axis in enumerate(spec) if axis == 'tensor'] == wide, (name, path, leaf.shape, spec)
      found += bool(wide)
  assert found > 70


def test_every_rule_is_used_by_a_model(targets):
  used = set()
  for state in targets.values():
    for path, leaf in checkpoint.flat(state.params).items():
      fits = [
        rule for rule, axes in sharding.TENSOR if re.search(rf'(^|/){rule}$', path) and len(axes) == leaf.ndim
      ]
      assert len(fits) <= 1, f'{path}: one rule alone'
      used |= {(rule, part) for rule in fits for part in re.findall(r'\w+', path)}
  for rule, _ in sharding.TENSOR:
    for part in re.findall(r'\w+', rule):
      assert any(found == rule and re.search(part, name) for found, name in used), (rule, part)


def test_fsdp_takes_the_largest_axis_that_it_divides(targets):
  for name, state in targets.items():
    for path, leaf in checkpoint.flat(state.params).items():
      spec = [*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))]
      free = [n for n, axis in zip(leaf.shape, spec, strict=True) if axis != 'tensor' and n % 2 == 0]
      taken = [n for n, axis in zip(leaf.shape, spec, strict=True) if axis == 'fsdp']
      assert taken == ([max(free)] if free else []), (name, path, leaf.shape, spec)


@pytest.mark.parametrize(
  ('shape', 'fsdp', 'tensor', 'spec'),
  [
    ((32, 128), 4, 2, P('fsdp', 'tensor')),
    ((32, 128), 4, 1, P(None, 'fsdp')),
    ((32, 129), 4, 2, P('fsdp')),  # what tensor does not divide is whole along it, and fsdp has the rest
    ((33, 129), 4, 2, P()),
    ((33, 128), 4, 2, P(None, 'tensor')),
    ((32, 128), 1, 1, P()),
    ((0, 3), 4, 2, P()),
  ],
)
def test_what_does_not_divide_stays_whole(shape, fsdp, tensor, spec):
  made = jax.make_mesh((1, fsdp, tensor), mesh.AXES, devices=jax.devices()[: fsdp * tensor])
  assert sharding.spec_of('block_0/mlp/up/kernel', shape, made) == spec


@pytest.mark.parametrize(
  ('shape', 'spec'), [((8, 8), P('fsdp')), ((4, 8, 8), P(None, 'fsdp')), ((), P()), ((3,), P())]
)
def test_the_first_of_several_largest_axes(shape, spec):
  made = jax.make_mesh((1, 4, 1), mesh.AXES, devices=jax.devices()[:4])
  assert sharding.spec_of('norm', shape, made) == spec


# Optimizer and average


@pytest.mark.parametrize('name', NAMES)
def test_moments_and_averages_lie_as_their_parameters_do(source, name):
  """Width 256: large enough for Adafactor's factors (128), which have other shapes and are told apart below."""
  optimizer = equality.ADAM | {'name': name, 'momentum': 0.9}
  config = equality.text(
    source,
    {'name': 'transformer', 'vocabulary_size': 74, 'tie_embeddings': False}
    | {**SIZES, 'width': 256, 'mlp_width': 512, 'layers': 1},
    optimizer=optimizer,
  )
  _, placed = equality.prepared(config, 'mixed', 8)
  params, average = (checkpoint.flat(tree) for tree in (placed.target.params, placed.target.average))
  assert {path: leaf.sharding for path, leaf in average.items()} == {
    p: leaf.sharding for p, leaf in params.items()
  }
  moments, factors = 0, 0
  for path, leaf in checkpoint.flat(placed.target.opt).items():
    owner = next((p for p in params if path.endswith(f'/{p}')), None)
    if owner is None or (shorter := leaf.shape != params[owner].shape):
      assert leaf.sharding.spec in (P(), P('fsdp')), 'counts, and factors: whole or in parts along fsdp'
      assert leaf.shape == () or (name == 'adafactor' and shorter)
      assert (leaf.sharding.spec == P('fsdp')) == (leaf.size > 1)
      factors += leaf.size > 1
    else:
      assert leaf.sharding == params[owner].sharding, path
      moments += leaf.size
  count = sum(leaf.size for leaf in params.values())
  assert factors == (4 if name == 'adafactor' else 0), 'rows and columns of mlp/up and mlp/down'
  expected = {'adamw': 2, 'adam': 2, 'lamb': 2, 'rmsprop': 2, 'sgd': 1, 'lion': 1}
  if name in expected:
    assert moments == expected[name] * count
  else:
    assert 0 < moments < 2 * count


def test_bytes_fall_with_the_parts(source):
  """Of all arrays that eight divides, each device has an eighth."""
  config = equality.FAMILIES['transformer'](source)
  whole = memory_use.bytes_of(equality.prepared(config, 'data', 1)[1].target)
  for layout in ('data', 'pmap'):
    assert memory_use.bytes_of(equality.prepared(config, layout, 8)[1].target) == whole
  rest = 3 * 4 + 8  # counts of the step, the schedule and Adam; the key
  for layout in ('fsdp', 'mixed'):
    state = equality.prepared(config, layout, 8)[1].target
    parts = 8 if layout == 'fsdp' else 4
    there = memory_use.bytes_of(state)
    assert (whole - rest) / 8 <= there - rest <= (whole - rest) / parts * 1.2
  fsdp = memory_use.bytes_of(equality.prepared(config, 'fsdp', 8)[1].target)
  assert fsdp == (whole - rest) / 8 + rest


# What a task has besides


def test_extra_lies_by_its_layout():
  made = jax.make_mesh((2, 2, 2), mesh.AXES)
  shaped = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
  extra = {'replay': {'x': shaped(64, 3), 'y': shaped(64)}, 'carry': [shaped(8, 5)], 'codes': shaped(8, 5)}
  layout = {'replay': 'rows', 'carry': 'batch', 'codes': 'replicated'}
  found = jax.tree.map(lambda where: where.spec, sharding.by_layout(made, layout, extra))
  rows = P(('data', 'fsdp'))
  assert found == {'replay': {'x': rows, 'y': rows}, 'carry': [rows], 'codes': P()}
  for word, spec in (('replicated', P()), ('rows', rows)):
    found = jax.tree.leaves(sharding.by_layout(made, word, extra))
    assert [where.spec for where in found] == [spec] * 4


@pytest.mark.parametrize(('family', 'rows'), [('rnn', ('carry/0/0',)), ('vq', ()), ('resnet', ())])
def test_the_extra_of_real_tasks(source, family, rows):
  _, placed = equality.prepared(equality.FAMILIES[family](source), 'mixed', 8)
  extra = checkpoint.flat(placed.target.extra)
  assert extra
  for path, leaf in extra.items():
    assert leaf.sharding.spec == (P(('data', 'fsdp')) if path in rows else P()), path
    assert math.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size // (4 if path in rows else 1)


def test_a_state_is_made_where_it_will_lie(source):
  """What `init` makes lies as the compiled step wants it, array by array."""
  _, placed = equality.prepared(equality.FAMILIES['rnn'](source), 'mixed', 8)
  state = placed.program.init(placed.floats, placed.key, placed.example)
  wanted = checkpoint.flat(placed.target)
  for path, leaf in checkpoint.flat(state).items():
    assert leaf.sharding.is_equivalent_to(wanted[path].sharding, leaf.ndim), path
    assert (leaf.shape, leaf.dtype) == (wanted[path].shape, wanted[path].dtype)
