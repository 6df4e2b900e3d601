"""A decoder-only Transformer; GPT-2 and Llama are settings of its fields."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.errors import UsageError
from aigc_jax.models.attention import Attention, Where, rotation, visible
from aigc_jax.models.layers import Dense, Dropout, FeedForward, Norm, matmul, normal


class Cache(NamedTuple):
  """Keys and values of the tokens fed so far."""

  index: Any  # () int32: slots filled
  start: Any  # [batch] int32: slots at the left that are padding
  layers: Any  # per layer (keys, values), each [batch * key_value_heads, slots, head_width]


class Embed(nn.Module):
  """Token vectors, with learned position vectors where `positions` > 0 of them are asked for."""

  vocabulary_size: int
  positions: int
  width: int
  deviation: Any
  dtype: Any = jnp.float32

  def setup(self):
    self.token = self.param('token', normal(self.deviation), (self.vocabulary_size, self.width))
    if self.positions:
      self.position = self.param('position', normal(self.deviation), (self.positions, self.width))

  def __call__(self, tokens, positions):
    """[batch, time], [batch or 1, time] -> [batch, time, width]."""
    x = self.token.astype(self.dtype)[tokens]
    return x + self.position.astype(self.dtype)[positions] if self.positions else x

  def logits(self, x):
    """[..., width] -> [..., vocabulary]: the token vectors as output weights (Press & Wolf 2017)."""
    return matmul(x, self.token.T)


class Block(nn.Module):
  """Attention, then feed-forward, each added to what it reads through its own normalization."""

  norm: Callable  # these three: name -> module
  attention: Callable
  feed_forward: Callable
  dropout: Any

  @nn.compact
  def __call__(self, x, where, cache=None, train=False):
    dropout = Dropout(self.dropout)
    y, cache = self.attention(name='attention')(self.norm(name='attention_norm')(x), where, cache, train)
    x = x + dropout(y, train)
    y = self.feed_forward(name='mlp')(self.norm(name='mlp_norm')(x))
    return x + dropout(y, train), cache


def block_parts(model, norm, key_value_heads, head_width, mlp_width, query_key_norm):
  """(norm, attention, feed_forward) of a Block as a model's fields describe them."""
  shared = {
    'bias': model.bias,
    'deviation': model.init_scale,
    'output_deviation': model.residual_scale,
    'dtype': model.dtype,
  }
  attention = partial(
    Attention,
    heads=model.heads,
    key_value_heads=key_value_heads,
    head_width=head_width,
    query_key_norm=query_key_norm,
    epsilon=model.normalization_epsilon,
    dropout=model.dropout,
    **shared,
  )
  return norm, attention, partial(FeedForward, hidden=mlp_width, activation=model.activation, **shared)


def default_mlp_width(width, activation):
  """4 x width; gated, 8/3 x width, up to a multiple of 32."""
  return 32 * math.ceil(width / 12) if activation == 'swiglu' else 4 * width


class Transformer(nn.Module):
  """Tokens [batch, time] -> logits of each next token [batch, time, vocabulary].

  Fields are those of `config.model`; floats may be traced. GPT-2 (Radford et al. 2019): the defaults with
  `activation='gelu_tanh'`. Llama (Touvron et al. 2023): rotary, rms_norm, swiglu, no biases, untied.
  """

  vocabulary_size: Annotated[int, Positive]
  context_length: Annotated[int, Positive]  # tokens; rotary models may be fed more
  layers: Annotated[int, Positive] = 4
  heads: Annotated[int, Positive] = 4
  width: Annotated[int, Positive] = 128
  key_value_heads: Annotated[int, Positive] | None = (
    None  # fewer than heads: grouped queries (Ainslie et al. 2023)
  )
  head_width: Annotated[int, Positive] | None = None  # None: width / heads
  mlp_width: Annotated[int, Positive] | None = (
    None  # None: 4 x width; swiglu: 8/3 x width, up to a multiple of 32
  )
  positions: Literal['learned', 'rotary', 'none'] = 'learned'
  rotary_base: Annotated[float, Positive] = 10000.0
  normalization: Literal['layer_norm', 'rms_norm'] = 'layer_norm'
  normalization_epsilon: Annotated[float, Positive] = 1e-5
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2', 'swiglu'] = 'gelu'
  bias: bool = True
  query_key_norm: bool = False
  window: Annotated[int, Positive] | None = (
    None  # tokens that a token attends to, itself included; None: all before
  )
  tie_embeddings: bool = True
  dropout: Annotated[float, Fraction] | None = None
  init_scale: Annotated[float, NonNegative] = 0.02  # standard deviation of the initial weights
  residual_init: Literal['normal', 'scaled', 'zero'] = (
    'scaled'  # scaled: init_scale / sqrt(2 x layers), as in GPT-2
  )
  logit_cap: Annotated[float, Positive] | None = None  # c: logits become c tanh(logits / c) (Gemma 2)
  remat: Literal['none', 'full', 'dots'] = 'none'  # what of a block the backward pass computes again
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  def setup(self):
    positions = self.context_length if self.positions == 'learned' else 0
    self.embed = Embed(self.vocabulary_size, positions, self.width, self.init_scale, self.dtype)
    norm = partial(Norm, self.normalization, self.normalization_epsilon, self.bias, self.dtype)
    parts = block_parts(
      self,
      norm,
      self.key_value_heads or self.heads,
      self.width_of_head,
      self.width_of_mlp,
      self.query_key_norm,
    )
    self.block = [self.block_class(*parts, self.dropout) for _ in range(self.layers)]
    self.final_norm = norm()
    self.drop = Dropout(self.dropout)
    if not self.tie_embeddings:
      self.head = Dense(self.vocabulary_size, False, self.init_scale, self.dtype)

  def __call__(self, tokens, *, segments=None, train=False):
    """Logits of a whole batch.

    Args:
      tokens: [batch, time] int32, time <= context_length.
      segments: [batch, time] int32 or None: packed documents, numbered; 0 is padding. A token attends within its
        own segment, and positions start anew in each.
      train: dropout is active, and needs the key 'dropout'.

    Returns:
      Logits [batch, time, vocabulary] float32.
    """
    time = tokens.shape[1]
    slots = jnp.arange(time)[None]  # [1, time]
    positions, mask = slots, visible(slots, slots, self.window)
    if segments is not None:
      mask = mask & (segments[:, :, None] == segments[:, None, :])
      begins = jnp.concatenate(
        [slots[:, :1] == 0 * segments[:, :1], segments[:, 1:] != segments[:, :-1]], axis=1
      )
      positions = slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)
    x = self.drop(self.embed(tokens, positions), train)
    where = Where(mask[:, None], self.rotation(positions), None)
    for block in self.block:
      x, _ = block(x, where, None, train)
    return self.logits(x)

  def decode(self, tokens, cache, mask=None):
    """Feeds more tokens after those in the cache.

    Args:
      tokens: [batch, n] int32.
      cache: Cache, as made by `init_cache` or returned from here.
      mask: [batch, n] bool or None; False is padding at the left of a prompt, given at the first call only.

    Returns:
      (logits [batch, n, vocabulary] float32, cache).
    """
    start = cache.start if mask is None else cache.start + jnp.sum(~mask, axis=1, dtype=jnp.int32)
    slots = jnp.arange(cache.layers[0][0].shape[1])[None]  # [1, slots]
    here = cache.index + jnp.arange(tokens.shape[1])[None]  # [1, n]
    seen = visible(here, slots, self.window) & (slots >= start[:, None])[:, None, :]  # [batch, n, slots]
    positions = jnp.maximum(here - start[:, None], 0)  # [batch, n]
    where = Where(seen[:, None], self.rotation(positions), cache.index)
    x, layers = self.embed(tokens, positions), []
    for block, held in zip(self.block, cache.layers, strict=True):
      x, held = block(x, where, held, False)
      layers.append(held)
    return self.logits(x), Cache(cache.index + tokens.shape[1], start, tuple(layers))

  def init_cache(self, batch_size, length):
    """An empty Cache of `length` slots a row; padding takes slots too, so there may be more than context_length."""
    shape = (batch_size * (self.key_value_heads or self.heads), length, self.width_of_head)
    empty = lambda: (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
    start = jnp.zeros(batch_size, jnp.int32)
    return Cache(jnp.int32(0), start, tuple(empty() for _ in range(self.layers)))

  def rotation(self, positions):
    return rotation(positions, self.width_of_head, self.rotary_base) if self.positions == 'rotary' else None

  def logits(self, x):
    """The last block's output [batch, time, width] -> logits [batch, time, vocabulary] float32."""
    x = self.final_norm(x)
    logits = self.embed.logits(x) if self.tie_embeddings else self.head(x)
    logits = logits.astype(jnp.float32)
    return logits if self.logit_cap is None else self.logit_cap * jnp.tanh(logits / self.logit_cap)

  @property
  def block_class(self):
    """`Block`, with its inner values kept for the backward pass as `remat` says."""
    if self.remat == 'none':
      return Block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == 'dots' else None
    return nn.remat(Block, policy=policy, static_argnums=(4,))

  @property
  def width_of_head(self):
    return self.head_width or self.width // self.heads

  @property
  def width_of_mlp(self):
    return self.mlp_width or default_mlp_width(self.width, self.activation)

  @property
  def residual_scale(self):
    """Standard deviation of the initial weights that write into the residual stream."""
    if self.residual_init == 'normal':
      return self.init_scale
    return self.init_scale / math.sqrt(2 * self.layers) if self.residual_init == 'scaled' else 0.0


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
