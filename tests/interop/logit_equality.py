"""Imported models against `transformers`, over random configurations.

  python -m tests.interop.logit_equality [ARCHITECTURE ...]

prints, for each, the largest relative difference of logits in float32: of 20 configurations (odd sizes, tied and
untied, biases on and off, rotary scalings), of rows padded on the right and on the left. Where one is too large, the
first layer whose states differ is named.
"""

import os
import pathlib
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
from flax import traverse_util

from aigc_jax import models
from aigc_jax.interop import checkpoints
from aigc_jax.models.blocks import Block
from tests.interop import peers

CONFIGURATIONS, TOLERANCE = 20, 1e-4  # float32 sums of other orders differ by 1e-6 or so


def ours(folder, tokens, mask):
  """As `peers.run`, of the imported model."""
  found = checkpoints.open_folder(folder)
  module, params = (
    models.build(found.model),
    traverse_util.unflatten_dict(dict(checkpoints.read(found)), sep='/'),
  )
  inputs, method = {'segments': mask.astype(np.int32)}, '__call__'
  if found.model['name'] == 'transformer_classifier':
    inputs = {'lengths': mask.sum(1)}
  elif found.model.get('pooler'):
    method = 'hidden'

  def apply(params, tokens, inputs):
    keep = lambda part, _: isinstance(part, Block)
    return module.apply({'params': params}, tokens, **inputs, method=method, capture_intermediates=keep)

  logits, kept = jax.jit(apply)(params, tokens, inputs)
  if method == 'hidden':
    logits = module.apply({'params': params}, logits, method='pooled')
  blocks = [kept['intermediates'][f'block_{i}']['__call__'][0][0] for i in range(found.model['layers'])]
  return np.asarray(logits), [np.asarray(block) for block in blocks]


def relative(a, b):
  return float(np.abs(a - b).max() / np.abs(b).max())


def difference(architecture, seed, side, folder):
  """The largest relative difference of logits. Raises AssertionError that names the first wrong layer."""
  peer = peers.make(architecture, seed)
  peers.save(peer, folder)
  tokens, mask = peers.batch(peer, seed, side)
  theirs, their_states = peers.run(peer, tokens, mask)
  logits, states = ours(folder, tokens, mask)
  real = mask if logits.ndim == 3 else slice(None)
  found = relative(logits[real], theirs[real])
  if found > TOLERANCE:
    raise AssertionError(
      f'{architecture} {seed} {side}: logits differ by {found:.1e}; {blame(states, their_states, mask)}'
    )
  return found


def blame(states, theirs, mask):
  """Which layer is the first whose states differ."""
  final = len(states)  # the last of theirs may be normalized already
  for i, (a, b) in enumerate(zip(states, theirs[1:], strict=True)):
    if (i + 1 < final) and relative(a[mask], b[mask]) > TOLERANCE:
      return f'the first wrong layer is block_{i}'
  return f'all layers before block_{final - 1} are right'


def sides(architecture):
  """A classifier of ours reads rows from the left."""
  return ('right',) if architecture.endswith(('classifier', 'pooler')) else ('right', 'left')


def main(names):
  print('| architecture | configurations | largest relative difference of logits |\n|---|---|---|')
  for architecture in names or peers.MAKERS:
    found = []
    for seed in range(CONFIGURATIONS):
      for side in sides(architecture):
        with tempfile.TemporaryDirectory() as folder:
          found.append(difference(architecture, seed, side, pathlib.Path(folder)))
      jax.clear_caches()
    print(f'| {architecture} | {CONFIGURATIONS} | {max(found):.1e} |', flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
