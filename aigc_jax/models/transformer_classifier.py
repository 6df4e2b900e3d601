"""A Transformer encoder that classifies sequences: the language model's blocks, looking both ways."""

import math
from functools import partial
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.errors import UsageError
from aigc_jax.models.attention import Where, rotation
from aigc_jax.models.layers import Dense, Dropout, Norm
from aigc_jax.models.transformer import Block, Embed, block_parts, default_mlp_width


class TransformerClassifier(nn.Module):
  """Sequences of tokens [batch, time] -> logits of their classes [batch, classes].

  Fields are those of `config.model`; floats may be traced. The blocks normalize what they read, as the language
  model's do (Vaswani et al. 2017 normalize what they write); the mean over the tokens is classified.
  """

  vocabulary_size: Annotated[int, Positive]
  classes: Annotated[int, Positive]
  context_length: Annotated[int, Positive]  # tokens; rotary models may be fed more
  layers: Annotated[int, Positive] = 2
  heads: Annotated[int, Positive] = 4
  width: Annotated[int, Positive] = 128
  mlp_width: Annotated[int, Positive] | None = (
    None  # None: 4 x width; swiglu: 8/3 x width, up to a multiple of 32
  )
  positions: Literal['learned', 'rotary', 'none'] = 'learned'
  rotary_base: Annotated[float, Positive] = 10000.0
  normalization: Literal['layer_norm', 'rms_norm'] = 'layer_norm'
  normalization_epsilon: Annotated[float, Positive] = 1e-5
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2', 'swiglu'] = 'gelu'
  bias: bool = True
  dropout: Annotated[float, Fraction] | None = None
  init_scale: Annotated[float, NonNegative] = 0.02  # standard deviation of the initial weights
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, inputs, *, mask=None, lengths=None, train=False, sum=None):
    """Logits of a whole batch.

    Args:
      inputs: [batch, time] int32, time <= context_length.
      mask: of rows; a row's logits depend on that row alone, so it is not used, nor is `sum`.
      lengths: [batch] int32: tokens of each row, from the left; None: all.
      train: dropout is active, and needs the key 'dropout'.

    Returns:
      Logits [batch, classes] float32.
    """
    slots = jnp.arange(inputs.shape[1])[None]  # [1, time]
    valid = jnp.ones_like(slots, bool) if lengths is None else slots < lengths[:, None]  # [batch or 1, time]
    head_width, places = self.width // self.heads, self.context_length if self.positions == 'learned' else 0
    turned = rotation(slots, head_width, self.rotary_base) if self.positions == 'rotary' else None
    seen = jnp.broadcast_to(valid[:, None, None, :], (valid.shape[0], 1, *inputs.shape[1:] * 2))
    norm = partial(Norm, self.normalization, self.normalization_epsilon, self.bias, self.dtype)
    parts = block_parts(self, norm, self.heads, head_width, self.width_of_mlp, False)
    x = Embed(self.vocabulary_size, places, self.width, self.init_scale, self.dtype, name='embed')(
      inputs, slots
    )
    x = Dropout(self.dropout)(x, train)
    for i in range(self.layers):
      x, _ = Block(*parts, self.dropout, name=f'block_{i}')(x, Where(seen, turned, None), None, train)
    x = norm(name='final_norm')(x).astype(jnp.float32)
    count = jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    pooled = jnp.where(valid[..., None], x, 0).sum(axis=1) / count
    logits = Dense(self.classes, True, self.init_scale, self.dtype, name='head')(pooled)
    return logits.astype(jnp.float32)

  @property
  def width_of_mlp(self):
    return self.mlp_width or default_mlp_width(self.width, self.activation)

  @property
  def residual_scale(self):
    """Standard deviation of the initial weights that write into the residual stream, as in GPT-2."""
    return self.init_scale / math.sqrt(2 * self.layers)


def check(config):
  """Rules across the fields of a model config. Raises UsageError."""
  width, heads = config['width'], config['heads']
  if width % heads:
    raise UsageError(
      f'config.model.heads: {heads} heads do not divide config.model.width = {width}; choose among '
      f'{", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)}'
    )
  if config['positions'] == 'rotary' and width // heads % 2:
    raise UsageError(
      f'config.model.heads: {heads} heads of {width // heads} units, which is odd; rotary positions turn pairs, so '
      f'make it even'
    )
