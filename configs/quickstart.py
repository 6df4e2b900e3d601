"""The main job: a small Transformer learns Moby-Dick by characters, in minutes on two CPU cores.

  aigc train --config=configs/quickstart.py

It is the default variant of transformer_lm.py.
"""

import pathlib

from aigc_jax.config_files import load_file


def get_config():
  return load_file(str(pathlib.Path(__file__).with_name('transformer_lm.py')))
