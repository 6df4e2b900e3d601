"""Looking into a model while it is applied, and changing what its parts give: by Linen's own means, for any model."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.models.blocks import Embed
from aigc_jax.models.layers import Dropout
from aigc_jax.models.rnn import Stack

CALLED = ('__call__', 'cross', 'encode', 'decode')  # methods whose results are activations of a part


def capture(module, variables, *inputs, method=None, **settings):
  """Applies a module and keeps what its parts give.

  Args:
    variables: {'params': ..., and other collections}. method: a name, or a function of the module and the inputs.

  Returns:
    (what the module gives, {path: array}), a path such as 'block_0/attention' for what that part gives in a call, of a
    part that is called several times the last. What parts tell of themselves is under their names:
    'block_0/attention/weights' [batch, heads, time, slots], 'recurrent/layer_0/inside/reset gate' [time, batch, width].
  """
  found, kept = module.apply(
    variables,
    *inputs,
    method=method,
    mutable=['intermediates'],
    capture_intermediates=lambda part, name: name in CALLED and not isinstance(part, Dropout),
    **settings,
  )
  return found, flattened(kept.get('intermediates', {}))


def flattened(intermediates):
  """Linen's nested dicts, with a tuple of all calls at each leaf -> {path: array of the last call}."""
  arrays = {}
  for path, calls in jax.tree_util.tree_leaves_with_path(
    intermediates, is_leaf=lambda x: isinstance(x, tuple)
  ):
    names = [key.key for key in path]
    names = names[:-1] if names[-1] == '__call__' else names
    for inner, array in jax.tree_util.tree_leaves_with_path(own_part(calls[-1])):
      arrays['/'.join([*names, *(str(getattr(key, 'key', getattr(key, 'name', ''))) for key in inner)])] = (
        array
      )
  return arrays


def own_part(result):
  """Of (what is handed on, a cache or state), the first."""
  return result[0] if type(result) is tuple else result


@contextlib.contextmanager
def replaced(change):
  """Within it, what a part gives when it is called is what `change` makes of it.

  change(part, inputs, give) -> result: `part` is the module, `inputs` what it is called with; `give(*inputs)` works out
  the part itself.
  """

  def around(give, inputs, settings, context):
    if context.method_name != '__call__':
      return give(*inputs, **settings)
    return change(context.module, inputs, lambda *changed: give(*changed, **settings))

  with nn.intercept_methods(around):
    yield


def with_shifts(module, variables, inputs, settings, shifts):
  """Applies a model to texts, with a shift added to the vector of each token that it looks up.

  Args:
    inputs: one text, or a source and a target, int32 [1, time] each; shifts: for each of them [time, width].

  Returns:
    (what the module gives, the vectors [time, width] of each text before the shifts, their positions included where
    these are vectors).
  """
  vectors = []

  def change(part, given, give):
    if isinstance(part, Embed):
      found = give(*given)  # [1, time, width]
      vectors.append(found[0])
      return found + shifts[len(vectors) - 1].astype(found.dtype)
    if isinstance(part, Stack):
      table, tokens, *others = given  # a recurrent network looks its vectors up by itself
      vectors.append(table[tokens[:, 0]])
      table = vectors[-1] + shifts[len(vectors) - 1].astype(table.dtype)
      return give(table, jnp.arange(len(table))[:, None], *others)
    return give(*given)

  with replaced(change):
    found = module.apply(variables, *inputs, **settings)
  return found, tuple(vectors)
