"""Peak memory of importing and exporting a random checkpoint of GPT-2's shape, beside its size.

  python benchmarks/import_memory.py [--gigabytes=1.0]

Each is a process of its own, whose peak is that of all it holds, Python and JAX included.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from aigc_jax import models
from aigc_jax.config import fields_of, fill_in
from aigc_jax.interop import checkpoints, settings, tables
from aigc_jax.safetensors_file import Entry, Writer

WIDTH, HEADS, VOCABULARY, CONTEXT = (
  1280,
  20,
  50257,
  1024,
)  # of GPT-2 large, with as many layers as fill the size
MEASURED = """
import sys
from aigc_jax import cli
status = cli.main(sys.argv[1:])
peak = [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]
print('peak', int(peak.split()[1]) * 1024)
sys.exit(status)
"""


def write_checkpoint(folder, octets):
  """A folder of about so many bytes. Returns how many they are."""
  layers = max(1, round((octets / 4 - (VOCABULARY + CONTEXT) * WIDTH) / (12 * WIDTH**2)))
  config = {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'vocab_size': VOCABULARY}
  config |= {'n_positions': CONTEXT, 'n_embd': WIDTH, 'n_layer': layers, 'n_head': HEADS}
  (folder / 'config.json').write_text(json.dumps(config))
  model = settings.model_of(folder / 'config.json', config, [])
  name = model.pop('name')
  model = {'name': name} | fill_in(fields_of(models.SCHEMAS[name]), model, 'model')
  shapes = checkpoints.shapes_of(model)
  rng, rows = np.random.default_rng(0), checkpoints.rows_of(tables.GPT2, 'transformer', shapes)
  shapes = {row.name: checkpoints.shape_in(row, shapes) for row in rows}
  with Writer(
    folder / 'model.safetensors', {name: Entry('F32', shape) for name, shape in shapes.items()}
  ) as file:
    for name, shape in shapes.items():
      file.put(name, [rng.standard_normal(shape, np.float32)])
  return os.path.getsize(folder / 'model.safetensors')


def peak(*arguments):
  """Bytes."""
  found = subprocess.run(
    [sys.executable, '-c', MEASURED, *arguments], capture_output=True, text=True, check=True
  )
  return int(found.stdout.rsplit('peak ', 1)[1])


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--gigabytes', type=float, default=1.0)
  octets = parser.parse_args().gigabytes * 1e9
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / 'in').mkdir()
    size = write_checkpoint(folder / 'in', octets)
    print(f'checkpoint: {size / 1e6:.0f} MB')
    for name, arguments in (
      ('import', ('import', str(folder / 'in'), str(folder / 'run'))),
      ('export', ('export', str(folder / 'run'), str(folder / 'out'))),
    ):
      found = peak(*arguments)
      print(f'{name}: peak {found / 1e6:.0f} MB, {found / size:.2f} times the checkpoint', flush=True)
    same = (folder / 'in/model.safetensors').read_bytes() == (folder / 'out/model.safetensors').read_bytes()
    print('what came out is what went in' if same else 'what came out DIFFERS')


if __name__ == '__main__':
  main()
