"""Our recurrent layers against PyTorch's with the same weights.

  python -m tests.parity

prints the largest absolute difference of outputs, final states and gradients (of all weights and of the inputs).
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from aigc_jax.models.recurrence import CELLS, Steps
from aigc_jax.models.rnn import Layer, Stack

TORCH = {'elman': torch.nn.RNN, 'gru': torch.nn.GRU, 'lstm': torch.nn.LSTM}
BATCH, TIME, INPUTS, WIDTH = 4, 9, 5, 6


def make_stack(cell, layers, bidirectional):
  layer = partial(
    Layer, cell, WIDTH, True, False, 1e-5, None, 'uniform', 0.0, jnp.float32
  )  # PyTorch's own initial weights are taken
  return Stack(layer, cell, layers, WIDTH, (False, True)[: 1 + bidirectional], None, None, jnp.float32)


def from_torch(values, cell, layers, bidirectional):
  """PyTorch's weights, or their gradients, by name -> our tree.

  It has two biases that only their sum counts of, but for the GRU's candidate; a gradient is the same in both.
  """
  tree = {}
  for i, reverse in itertools.product(range(layers), range(1 + bidirectional)):
    w = lambda name: values[f'{name}_l{i}{"_reverse" * reverse}']
    tree[f'layer_{i}{"_reversed" * reverse}'] = {
      'input': w('weight_ih').T,
      'recurrent': w('weight_hh').T,
      'bias': w('bias_ih'),
    } | ({'recurrent_bias': w('bias_hh')[-WIDTH:]} if cell == 'gru' else {})
  return tree


def run_torch(module, x, states, lengths, weights):
  """(outputs, states, gradients by name with those of 'x' and of the first states) of a sum weighted by `weights`."""
  x, states = torch.tensor(x, requires_grad=True), [torch.tensor(s, requires_grad=True) for s in states]
  state = tuple(states) if len(states) == 2 else states[0]
  if lengths is None:
    outputs, last = module(x, state)
  else:
    pack = partial(torch.nn.utils.rnn.pack_padded_sequence, batch_first=True, enforce_sorted=False)
    packed, last = module(pack(x, torch.tensor(lengths)), state)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=TIME)
  last = last if isinstance(last, tuple) else (last,)
  total = sum((a * torch.tensor(w)).sum() for a, w in zip((outputs, *last), weights, strict=True))
  total.backward()
  gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
  numbers = lambda values: [v.detach().numpy() for v in values]
  return *numbers([outputs]), numbers(last), gradients, [v.grad.numpy() for v in (x, *states)]


def run_ours(stack, params, x, states, lengths, weights):
  """The same of ours; `x` is read as a table of BATCH * TIME token vectors, one for each place."""
  tokens = np.arange(TIME * BATCH).reshape(BATCH, TIME).T
  valid = None if lengths is None else jnp.arange(TIME)[:, None] < lengths

  def total(params, x, states):
    table, pairs = x.reshape(-1, INPUTS), tuple(zip(*states, strict=True))
    outputs, last = stack.apply({'params': params}, table, tokens, pairs, Steps(valid), False)
    outputs, last = outputs.swapaxes(0, 1), [jnp.stack(s) for s in zip(*last, strict=True)]
    return sum((a * w).sum() for a, w in zip((outputs, *last), weights, strict=True)), (outputs, last)

  grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
  (_, (outputs, last)), (gradients, x, states) = grad(params, x, states)
  return outputs, last, gradients, [x, *states]


def differences(cell, layers, bidirectional, padded):
  """{'outputs', 'states', 'gradients'}: the largest absolute difference of each."""
  torch.manual_seed(0)
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(np.float32)
  module = TORCH[cell](INPUTS, WIDTH, layers, batch_first=True, bidirectional=bidirectional)
  rows = layers * (1 + bidirectional)
  x, states = normal(BATCH, TIME, INPUTS), [normal(rows, BATCH, WIDTH) for _ in range(CELLS[cell].states)]
  lengths = np.array([TIME, 3, 1, 6]) if padded else None
  weights = [normal(BATCH, TIME, WIDTH * (1 + bidirectional)), *(normal(*s.shape) for s in states)]
  values = {name: p.detach().numpy() for name, p in module.named_parameters()}
  params = from_torch(values, cell, layers, bidirectional)
  for name, layer in params.items():
    torch_name = f'bias_hh_l{name[6]}' + ('_reverse' if name.endswith('reversed') else '')
    second = values[torch_name].copy()
    if cell == 'gru':
      second[-WIDTH:] = 0  # that part is `recurrent_bias`
    layer['bias'] = layer['bias'] + second
  theirs = run_torch(module, x, states, lengths, weights)
  ours = run_ours(make_stack(cell, layers, bidirectional), params, x, states, lengths, weights)
  theirs = *theirs[:2], (from_torch(theirs[2], cell, layers, bidirectional), theirs[3])
  ours = *ours[:2], (ours[2], ours[3])
  distance = lambda a, b: float(abs(np.asarray(a) - b).max())
  largest = lambda a, b: max(jax.tree.leaves(jax.tree.map(distance, a, b)))
  return {n: largest(a, b) for n, a, b in zip(('outputs', 'states', 'gradients'), ours, theirs, strict=True)}


def main():
  print(
    f'{"cell":6} {"layers":>6} {"directions":>10} {"padded":>6} {"outputs":>9} {"states":>9} {"gradients":>9}'
  )
  for cell, layers, bidirectional, padded in itertools.product(
    CELLS, (1, 2, 3), (False, True), (False, True)
  ):
    found = differences(cell, layers, bidirectional, padded)
    row = f'{cell:6} {layers:6} {1 + bidirectional:10} {"yes" if padded else "no":>6}'
    print(row, *(f'{value:9.1e}' for value in found.values()), flush=True)


if __name__ == '__main__':
  main()
