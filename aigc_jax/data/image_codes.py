"""A trained vector-quantized autoencoder as a tokenizer of images, in one JSON file."""

import base64
import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from aigc_jax import files

FORMAT = 1
NAME = 'image_codes'
ROWS = 256  # images coded at a time


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTokenizer:
  """Images to tokens and back. Tokens 0 to codes - 1 are the codebook's, those after them the classes."""

  saved: dict[str, Any]  # the content of tokenizer.json: model, data, class_names and arrays

  @property
  def name(self) -> str:
    return NAME

  @property
  def codes(self) -> int:
    """How many codes there are."""
    return self.saved['model']['codebook_size']

  @property
  def vocabulary_size(self) -> int:
    return self.codes + len(self.saved['class_names'])

  @functools.cached_property
  def sha256(self) -> str:
    return hashlib.sha256(_to_json(self.saved).encode('utf-8')).hexdigest()

  def save(self, path) -> None:
    """Writes one JSON file, whole or not at all. StorageError where that fails."""
    files.write_atomically(path, _to_json(self.saved))

  @functools.cached_property
  def _coder(self):
    """(images -> codes [rows, h, w], codes -> images), compiled."""
    import jax
    import jax.numpy as jnp

    from aigc_jax import models

    module = models.build(self.saved['model'])
    params, codebook = jax.tree.map(jnp.asarray, _arrays(self.saved))
    apply = lambda method, *arrays: module.apply({'params': params}, *arrays, codebook, method=method)
    bernoulli = self.saved['model']['likelihood'] == 'bernoulli'
    finish = jax.nn.sigmoid if bernoulli else lambda outputs: jnp.clip(outputs, 0, 1)
    return jax.jit(lambda x: apply('codes', x)), jax.jit(lambda c: finish(apply('from_codes', c)[0]))

  @functools.cached_property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of an image's codes."""
    import jax

    shape = (1, *self.saved['model']['image_shape'])
    return jax.eval_shape(self._coder[0], jax.ShapeDtypeStruct(shape, np.float32)).shape[1:]

  def encode_images(self, pixels) -> np.ndarray:
    """[images, height, width, channels] uint8 or float32 from 0 to 1 -> codes [images, h * w] int32."""
    scale = 255 if pixels.dtype == np.uint8 else 1
    found = _by_rows(self._coder[0], pixels, lambda rows: rows.astype(np.float32) / scale)
    return found.reshape(len(pixels), -1)

  def decode_images(self, codes) -> np.ndarray:
    """Codes [images, h * w] -> images [images, height, width, channels] float32 from 0 to 1."""
    return _by_rows(self._coder[1], np.asarray(codes).reshape(-1, *self.grid), lambda rows: rows)


def _by_rows(function, array, prepare):
  """function of all rows, as many at a time as compile once; the last ones are padded by the first row."""
  size, found = min(ROWS, len(array)), []
  for first in range(0, len(array), size):
    rows = array[first : first + size]
    padded = np.concatenate([rows, np.repeat(array[:1], size - len(rows), 0)])
    found.append(np.asarray(function(prepare(padded)))[: len(rows)])
  return np.concatenate(found)


def make_tokenizer(config, class_names, params, codebook) -> ImageTokenizer:
  """The tokenizer of a trained autoencoder.

  Args:
    config: its resolved config. class_names: of its data. params: its parameters, nested dicts.
    codebook: [codes, code_width].
  """
  arrays = {'codebook': np.asarray(codebook)} | {f'params/{path}': leaf for path, leaf in _flat(params)}
  return ImageTokenizer(
    {
      'format': FORMAT,
      'name': NAME,
      'model': config['model'],
      'data': config['data'],
      'class_names': list(class_names),
      'arrays': {path: _packed(array) for path, array in arrays.items()},
    }
  )


def _flat(tree, prefix=''):
  for name, leaf in tree.items():
    if isinstance(leaf, dict):
      yield from _flat(leaf, f'{prefix}{name}/')
    else:
      yield f'{prefix}{name}', np.asarray(leaf)


def _packed(array):
  data = np.ascontiguousarray(array, '<f4')
  return {'shape': list(array.shape), 'float32': base64.b64encode(data.tobytes()).decode('ascii')}


def _arrays(saved):
  """(params as nested dicts, codebook) of what `make_tokenizer` packed."""
  from flax import traverse_util

  array = lambda packed: np.frombuffer(base64.b64decode(packed['float32']), '<f4').reshape(packed['shape'])
  arrays = {path: array(packed) for path, packed in saved['arrays'].items()}
  params = traverse_util.unflatten_dict(arrays, sep='/')
  return params['params'], params['codebook']


def _to_json(saved):
  return json.dumps(saved, ensure_ascii=False, sort_keys=True)
