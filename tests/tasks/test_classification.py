"""The classification task: every way of running it gives the same numbers, its measures are those of brute force."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aigc_jax import api
from aigc_jax.config import floats_of
from aigc_jax.errors import UsageError
from aigc_jax.models import SCHEMAS as MODELS
from aigc_jax.task import Context
from aigc_jax.tasks import classification, losses
from aigc_jax.training import parallel
from aigc_jax.training import step as step_module

STEPS, ROWS, CLASSES, SIDE = 3, 8, 3, 6
SMALL = {'mlp': {'widths': [5]}, 'cnn': {'channels': [3], 'dense_width': 5}, 'resnet': {'channels': [3, 4]}}


def small_config(name='resnet', **sections):
  made = {
    'task': {'name': 'classification', 'label_smoothing': 0.1},
    'model': {'name': name, 'image_shape': [SIDE, SIDE, 1], 'classes': CLASSES, **SMALL[name]},
    'data': {'batch_size': ROWS},
    'optimizer': {'name': 'adamw', 'learning_rate': 1e-2},
    'training': {'steps': STEPS},
  }
  for section, values in sections.items():
    made[section] = made.get(section, {}) | values
  return api.resolved(made)


def batch_at(step, rows=ROWS):
  """Bright rows are of a later class; of the second quarter, which is a device's part, none counts."""
  draw = np.random.default_rng(step)
  labels = draw.integers(0, CLASSES, rows).astype(np.int32)
  images = draw.integers(0, 100, (rows, SIDE, SIDE, 1)) + 70 * labels[:, None, None, None]
  mask = (draw.random(rows) > 0.3).astype(np.float32)
  mask[rows // 4 : rows // 2] = 0
  return {'images': images.astype(np.uint8), 'labels': labels, 'mask': mask}


@functools.cache
def run(devices=1, mode='mesh', name='resnet'):
  """(losses and accuracies [steps, 2], last State, measures of a batch)."""
  config = small_config(name, parallel={'mode': mode, 'data': devices})
  program = parallel.make_parallel(config, classification.build, jax.devices()[:devices])
  floats = program.put_floats(floats_of(config))
  state, seen = program.init(floats, jax.random.key(0), batch_at(0)), []
  for i in range(STEPS):
    state, metrics = program.step(floats, state, program.put_batch(batch_at(i)))
    seen.append([float(metrics['loss']), float(metrics['accuracy'])])
  return (
    np.array(seen),
    state,
    jax.device_get(program.evaluate(floats, state, program.put_batch(batch_at(99)))[0]),
  )


def assert_same(found, expected):
  # Sums in another order: 1e-7 of rounding in the gradients, which three steps of Adam magnify where they are tiny.
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
  for ours, theirs in zip(jax.tree.leaves(found[1][:-1]), jax.tree.leaves(expected[1][:-1]), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
  for name, pair in found[2].items():
    np.testing.assert_allclose(pair, expected[2][name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize('mode', [pytest.param('mesh', marks=pytest.mark.slow), 'pmap'])
def test_four_devices_give_the_numbers_of_one(mode):
  assert len(set(batch_at(0)['mask'].reshape(4, 2).sum(1).tolist())) == 3, (
    'devices have 0, 1 and 2 rows that count'
  )
  assert_same(run(4, mode), run())
  moved = run()[1].extra['batch_stats']['final_norm']['mean']
  assert np.abs(moved).max() > 1e-3, 'the statistics that agree have moved'


def test_two_lanes_give_the_numbers_of_two_runs():
  """Each lane has its own key, rate, smoothing and decay, so that one that gets another's is seen."""
  config = small_config(model={'channels': [3]})
  own = {
    'optimizer.learning_rate': (1e-2, 3e-3),
    'task.label_smoothing': (0.1, 0.3),
    'model.normalization_decay': (0.9, 0.5),
  }
  single = step_module.make_program(config, classification.build)
  program, solo_init, solo_step = step_module.lanes(single), jax.jit(single.init), jax.jit(single.step)
  floats_of_lane = lambda lane: floats_of(config) | {name: values[lane] for name, values in own.items()}
  as_array = lambda *values: jnp.asarray(values if len(values) > 1 else values[0], jnp.float32)
  keys = [jax.random.key(seed) for seed in (7, 0)]
  floats = jax.tree.map(as_array, floats_of_lane(0), floats_of_lane(1))
  state, step = jax.jit(program.init)(floats, jnp.stack(keys), batch_at(0)), jax.jit(program.step)
  for i in range(STEPS):
    state, metrics = step(floats, state, batch_at(i))
  for lane, key in enumerate(keys):
    floats = jax.tree.map(as_array, floats_of_lane(lane))
    solo = solo_init(floats, key, batch_at(0))
    for i in range(STEPS):
      solo, alone = solo_step(floats, solo, batch_at(i))
    np.testing.assert_allclose(metrics['loss'][lane], alone['loss'], rtol=1e-4)
    trees = [(state.params, state.extra), (solo.params, solo.extra)]
    for ours, theirs in zip(*map(jax.tree.leaves, trees), strict=True):
      np.testing.assert_allclose(ours[lane], theirs, rtol=2e-3, atol=2e-4)


def logits_of(rows=400, classes=4):
  draw = np.random.default_rng(0)
  labels = draw.integers(0, classes - 1, rows).astype(np.int32)  # none of the last class
  logits = draw.normal(size=(rows, classes)).astype(np.float32) * draw.uniform(0, 4, (rows, 1)).astype(
    np.float32
  )
  logits[:, 0] += labels == 0
  return logits, labels, (draw.random(rows) > 0.2).astype(np.float32)


def divided(parts):
  """What an evaluation makes of {name: (sum, weight)} of several batches."""
  added = jax.tree.map(lambda *values: np.sum(np.array(values, np.float64), 0), *parts)
  return {name: value / np.maximum(weight, 1e-9) for name, (value, weight) in added.items()}


def test_measures_of_batches_are_those_of_brute_force():
  logits, labels, mask = logits_of()
  parts = [
    classification.measures(logits[i : i + 100], labels[i : i + 100], mask[i : i + 100], 7)
    for i in (0, 100, 200, 300)
  ]
  found = classification.report(divided(parts))
  logits, labels = (array[mask > 0].astype(np.float64) for array in (logits, labels))
  labels = labels.astype(int)
  probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  confidence, right = probability.max(1), probability.argmax(1) == labels
  error = 0.0
  for m in range(7):  # Guo et al. 2017, eq. 2 and 3
    inside = (confidence > m / 7) & (confidence <= (m + 1) / 7)
    if inside.any():
      error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
  expected = {f'accuracy_{i}': right[labels == i].mean() for i in range(3)}
  expected |= {'loss': -np.log(probability[np.arange(len(labels)), labels]).mean(), 'accuracy': right.mean()}
  assert found == pytest.approx(expected | {'calibration_error': error}, rel=1e-5)
  assert error > 0.05


def test_smoothed_loss_and_its_slope_are_those_of_torch():
  logits, labels, _ = logits_of(rows=20)
  peer = torch.tensor(logits, requires_grad=True)
  theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.2, reduction='none')(peer, torch.tensor(labels).long())
  theirs.sum().backward()
  np.testing.assert_allclose(
    losses.smoothed_cross_entropy(logits, labels, 0.2), theirs.detach(), rtol=1e-5, atol=1e-6
  )
  slope = jax.grad(lambda x: losses.smoothed_cross_entropy(x, labels, 0.2).sum())(logits)
  np.testing.assert_allclose(slope, peer.grad, rtol=1e-5, atol=1e-6)


def test_evaluation_is_without_smoothing_and_augmentation():
  found = run()[2]
  config = small_config(task={'label_smoothing': None, 'flip': True, 'jitter': 0.5})
  task, state = classification.build(config), jax.device_get(run()[1])
  plain = jax.jit(
    lambda: task.evaluate(state.params, state.extra, batch_at(99), Context(jax.random.key(1), 0, False))
  )()
  for name, pair in plain.items():
    np.testing.assert_allclose(pair, found[name], rtol=1e-4, atol=1e-5)


def test_collect_augments_images_of_resident_and_other_batches_alike():
  task = classification.build(small_config('mlp', task={'flip': True, 'crop': 1, 'jitter': 0.2}))
  batch, context = batch_at(0), Context(jax.random.key(3), jnp.int32(0), True)
  rows = np.array([5, 0, 0, 3], np.int32)
  resident = {'rows': rows, 'mask': np.ones(4, np.float32)}
  resident['resident'] = {name: batch[name] for name in ('images', 'labels')}
  _, found = task.collect({}, {}, resident, context)
  taken = {'images': batch['images'][rows], 'labels': batch['labels'][rows], 'mask': resident['mask']}
  _, expected = task.collect({}, {}, taken, context)
  assert set(found) == {'images', 'labels', 'mask'}
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert np.abs(np.asarray(found['images']) - taken['images'] / 255).mean() > 0.02
  _, untouched = classification.build(small_config('mlp')).collect({}, {}, taken, context)
  np.testing.assert_array_equal(untouched['images'], taken['images'])


@pytest.mark.parametrize('flip', [False, True])
def test_binary_images_are_drawn_anew_where_they_are_dynamic(flip):
  """The validation split is binary, so what trains must be."""
  data = {'source': 'npz:images.npz', 'binarization': 'dynamic'}
  task, batch = classification.build(small_config('mlp', data=data, task={'flip': flip})), batch_at(0)
  drawn = [
    np.asarray(task.collect({}, {}, batch, Context(jax.random.key(seed), jnp.int32(0), True))[1]['images'])
    for seed in (3, 4)
  ]
  assert set(np.unique(drawn)) == {0.0, 1.0}
  assert (drawn[0] != drawn[1]).any()
  assert np.mean(drawn) == pytest.approx(batch['images'].mean() / 255, abs=0.1)


def dataset_of(facts, batches=(), tokenizer=None):
  return types.SimpleNamespace(facts=facts, validation_batches=lambda: iter(batches), tokenizer=tokenizer)


IMAGES = {'image_shape': [SIDE, SIDE, 1], 'classes': CLASSES, 'class_names': ['dark', 'middle', 'bright']}


def test_what_is_shown_counts_every_row_once():
  batches = [batch_at(step) for step in range(3)]
  state, task = jax.device_get(run()[1]), classification.build(small_config())
  shown = task.show(state.params, state.extra, dataset_of(IMAGES, batches), jax.random.key(0))
  assert set(shown) == {'confusion.txt', 'confusion.png', 'mistakes.png'}
  assert all(shown[n].dtype == np.uint8 and shown[n].shape[2] == 3 for n in ('confusion.png', 'mistakes.png'))
  model, counts = MODELS['resnet'], np.zeros((CLASSES, CLASSES), int)
  fields = {k: v for k, v in small_config()['model'].items() if k != 'name'}
  for batch in batches:
    found = (
      model(**fields)
      .apply({'params': state.params, **state.extra}, batch['images'] / np.float32(255))
      .argmax(-1)
    )
    for row in range(ROWS):
      counts[batch['labels'][row], found[row]] += int(batch['mask'][row])
  lines = [line.split() for line in shown['confusion.txt'].splitlines()]
  assert lines[0] == ['true,', 'predicted', 'dark', 'middle', 'bright', 'accuracy']
  for i, name in enumerate(IMAGES['class_names']):
    assert lines[1 + i] == [name, *map(str, counts[i]), f'{counts[i, i] / counts[i].sum():.1%}']
  assert lines[4] == ['all', *map(str, counts.sum(0)), f'{np.trace(counts) / counts.sum():.1%}']


def test_the_data_decides_shape_and_classes():
  config = small_config('cnn', model={'image_shape': None, 'classes': None})
  model = classification.complete(config, dataset_of(IMAGES))['model']
  assert (model['image_shape'], model['classes']) == ([SIDE, SIDE, 1], CLASSES)
  kept = classification.complete(small_config('cnn', model={'classes': 5}), dataset_of(IMAGES))
  assert kept['model']['classes'] == 5


@pytest.mark.parametrize(
  ('changes', 'facts', 'words'),
  [
    ({'classes': 2}, IMAGES, 'config.model.classes: 2 is too small for the 3 of'),
    ({'image_shape': [9, 9, 1]}, IMAGES, r'image_shape: 9, 9, 1, but the images of .* are 6, 6, 1;'),
    (
      {},
      {'classes': 3},
      "config.model.name: 'mlp' does not classify texts, which .* holds; those that do are",
    ),
    ({}, {'image_shape': [2, 2, 1]}, 'config.data.source: .* has no labels'),
  ],
)
def test_what_does_not_go_together_is_refused(changes, facts, words):
  with pytest.raises(UsageError, match=words) as error:
    classification.complete(small_config('mlp', model=changes), dataset_of(facts))
  assert '\n' not in str(error.value)


def test_models_that_classify_are_offered():
  """An autoencoder has classes and reads images, and is none."""
  given = {'model': {'name': 'rnn_classifier'}, 'data': {'source': 'npz:FILE'}, 'task': {}}
  with pytest.raises(UsageError, match=r'those that do are mlp, cnn, resnet, vision_transformer$'):
    classification.check_kind(given, 'image_shape')
