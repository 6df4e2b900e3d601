"""What makes a folder of files a checkpoint: a manifest of their hashes, written last and as a whole."""

import hashlib
import json
import os

from aigc_jax import files
from aigc_jax.errors import StorageError, UsageError

FORMAT = 1
MANIFEST = 'manifest.json'


def write_manifest(folder, facts):
  """Hashes every file, waits until all are on the disk, and only then writes manifest.json.

  facts: {name: JSON} that the manifest holds besides.
  """
  written = sorted(path for path in folder.rglob('*') if path.is_file())
  folders = [path for path in folder.rglob('*') if path.is_dir()]
  hashes = {path.relative_to(folder).as_posix(): fingerprint(path) for path in written}
  for path in [*written, *folders, folder, folder.parent]:
    files.sync(path)
  manifest = {'format': FORMAT, **facts, 'files': hashes}
  files.write_json(folder / MANIFEST, {**manifest, 'sha256': digest_of(manifest)})


def fingerprint(path):
  return {'size': os.path.getsize(path), 'sha256': files.sha256_of(path)}


def digest_of(manifest):
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode('utf-8')).hexdigest()


def has_manifest(folder):
  return (folder / MANIFEST).is_file()


def read_manifest(folder):
  """The manifest as a dict. Raises StorageError if it is damaged, UsageError if it is of a newer format."""
  file = folder / MANIFEST
  try:
    manifest = json.loads(file.read_bytes())
    digest = manifest.pop('sha256')
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise StorageError(f'{file}: is damaged: {error}') from error
  if digest != digest_of(manifest):
    raise StorageError(f'{file}: is damaged: its SHA-256 is another')
  if manifest['format'] > FORMAT:
    raise UsageError(f'{file}: written by a newer aigc_jax (format {manifest["format"]}); upgrade aigc_jax')
  return manifest


def verify(folder):
  """The manifest of a folder whose files are all as written. Raises StorageError naming one that is not."""
  manifest = read_manifest(folder)
  for name, written in manifest['files'].items():
    try:
      found = fingerprint(folder / name)
    except OSError as error:
      raise StorageError(f'{folder / name}: is damaged: {error.strerror}') from error
    if found['size'] != written['size']:
      raise StorageError(f'{folder / name}: is damaged: {found["size"]} bytes instead of {written["size"]}')
    if found['sha256'] != written['sha256']:
      raise StorageError(f'{folder / name}: is damaged: its SHA-256 is another')
  return manifest
