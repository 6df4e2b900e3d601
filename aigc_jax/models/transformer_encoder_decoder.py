"""The original Transformer (Vaswani et al. 2017): an encoder that reads a source, a decoder that writes from it.

That paper's is norm_position='post', positions='sinusoidal', scale_embeddings and activation='relu'. All fields are
those of `config.model`; floats may be traced.
"""

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.models import blocks, caches, masks
from aigc_jax.models.attention import Where
from aigc_jax.models.layers import Dense, Dropout


class TransformerEncoderDecoder(nn.Module):
  """Sources [batch, source] and the target's tokens so far [batch, time] -> logits [batch, time, vocabulary]."""

  vocabulary_size: Annotated[int, Positive]  # how many tokens there are
  context_length: Annotated[int, Positive]  # tokens of either text; rotary models may be fed more
  source_vocabulary_size: Annotated[int, Positive] | None = None  # None: one vocabulary for both
  layers: Annotated[int, Positive] = 4  # of the decoder
  encoder_layers: Annotated[int, Positive] | None = None  # None: as many
  heads: Annotated[int, Positive] = 4  # of attention
  width: Annotated[int, Positive] = 128  # of the vectors between blocks
  # fewer than heads: grouped queries (Ainslie et al. 2023)
  key_value_heads: Annotated[int, Positive] | None = None
  head_width: Annotated[int, Positive] | None = None  # None: width / heads
  # None: 4 x width; swiglu: 8/3 x width, up to a multiple of 32
  mlp_width: Annotated[int, Positive] | None = None
  positions: Literal['learned', 'rotary', 'sinusoidal', 'none'] = 'learned'  # how a token's place is told
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
  tie_embeddings: bool = True  # the token vectors are the output weights too (Press & Wolf 2017)
  scale_embeddings: bool = False  # token vectors times sqrt(width)
  # of attention weights and of what each part writes; None: none
  dropout: Annotated[float, Fraction] | None = None
  init_scale: Annotated[float, NonNegative] = 0.02  # standard deviation of the initial weights
  residual_init: Literal['normal', 'scaled', 'zero'] = (
    'scaled'  # scaled: init_scale / sqrt(parts of all layers), as in GPT-2
  )
  remat: Literal['none', 'full', 'dots'] = 'none'  # what of a block the backward pass computes again
  # cudnn: flash attention, where a call's mask has a structure; auto: as xla, but training puts cudnn in its place
  # where that applies
  attention: Literal['auto', 'xla', 'cudnn'] = 'auto'
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  def setup(self):
    self.embed = blocks.make_embed(self, self.vocabulary_size)
    if self.source_vocabulary_size is not None:
      self.source_embed = blocks.make_embed(self, self.source_vocabulary_size)
    block_class, norm = blocks.remat_block(self.remat), blocks.make_norm(self)
    self.encoder_block = blocks.make_blocks(self, self.encoder_layers or self.layers, block_class)
    self.decoder_block = blocks.make_blocks(self, self.layers, block_class, crosses=True)
    if self.norm_position == 'pre':
      self.encoder_norm, self.decoder_norm = norm(), norm()
    self.drop = Dropout(self.dropout)
    if not self.tie_embeddings:
      self.head = Dense(self.vocabulary_size, False, self.init_scale, self.dtype)

  def __call__(self, sources, tokens, *, lengths=None, train=False):
    """Logits of a whole batch.

    Args:
      sources: [batch, source] int32, padded on the right.
      tokens: [batch, time] int32: each target behind its begin token; padding on the right needs no mask.
      lengths: [batch] int32: tokens of each source; None: all.
      train: dropout is active, and needs the key 'dropout'.

    Returns:
      Logits of each next token of the target [batch, time, vocabulary] float32.
    """
    return self.logits(self.hidden(sources, tokens, lengths=lengths, train=train))

  def hidden(self, sources, tokens, *, lengths=None, train=False):
    """As `__call__`, but for the vectors [batch, time, width] that `logits` reads."""
    memory = self.read(sources, masks.Structure(lengths=lengths), train)
    slots = jnp.arange(tokens.shape[1])[None]  # [1, time]
    mask = blocks.seen(self, masks.Structure(causal=True), tokens.shape[1])
    where = Where(mask, blocks.rotation_of(self, slots), None)
    x = self.drop(self.embed(tokens, slots), train)
    for block, held in zip(self.decoder_block, memory.layers, strict=True):
      x, _ = block(x, where, None, train, held, memory.mask)
    return self.normed(x)

  def encode(self, sources, lengths, train=False):
    """Sources [batch, source] of `lengths` [batch] tokens -> Memory, for targets that are written step by step."""
    structure = masks.Structure(lengths=lengths)
    return self.read(sources, structure, train)._replace(mask=structure.array(sources.shape[1]))

  def read(self, sources, structure, train):
    """As `encode`, for whole targets: its mask is as `blocks.seen` gives it."""
    mask = blocks.seen(self, structure, sources.shape[1])
    slots = jnp.arange(sources.shape[1])[None]  # [1, source]
    where = Where(mask, blocks.rotation_of(self, slots), None)
    embed = self.embed if self.source_vocabulary_size is None else self.source_embed
    x = self.drop(embed(sources, slots), train)
    for block in self.encoder_block:
      x, _ = block(x, where, None, train)
    x = self.encoder_norm(x) if self.norm_position == 'pre' else x
    return caches.Memory(tuple(block.hold(x) for block in self.decoder_block), mask)

  def decode(self, tokens, cache, mask, memory):
    """As Transformer.decode, of targets that are made from `memory`."""
    start, positions, seen = caches.place(cache, tokens, mask)
    return self.feed(tokens, cache._replace(start=start), positions, seen, memory)

  def branch(self, tokens, cache, before, memory):
    """As Transformer.branch, of targets that are made from `memory`."""
    return self.feed(tokens, cache, *caches.place_branches(cache, tokens, before), memory)

  def feed(self, tokens, cache, positions, seen, memory):
    where = Where(seen[:, None], blocks.rotation_of(self, positions), cache.index)
    x, cache = caches.feed(self.decoder_block, cache, self.embed(tokens, positions), where, memory)
    return self.logits(self.normed(x)), cache

  def init_cache(self, batch_size, length):
    return caches.empty(self, self.layers, batch_size, length)

  def rewind(self, cache, count):
    return caches.without_last(cache, count)

  def normed(self, x):
    return self.decoder_norm(x) if self.norm_position == 'pre' else x

  def logits(self, x):
    """What `hidden` gives, or some places of it [..., width] -> logits [..., vocabulary] float32."""
    return (self.embed.logits(x) if self.tie_embeddings else self.head(x)).astype(jnp.float32)
