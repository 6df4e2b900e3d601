"""Recurrences against PyTorch's own layers, and their backward pass against that of a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from aigc_jax.models import recurrence, rnn
from tests.parity import differences


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(0, 0.7, shape).astype(np.float32)


@pytest.mark.parametrize(
  ('cell', 'layers', 'bidirectional', 'padded'),
  [
    ('elman', 1, False, False),
    ('elman', 2, True, True),
    ('gru', 1, True, False),
    ('gru', 3, False, True),
    ('lstm', 2, True, True),
    ('lstm', 3, False, False),
  ],
)
def test_outputs_states_and_gradients_are_pytorchs(cell, layers, bidirectional, padded):
  found = differences(cell, layers, bidirectional, padded)
  assert set(found) == {'outputs', 'states', 'gradients'}
  # Both add up in float32, in another order: values of the size of 1 and gradients of up to some 10.
  assert max(found.values()) < 1e-5, found


def plain(cell, projected, kernel, state, steps, bias, reverse):
  """The recurrence step by step in Python, from the equations; for automatic differentiation."""
  outputs, width = [None] * len(projected), kernel.shape[0]
  times = range(len(projected))
  for t in reversed(times) if reverse else times:
    before = [jnp.where(steps.begins[t][:, None], 0, s) for s in state]
    z, u = projected[t], (before[0] * steps.dropped) @ kernel
    part = lambda x, i: x[:, i * width : (i + 1) * width]
    if cell == 'elman':
      after = [jnp.tanh(z + u)]
    elif cell == 'gru':
      r, k = (jax.nn.sigmoid(part(z, i) + part(u, i)) for i in (0, 1))
      after = [(1 - k) * jnp.tanh(part(z, 2) + r * (part(u, 2) + bias)) + k * before[0]]
    else:
      i, f, o = (jax.nn.sigmoid(part(z + u, i)) for i in (0, 1, 3))
      c = f * before[1] + i * jnp.tanh(part(z + u, 2))
      after = [o * jnp.tanh(c), c]
    valid = steps.valid[t][:, None]
    state = [jnp.where(valid, a, b) for a, b in zip(after, before, strict=True)]
    outputs[t] = jnp.where(valid, state[0], 0)
  return jnp.stack(outputs), state


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('cell', recurrence.CELLS)
def test_the_backward_pass_is_that_of_a_plain_loop(cell, reverse):
  time, batch, width = 6, 4, 3
  gates, states = recurrence.CELLS[cell][:2]
  random = np.random.default_rng(0)
  steps = recurrence.Steps(
    random.random((time, batch)) < 0.7, random.random((time, batch)) < 0.3, 1 + normal(1, batch, width)
  )
  state = tuple(normal(2 + i, batch, width) for i in range(states))
  inputs = normal(4, time, batch, gates * width), normal(5, width, gates * width), state, normal(6, width)
  weights = normal(7, time, batch, width), [normal(8 + i, batch, width) for i in range(states)]

  def both(projected, kernel, state, bias):
    given = {'bias': bias, 'reverse': reverse}
    bias_only_of_gru = given | {'bias': bias if cell == 'gru' else None}
    ours = recurrence.recurrence(cell, projected, kernel, state, steps, **bias_only_of_gru)
    theirs = plain(cell, projected, kernel, list(state), steps, **given)
    total = lambda y: sum(
      (a * w).sum() for a, w in zip(jax.tree.leaves(y), jax.tree.leaves(weights), strict=True)
    )
    return (total(ours), total(theirs)), (ours, theirs)

  pick = lambda i: jax.grad(lambda *inputs: both(*inputs)[0][i], argnums=(0, 1, 2, 3))
  ours, theirs = jax.jit(lambda *inputs: both(*inputs)[1])(*inputs)
  jax.tree.map(close, jax.tree.leaves(ours), jax.tree.leaves(theirs))
  jax.tree.map(close, *jax.jit(lambda *inputs: (pick(0)(*inputs), pick(1)(*inputs)))(*inputs))


def test_lookup_has_the_gradient_of_plain_indexing():
  table, tokens = normal(0, 7, 3), np.random.default_rng(1).integers(0, 7, (4, 5))
  weights = normal(2, 4, 5, 3)
  ours, plain = (
    jax.grad(lambda t: (f(t, tokens) * weights).sum())(table) for f in (rnn.lookup, lambda t, i: t[i])
  )
  close(ours, plain)


@pytest.mark.parametrize('cell', recurrence.CELLS)
def test_gradients_on_two_devices_add_up_to_those_of_one(cell):
  """Inside shard_map, with the parameters cast to each device's own, as the training step does."""
  gates = recurrence.CELLS[cell].gates
  table, kernel, tokens = normal(0, 5, gates * 3), normal(1, 3, gates * 3), np.arange(24).reshape(6, 4) % 5
  bias = normal(2, 3) if cell == 'gru' else None
  valid = np.random.default_rng(3).random((6, 4)) < 0.7

  def gradients(params, tokens, valid):
    def loss(params):
      table, kernel, bias = params
      state = recurrence.zero_state(cell, tokens.shape[1], 3)
      read, steps = rnn.lookup(table, tokens), recurrence.Steps(valid)
      return jnp.square(recurrence.recurrence(cell, read, kernel, state, steps, bias=bias)[0]).sum()

    return jax.grad(loss)(params)

  def on_each(params, tokens, valid):
    own = jax.tree.map(lambda x: jax.lax.pcast(x, 'data', to='varying'), params)
    return jax.lax.psum(gradients(own, tokens, valid), 'data')

  mesh = Mesh(np.array(jax.devices()[:2]), ('data',), axis_types=(AxisType.Auto,))
  rows = P(None, 'data')
  together = jax.jit(jax.shard_map(on_each, mesh=mesh, in_specs=(P(), rows, rows), out_specs=P()))
  params = table, kernel, bias
  jax.tree.map(close, together(params, tokens, valid), jax.jit(gradients)(params, tokens, valid))
