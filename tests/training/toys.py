"""Toy tasks of a few lines each: one for every way of learning that the contract must carry.

Each is `(config with floats) -> Task`, learns from {'x': [rows, 4], 'y': [rows], 'mask': [rows]}, and keeps its own
parameters; together they exercise every function and field of the contract.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.task import Task

WIDTH = 4


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  beta: float = 0.5
  warmup_steps: int = 4
  decay: float = 0.9
  temperature: float = 0.5
  epsilon: float = 0.2
  masked: float = 0.3


def batch_at(step, rows=16):
  """A batch is a pure function of the step; a third of its rows count for nothing."""
  rng = np.random.default_rng(step)
  x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
  mask = (rng.random(rows) > 0.3).astype(np.float32)
  return {'x': x, 'y': np.sin(x.sum(1)), 'mask': mask}


def matrix(key, rows, columns):
  return jax.random.normal(key, (rows, columns)) * rows**-0.5


def squares(error, batch, metrics=None):
  """Sum of masked squared errors [rows] -> what a loss returns, without its extra."""
  weight = batch['mask'].sum()
  hits = ((jnp.abs(error) < 0.5) * batch['mask']).sum()
  return (error**2 * batch['mask']).sum(), weight, {'near': (hits, weight), **(metrics or {})}


def truncated_bptt(config):
  """An Elman cell whose hidden state is carried from step to step, one row of it for each row of the batch."""

  def init(key, batch):
    keys = jax.random.split(key, 3)
    params = {'in': matrix(keys[0], WIDTH, 8), 'hidden': matrix(keys[1], 8, 8), 'out': matrix(keys[2], 8, 1)}
    return params, {'hidden': jnp.zeros((len(batch['x']), 8))}

  def loss(params, extra, batch, context):
    cell = lambda h, _: (jnp.tanh(batch['x'] @ params['in'] + h @ params['hidden']), None)
    hidden, _ = jax.lax.scan(cell, extra['hidden'], None, length=2)
    total, weight, metrics = squares((hidden @ params['out'])[:, 0] - batch['y'], batch)
    return total, (weight, {'hidden': jax.lax.stop_gradient(hidden)}, metrics)

  return Task(init, loss, layout='batch')


def batch_statistics(config):
  """Normalization by statistics of the whole batch; evaluation uses their moving average."""

  def init(key, batch):
    return {'w': matrix(key, WIDTH, 1)}, {'mean': jnp.zeros(WIDTH)}

  def loss(params, extra, batch, context):
    count, added = context.sum((batch['mask'].sum(), (batch['x'] * batch['mask'][:, None]).sum(0)))
    mean = added / jnp.maximum(count, 1)
    decay = config['task']['decay']
    moved = {'mean': jnp.where(count > 0, decay * extra['mean'] + (1 - decay) * mean, extra['mean'])}
    centred = batch['x'] - (mean if context.train else extra['mean'])
    total, weight, metrics = squares((centred @ params['w'])[:, 0] - batch['y'], batch)
    return total, (weight, moved, metrics)

  return Task(init, loss)


def variational(config):
  """A Gaussian latent with a KL whose weight warms up over the first steps."""

  def init(key, batch):
    keys = jax.random.split(key, 2)
    return {'encode': matrix(keys[0], WIDTH, 4), 'decode': matrix(keys[1], 2, WIDTH)}, {}

  def loss(params, extra, batch, context):
    mean, log_deviation = jnp.split(jnp.tanh(batch['x'] @ params['encode']), 2, -1)  # [rows, 2] each
    noise = jax.random.normal(context.key, mean.shape) if context.train else 0.0
    error = (mean + jnp.exp(log_deviation) * noise) @ params['decode'] - batch['x']
    kl = 0.5 * (mean**2 + jnp.exp(2 * log_deviation) - 2 * log_deviation - 1).sum(-1)
    warm = jnp.minimum(1, context.step / config['task']['warmup_steps'])
    weight = batch['mask'].sum()
    total = (((error**2).sum(-1) + config['task']['beta'] * warm * kl) * batch['mask']).sum()
    return total, (weight, extra, {'kl': ((kl * batch['mask']).sum(), weight)})

  return Task(init, loss)


def codebook(config):
  """Vector quantization with an exponential-moving-average codebook and a straight-through gradient."""

  def init(key, batch):
    keys = jax.random.split(key, 2)
    codes = jax.random.normal(keys[0], (5, WIDTH))
    return {'w': matrix(keys[1], WIDTH, WIDTH)}, {'counts': jnp.ones(5), 'sums': codes}

  def loss(params, extra, batch, context):
    codes = extra['sums'] / extra['counts'][:, None]
    encoded = batch['x'] @ params['w']  # [rows, WIDTH]
    nearest = ((encoded[:, None] - codes) ** 2).sum(-1).argmin(-1)
    quantized = encoded + jax.lax.stop_gradient(codes[nearest] - encoded)
    chosen = jax.nn.one_hot(nearest, 5) * batch['mask'][:, None]
    seen = {'counts': chosen.sum(0), 'sums': chosen.T @ jax.lax.stop_gradient(encoded)}
    seen, decay = context.sum(seen), config['task']['decay'] if context.train else 1.0
    extra = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, extra, seen)
    error = ((quantized - batch['x']) ** 2).sum(-1) ** 0.5
    total, weight, metrics = squares(error, batch)
    return total, (weight, extra, metrics)

  return Task(init, loss)


def masking(config):
  """Fills in features that `collect` hides, drawn anew each step; every row draws from its own number's key."""

  def init(key, batch):
    return {'w': matrix(key, WIDTH, WIDTH)}, {}

  def collect(params, extra, batch, context):
    key = jax.random.key(7)  # by row content and step, so that the draw is the same on any number of devices
    numbers = jax.lax.bitcast_convert_type(batch['x'][:, 0], jnp.int32)
    draw = lambda n: jax.random.bernoulli(
      jax.random.fold_in(jax.random.fold_in(key, n), context.step), config['task']['masked'], (WIDTH,)
    )
    return extra, batch | {'hidden': jax.vmap(draw)(numbers)}

  def loss(params, extra, batch, context):
    last = jnp.arange(WIDTH) == WIDTH - 1  # evaluation hides the same feature always
    hidden = batch.get('hidden', last) & (batch['mask'][:, None] > 0)
    error = jnp.where(hidden, 0, batch['x']) @ params['w'] - batch['x']
    weight = hidden.sum().astype(jnp.float32)
    return (error**2 * hidden).sum(), (weight, extra, {})

  return Task(init, loss, collect)


def contrastive(config):
  """InfoNCE of two views against all rows of the global batch."""

  def init(key, batch):
    return {'w': matrix(key, WIDTH, 3)}, {}

  def collect(params, extra, batch, context):
    return extra, batch | {'other': batch['x'] * jnp.array([1.1, 0.9, 1.0, 0.8])}

  def loss(params, extra, batch, context):
    unit = lambda v: v / jnp.linalg.norm(v, axis=-1, keepdims=True)
    ours, other = unit(batch['x'] @ params['w']), unit(batch.get('other', batch['x']) @ params['w'])
    everyone, counts = context.gather(other), context.gather(batch['mask'])
    logits = ours @ everyone.T / config['task']['temperature'] + jnp.log(counts + 1e-9)  # [rows, all rows]
    positive = (ours * other).sum(-1) / config['task']['temperature']
    nats = jax.nn.logsumexp(logits, -1) - positive
    return (nats * batch['mask']).sum(), (batch['mask'].sum(), extra, {})

  return Task(init, loss, collect, whole_batch=True)


def bandit(config):
  """A Q-learner that acts in `collect`: its worlds, one to a row, live in `extra` and drift as it acts."""

  def init(key, batch):
    return {'q': matrix(key, WIDTH, 3)}, {'world': jnp.asarray(batch['x'])}

  def collect(params, extra, batch, context):
    explore_key, action_key = jax.random.split(context.key)
    world = extra['world']
    greedy = (world @ params['q']).argmax(-1)
    explore = jax.random.bernoulli(explore_key, config['task']['epsilon'], greedy.shape)
    action = jnp.where(explore, jax.random.randint(action_key, greedy.shape, 0, 3), greedy)
    reward = jnp.take_along_axis(world, action[:, None], 1)[:, 0]
    moved = {'world': 0.9 * world + 0.1 * batch['x']}
    return moved, {'x': world, 'y': reward, 'action': action, 'mask': batch['mask']}

  def loss(params, extra, batch, context):
    q = batch['x'] @ params['q']
    value = jnp.take_along_axis(q, batch['action'][:, None], 1)[:, 0] if 'action' in batch else q.max(-1)
    total, weight, metrics = squares(value - batch['y'], batch)
    return total, (weight, extra, metrics)

  return Task(init, loss, collect, layout={'world': 'rows'})


def frozen(config):
  """A frozen first layer under a trained second one (config.training.freeze = 'base')."""

  def init(key, batch):
    keys = jax.random.split(key, 2)
    return {'base': {'w': matrix(keys[0], WIDTH, 8)}, 'head': {'w': matrix(keys[1], 8, 1)}}, {}

  def loss(params, extra, batch, context):
    error = (jnp.tanh(batch['x'] @ params['base']['w']) @ params['head']['w'])[:, 0] - batch['y']
    total, weight, metrics = squares(error, batch)
    return total, (weight, extra, metrics)

  return Task(init, loss)


TOYS = {
  toy.__name__: toy
  for toy in (
    truncated_bptt,
    batch_statistics,
    variational,
    codebook,
    masking,
    contrastive,
    bandit,
    frozen,
  )
}
