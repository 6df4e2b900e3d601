"""How a program's attention runs, cuDNN's flash attention or XLA's, decided by its config, its batches and its devices.

`config.model.attention` is what a run asks for, and stays so in its folder, which may move between machines; the
program is built from `settled`, where 'auto' has become one of the two.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.errors import UsageError
from aigc_jax.models import attention, masks
from aigc_jax.training import mesh

DEVICES = {'cpu': 'CPUs', 'tpu': 'TPUs', 'rocm': 'AMD GPUs', 'cuda': 'NVIDIA GPUs'}
MASKS = {
  'transformer': 'causal',
  'transformer_encoder_decoder': 'bidirectional and causal',
}  # else bidirectional


class Choice(NamedTuple):
  """How a program attends."""

  implementation: str  # 'xla' or 'cudnn'
  line: str  # for people: that, and why


class Facts(NamedTuple):
  """What decides whether cuDNN applies."""

  platform: str  # a key of DEVICES
  capability: tuple | None  # of a CUDA device: (9, 0) is Hopper
  precision: str  # of the computation
  head_width: int
  key_value_heads: int
  tensor: int = 1  # devices along that axis, which deals out heads
  rows: int = 1  # devices that the rows of one program are dealt out over
  lengths: bool = False  # rows hold as many tokens as the batch says
  dropout: bool = False
  packed: bool = False  # rows hold several documents, each by itself
  prefix: bool = False  # tokens of a prefix see each other both ways
  refusal: str | None = None  # what jax has against cuDNN on these devices; None: nothing


def facts_of(config, batch, devices):
  """The Facts of a complete config of a model with attention, one of its batches and the devices that it takes."""
  model, device = config['model'], next(d for d in devices if d.process_index == jax.process_index())
  heads = model.get('key_value_heads') or model['heads']
  width, precision = (
    model.get('head_width') or model['width'] // model['heads'],
    config['training']['precision'],
  )
  sizes = dict(zip(mesh.AXES, mesh.axis_sizes(config, len(devices), fewer=True), strict=True))
  cuda = device.platform in ('gpu', 'cuda') and 'cuda' in device.client.platform_version
  return Facts(
    platform='cuda' if cuda else {'gpu': 'rocm'}.get(device.platform, device.platform),
    capability=tuple(int(part) for part in device.compute_capability.split('.')) if cuda else None,
    precision=precision,
    head_width=width,
    key_value_heads=heads,
    tensor=sizes['tensor'],
    rows=1 if config['parallel']['mode'] == 'pmap' else math.prod(sizes[axis] for axis in mesh.ROWS),
    lengths=model['name'] != 'transformer',
    dropout=model['dropout'] is not None,
    packed='segments' in batch,
    prefix=model.get('bidirectional_prefix', False),
    refusal=refusal(width, precision) if cuda else None,
  )


def refusal(head_width, precision):
  """What jax says against cuDNN for heads of this width on this machine (no cuDNN, too old a one), or None."""
  one = jax.ShapeDtypeStruct((1, 1, 8, head_width), jnp.dtype(precision))  # [batch, heads, time, head_width]
  total = lambda x: attention.flash(x, x, x, masks.Structure(causal=True)).astype(jnp.float32).sum()
  try:
    jax.eval_shape(jax.grad(total), one)
  except (NotImplementedError, RuntimeError, ValueError) as error:
    return str(error).splitlines()[0].rstrip('.')
  return None


def obstacle(facts):
  """(why cuDNN does not apply, what would let it apply), or None where it applies.

  What it takes, backward pass included, is in NVIDIA's support matrix (cudnn-frontend, docs/operations/Attention.md).
  A mask without structure it takes as a bias, [batch, 1, time, time], with a gradient of that size: no flash attention.
  """
  hopper = facts.capability is not None and facts.capability[0] == 9
  widest = 256 if hopper else 128
  rules = (
    (
      facts.platform != 'cuda',
      f'the devices are {DEVICES.get(facts.platform, facts.platform)}',
      'use NVIDIA GPUs',
    ),
    (
      facts.capability is not None and facts.capability < (8, 0),
      f'the devices have compute capability {".".join(map(str, facts.capability or ()))} (cuDNN takes 8.0 and later)',
      'use newer GPUs',
    ),
    (
      facts.precision not in ('bfloat16', 'float16'),
      f'the computation is {facts.precision} (cuDNN takes bfloat16)',
      'use --config.training.precision=bfloat16',
    ),
    (
      facts.head_width % 8 or facts.head_width > widest,
      f'heads are {facts.head_width} wide (cuDNN takes multiples of 8 up to {widest})',
      'choose --config.model.heads for that',
    ),
    (
      facts.dropout,
      'config.model.dropout drops attention weights (cuDNN draws other noise)',
      'use --config.model.dropout=none',
    ),
    (
      facts.packed,
      'rows hold several documents (cuDNN would need an array of the whole mask)',
      'use another --config.data.packing',
    ),
    (
      facts.prefix,
      'config.model.bidirectional_prefix is on (cuDNN would need an array of the whole mask)',
      'use --config.model.bidirectional_prefix=false',
    ),
    (
      facts.key_value_heads % facts.tensor,
      f'{facts.key_value_heads} heads of keys and values do not divide among {facts.tensor} devices',
      f'choose --config.parallel.tensor that divides {facts.key_value_heads}',
    ),
    # jax deals out queries, keys and values alike, and leaves the lengths to chance: each device would read wrong ones.
    (
      facts.lengths and facts.rows > 1,
      f'rows of different lengths are dealt out over {facts.rows} devices (jax deals out no lengths for cuDNN)',
      'use --config.parallel.mode=pmap',
    ),
    (facts.refusal is not None, f'jax refuses it: {facts.refusal}', 'see its advice'),
  )
  return next(((why, remedy) for holds, why, remedy in rules if holds), None)


def choose(wanted, facts):
  """('xla' or 'cudnn', why XLA or '') for `config.model.attention`. Raises UsageError where 'cudnn' cannot be."""
  if wanted == 'xla':
    return 'xla', 'as config.model.attention asks'
  found = obstacle(facts)
  if found is None:
    return 'cudnn', ''
  why, remedy = found
  if wanted == 'cudnn':
    raise UsageError(
      f"config.model.attention: 'cudnn', but {why}; {remedy}, or --config.model.attention=auto"
    )
  return 'xla', f'since {why}'


def settled(config, batch, devices):
  """(the config with 'xla' or 'cudnn' as its attention, the Choice); (the config, None) of a model without attention.

  Args:
    config: complete. batch: of its data. devices: from `mesh.choose_devices`.

  Raises:
    UsageError: 'cudnn' is asked for and does not apply.
  """
  if 'attention' not in config['model']:
    return config, None
  facts = facts_of(config, batch, devices)
  chosen, why = choose(config['model']['attention'], facts)
  line = f'XLA, {why}' if chosen == 'xla' else described(config['model'], facts)
  return attending(config, chosen), Choice(chosen, line)


def described(model, facts):
  window = f' within {model["window"]} tokens' if model.get('window') else ''
  mask = MASKS.get(model['name'], 'bidirectional') + window
  return f'cuDNN flash, {facts.precision}, {mask}, {facts.head_width} wide heads'


def portable(config):
  """The config of a trained run for use on any machine: cuDNN where it applies, whatever it was trained with."""
  return attending(config, 'auto') if config['model'].get('attention') == 'cudnn' else config


def attending(config, how):
  """The config with `how` as its attention, where its model has any."""
  model = config['model']
  return config | {'model': model | {'attention': how}} if 'attention' in model else config
