"""config.optimizer -> an optax transformation, built inside the traced step: every float may be a tracer.

What is off is None and leaves no code; the state's structure depends on names and Nones alone.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from aigc_jax.config import Fraction, NonNegative, Positive, Range, UnitInterval
from aigc_jax.training.muon import scale_by_muon

# Matrices at these paths are tables of symbols, or scores of symbols; others map hidden to hidden vectors.
OUTER = re.compile(r'(^|/)(embed\w*|head|codebook)(/|$)')
# Into attention's heads: [width, heads, head_width], a matrix for each head.
INTO_HEADS = re.compile(r'(^|/)(query|key|value)/kernel$')


@dataclass(frozen=True)
class OptimizerConfig:
  # the rule of an update; with muon, Adam has what is no hidden matrix
  name: Literal['adamw', 'adam', 'sgd', 'lion', 'muon', 'adafactor', 'rmsprop', 'lamb'] = 'adamw'
  learning_rate: Annotated[float, NonNegative] = (
    1e-3  # the schedule's peak; with muon, that of hidden matrices
  )
  adam_learning_rate: Annotated[float | None, NonNegative] = (
    None  # muon: peak of the rest; None: learning_rate
  )
  # of the learning rate, after a linear warm-up
  schedule: Literal['constant', 'cosine', 'linear', 'warmup_stable_decay', 'inverse_sqrt'] = 'cosine'
  warmup_steps: Annotated[int, NonNegative] = 0  # may exceed the run, which then ends in warm-up
  decay_steps: Annotated[int | None, Positive] = None  # the step where the decay ends; None: training.steps
  decay_fraction: Annotated[float, UnitInterval] = (
    0.5  # warmup_stable_decay: the part of decay_steps that decays
  )
  final_fraction: Annotated[float, UnitInterval] = 0.0  # the rate after the decay, as a part of the peak
  # decoupled, times the rate; adam, sgd, rmsprop: added to the gradient
  weight_decay: Annotated[float | None, NonNegative] = None
  decay_on: Literal['matrices', 'hidden', 'all'] = 'matrices'  # hidden: matrices less embeddings and head
  clip_norm: Annotated[float | None, Positive] = None  # what the gradients' global norm is scaled down to
  beta1: Annotated[float, Fraction] = 0.9  # decay of the mean of gradients
  beta2: Annotated[float, Fraction] = 0.999  # decay of the mean of their squares; adafactor ignores the betas
  # added to the root of these; adamw, adam, lamb, rmsprop, and the rest with muon
  epsilon: Annotated[float, Positive] = 1e-8
  momentum: Annotated[float | None, Fraction] = None  # sgd, rmsprop
  muon_momentum: Annotated[float, Fraction] = 0.95  # muon: decay of the mean of gradients
  muon_iterations: Annotated[int, Range('from 2 to 5', least=2, most=5)] = 4  # of Newton-Schulz
  nesterov: bool = False  # adamw, adam, lamb, sgd, rmsprop; muon always does
  average: Annotated[float | None, Fraction] = (
    None  # decay of the parameters' moving average; kept by the step
  )


def build(config: dict[str, Any], steps: int) -> optax.GradientTransformation:
  """The optimizer of a resolved config; call it where its floats are traced.

  Weight decay is decoupled, times the learning rate (Loshchilov & Hutter 2019, as PyTorch has it), for adamw,
  lion, lamb, muon and adafactor; for adam, sgd and rmsprop it is L2, added to the gradient.

  Args:
    config: the fields of OptimizerConfig.
    steps: training.steps, where the decay ends unless `decay_steps` says otherwise.
  """
  rate = lambda peak: optax.scale_by_learning_rate(lambda step: peak * unit_schedule(config, steps, step))
  descent = lambda name, peak: optax.chain(*update_rule(name, config), rate(peak))
  parts = [] if config['clip_norm'] is None else [optax.clip_by_global_norm(config['clip_norm'])]
  if config['name'] == 'muon':
    other = config['learning_rate'] if config['adam_learning_rate'] is None else config['adam_learning_rate']
    rules = {'hidden': descent('muon', config['learning_rate']), 'other': descent('adamw', other)}
    return optax.chain(*parts, optax.partition(rules, muon_labels))
  return optax.chain(*parts, descent(config['name'], config['learning_rate']))


def unused(config):
  """[(field, why)] of those that were set and have no part in the optimizer of this config."""
  name, defaults = config['name'], OptimizerConfig()
  adams = ('adamw', 'adam', 'lamb', 'muon')  # muon: Adam for all but hidden matrices
  users = {
    'adam_learning_rate': ('muon',),
    'muon_momentum': ('muon',),
    'muon_iterations': ('muon',),
    'momentum': ('sgd', 'rmsprop'),
    'nesterov': adams if config['momentum'] is None else (*adams, 'sgd', 'rmsprop'),
    'beta1': (*adams, 'lion'),
    'beta2': (*adams, 'lion', 'rmsprop'),
    'epsilon': (*adams, 'rmsprop'),
  }
  idle = {field: f'with {name}' for field in users if name not in users[field]}
  if config['schedule'] != 'warmup_stable_decay':
    idle['decay_fraction'] = f'with schedule {config["schedule"]}'
  if config['schedule'] in ('constant', 'inverse_sqrt'):
    idle['final_fraction'] = f'with schedule {config["schedule"]}'
  if config['weight_decay'] is None:
    idle['decay_on'] = 'without weight_decay'
  return [(field, why) for field, why in idle.items() if config[field] != getattr(defaults, field)]


def update_rule(name, config):
  """[transformation, ...]: gradients -> steps against which the parameters move, weight decay included."""
  b1, b2, epsilon = config['beta1'], config['beta2'], config['epsilon']
  adam = lambda: optax.scale_by_adam(b1, b2, epsilon, nesterov=config['nesterov'])
  mask = lambda params: decay_mask(config['decay_on'], params)
  decay = [] if config['weight_decay'] is None else [optax.add_decayed_weights(config['weight_decay'], mask)]
  trace = [] if config['momentum'] is None else [optax.trace(config['momentum'], config['nesterov'])]
  match name:
    case 'adamw':
      return [adam(), *decay]
    case 'adam':
      return [*decay, adam()]
    case 'sgd':
      return [*decay, *trace]
    case 'rmsprop':
      return [*decay, optax.scale_by_rms(b2, epsilon, eps_in_sqrt=False), *trace]
    case 'lion':  # Chen et al. 2023; its rate is 3 to 10 times below Adam's
      return [optax.scale_by_lion(b1, b2), *decay]
    case 'lamb':  # You et al. 2020
      return [adam(), *decay, optax.scale_by_trust_ratio()]
    case 'adafactor':  # Shazeer & Stern 2018, algorithm 4: the rate is relative to each parameter's scale
      scale = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()]
      return [*scale, *decay]
    case 'muon':
      return [scale_by_muon(config['muon_momentum'], config['muon_iterations'], into_heads), *decay]
  raise ValueError(name)


def hidden_matrix(path, array):
  """Whether a parameter maps hidden to hidden vectors: a matrix, or several, neither embedding nor head."""
  return array.ndim >= 2 and not OUTER.search(joined(path))


def into_heads(path, array):
  """Whether a parameter's matrices lie side by side, [in, matrices, out]."""
  return array.ndim == 3 and bool(INTO_HEADS.search(joined(path)))


def joined(path):
  """'block_0/mlp/up/kernel' of a path of JAX's."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def muon_labels(params):
  """{'hidden' or 'other'} shaped like `params`: whom Muon updates, and whom Adam."""
  label = lambda path, array: 'hidden' if hidden_matrix(path, array) else 'other'
  return jax.tree_util.tree_map_with_path(label, params)


def decay_mask(decay_on, params):
  """{bool} shaped like `params`: what weight decay pulls towards zero."""
  decays = {
    'matrices': lambda path, array: array.ndim >= 2,  # nanoGPT: embeddings too, no norms and biases
    'hidden': hidden_matrix,
    'all': lambda path, array: True,
  }[decay_on]
  return jax.tree_util.tree_map_with_path(decays, params)


def unit_schedule(config, steps, step):
  """The learning rate at `step` (int, from 0) as a part of its peak, float32 in [0, 1].

  Warm-up is linear and ends at 1 in step `warmup_steps`, as nanoGPT's; every shape but the constant one and
  'inverse_sqrt' then reaches `final_fraction` at `decay_steps` and stays there. 'inverse_sqrt' is 1 / sqrt(step) from
  there on (Vaswani et al. 2017, eq. 3).
  """
  warmup, end = config['warmup_steps'], config['decay_steps'] or steps
  step, floor = jnp.asarray(step, jnp.float32), jnp.asarray(config['final_fraction'], jnp.float32)
  start = jnp.float32(warmup)
  if config['schedule'] == 'warmup_stable_decay':
    start = jnp.maximum(start, (1 - config['decay_fraction']) * end)
  progress = jnp.clip((step - start) / jnp.maximum(end - start, 1), 0, 1)
  match config['schedule']:
    case 'constant':
      shape = jnp.ones_like(step)
    case 'cosine':
      shape = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    case 'linear' | 'warmup_stable_decay':
      shape = floor + (1 - floor) * (1 - progress)
    case 'inverse_sqrt':
      shape = jnp.sqrt((start + 1) / jnp.maximum(step + 1, start + 1))
  return jnp.where(step < warmup, (step + 1) / (warmup + 1), shape)


def learning_rate_at(config, steps, step):
  """The learning rate of the update made at `step` (from 0): the peak times the schedule."""
  return config['learning_rate'] * unit_schedule(config, steps, step)
