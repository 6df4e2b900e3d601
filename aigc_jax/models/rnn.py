"""Recurrent networks: a language model and a classifier, made of one stack of Elman, GRU or LSTM layers."""

import math
from functools import partial
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.errors import UsageError
from aigc_jax.models.blocks import Embed
from aigc_jax.models.layers import Dropout, matmul
from aigc_jax.models.recurrence import CELLS, Steps, inside, recurrence, zero_state


def uniform(bound):
  """Initializer: even noise in [-bound, bound], a bound that may be traced."""
  return lambda key, shape, dtype=jnp.float32: bound * jax.random.uniform(key, shape, dtype, -1, 1)


def orthogonal(key, shape, dtype=jnp.float32):
  """Initializer of [width, gates * width]: an orthogonal matrix for each gate (Saxe et al. 2014)."""
  gates = jax.random.split(key, shape[1] // shape[0])
  return jnp.concatenate([nn.initializers.orthogonal()(k, (shape[0],) * 2, dtype) for k in gates], axis=1)


@jax.custom_vjp
def lookup(table, tokens):
  """table [vocabulary, n], tokens [...] -> [..., n]. The gradient is a product with ones and zeros.

  XLA's CPU backend adds rows up one by one; for few tokens the product is faster.
  """
  return table[tokens]


def lookup_backward(kept, change):
  tokens, like = kept
  chosen = tokens.reshape(-1) == jnp.arange(like.shape[0])[:, None]  # [vocabulary, tokens]
  return chosen.astype(change.dtype) @ change.reshape(-1, change.shape[-1]), None


lookup.defvjp(lambda table, tokens: (table[tokens], (tokens, table)), lookup_backward)


def projects_vocabulary(vocabulary_size, tokens, inputs):
  """Whether it is less work to multiply every token's vector by a kernel and look up the products.

  Counts multiplications, gradients included: 3 products of the vocabulary and one with ones and zeros, against 3.
  """
  return vocabulary_size * (3 * inputs + tokens) < 3 * tokens * inputs


def standardize(x, epsilon, parts=()):
  """x [..., n] in float32, centred and of unit variance; where `parts` says, split and each part by itself."""
  x = x.astype(jnp.float32)
  normed = lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + epsilon)
  return jnp.concatenate([normed(part) for part in jnp.split(x, parts, -1)], -1)


class Layer(nn.Module):
  """One direction of one layer, [time, batch, inputs] -> [time, batch, width]."""

  cell: str
  width: int
  bias: bool
  layer_norm: bool
  epsilon: Any
  init_scale: Any
  recurrent_init: str
  forget_bias: Any
  dtype: Any
  reverse: bool = False

  @nn.compact
  def __call__(self, x, state, steps, tokens=None):
    """`tokens` [time, batch]: x is [vocabulary, inputs], what they stand for. Returns (outputs, last state)."""
    columns = CELLS[self.cell].gates * self.width
    noise = uniform(1 / math.sqrt(self.width) if self.init_scale is None else self.init_scale)
    kernel = self.param('input', noise, (x.shape[-1], columns))
    recurrent_noise = orthogonal if self.recurrent_init == 'orthogonal' else noise
    recurrent = self.param('recurrent', recurrent_noise, (self.width, columns))
    projected, norm = matmul(x.astype(self.dtype), kernel), None
    if self.layer_norm:
      projected, norm = self.normalized(projected), self.norms()
    if self.bias:
      projected = projected + self.param('bias', self.initial_bias(noise), (columns,)).astype(self.dtype)
    bias = self.param('recurrent_bias', noise, (self.width,)) if self.bias and self.cell == 'gru' else None
    if tokens is not None:
      projected = lookup(projected, tokens)
    inputs, settings = (self.cell, projected, recurrent, state, steps), dict(bias=bias, norm=norm)
    if self.is_mutable_collection('intermediates'):  # somebody looks inside, see `inspection.capture`
      self.sow('intermediates', 'inside', inside(*inputs, **settings, reverse=self.reverse))
    return recurrence(*inputs, **settings, reverse=self.reverse)

  def initial_bias(self, noise):
    """The LSTM's forget gates are open at first (Gers et al. 2000; Jozefowicz et al. 2015)."""
    opened = self.forget_bias * (jnp.arange(4 * self.width) // self.width == 1) if self.cell == 'lstm' else 0
    return lambda key, shape: noise(key, shape) + opened

  def standardized(self, x):
    """A GRU's candidate is normalized apart from its gates, as Ba et al. 2016 have it (supplement, eq. 23 to 25)."""
    return standardize(x, self.epsilon, (2 * self.width,) if self.cell == 'gru' else ())

  def normalized(self, projected):
    scale = self.param('input_scale', nn.initializers.ones, projected.shape[-1:])
    return (self.standardized(projected) * scale).astype(self.dtype)

  def norms(self):
    """What is done to u and to the LSTM's c (Ba et al. 2016, supplement, eq. 20 to 22); shifts of u are in the bias."""
    ones, columns = nn.initializers.ones, CELLS[self.cell].gates * self.width
    scale = self.param('recurrent_scale', ones, (columns,))
    if self.cell != 'lstm':
      return lambda u: self.standardized(u) * scale, lambda c: c
    cell_scale = self.param('cell_scale', ones, (self.width,))
    cell_shift = self.param('cell_shift', nn.initializers.zeros, (self.width,))
    finish = lambda c: standardize(c, self.epsilon) * cell_scale + cell_shift
    return lambda u: self.standardized(u) * scale, finish


class Stack(nn.Module):
  """Layers one upon another; of several directions, the next layer reads all, side by side."""

  layer: Any  # name, reverse -> module
  cell: str
  layers: int
  width: int
  directions: tuple  # of bools: whether each reads in reverse
  dropout: Any
  variational_dropout: Any
  dtype: Any

  @nn.compact
  def __call__(self, table, tokens, states, steps, train):
    """Args: table: [vocabulary, inputs]; tokens: [time, batch]; states: a state for each layer and direction.

    Returns (outputs [time, batch, directions * width], states).
    """
    batch, last, table = tokens.shape[1], [], table.astype(self.dtype)
    between, locked = Dropout(self.dropout), Dropout(self.variational_dropout)
    noisy = train and self.variational_dropout is not None
    factors = lambda width: locked(jnp.ones((batch, width)), train)  # of a whole sequence
    whole = projects_vocabulary(table.shape[0], tokens.size, table.shape[1]) and not noisy
    x = table if whole else table[tokens]
    for i in range(self.layers):
      outputs = []
      if i:
        x = between(x, train)
      if noisy:  # Gal & Ghahramani 2016, section 4: on what a layer reads, and on its own state
        x = x * factors(x.shape[-1]).astype(x.dtype)
      for reverse in self.directions:
        here = steps._replace(dropped=factors(self.width)) if noisy else steps
        name = f'layer_{i}_reversed' if reverse else f'layer_{i}'
        module = self.layer(name=name, reverse=reverse)
        y, state = module(x, states[len(last)], here, tokens if whole and i == 0 else None)
        outputs.append(y)
        last.append(state)
      x = jnp.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
    return x, tuple(last)


def make_stack(model, directions, name=None):
  """The Stack that a model's fields describe."""
  names = 'cell', 'width', 'bias', 'layer_norm', 'init_scale', 'recurrent_init', 'forget_bias', 'dtype'
  layer = partial(Layer, epsilon=model.normalization_epsilon, **{n: getattr(model, n) for n in names})
  shape = model.cell, model.layers, model.width, directions
  return Stack(layer, *shape, model.dropout, model.variational_dropout, model.dtype, name=name)


class Readout(nn.Module):
  """[..., inputs] -> [..., features] float32, with even noise at first as PyTorch's Linear has it."""

  features: int
  bias: bool
  init_scale: Any
  dtype: Any

  @nn.compact
  def __call__(self, x):
    noise = uniform(1 / math.sqrt(x.shape[-1]) if self.init_scale is None else self.init_scale)
    y = matmul(x.astype(self.dtype), self.param('kernel', noise, (x.shape[-1], self.features)))
    if self.bias:
      y = y + self.param('bias', noise, (self.features,)).astype(self.dtype)
    return y.astype(jnp.float32)


class RecurrentNetwork(nn.Module):
  """A language model: tokens [batch, time] -> logits of each next token [batch, time, vocabulary].

  Fields are those of `config.model`; floats may be traced.
  """

  vocabulary_size: Annotated[int, Positive]  # how many tokens there are
  cell: Literal['elman', 'gru', 'lstm'] = 'lstm'  # what a step does, see models/recurrence.py
  layers: Annotated[int, Positive] = 1  # recurrent layers, one after another
  width: Annotated[int, Positive] = 256  # of the state of each layer
  embedding_width: Annotated[int, Positive] | None = None  # None: width
  tie_embeddings: bool = False  # the token vectors are the output weights too (Press & Wolf 2017)
  bias: bool = True  # whether layers add one
  layer_norm: bool = False  # of what goes into the gates, and of the LSTM's cell (Ba et al. 2016)
  # added to the variance, or mean square, before its root
  normalization_epsilon: Annotated[float, Positive] = 1e-5
  dropout: Annotated[float, Fraction] | None = None  # between layers
  variational_dropout: Annotated[float, Fraction] | None = None  # the same units at all steps
  init_scale: Annotated[float, NonNegative] | None = (
    None  # bound of the initial weights; None: 1 / sqrt(width), of readouts 1 / sqrt(inputs)
  )
  # orthogonal: a matrix for each gate (Saxe et al. 2014)
  recurrent_init: Literal['uniform', 'orthogonal'] = 'uniform'
  forget_bias: float = 1.0  # added to the LSTM's initial bias there
  dtype: Any = jnp.float32  # of the computation; parameters, states and logits are float32

  context_length = None  # looks back without limit

  def setup(self):
    width = self.embedding_width or self.width
    deviation = 1 / math.sqrt(width) if self.tie_embeddings else 1.0
    self.embed = Embed(self.vocabulary_size, 0, width, deviation, self.dtype)
    self.recurrent = make_stack(self, (False,))
    self.locked = Dropout(self.variational_dropout)
    if not self.tie_embeddings:
      self.head = Readout(self.vocabulary_size, self.bias, self.init_scale, self.dtype)

  def __call__(self, tokens, *, segments=None, train=False):
    """Logits of a whole batch.

    Args:
      tokens: [batch, time] int32.
      segments: [batch, time] int32 or None: packed documents, numbered; 0 is padding. The state starts anew in each.
      train: dropout is active, and needs the key 'dropout'.

    Returns:
      Logits [batch, time, vocabulary] float32.
    """
    return self.logits(self.hidden(tokens, segments=segments, train=train))

  def hidden(self, tokens, *, segments=None, train=False):
    """As `__call__`, but for the vectors [batch, time, width] that `logits` reads."""
    return self.carried(tokens, None, segments=segments, train=train)[0]

  def carried(self, tokens, carry, *, segments=None, train=False):
    """As `hidden`, from the state that earlier text has left: for truncated back-propagation.

    Args:
      carry: what `init_carry` or an earlier call gave; None: zeros.

    Returns:
      (vectors [batch, time, width], carry).
    """
    steps = Steps()
    if segments is not None:
      segments = segments.T  # [time, batch]
      begins = jnp.concatenate([segments[:1] != segments[:1], segments[1:] != segments[:-1]])
      steps = Steps(segments > 0, begins)
    return self.read(tokens, carry, steps, train)

  def decode(self, tokens, cache, mask=None):
    """Feeds more tokens after those that `cache` has seen.

    Args:
      tokens: [batch, n] int32.
      cache: as made by `init_cache` or returned from here.
      mask: [batch, n] bool or None; False is padding at the left of a prompt.

    Returns:
      (logits [batch, n, vocabulary] float32, cache).
    """
    x, cache = self.read(tokens, cache, Steps(None if mask is None else mask.T), False)
    return self.logits(x), cache

  def read(self, tokens, carry, steps, train):
    carry = self.init_carry(tokens.shape[0]) if carry is None else carry
    x, carry = self.recurrent(self.embed.token, tokens.T, carry, steps, train)  # [time, batch, width]
    if train and self.variational_dropout is not None:
      x = x * self.locked(jnp.ones(x.shape[1:]), train).astype(x.dtype)
    return x.swapaxes(0, 1), carry

  def logits(self, x):
    """What `hidden` gives, or some places of it [..., width] -> logits [..., vocabulary] float32."""
    return self.embed.logits(x).astype(jnp.float32) if self.tie_embeddings else self.head(x)

  def init_carry(self, batch_size):
    """The state before any token, for each layer arrays [batch, width] float32: h, and the LSTM's c."""
    return tuple(zero_state(self.cell, batch_size, self.width) for _ in range(self.layers))

  def init_cache(self, batch_size, length):
    """The same, for generation; a state has room for any `length`."""
    return self.init_carry(batch_size)


class RecurrentClassifier(nn.Module):
  """Sequences of tokens [batch, time] -> logits of their classes [batch, classes].

  Fields are those of `config.model`; floats may be traced.
  """

  vocabulary_size: Annotated[int, Positive]  # how many tokens there are
  classes: Annotated[int, Positive]  # how many there are
  cell: Literal['elman', 'gru', 'lstm'] = 'lstm'  # what a step does, see models/recurrence.py
  layers: Annotated[int, Positive] = 1  # recurrent layers, one after another
  width: Annotated[int, Positive] = 128  # of each direction
  embedding_width: Annotated[int, Positive] | None = None  # None: width
  direction: Literal['forward', 'reversed', 'bidirectional'] = 'bidirectional'  # in which texts are read
  pooling: Literal['last', 'mean', 'max'] = 'last'  # last: the state after each direction's last token
  bias: bool = True  # whether layers add one
  layer_norm: bool = False  # of what goes into the gates, and of the LSTM's cell (Ba et al. 2016)
  # added to the variance, or mean square, before its root
  normalization_epsilon: Annotated[float, Positive] = 1e-5
  dropout: Annotated[float, Fraction] | None = None  # between layers, and before the logits
  variational_dropout: Annotated[float, Fraction] | None = None  # the same units at all steps
  init_scale: Annotated[float, NonNegative] | None = (
    None  # bound of the initial weights; None: 1 / sqrt(width), of readouts 1 / sqrt(inputs)
  )
  # orthogonal: a matrix for each gate (Saxe et al. 2014)
  recurrent_init: Literal['uniform', 'orthogonal'] = 'uniform'
  forget_bias: float = 1.0  # added to the LSTM's initial bias there
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, inputs, *, mask=None, lengths=None, train=False, sum=None):
    """Logits of a whole batch.

    Args:
      inputs: [batch, time] int32.
      mask: of rows; a row's logits depend on that row alone, so it is not used, nor is `sum`.
      lengths: [batch] int32: tokens of each row, from the left; None: all.
      train: dropout is active, and needs the key 'dropout'.

    Returns:
      Logits [batch, classes] float32.
    """
    batch, time = inputs.shape
    directions = {'forward': (False,), 'reversed': (True,), 'bidirectional': (False, True)}[self.direction]
    width = self.embedding_width or self.width
    table = Embed(self.vocabulary_size, 0, width, 1.0, self.dtype, name='embed').token
    steps = Steps() if lengths is None else Steps(jnp.arange(time)[:, None] < lengths)
    states = (zero_state(self.cell, batch, self.width),) * (self.layers * len(directions))
    stack = make_stack(self, directions, name='recurrent')
    outputs, states = stack(table, inputs.T, states, steps, train)
    pooled = pool(outputs, states[-len(directions) :], steps.valid, self.pooling)
    pooled = Dropout(self.dropout)(pooled, train)
    return Readout(self.classes, True, self.init_scale, self.dtype, name='head')(pooled)


def pool(outputs, states, valid, how):
  """One vector a row: [time, batch, n] and the last layer's states -> [batch, n]; `valid` [time, batch] or None."""
  if how == 'last':
    return jnp.concatenate([state[0] for state in states], axis=-1)
  valid = jnp.ones(outputs.shape[:2], bool) if valid is None else valid
  if how == 'max':
    most = jnp.where(valid[..., None], outputs, jnp.finfo(outputs.dtype).min).max(axis=0)
    return jnp.where(valid.any(axis=0)[:, None], most, 0)
  return outputs.astype(jnp.float32).sum(axis=0) / jnp.maximum(valid.sum(axis=0), 1)[:, None]


def check(config):
  """Rules across the fields of a model config. Raises UsageError."""
  if config['dropout'] is not None and config['layers'] == 1 and 'classes' not in config:
    raise UsageError(
      f'config.model.dropout: {config["dropout"]} acts between layers, and config.model.layers is 1; use 2 layers or '
      f'more, or variational_dropout'
    )
  width, embedding_width = config['width'], config['embedding_width']
  if config.get('tie_embeddings') and embedding_width not in (None, width):
    raise UsageError(
      f'config.model.embedding_width: {embedding_width} does not fit tie_embeddings, which needs that of '
      f'config.model.width = {width}; leave it unset'
    )
