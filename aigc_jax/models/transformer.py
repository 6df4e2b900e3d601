"""Transformers of two shapes from the same blocks: decoder and encoder.

GPT-2 (Radford et al. 2019) is the defaults of `Transformer` with `activation='gelu_tanh'`; Llama (Touvron et al. 2023)
is rotary, rms_norm, swiglu, no biases, untied; Qwen 2 (Yang et al. 2024) has query_key_value_bias besides. BERT (Devlin
et al. 2019) is `TransformerEncoder` with norm_position='post', embedding_norm, head_transform and two token types;
RoBERTa (Liu et al. 2019) has one type and two unused_positions. All fields are those of `config.model`; floats may be
traced.
"""

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.errors import UsageError
from aigc_jax.models import blocks, caches, masks, rotary
from aigc_jax.models.attention import Where
from aigc_jax.models.layers import ACTIVATIONS, Dense, Dropout


class Transformer(nn.Module):
  """A decoder: tokens [batch, time] -> logits of each next token [batch, time, vocabulary]."""

  vocabulary_size: Annotated[int, Positive]  # how many tokens there are
  context_length: Annotated[int, Positive]  # tokens; rotary models may be fed more
  layers: Annotated[int, Positive] = 4  # blocks, one after another
  heads: Annotated[int, Positive] = 4  # of attention
  width: Annotated[int, Positive] = 128  # of the vectors between blocks
  # fewer than heads: grouped queries (Ainslie et al. 2023)
  key_value_heads: Annotated[int, Positive] | None = None
  head_width: Annotated[int, Positive] | None = None  # None: width / heads
  # None: 4 x width; swiglu: 8/3 x width, up to a multiple of 32
  mlp_width: Annotated[int, Positive] | None = None
  positions: Literal['learned', 'rotary', 'sinusoidal', 'none'] = 'learned'  # how a token's place is told
  rotary_base: Annotated[float, Positive] = 10000.0  # rotary: the wave lengths are up to about 2 pi times it
  rotary_scaling: Literal['linear', 'llama3', 'yarn'] | None = (
    None  # for texts longer than those of training, see models/rotary.py
  )
  rotary_factor: Annotated[float, Positive] | None = None  # by which slowed frequencies are divided
  rotary_context: Annotated[int, Positive] | None = None  # tokens that the model was first trained on
  # turns over rotary_context up to which a frequency is slowed whole
  rotary_low: Annotated[float, Positive] = 1.0
  rotary_high: Annotated[float, Positive] = 4.0  # turns from which a frequency is left as it is
  norm_position: Literal['pre', 'post'] = 'pre'  # each part reads through its norm, or its sum is normalized
  # of the vectors that each part reads, or writes
  normalization: Literal['layer_norm', 'rms_norm'] = 'layer_norm'
  # added to the variance, or mean square, before its root
  normalization_epsilon: Annotated[float, Positive] = 1e-5
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2', 'silu', 'swiglu'] = 'gelu'  # between layers
  bias: bool = True  # whether layers add one
  query_key_value_bias: bool | None = None  # None: as `bias`
  mlp_bias: bool | None = None  # of feed-forward layers; None: as `bias`
  # queries and keys are normalized, by RMS, before they are compared (Henry et al. 2020)
  query_key_norm: bool = False
  window: Annotated[int, Positive] | None = (
    None  # tokens that a token attends to, itself included; None: all before
  )
  tie_embeddings: bool = True  # the token vectors are the output weights too (Press & Wolf 2017)
  scale_embeddings: bool = False  # token vectors times sqrt(width)
  # of attention weights and of what each part writes; None: none
  dropout: Annotated[float, Fraction] | None = None
  init_scale: Annotated[float, NonNegative] = 0.02  # standard deviation of the initial weights
  residual_init: Literal['normal', 'scaled', 'zero'] = (
    'scaled'  # scaled: init_scale / sqrt(2 x layers), as in GPT-2
  )
  logit_cap: Annotated[float, Positive] | None = None  # c: logits become c tanh(logits / c) (Gemma 2)
  bidirectional_prefix: bool = False  # tokens of a prefix see each other both ways (Raffel et al. 2020)
  remat: Literal['none', 'full', 'dots'] = 'none'  # what of a block the backward pass computes again
  # cudnn: flash attention, where a call's mask has a structure; auto: as xla, but training puts cudnn in its place
  # where that applies
  attention: Literal['auto', 'xla', 'cudnn'] = 'auto'
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  def setup(self):
    self.embed = blocks.make_embed(self, self.vocabulary_size)
    self.block = blocks.make_blocks(self, self.layers, blocks.remat_block(self.remat))
    if self.norm_position == 'pre':
      self.final_norm = blocks.make_norm(self)()
    self.drop = Dropout(self.dropout)
    if not self.tie_embeddings:
      self.head = Dense(self.vocabulary_size, False, self.init_scale, self.dtype)

  def __call__(self, tokens, *, segments=None, prefix=None, train=False):
    """Logits of a whole batch.

    Args:
      tokens: [batch, time] int32, time <= context_length.
      segments: [batch, time] int32 or None: packed documents, numbered; 0 is padding. A token attends within its
        own segment, and positions start anew in each.
      prefix: [batch] int32 or None: how many tokens at a row's beginning are seen by all, with `bidirectional_prefix`.
      train: dropout is active, and needs the key 'dropout'.

    Returns:
      Logits [batch, time, vocabulary] float32.
    """
    return self.logits(self.hidden(tokens, segments=segments, prefix=prefix, train=train))

  def hidden(self, tokens, *, segments=None, prefix=None, train=False):
    """As `__call__`, but for the vectors [batch, time, width] that `logits` reads."""
    positions, mask = self.places(tokens.shape[1], segments, prefix if self.bidirectional_prefix else None)
    x = self.drop(self.embed(tokens, positions), train)
    where = Where(mask, blocks.rotation_of(self, positions), None)
    for block in self.block:
      x, _ = block(x, where, None, train)
    return self.normed(x)

  def places(self, time, segments, prefix):
    """Positions [batch or 1, time] of a whole batch's tokens, and the mask as `blocks.seen` gives it."""
    positions, structure = jnp.arange(time)[None], masks.Structure(causal=True, window=self.window)
    if segments is None and prefix is None:
      return positions, blocks.seen(self, structure, time)
    mask = structure.array(time)  # what follows is no structure that cuDNN knows
    if prefix is not None:
      mask = masks.with_prefix(mask, prefix)
    if segments is not None:
      positions, mask = masks.positions_in(segments), mask & masks.same_segment(segments, segments)[:, None]
    return positions, mask

  def decode(self, tokens, cache, mask=None):
    """Feeds more tokens after those in the cache.

    Args:
      tokens: [batch, n] int32.
      cache: Cache, as made by `init_cache` or returned from here.
      mask: [batch, n] bool or None; False is padding at the left of a prompt, given at the first call only. With
        `bidirectional_prefix` the tokens of that call are the prefix.

    Returns:
      (logits [batch, n, vocabulary] float32, cache).
    """
    start, positions, seen = caches.place(cache, tokens, mask, self.window)
    if self.bidirectional_prefix and mask is not None:
      held = jnp.arange(seen.shape[2]) < cache.index + tokens.shape[1]
      seen = held & (jnp.arange(seen.shape[2]) >= start[:, None])[:, None, :]
    return self.feed(tokens, cache._replace(start=start), positions, seen)

  def branch(self, tokens, cache, before):
    """Feeds tokens that do not follow one another: each is the end of a branch of its own.

    Args:
      tokens: [batch, n] int32, which take the next n slots of the cache.
      cache: Cache.
      before: [batch, n, slots] bool: the slots of the tokens before each in its branch, in their order.

    Returns:
      (logits [batch, n, vocabulary] float32, cache).
    """
    return self.feed(tokens, cache, *caches.place_branches(cache, tokens, before, self.window))

  def feed(self, tokens, cache, positions, seen):
    where = Where(seen[:, None], blocks.rotation_of(self, positions), cache.index)
    x, cache = caches.feed(self.block, cache, self.embed(tokens, positions), where)
    return self.logits(self.normed(x)), cache

  def init_cache(self, batch_size, length):
    return caches.empty(self, self.layers, batch_size, length)

  def rewind(self, cache, count):
    return caches.without_last(cache, count)

  def normed(self, x):
    return self.final_norm(x) if self.norm_position == 'pre' else x

  def logits(self, x):
    """What `hidden` gives, or some places of it [..., width] -> logits [..., vocabulary] float32."""
    logits = self.embed.logits(x) if self.tie_embeddings else self.head(x)
    logits = logits.astype(jnp.float32)
    return logits if self.logit_cap is None else self.logit_cap * jnp.tanh(logits / self.logit_cap)


class TransformerEncoder(nn.Module):
  """An encoder: tokens [batch, time] -> logits of the token at each place [batch, time, vocabulary]."""

  vocabulary_size: Annotated[int, Positive]  # how many tokens there are
  context_length: Annotated[int, Positive]  # tokens; rotary models may be fed more
  layers: Annotated[int, Positive] = 4  # blocks, one after another
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
  embedding_norm: bool = False  # the sum of a token's vectors is normalized
  token_types: Annotated[int, Positive] | None = None  # vectors added by a token's type; None: none
  unused_positions: Annotated[int, NonNegative] = 0  # position vectors before that of the first token
  head_transform: bool = False  # a layer of its own before the output weights, and a bias
  pooler: bool = False  # a layer that reads the first token, for `pooled`
  scale_embeddings: bool = False  # token vectors times sqrt(width)
  # of attention weights and of what each part writes; None: none
  dropout: Annotated[float, Fraction] | None = None
  init_scale: Annotated[float, NonNegative] = 0.02  # standard deviation of the initial weights
  residual_init: Literal['normal', 'scaled', 'zero'] = (
    'scaled'  # scaled: init_scale / sqrt(2 x layers), as in GPT-2
  )
  remat: Literal['none', 'full', 'dots'] = 'none'  # what of a block the backward pass computes again
  # cudnn: flash attention, where a call's mask has a structure; auto: as xla, but training puts cudnn in its place
  # where that applies
  attention: Literal['auto', 'xla', 'cudnn'] = 'auto'
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  def setup(self):
    self.embed = blocks.make_embed(self, self.vocabulary_size)
    self.block = blocks.make_blocks(self, self.layers, blocks.remat_block(self.remat))
    norm = blocks.make_norm(self)
    if self.embedding_norm:
      self.embed_norm = norm()
    if self.norm_position == 'pre':
      self.final_norm = norm()
    self.drop = Dropout(self.dropout)
    if self.head_transform:
      activation = ACTIVATIONS.get(self.activation, nn.silu)
      self.masked_head = blocks.MaskedHead(
        self.width, self.vocabulary_size, activation, norm, self.init_scale, self.tie_embeddings, self.dtype
      )
    elif not self.tie_embeddings:
      self.head = Dense(self.vocabulary_size, False, self.init_scale, self.dtype)
    if self.pooler:
      self.pool = blocks.Pooler(self.width, self.init_scale, self.dtype)

  def __call__(self, tokens, *, segments=None, lengths=None, token_types=None, train=False):
    """Logits of a whole batch.

    Args:
      tokens: [batch, time] int32, time <= context_length.
      segments: [batch, time] int32 or None: packed documents, numbered; 0 is padding. A token attends within its
        own segment, to both sides, and positions start anew in each.
      lengths: [batch] int32 or None: tokens of each row, from the left, where there are no segments; None: all.
      token_types: [batch, time] int32 or None: all 0.
      train: dropout is active, and needs the key 'dropout'.

    Returns:
      Logits [batch, time, vocabulary] float32.
    """
    where = {'segments': segments, 'lengths': lengths, 'token_types': token_types}
    x = self.hidden(tokens, **where, train=train)
    if self.pooler and self.is_initializing():
      self.pooled(x)
    return self.logits(x)

  def hidden(self, tokens, *, segments=None, lengths=None, token_types=None, train=False):
    """As `__call__`, but for the vectors [batch, time, width] that `logits` reads."""
    if segments is None:
      positions = jnp.arange(tokens.shape[1])[None]  # [1, time]
      mask = blocks.seen(self, masks.Structure(lengths=lengths), tokens.shape[1])
    else:
      positions, mask = masks.positions_in(segments), masks.same_segment(segments, segments)[:, None]
    x = self.embed(tokens, positions, token_types)
    x = self.drop(self.embed_norm(x) if self.embedding_norm else x, train)
    where = Where(mask, blocks.rotation_of(self, positions), None)
    for block in self.block:
      x, _ = block(x, where, None, train)
    return self.normed(x)

  def normed(self, x):
    return self.final_norm(x) if self.norm_position == 'pre' else x

  def logits(self, x):
    """What `hidden` gives, or some places of it [..., width] -> logits [..., vocabulary] float32."""
    if self.head_transform:
      return self.masked_head(x, self.embed)
    return (self.embed.logits(x) if self.tie_embeddings else self.head(x)).astype(jnp.float32)

  def pooled(self, x):
    """What `hidden` gives -> what each text's first token says of all of it [batch, width], with `pooler`."""
    return self.pool(x)


def check(config):
  """Rules across the fields of a model config. Raises UsageError."""
  width, heads, groups = config['width'], config['heads'], config['key_value_heads'] or config['heads']
  if config['head_width'] is None and width % heads:
    raise UsageError(
      f'config.model.heads: {heads} heads do not divide config.model.width = {width}; set head_width, or choose '
      f'among {", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)}'
    )
  if heads % groups:
    raise UsageError(
      f'config.model.key_value_heads: {groups} do not divide config.model.heads = {heads}; choose among '
      f'{", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)}'
    )
  head_width = config['head_width'] or width // heads
  if config['positions'] == 'rotary' and head_width % 2:
    raise UsageError(
      f'config.model.head_width: {head_width} is odd; rotary positions turn pairs, so make it even'
    )
  rotary.check(config)
