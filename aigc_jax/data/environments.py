"""No data, but a world to act in: batches say how many transitions are learned from, and which episodes evaluate."""

import dataclasses
import functools
from typing import Annotated, Any

import numpy as np

from aigc_jax import environments
from aigc_jax.config import Positive
from aigc_jax.data import batches
from aigc_jax.data.pipeline import Dataset
from aigc_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class EnvironmentData:
  source: str = 'environment:cartpole'  # environment:NAME, or gymnax:NAME where gymnax is installed
  environments: Annotated[int, Positive] = 16  # copies of the world that are acted in at once
  batch_size: Annotated[int, Positive] = 128  # transitions of a step, over all devices and microbatches
  validation_episodes: Annotated[int, Positive] = (
    100  # played greedily at each evaluation, the same ones always
  )
  seed: int = 0  # changes nothing: what happens is drawn from config.seed


def load(data_config: dict[str, Any]) -> Dataset:
  """The world that `config.data` names. Raises UsageError.

  A batch holds 'mask' (float32 [batch], all 1); one of an evaluation holds 'episodes' (int32 [batch], their numbers)
  besides, and 'mask' is 0 at the padding of the last.
  """
  config = batches.checked(EnvironmentData, data_config)
  environment = environments.make(config['source'])
  rows, worlds, episodes = (config[name] for name in ('batch_size', 'environments', 'validation_episodes'))
  if rows % worlds:
    raise UsageError(
      f'config.data.batch_size: {rows} transitions are not as many of each of config.data.environments = {worlds}; use '
      f'{-(-rows // worlds) * worlds}'
    )

  def train_batch(step, part=batches.WHOLE):
    del step
    return {'mask': np.ones(len(np.arange(rows)[part]), np.float32)}

  facts = {
    'source': config['source'],
    'size': f'{worlds:,} worlds of {environment.actions} actions',
    'split': f'evaluations play {episodes:,} episodes, the same ones always',
    'time_limit': environment.time_limit,
    'steps_per_epoch': None,
  }
  arrays = {'episodes': np.arange(episodes, dtype=np.int32)}
  validation_batches = functools.partial(batches.padded_batches, arrays, rows)
  return Dataset(None, train_batch, validation_batches, -(-episodes // rows), facts)


load_validation = load  # another source is another world
