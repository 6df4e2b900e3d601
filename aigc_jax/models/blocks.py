"""What Transformers of every shape are made of: token vectors with their positions, and blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.models.attention import Attention
from aigc_jax.models.layers import Dense, Dropout, FeedForward, Norm, matmul, normal
from aigc_jax.models.rotary import Scaling, rotation


def sinusoids(positions, width):
  """[batch or 1, time] -> [batch or 1, time, width]: sines and cosines in turn (Vaswani et al. 2017, section 3.5)."""
  rates = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angles = positions[..., None].astype(jnp.float32) * rates  # [batch or 1, time, width / 2]
  return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, -1)[..., :width]


class Embed(nn.Module):
  """Token vectors; with learned position vectors where `positions` > 0 of them are asked for, or with sinusoids."""

  vocabulary_size: int
  positions: int
  width: int
  deviation: Any
  dtype: Any = jnp.float32
  sinusoidal: bool = False
  scaled: bool = False  # token vectors times sqrt(width) (Vaswani et al. 2017, section 3.4)
  token_types: int = 0  # BERT's "segments": a vector for each, added to a token's
  unused_positions: int = 0  # vectors before that of the first position, which RoBERTa has

  def setup(self):
    self.token = self.param('token', normal(self.deviation), (self.vocabulary_size, self.width))
    if self.positions:
      count = self.positions + self.unused_positions
      self.position = self.param('position', normal(self.deviation), (count, self.width))
    if self.token_types:
      self.token_type = self.param('token_type', normal(self.deviation), (self.token_types, self.width))

  def __call__(self, tokens, positions, token_types=None):
    """[batch, time], [batch or 1, time], [batch, time] or None (all of type 0) -> [batch, time, width]."""
    # A middle axis, or XLA adds the rows' gradients to that of the logits before either is summed over the devices,
    # and so has to sum both.
    x = self.token.astype(self.dtype)[:, None][tokens].squeeze(-2)
    if self.scaled:
      x = x * jnp.asarray(math.sqrt(self.width), self.dtype)
    if self.positions:
      # Each row's own, or XLA sums their gradient over the devices before it is one of the table, and so all of it.
      rows = jnp.broadcast_to(positions + self.unused_positions, tokens.shape)
      x = x + self.position.astype(self.dtype)[rows]
    if self.sinusoidal:
      x = x + sinusoids(positions, self.width).astype(self.dtype)
    if self.token_types:
      x = x + self.token_type.astype(self.dtype)[0 if token_types is None else token_types]
    return x

  def logits(self, x):
    """[..., width] -> [..., vocabulary]: the token vectors as output weights (Press & Wolf 2017)."""
    return matmul(x, self.token.T)


class Block(nn.Module):
  """Self-attention, attention over another text where there is one, feed-forward: each added to what it reads.

  'pre': each reads through its own normalization (GPT-2, Llama). 'post': the sum is normalized (Vaswani et al. 2017,
  BERT).
  """

  make_norm: Callable  # these three: () -> module
  make_attention: Callable
  make_feed_forward: Callable
  dropout: Any
  norm_position: str = 'pre'
  crosses: bool = False

  def setup(self):
    self.attention, self.attention_norm = self.make_attention(), self.make_norm()
    self.mlp, self.mlp_norm = self.make_feed_forward(), self.make_norm()
    self.drop = Dropout(self.dropout)
    if self.crosses:
      self.cross_attention, self.cross_attention_norm = self.make_attention(), self.make_norm()

  def __call__(self, x, where, cache=None, train=False, memory=None, memory_mask=None):
    """[batch, time, width] -> (the same, cache). `memory`: what `hold` gave; memory_mask: as `cross`."""
    y, cache = self.attention(self.before(self.attention_norm, x), where, cache, train)
    x = self.after(self.attention_norm, x + self.drop(y, train))
    if self.crosses:
      y = self.cross_attention.cross(self.before(self.cross_attention_norm, x), memory, memory_mask, train)
      x = self.after(self.cross_attention_norm, x + self.drop(y, train))
    y = self.mlp(self.before(self.mlp_norm, x))
    return self.after(self.mlp_norm, x + self.drop(y, train)), cache

  def hold(self, x):
    """What this block keeps of another text [batch, source, width], for `memory`."""
    return self.cross_attention.hold(x)

  def before(self, norm, x):
    return norm(x) if self.norm_position == 'pre' else x

  def after(self, norm, x):
    return norm(x) if self.norm_position == 'post' else x


def make_norm(model):
  """A normalization of the kind that a model's fields ask for; () -> module."""
  return partial(Norm, model.normalization, model.normalization_epsilon, model.bias, model.dtype)


def make_embed(model, vocabulary_size):
  """The Embed that a model's fields describe."""
  return Embed(
    vocabulary_size,
    model.context_length if model.positions == 'learned' else 0,
    model.width,
    model.init_scale,
    model.dtype,
    model.positions == 'sinusoidal',
    getattr(model, 'scale_embeddings', False),
    getattr(model, 'token_types', None) or 0,
    getattr(model, 'unused_positions', 0),
  )


def make_blocks(model, layers, block_class=Block, crosses=False):
  """Blocks as a model's fields describe them; those that a model lacks are off."""
  heads = model.heads
  shared = {'deviation': model.init_scale, 'dtype': model.dtype}
  or_bias = lambda name: model.bias if getattr(model, name, None) is None else getattr(model, name)
  shared['output_deviation'] = residual_scale(model, layers * (3 if crosses else 2))
  attention = partial(
    Attention,
    heads=heads,
    key_value_heads=getattr(model, 'key_value_heads', None) or heads,
    head_width=width_of_head(model),
    width=model.width,
    bias=or_bias('query_key_value_bias'),
    output_bias=model.bias,
    query_key_norm=getattr(model, 'query_key_norm', False),
    epsilon=model.normalization_epsilon,
    dropout=model.dropout,
    **shared,
  )
  hidden = model.mlp_width or default_mlp_width(model.width, model.activation)
  feed_forward = partial(
    FeedForward, hidden=hidden, activation=model.activation, bias=or_bias('mlp_bias'), **shared
  )
  order = getattr(model, 'norm_position', 'pre')
  make = lambda: block_class(make_norm(model), attention, feed_forward, model.dropout, order, crosses)
  return [make() for _ in range(layers)]


def residual_scale(model, parts):
  """Standard deviation of the initial weights of the `parts` that write into the residual stream."""
  how = getattr(model, 'residual_init', 'scaled')
  if how == 'normal':
    return model.init_scale
  return model.init_scale / math.sqrt(parts) if how == 'scaled' else 0.0


def seen(model, structure, slots):
  """The mask of a call as its blocks take it, made once for all of them: the Structure for cuDNN, an array for XLA.

  cuDNN drops attention weights by random numbers of its own, so a model with dropout attends by XLA.
  """
  by_cudnn = model.attention == 'cudnn' and model.dropout is None
  return structure if by_cudnn else structure.array(slots)


def rotation_of(model, positions):
  """Rotary angles of positions [batch or 1, time], or None where a model's positions are others."""
  if model.positions != 'rotary':
    return None
  scaling = None
  if getattr(model, 'rotary_scaling', None) is not None:
    fields = (getattr(model, f'rotary_{name}') for name in Scaling._fields[1:])
    scaling = Scaling(model.rotary_scaling, *fields)
  return rotation(positions, width_of_head(model), model.rotary_base, scaling)


def width_of_head(model):
  return getattr(model, 'head_width', None) or model.width // model.heads


def default_mlp_width(width, activation):
  """4 x width; gated, 8/3 x width, up to a multiple of 32."""
  return 32 * math.ceil(width / 12) if activation == 'swiglu' else 4 * width


def remat_block(remat):
  """`Block`, with its inner values kept for the backward pass as `remat` says."""
  if remat == 'none':
    return Block
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == 'dots' else None
  return nn.remat(Block, policy=policy, static_argnums=(4,))


class MaskedHead(nn.Module):
  """Logits of the tokens behind masks: a layer, then the output weights with a bias (Devlin et al. 2019).

  `tied`: the output weights are the token vectors.
  """

  width: int
  vocabulary_size: int
  activation: Callable
  norm: Callable
  deviation: Any
  tied: bool
  dtype: Any

  @nn.compact
  def __call__(self, x, embed):
    x = self.activation(Dense(self.width, True, self.deviation, self.dtype, name='transform')(x))
    x = self.norm(name='norm')(x)
    if self.tied:
      bias = self.param('bias', nn.initializers.zeros, (self.vocabulary_size,))
      return embed.logits(x).astype(jnp.float32) + bias
    return Dense(self.vocabulary_size, True, self.deviation, self.dtype, name='output')(x).astype(jnp.float32)


class Pooler(nn.Module):
  """What a text's first token says of all of it, [batch, time, width] -> [batch, width]: a layer and tanh (BERT)."""

  width: int
  deviation: Any
  dtype: Any

  @nn.compact
  def __call__(self, x):
    return jnp.tanh(Dense(self.width, True, self.deviation, self.dtype, name='transform')(x[:, 0]))
