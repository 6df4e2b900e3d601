"""A folder of arrays that appears whole or not at all, and is checked against its hashes when opened."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from aigc_jax import files
from aigc_jax.errors import StorageError

MANIFEST = 'manifest.json'


def default_folder() -> Path:
  """$XDG_CACHE_HOME/aigc_jax, or ~/.cache/aigc_jax."""
  return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'aigc_jax'


def write_array(path: Path, chunks: Iterable[np.ndarray], dtype) -> None:
  """Writes `chunks` one after another as one .npy file, never holding them all."""
  header = {'descr': np.lib.format.dtype_to_descr(np.dtype(dtype)), 'fortran_order': False}
  count = 0
  with open(path, 'wb') as stream:
    # numpy leaves room in the header for the length to grow, so it is written again once it is known
    np.lib.format.write_array_header_1_0(stream, header | {'shape': (0,)})
    for chunk in chunks:
      stream.write(np.ascontiguousarray(chunk, dtype))
      count += len(chunk)
    stream.seek(0)
    np.lib.format.write_array_header_1_0(stream, header | {'shape': (count,)})


def remembered(folder: Path, make: Callable[[Path], None]) -> tuple[Path, bool]:
  """`folder` with the files that `make(folder)` writes, and whether they were there already.

  Made in a temporary folder beside it and renamed, so processes may race and a killed one leaves no half. A
  folder with a missing, cut or changed file is made anew. Raises StorageError where writing fails.
  """
  if _whole(folder):
    return folder, True
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'{folder.name}.tmp-', dir=folder.parent))
  except OSError as error:
    raise _unwritable(folder.parent, error) from None
  try:
    make(temporary)
    hashes = {file.name: files.sha256_of(file) for file in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps(hashes), encoding='utf-8')
    with contextlib.suppress(OSError):
      temporary.rename(folder)
    if not _whole(folder):  # what lay there is broken
      shutil.rmtree(folder, ignore_errors=True)
      temporary.rename(folder)
    return folder, False
  except OSError as error:
    raise _unwritable(folder.parent, error) from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(folder, error):
  return StorageError(
    f'{folder}: the cache of tokens cannot be written ({error.strerror}); set another data.cache_dir'
  )


def _whole(folder):
  try:
    hashes = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
    return all(files.sha256_of(folder / name) == digest for name, digest in hashes.items())
  except (OSError, ValueError, AttributeError):
    return False
