"""What a language model of image tokens shows and draws: pictures, for which the tokenizer has the decoder."""

import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.generation import decode
from aigc_jax.generation.strategies import Sampling
from aigc_jax.tasks.pictures import grid

COLUMNS = 10
SHOWN = 20


def show(decoder, temperature, params, extra, dataset, key):
  """'samples.png': images of all classes in turn."""
  return {'samples.png': draw(decoder, temperature, params, extra, dataset, key, SHOWN)}


def draw(decoder, temperature, params, extra, data, key, num, label=None, interpolate=False):
  """`num` images, of the class `label` or of all in turn -> one picture [height, width, channels].

  Raises UsageError for `interpolate`, since tokens have nothing between them.
  """
  del extra
  if interpolate:
    raise UsageError(
      'interpolate: image tokens have nothing between them; only a variational autoencoder has'
    )
  tokenizer, classes = data.tokenizer, len(data.facts['class_names'])
  labels = np.arange(num) % classes if label is None else np.full(num, label)
  height, width = tokenizer.grid
  made = decode.generate(
    decoder,
    params,
    list(tokenizer.codes + labels[:, None]),
    key,
    Sampling(temperature=temperature),
    height * width,
    vocabulary_size=tokenizer.codes,  # a class is no part of an image
  )
  return grid(tokenizer.decode_images(made.tokens), min(COLUMNS, num))
