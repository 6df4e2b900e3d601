"""Recurrent cells and the loop over time, forward and backward. Arrays are [time, batch, ...] here.

What a cell makes of its inputs alone, W_x x_t + b for all t, is one product before the loop; the loop multiplies the
state only. The backward loop emits the gradients of the pre-activations, and the gradient of the recurrent kernel is
one product of [time * batch] rows after it: taken at each step, as plain differentiation does, it costs a quarter of
a training step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.errors import UsageError


class Cell(NamedTuple):
  """One step in float32. z = W_x x_t + b and u = W_h h_{t-1}, both [batch, gates * width]; states [batch, width]."""

  gates: int  # pre-activations of a unit
  states: int  # arrays in a state; the first is h, which is also the output
  forward: Callable  # z, u, state, bias, finish -> (state, what `backward` needs)
  backward: Callable  # saved, h_{t-1}, h_t, gradients of the state -> gradients of (z, u, the state before)
  inside: Callable  # saved -> {name: array}: gates from 0 to 1, and what they let pass


def sigmoid(x):
  """1 / (1 + exp(-x)) by way of tanh, which XLA's CPU backend computes faster."""
  return 0.5 * jnp.tanh(0.5 * x) + 0.5


def elman_forward(z, u, state, bias, finish):
  """h_t = tanh(W_h h_{t-1} + W_x x_t + b) (Elman 1990)."""
  return (jnp.tanh(z + u),), ()


def elman_inside(saved):
  return {}


def elman_backward(saved, before, after, changes):
  z = changes[0] * (1 - after * after)
  return z, z, (0.0,)


def gru_forward(z, u, state, bias, finish):
  """Gates r and k, candidate n = tanh(z_n + r (u_n + bias)), h_t = (1 - k) n + k h_{t-1}.

  Cho et al. 2014 with the reset gate behind the product, as cuDNN and PyTorch have it; their z is k here.
  """
  (h,), (z_r, z_k, z_n), (u_r, u_k, u_n) = state, jnp.split(z, 3, -1), jnp.split(u, 3, -1)
  r, k, u_n = sigmoid(z_r + u_r), sigmoid(z_k + u_k), u_n if bias is None else u_n + bias
  n = jnp.tanh(z_n + r * u_n)
  return (n + k * (h - n),), (r, k, n, u_n)


def gru_inside(saved):
  r, k, n, _ = saved
  return {'reset gate': r, 'update gate': k, 'candidate': n}


def gru_backward(saved, before, after, changes):
  (r, k, n, u_n), (change,) = saved, changes
  z_n = change * (1 - k) * (1 - n * n)
  z_k = change * (before - n) * k * (1 - k)
  z_r = z_n * u_n * r * (1 - r)
  return jnp.concatenate([z_r, z_k, z_n], -1), jnp.concatenate([z_r, z_k, z_n * r], -1), (change * k,)


def lstm_forward(z, u, state, bias, finish):
  """c_t = f c_{t-1} + i g, h_t = o tanh(c_t) (Hochreiter & Schmidhuber 1997; f: Gers et al. 2000); i, f, g, o in z."""
  (_, c), (i, f, g, o) = state, jnp.split(z + u, 4, -1)
  i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
  after = f * c + i * g
  squashed = jnp.tanh(finish(after))
  return (o * squashed, after), (i, f, g, o, squashed, c)


def lstm_inside(saved):
  i, f, g, o, _, c = saved
  return {'input gate': i, 'forget gate': f, 'output gate': o, 'candidate': g, 'cell': f * c + i * g}


def lstm_backward(saved, before, after, changes):
  (i, f, g, o, squashed, c), (change, c_change) = saved, changes
  c_change = c_change + change * o * (1 - squashed * squashed)
  z_i, z_f, z_g = c_change * g * i * (1 - i), c_change * c * f * (1 - f), c_change * i * (1 - g * g)
  z = jnp.concatenate([z_i, z_f, z_g, change * squashed * o * (1 - o)], -1)
  return z, z, (0.0, c_change * f)


CELLS = {
  'elman': Cell(1, 1, elman_forward, elman_backward, elman_inside),
  'gru': Cell(3, 1, gru_forward, gru_backward, gru_inside),
  'lstm': Cell(4, 2, lstm_forward, lstm_backward, lstm_inside),
}


class Steps(NamedTuple):
  """What happens at the steps besides the cell; each is optional."""

  valid: Any = None  # [time, batch] bool: elsewhere is padding, which keeps the state
  begins: Any = None  # [time, batch] bool: where the state starts anew at zero
  dropped: Any = (
    None  # [batch, width]: factors on h where the recurrent kernel reads it, the same at all times
  )


def zero_state(cell, batch, width):
  """A state of zeros, as many arrays [batch, width] float32 as the cell has."""
  return tuple(jnp.zeros((batch, width)) for _ in range(CELLS[cell].states))


def recurrence(cell, projected, kernel, state, steps, *, bias=None, norm=None, reverse=False):
  """Runs a cell over time.

  Args:
    cell: a name in CELLS.
    projected: [time, batch, gates * width]: W_x x_t + b, in the type to compute in.
    kernel: [width, gates * width], W_h.
    state: the first one, arrays [batch, width] float32.
    steps: Steps.
    bias: [width] or None: the GRU's bias within the reset gate's reach.
    norm: None or (recurrent, finish), functions of u [batch, gates * width] and of the LSTM's c [batch, width]
      (Ba et al. 2016); they may close over parameters.
    reverse: from the last step to the first. Padding on either side is passed with a state still at its first value.

  Returns:
    (outputs [time, batch, width], 0 at padding; the last state).

  Raises:
    UsageError: the state is of another batch.
  """
  if state[0].shape[0] != projected.shape[1]:
    raise UsageError(
      f'the carried state is of {state[0].shape[0]} rows and the inputs of {projected.shape[1]}; they must be equal'
    )
  state = alike(state, projected)
  kernel = kernel.astype(projected.dtype)
  if norm is None:
    outputs, state = run(cell, reverse, projected, kernel, bias, state, steps)
  else:
    state, (outputs, _) = loop(cell, reverse, projected, kernel, bias, state, steps, *norm)
  return outputs if steps.valid is None else jnp.where(steps.valid[..., None], outputs, 0), state


def inside(cell, projected, kernel, state, steps, *, bias=None, norm=None, reverse=False):
  """What is in the cell at all times, {name: [time, batch, width]}; arguments: see `recurrence`."""
  settings = kernel.astype(projected.dtype), bias, alike(state, projected), steps
  _, (_, saved) = loop(cell, reverse, projected, *settings, *(norm or ()))
  return CELLS[cell].inside(saved)


def alike(state, projected):
  """The state marked as each device's own where the inputs are (inside shard_map): a loop's state keeps its type."""
  zero = jax.lax.full_like(projected, 0, jnp.float32, shape=(1,))
  return tuple(x + zero for x in state)


def where(mask, ours, others):
  """Of two states, `ours` in the rows of `mask` [batch]."""
  return tuple(jnp.where(mask[:, None], a, b) for a, b in zip(ours, others, strict=True))


def loop(cell, reverse, projected, kernel, bias, state, steps, normalize=lambda u: u, finish=lambda c: c):
  """The loop over time: (last state, (h at all times, what the backward pass needs))."""

  def step(state, inputs):
    z, valid, begins = inputs
    if begins is not None:
      state = where(begins, (0.0,) * len(state), state)
    h = state[0] if steps.dropped is None else state[0] * steps.dropped
    u = jnp.dot(h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
    after, saved = CELLS[cell].forward(z.astype(jnp.float32), normalize(u), state, bias, finish)
    if valid is not None:
      after = where(valid, after, state)
    return after, (after[0].astype(z.dtype), tuple(x.astype(z.dtype) for x in saved))

  inputs = projected, steps.valid, steps.begins
  return jax.lax.scan(step, state, inputs, reverse=reverse)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(cell, reverse, projected, kernel, bias, state, steps):
  """(h at all times [time, batch, width], the last state)."""
  state, (outputs, _) = loop(cell, reverse, projected, kernel, bias, state, steps)
  return outputs, state


def run_forward(cell, reverse, projected, kernel, bias, state, steps):
  last, (outputs, saved) = loop(cell, reverse, projected, kernel, bias, state, steps)
  return (outputs, last), (kernel, bias, state[0], steps, outputs, saved)


def run_backward(cell, reverse, kept, changes):
  """Back-propagation through time; `changes` are the gradients of what `run` returns."""
  kernel, bias, first, steps, outputs, saved = kept
  back, dtype, first = kernel.T, outputs.dtype, first.astype(outputs.dtype)[None]
  before = jnp.concatenate([outputs[1:], first] if reverse else [first, outputs[:-1]])  # [time, batch, width]
  if steps.begins is not None:
    before = jnp.where(steps.begins[..., None], 0, before)

  def step(changes, inputs):
    change, saved, before, after, valid, begins = inputs
    changes = (changes[0] + change.astype(jnp.float32), *changes[1:])
    saved, before, after = jax.tree.map(lambda x: x.astype(jnp.float32), (saved, before, after))
    acting = changes if valid is None else where(valid, changes, (0.0,) * len(changes))
    z, u, direct = CELLS[cell].backward(saved, before, after, acting)
    through = jnp.dot(u.astype(dtype), back, preferred_element_type=jnp.float32)
    through = through if steps.dropped is None else through * steps.dropped
    earlier = (direct[0] + through, *direct[1:])
    earlier = earlier if valid is None else where(valid, earlier, changes)
    earlier = earlier if begins is None else where(begins, (0.0,) * len(earlier), earlier)
    return earlier, (z.astype(dtype),) if u is z else (z.astype(dtype), u.astype(dtype))

  inputs = changes[0], saved, before, outputs, steps.valid, steps.begins
  state, emitted = jax.lax.scan(step, changes[1], inputs, reverse=not reverse)
  read = before if steps.dropped is None else before * steps.dropped.astype(dtype)
  rows = lambda x: x.reshape(-1, x.shape[-1])
  u = rows(emitted[-1])  # [time * batch, gates * width]
  bias = None if bias is None else u[:, -bias.shape[0] :].sum(0, dtype=jnp.float32).astype(bias.dtype)
  return emitted[0], rows(read).T @ u, bias, state, None


run.defvjp(run_forward, run_backward)
