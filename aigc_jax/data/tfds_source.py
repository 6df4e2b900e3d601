"""Images through TensorFlow Datasets, read from ArrayRecord files without TensorFlow."""

import contextlib
import hashlib
import importlib.util
import io
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from aigc_jax.data.image_parts import ImageSource, Part, as_part, numbered_classes
from aigc_jax.errors import DataError, UsageError, nearest

READ_EXAMPLES = 512  # at a time
VALIDATION_SPLITS = ('validation', 'test')  # the first that is there validates
FORMAT = 'array_record'


def read(name: str, place: str, data_dir: str | None) -> ImageSource:
  """The features 'image' and 'label' of a data set that lies prepared in `data_dir`, or of one of our builders.

  Raises UsageError where TFDS has no such data set, DataError where it is not prepared or not of images.
  """
  with _quiet():
    builder = _prepared(name, place, data_dir)
    features = builder.info.features
    missing = [n for n in ('image', 'label') if n not in (features or {})]
    if 'image' in missing:
      raise DataError(f"{name}: its features are {', '.join(features or ()) or 'none'}; 'image' is needed")
    parts = {part: _part(name, builder, split) for part, split in _splits(name, builder.info.splits).items()}
  names = getattr(features['label'], 'names', None) if not missing else None
  return ImageSource(
    name, _content_hash(parts), parts, tuple(names) if names else numbered_classes(name, parts)
  )


def _content_hash(parts):
  """A sha256 of the images and labels themselves: the files differ between two preparations of the same set."""
  digest = hashlib.sha256()
  for name, part in parts.items():
    digest.update(f'{name} {part.images.dtype} {part.images.shape}\n'.encode())
    digest.update(np.ascontiguousarray(part.images))
    digest.update(part.labels)
  return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without TFDS's progress bars, lines on standard output and its advice about other libraries."""
  import tensorflow_datasets as tfds

  logger = logging.getLogger('absl')
  level = logger.level
  tfds.disable_progress_bar()
  logger.setLevel(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logger.setLevel(level)


def _prepared(name, place, data_dir):
  """A builder whose files are there; what needs no TensorFlow is prepared now."""
  import tensorflow_datasets as tfds

  from aigc_jax.data import builders

  folder = str(pathlib.Path(data_dir).expanduser() if data_dir else tfds.core.constants.DATA_DIR)
  kind, _, version = place.partition(':')
  own = builders.BUILDERS.get(kind)
  try:
    if own:
      builder = own(data_dir=folder, version=version or None, file_format=FORMAT)
      builder.download_and_prepare()
      return builder
    builder = tfds.builder(place, data_dir=folder)
    if not builder.is_prepared():
      _prepare(name, place, folder)
      builder = tfds.builder(place, data_dir=folder)
  except tfds.core.DatasetNotFoundError:
    known = [*builders.BUILDERS, *tfds.list_builders(with_community_datasets=False)]
    close = nearest(kind, known)
    raise UsageError(
      f'data.source {name!r}: TFDS has no such data set in {folder}; {close}'.rstrip('; ')
    ) from None
  except (UsageError, DataError):
    raise
  except ImportError as error:
    raise _needs_tensorflow(name, place, folder, error) from None
  except Exception as error:  # of many kinds: versions that are not there, a full disk, no network
    raise DataError(f'{name}: TFDS cannot open it in {folder}: {_line(error)}') from None
  if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
    raise DataError(
      f'{name}: prepared in {folder} as {builder.info.file_format.value}, which needs TensorFlow to be read; '
      f'prepare it with file_format={FORMAT!r}'
    )
  return builder


def _prepare(name, place, folder):
  import tensorflow_datasets as tfds

  if importlib.util.find_spec('tensorflow') is None:
    raise _needs_tensorflow(name, place, folder, None)
  tfds.builder(place, data_dir=folder, file_format=FORMAT).download_and_prepare()


def _needs_tensorflow(name, place, folder, error):
  reason = f' ({_line(error)})' if error else ''
  return DataError(
    f'{name}: not prepared in {folder}, and to prepare {place} takes TensorFlow{reason}: install aigc-jax[tf], or '
    f'set data.data_dir to where it is prepared with file_format={FORMAT!r}'
  )


def _line(error):
  return ' '.join(str(error).split())[:200] or type(error).__name__


def _splits(name, splits):
  """{part: TFDS split}: 'train' and what validates, or 'all' where there is but one."""
  if len(splits) == 1:
    return {'all': next(iter(splits))}
  validation = [split for split in VALIDATION_SPLITS if split in splits]
  if 'train' not in splits or not validation:
    raise DataError(
      f"{name}: its splits are {', '.join(splits)}; 'train' and 'validation' or 'test' are needed"
    )
  return {split: split for split in ('train', validation[0])}


def _part(name, builder, split) -> Part:
  where = f'{name}, split {split!r}'
  try:
    source = builder.as_data_source(split=split)
    chunks = []
    for first in range(0, len(source), READ_EXAMPLES):
      examples = source.__getitems__(list(range(first, min(first + READ_EXAMPLES, len(source)))))
      chunks.append({n: _stacked(where, n, examples) for n in ('image', 'label') if n in examples[0]})
  except DataError:
    raise
  except Exception as error:  # a damaged file gives what its decoders make of it
    raise DataError(f'{where}: cannot be read: {_line(error)}; prepare it anew') from None
  if not chunks:
    raise DataError(f'{where}: holds no image')
  shapes = {chunk['image'].shape[1:] for chunk in chunks}
  if len(shapes) > 1:
    raise _mixed(where, shapes)
  arrays = {n: np.concatenate([chunk[n] for chunk in chunks]) for n in chunks[0]}
  return as_part(where, arrays, 'image', 'label')


def _stacked(where, feature, examples):
  arrays = [np.asarray(example[feature]) for example in examples]
  shapes = {array.shape for array in arrays}
  if len(shapes) > 1:
    raise _mixed(where, shapes)
  return np.stack(arrays)


def _mixed(where, shapes):
  first, second = sorted(shapes)[:2]
  return DataError(f'{where}: images of {list(first)} and of {list(second)}; all must have one shape')
