"""Values of actions: an observation -> the return that each action is worth."""

import math
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import NonNegative, Positive
from aigc_jax.models.convolutions import RECTIFIED
from aigc_jax.models.layers import ACTIVATIONS, Dense


class QTable(nn.Module):
  """States [batch] int32 -> values [batch, actions], a number each."""

  features: Annotated[int, Positive]  # states
  actions: Annotated[int, Positive]  # how many there are in the world
  initial_value: float = 0.0  # above what is possible, untried actions look good
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, states):
    fill = lambda key, shape: jnp.full(shape, self.initial_value, jnp.float32)
    return self.param('values', fill, (self.features, self.actions))[states]


class QNetwork(nn.Module):
  """Observations [batch, features], or states [batch] int32, -> values [batch, actions] through dense layers.

  dueling: the value of the observation and the advantages of the actions, less their mean, have a layer each (Wang et
  al. 2016, eq. 9).
  """

  features: Annotated[int, Positive]  # of an observation, or how many states there are
  actions: Annotated[int, Positive]  # how many there are in the world
  widths: Annotated[tuple[int, ...], Positive] = (120, 84)  # units of the hidden layers
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2'] = 'relu'  # between layers
  # the value of an observation and the advantages of actions have a layer each (Wang et al. 2016)
  dueling: bool = False
  init_scale: Annotated[float, NonNegative] = 1.0  # times the deviation of He et al. 2015
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, observations):
    if jnp.issubdtype(observations.dtype, jnp.integer):
      observations = jax.nn.one_hot(observations, self.features)
    x = observations.astype(self.dtype)
    dense = lambda x, width, scale, name: Dense(
      width, True, scale * self.init_scale / math.sqrt(x.shape[-1]), self.dtype, name=name
    )(x)
    for i, width in enumerate(self.widths):
      x = ACTIVATIONS[self.activation](dense(x, width, RECTIFIED, f'hidden_{i}'))
    values = dense(x, self.actions, 1.0, 'head').astype(jnp.float32)
    if not self.dueling:
      return values
    return dense(x, 1, 1.0, 'value').astype(jnp.float32) + values - values.mean(-1, keepdims=True)
