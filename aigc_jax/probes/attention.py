"""Where each head of each layer looks: its attention weights (Vaswani et al. 2017, eq. 1), before dropout."""

import re

import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.probes.panels import Axis, Heat, Pictures, Text, numbered
from aigc_jax.probes.result import Probe

PATH = re.compile(r'^(?P<stack>.*?)(?P<layer>\d*)/?(?P<part>attention|cross_attention|)/?weights$')
PARTS = {
  ('encoder_block_', 'attention'): 'of the source',
  ('decoder_block_', 'attention'): 'of the target',
  ('decoder_block_', 'cross_attention'): 'from the target to the source',
  ('', ''): 'from the target to the source',  # of a recurrent encoder-decoder
}
ORDER = '', 'of the source', 'of the target', 'from the target to the source'
NOTES = (
  'A row is a token that looks, a column one that is looked at; each row adds up to 1. Entropy (bits) is low where a '
  'head looks at few tokens. What a head reads is weighted by these, which does not say what it does with it (Jain & '
  'Wallace 2019).'
)


def weights_of(arrays):
  """{words for a stack of layers: [layers, heads, time, slots]} of what `inspection.capture` found."""
  found = {}
  for path, array in arrays.items():
    if path.endswith('weights') and (match := PATH.match(path)) and array.ndim == 4:
      name = PARTS.get((match['stack'], match['part']), '')
      found.setdefault(name, {})[int(match['layer'] or 0)] = array[0]
  order = [name for name in ORDER if name in found]
  return {name: np.stack([found[name][i] for i in sorted(found[name])]) for name in order}


def entropy(weights):
  """[..., slots] that add up to 1 -> bits [...]."""
  return -(weights * np.log2(np.maximum(weights, 1e-30))).sum(-1)


def probe(run, reading):
  """Attention maps of a Reading of one text, or of its first image.

  Arrays: weights [layers, heads, time, slots] of each stack of layers. Raises UsageError where the model has none.
  """
  _, arrays = reading.capture()
  found = weights_of(arrays)
  if not found:
    raise UsageError(f'{run.path}: its model, {run.config["model"]["name"]}, has no attention to show')
  panels, kept = [], {}
  for name, weights in found.items():
    weights = weights.astype(np.float32)
    axes = numbered('layer', len(weights)), numbered('head', weights.shape[1])
    panels += (of_text if reading.tokens else of_image)(reading, name, weights, axes)
    spread = entropy(weights).mean(-1)  # [layers, heads]
    panels.append(Heat(spaced('mean entropy of attention, bits', name), spread, axes))
    kept[spaced('weights', name).replace(' ', '_')] = weights
  return Probe('attention', 'attention', panels, kept, NOTES)


def spaced(*words):
  return ' '.join(word for word in words if word)


def of_text(reading, name, weights, axes):
  asks = reading.sources if name == 'of the source' else reading.tokens
  told = reading.sources if name.endswith('source') else reading.tokens
  rows, columns = Axis('looks', asks), Axis('looked at', told)
  title = spaced('attention', name)
  return [
    Text(title, asks, weights, axes, others=told, pairwise=True, unit='attention'),
    Heat(title, weights, (*axes, rows, columns)),
  ]


def of_image(reading, name, weights, axes):
  """How much all patches of an image look at each, on their places."""
  model, image = reading.module, np.asarray(reading.inputs[0][:1])
  height, width = (side // model.patch_size for side in model.image_shape[:2])
  received = weights.mean(2).reshape(*weights.shape[:2], height, width)
  places = Axis('row of patches', list(map(str, range(height)))), Axis('column', list(map(str, range(width))))
  return [
    Pictures('the image', image[None], Axis('', ['']), Axis('', [''])),
    Heat(spaced('attention that a patch receives, mean over all', name), received, (*axes, *places)),
  ]
