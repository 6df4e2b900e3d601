"""A Transformer encoder that classifies sequences: the language model's blocks, looking both ways."""

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.models import blocks, masks
from aigc_jax.models.attention import Where
from aigc_jax.models.layers import Dense, Dropout


class TransformerClassifier(nn.Module):
  """Sequences of tokens [batch, time] -> logits of their classes [batch, classes].

  Fields are those of `config.model`; floats may be traced. By default the mean over a text's tokens is classified. With
  norm_position='post', embedding_norm, token_types and pooling='first' it is BERT's classifier, and its parameters have
  the names of those of `TransformerEncoder`.
  """

  vocabulary_size: Annotated[int, Positive]  # how many tokens there are
  classes: Annotated[int, Positive]  # how many there are
  context_length: Annotated[int, Positive]  # tokens; rotary models may be fed more
  layers: Annotated[int, Positive] = 2  # blocks, one after another
  heads: Annotated[int, Positive] = 4  # of attention
  width: Annotated[int, Positive] = 128  # of the vectors between blocks
  # fewer than heads: grouped queries (Ainslie et al. 2023)
  key_value_heads: Annotated[int, Positive] | None = None
  head_width: Annotated[int, Positive] | None = None  # None: width / heads
  mlp_width: Annotated[int, Positive] | None = (
    None  # None: 4 x width; swiglu: 8/3 x width, up to a multiple of 32
  )
  positions: Literal['learned', 'rotary', 'none'] = 'learned'  # how a token's place is told
  rotary_base: Annotated[float, Positive] = 10000.0  # rotary: the wave lengths are up to about 2 pi times it
  norm_position: Literal['pre', 'post'] = 'pre'  # each part reads through its norm, or its sum is normalized
  # of the vectors that each part reads, or writes
  normalization: Literal['layer_norm', 'rms_norm'] = 'layer_norm'
  # added to the variance, or mean square, before its root
  normalization_epsilon: Annotated[float, Positive] = 1e-5
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2', 'silu', 'swiglu'] = 'gelu'  # between layers
  bias: bool = True  # whether layers add one
  # queries and keys are normalized, by RMS, before they are compared (Henry et al. 2020)
  query_key_norm: bool = False
  scale_embeddings: bool = False  # token vectors times sqrt(width)
  embedding_norm: bool = False  # the sum of a token's vectors is normalized
  token_types: Annotated[int, Positive] | None = None  # vectors added by a token's type; None: none
  unused_positions: Annotated[int, NonNegative] = 0  # position vectors before that of the first token
  pooling: Literal['mean', 'first'] = (
    'mean'  # over a text's tokens; of its first one, through a layer and tanh
  )
  # of attention weights and of what each part writes; None: none
  dropout: Annotated[float, Fraction] | None = None
  init_scale: Annotated[float, NonNegative] = 0.02  # standard deviation of the initial weights
  # cudnn: flash attention, where a call's mask has a structure; auto: as xla, but training puts cudnn in its place
  # where that applies
  attention: Literal['auto', 'xla', 'cudnn'] = 'auto'
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  def setup(self):
    self.embed = blocks.make_embed(self, self.vocabulary_size)
    self.block, norm = blocks.make_blocks(self, self.layers), blocks.make_norm(self)
    if self.embedding_norm:
      self.embed_norm = norm()
    if self.norm_position == 'pre':
      self.final_norm = norm()
    if self.pooling == 'first':
      self.pool = blocks.Pooler(self.width, self.init_scale, self.dtype)
    self.drop = Dropout(self.dropout)
    self.head = Dense(self.classes, True, self.init_scale, self.dtype)

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
    time = inputs.shape[1]
    lengths = jnp.full(inputs.shape[0], time) if lengths is None else lengths
    slots = jnp.arange(time)[None]  # [1, time]
    mask = blocks.seen(self, masks.Structure(lengths=lengths), time)
    where = Where(mask, blocks.rotation_of(self, slots), None)
    x = self.embed(inputs, slots)
    x = self.drop(self.embed_norm(x) if self.embedding_norm else x, train)
    for block in self.block:
      x, _ = block(x, where, None, train)
    x = self.final_norm(x) if self.norm_position == 'pre' else x
    if self.pooling == 'first':
      return self.head(self.drop(self.pool(x), train)).astype(jnp.float32)
    x = jnp.where((slots < lengths[:, None])[..., None], x.astype(jnp.float32), 0)
    return self.head(x.sum(axis=1) / jnp.maximum(lengths[:, None], 1)).astype(jnp.float32)
