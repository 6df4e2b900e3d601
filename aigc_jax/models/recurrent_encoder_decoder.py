"""A recurrent network that reads a text and writes another, looking back at what it read by attention."""

import math
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.models.attention import masked_softmax
from aigc_jax.models.blocks import Embed
from aigc_jax.models.layers import Dropout
from aigc_jax.models.recurrence import Steps, zero_state
from aigc_jax.models.rnn import Readout, make_stack


class Memory(NamedTuple):
  """What the decoder keeps of the text that it writes from."""

  keys: Any  # [batch, source, width]: what a state is compared with
  values: Any  # [batch, source, 2 * width]: the encoder's states of both directions
  mask: Any  # [batch, source] bool: False at padding
  states: Any  # the decoder's first state: for each layer arrays [batch, width]


class Cache(NamedTuple):
  """The decoder's state, and whether it has one already: the first is in the memory."""

  begun: Any  # () bool
  states: Any  # as Memory.states


class RecurrentEncoderDecoder(nn.Module):
  """Sources [batch, source] and the target's tokens so far [batch, time] -> logits [batch, time, vocabulary].

  The encoder reads in both directions (Bahdanau et al. 2015), the decoder begins with what it ends in, and attention is
  Luong's "general", eq. 5 to 8 of Luong et al. 2015, its scores divided by sqrt(width): it comes after the recurrence,
  so that a whole target is one pass.
  Fields are those of `config.model`; floats may be traced.
  """

  vocabulary_size: Annotated[int, Positive]  # how many tokens there are
  source_vocabulary_size: Annotated[int, Positive] | None = None  # None: one vocabulary for both
  cell: Literal['elman', 'gru', 'lstm'] = 'lstm'  # what a step does, see models/recurrence.py
  layers: Annotated[int, Positive] = 1  # of the encoder and of the decoder
  width: Annotated[int, Positive] = 256  # of the decoder, and of each direction of the encoder
  embedding_width: Annotated[int, Positive] | None = None  # None: width
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
  dtype: Any = jnp.float32  # of the computation; parameters, states and logits are float32

  context_length = None  # looks back without limit

  def setup(self):
    vectors = lambda size: Embed(size, 0, self.embedding_width or self.width, 1.0, self.dtype)
    readout = lambda features, bias: Readout(features, bias, self.init_scale, self.dtype)
    self.embed = vectors(self.vocabulary_size)
    if self.source_vocabulary_size is not None:
      self.source_embed = vectors(self.source_vocabulary_size)
    self.encoder, self.decoder = make_stack(self, (False, True)), make_stack(self, (False,))
    arrays = len(zero_state(self.cell, 1, self.width))
    self.bridge = [[readout(self.width, True) for _ in range(arrays)] for _ in range(self.layers)]
    self.key = readout(self.width, False)
    self.attentional = readout(self.width, False)
    self.drop = Dropout(self.dropout)
    self.head = readout(self.vocabulary_size, self.bias)

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
    lengths = jnp.full(sources.shape[0], sources.shape[1]) if lengths is None else lengths
    memory = self.encode(sources, lengths, train)
    return self.read(tokens, memory.states, Steps(), memory, train)[0]

  def encode(self, sources, lengths, train=False):
    """Sources [batch, source] of `lengths` [batch] tokens -> Memory."""
    batch, mask = len(sources), jnp.arange(sources.shape[1]) < lengths[:, None]  # [batch, source]
    table = (self.embed if self.source_vocabulary_size is None else self.source_embed).token
    first = (zero_state(self.cell, batch, self.width),) * (2 * self.layers)
    outputs, last = self.encoder(table, sources.T, first, Steps(mask.T), train)
    both = [tuple(map(_side_by_side, *last[2 * i : 2 * i + 2])) for i in range(self.layers)]
    states = jax.tree.map(lambda part, state: part(state), tuple(map(tuple, self.bridge)), tuple(both))
    values = outputs.swapaxes(0, 1)
    return Memory(self.key(values).astype(self.dtype), values, mask, states)

  def decode(self, tokens, cache, mask, memory):
    """Feeds more tokens of the target after those that `cache` has seen.

    Args:
      tokens: [batch, n] int32.
      cache: Cache, as made by `init_cache` or returned from here.
      mask: [batch, n] bool or None; False is padding at the left.
      memory: from `encode`.

    Returns:
      (logits [batch, n, vocabulary] float32, cache).
    """
    states = jax.tree.map(lambda a, b: jnp.where(cache.begun, a, b), cache.states, memory.states)
    steps = Steps(None if mask is None else mask.T)
    x, states = self.read(tokens, states, steps, memory, False)
    return self.logits(x), Cache(jnp.bool_(True), states)

  def read(self, tokens, states, steps, memory, train):
    x, states = self.decoder(self.embed.token, tokens.T, states, steps, train)  # [time, batch, width]
    x = x.swapaxes(0, 1)
    scores = jnp.einsum('btw,bsw->bts', x, memory.keys, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores / math.sqrt(self.width), memory.mask[:, None])  # [batch, time, source]
    self.sow('intermediates', 'weights', weights[:, None])  # of one head, for `inspection.capture`
    found = jnp.einsum('bts,bsw->btw', weights.astype(memory.values.dtype), memory.values)
    x = jnp.tanh(self.attentional(jnp.concatenate([found, x], axis=-1)))
    return self.drop(x, train), states

  def logits(self, x):
    """What `hidden` gives, or some places of it [..., width] -> logits [..., vocabulary] float32."""
    return self.head(x)

  def init_cache(self, batch_size, length):
    """The cache before any token; a state has room for any `length`."""
    states = tuple(zero_state(self.cell, batch_size, self.width) for _ in range(self.layers))
    return Cache(jnp.bool_(False), states)


def _side_by_side(forward, backward):
  return jnp.concatenate([forward, backward], axis=-1)
