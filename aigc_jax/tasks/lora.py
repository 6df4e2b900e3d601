"""Low-rank adaptation (Hu et al. 2021): parameters stay as they are, and products of thin matrices are added to some.

W + (alpha / rank) A B (section 4.1), with A [inputs, rank] drawn as peft draws it and B [rank, outputs] zero. The sums
are made before the task sees its parameters, so every model can have adapters, and none knows of them.
"""

import math
import re

import jax
import jax.numpy as jnp
from flax import traverse_util

from aigc_jax.errors import UsageError, listed

ADAPTERS = 'adapters'  # beside the parameters of the model, at the top of the tree


def adapt(task, lora):
  """The task with adapters, where `config.lora`, whose floats may be traced, asks for them."""
  if lora['rank'] is None:
    return task
  merged = lambda params: whole(params, lora)

  def init(key, batch):
    key, adapter_key = jax.random.split(key)
    params, extra = task.init(key, batch)
    return {**params, ADAPTERS: make(params, lora, adapter_key)}, extra

  def after(function):
    return (
      None if function is None else lambda params, *rest, **named: function(merged(params), *rest, **named)
    )

  changed = {name: after(getattr(task, name)) for name in ('loss', 'collect', 'evaluate', 'show', 'draw')}
  return task._replace(init=init, **changed)


def make(params, lora, key):
  """Adapters of the kernels that `targets` names, a tree like `params` with 'a' and 'b' in the place of a kernel."""
  leaves = traverse_util.flatten_dict(params, sep='/')
  matrices = {p: leaf for p, leaf in leaves.items() if leaf.ndim > 1 and re.search(lora['targets'], p)}
  if not matrices:
    kernels = [path for path in leaves if path.endswith('kernel')]
    raise UsageError(
      f'config.lora.targets: {lora["targets"]!r} matches no kernel; there are {listed(kernels[:4])} ...'
    )
  made = {}
  for i, (path, kernel) in enumerate(matrices.items()):
    inputs, outputs = sides(path, kernel)
    bound = 1 / math.sqrt(inputs)
    a = jax.random.uniform(jax.random.fold_in(key, i), (inputs, lora['rank']), kernel.dtype, -bound, bound)
    made |= {f'{path}/a': a, f'{path}/b': jnp.zeros((lora['rank'], outputs), kernel.dtype)}
  return traverse_util.unflatten_dict(made, sep='/')


def sides(path, kernel):
  """(inputs, outputs) of a kernel: attention's output reads heads, all others write what follows the first axis."""
  inputs = kernel.shape[:-1] if path.endswith('output/kernel') else kernel.shape[:1]
  return math.prod(inputs), kernel.size // math.prod(inputs)


def whole(params, lora):
  """Parameters as the model has them: adapters added in. Those that have none are returned as they are."""
  if ADAPTERS not in params:
    return params
  params = dict(params)
  scale = 1.0 if lora['alpha'] is None else lora['alpha'] / lora['rank']
  return added(params, params.pop(ADAPTERS), scale)


def added(params, adapters, scale):
  made = dict(params)
  for name, part in adapters.items():
    if set(part) == {'a', 'b'}:
      made[name] = params[name] + (scale * (part['a'] @ part['b'])).reshape(params[name].shape)
    else:
      made[name] = added(params[name], part, scale)
  return made


def frozen_pattern(config):
  """The regular expression of parameters that never change, or None: all but the adapters and those of `lora.trained`.

  Raises UsageError where both that and `training.freeze` say it.
  """
  lora, freeze = config.get('lora'), config['training']['freeze']
  if lora is None or lora['rank'] is None:
    return freeze
  if freeze is not None:
    raise UsageError(
      f'config.training.freeze: {freeze!r} means nothing with config.lora.rank, which freezes all but the adapters and '
      'what config.lora.trained matches'
    )
  trained = f'|(?:.*(?:{lora["trained"]}))' if lora['trained'] else ''
  return f'^(?!{ADAPTERS}/{trained})'
