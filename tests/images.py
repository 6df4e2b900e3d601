"""Batches of images by hand, and experiments on them, for tests of autoencoders."""

import functools
import json
import types

import jax
import numpy as np

from aigc_jax import api, tasks
from aigc_jax.config import floats_of
from aigc_jax.training import parallel

ROWS = 8


def batch_at(step, shape=(6, 5, 1), rows=ROWS, padding=3, classes=3):
  """Binary images; the last `padding` rows count for nothing and hold what would be seen if they did."""
  draw = np.random.default_rng(step)
  images = (draw.random((rows, *shape)) < 0.4).astype(np.float32)
  mask = (np.arange(rows) < rows - padding).astype(np.float32)
  images[mask == 0] = 0.7
  return {'images': images, 'labels': draw.integers(0, classes, rows).astype(np.int32), 'mask': mask}


def config(model, shape=(6, 5, 1), **sections):
  """A resolved config of the task autoencoding, complete without data."""
  made = {
    'task': {'name': 'autoencoding'},
    'model': {'name': 'autoencoder', 'image_shape': shape} | model,
    'data': {'batch_size': ROWS},
    'optimizer': {'name': 'adam', 'learning_rate': 1e-2},
    'training': {'steps': 20},
  }
  for section, fields in sections.items():
    made[section] = made.get(section, {}) | fields
  return api.resolved(made)


def dataset(shape=(6, 5, 1), classes=3, rows=ROWS):
  facts = {'image_shape': list(shape), 'classes': classes}
  return types.SimpleNamespace(
    facts=facts, validation_batches=lambda: iter([batch_at(0, shape, rows, 1, classes)])
  )


@functools.cache
def compiled(text, devices):
  """The placed program of a config in JSON, compiled once for all the tests that use it."""
  return parallel.make_parallel(json.loads(text), tasks.build, jax.devices()[:devices])


def run(config, steps=3, devices=1, batches=batch_at):
  """(losses [steps], last State, evaluation sums of one batch)."""
  program = compiled(json.dumps(config), devices)
  floats = program.put_floats(floats_of(config))
  state, losses = program.init(floats, jax.random.key(0), batches(0)), []
  for i in range(steps):
    state, metrics = program.step(floats, state, program.put_batch(batches(i)))
    losses.append(float(metrics['loss']))
  sums = jax.device_get(program.evaluate(floats, state, program.put_batch(batches(99)))[0])
  return np.array(losses), state, sums
