"""Images as rows of tokens: a class, then the codes that a trained vector-quantized autoencoder has for the image.

`run:PATH` names the autoencoder's run. The tokenizer is that autoencoder whole, so a run folder that holds it needs
the other one no more.
"""

import dataclasses
from typing import Annotated, Any

import numpy as np

from aigc_jax.config import Positive
from aigc_jax.data import batches, images
from aigc_jax.data.image_codes import ImageTokenizer
from aigc_jax.data.pipeline import Dataset


@dataclasses.dataclass(frozen=True)
class ImageTokensData:
  source: str = 'run:runs/vq'  # the run of a vector-quantized autoencoder
  batch_size: Annotated[int, Positive] = 32  # images of a step, over all devices and microbatches
  seed: int = 0  # of the order of the data, and of what is drawn with them


def load(data_config: dict[str, Any], tokenizer: ImageTokenizer) -> Dataset:
  """The images that the autoencoder was trained on, as tokens.

  A batch holds 'inputs' (int32 [batch, time]: the class, then all codes but the last), 'targets' (int32, the codes)
  and 'mask' (float32, 0 at the padding of the last validation batch). Raises UsageError and DataError.
  """
  config = batches.checked(ImageTokensData, data_config)
  given = batches.checked(images.ImageData, tokenizer.saved['data'])
  if given['binarization'] == 'dynamic':  # an image has one row of tokens, so its pixels are drawn once
    given = given | {'binarization': 'fixed'}
  *parts, facts = images.read(given)
  train, validation = (_tokens(tokenizer, part) for part in parts)
  rows_of = batches.shuffled_rows(len(train['inputs']), config['batch_size'], config['seed'])

  def train_batch(step, part=batches.WHOLE):
    rows, _ = rows_of(step, part)
    return {name: array[rows] for name, array in train.items()}

  facts = facts | {'steps_per_epoch': round(len(train['inputs']) / config['batch_size'], 2)}
  return _dataset(config, tokenizer, train_batch, validation, facts)


def load_validation(data_config: dict[str, Any], tokenizer: ImageTokenizer) -> Dataset:
  """The validation split of another source of images, or all of it, as tokens."""
  config = batches.checked(ImageTokensData, data_config)
  saved = tokenizer.saved
  others = saved['data'] | {'source': config['source'], 'validation_source': None}
  found = images.load_validation(others, saved['class_names'], saved['model']['image_shape'])
  kept = [
    {name: array[batch['mask'] > 0] for name, array in batch.items()} for batch in found.validation_batches()
  ]
  part = images.Part(*(np.concatenate([batch[name] for batch in kept]) for name in ('images', 'labels')))
  return _dataset(config, tokenizer, batches.no_training, _tokens(tokenizer, part), found.facts)


def _tokens(tokenizer, part):
  """Images and labels -> {'inputs', 'targets': int32 [images, time], 'mask': float32 [images, time]}."""
  codes = tokenizer.encode_images(part.images)  # [images, time]
  first = tokenizer.codes + part.labels[:, None].astype(np.int32)  # [images, 1]
  inputs = np.concatenate([first, codes[:, :-1]], 1)
  return {'inputs': inputs, 'targets': codes, 'mask': np.ones(codes.shape, np.float32)}


def _dataset(config, tokenizer, train_batch, validation, facts):
  size = config['batch_size']

  def validation_batches(part=batches.WHOLE):
    arrays = {name: validation[name] for name in ('inputs', 'targets')}
    for batch in batches.padded_batches(arrays, size, part):
      yield batch | {'mask': np.broadcast_to(batch['mask'][:, None], batch['targets'].shape)}

  height, width = tokenizer.grid
  facts = facts | {
    'autoencoder': config['source'],
    'tokenizer_sha256': tokenizer.sha256,
    'tokenizer': tokenizer.name,
    'vocabulary_size': tokenizer.vocabulary_size,
    'sequence_length': height * width,
  }
  return Dataset(tokenizer, train_batch, validation_batches, -(-len(validation['inputs']) // size), facts)
