"""Several continuations of each prompt, over what a model keeps of its tokens.

Where that is a slot for each token (Transformers), a row's branches share one cache: the prompt is held once, each new
token takes a slot, and a mask says which slots lie before a branch. So branches change places by moving booleans, not
keys and values. Where it is one state (recurrent networks), each branch has a row of its own, which is copied.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Shared(NamedTuple):
  """One cache for the branches of a row."""

  cache: Any
  before: Any  # [rows, branches, slots] bool: the slots of the tokens before each branch's next


class Copied(NamedTuple):
  """A cache whose leaves are () or have [rows * branches, ...]."""

  cache: Any


def start(decoder, cache, memory, mask, count, new):
  """`count` branches that are alike, of a cache that has seen prompts with mask [rows, width]: (branches, memory).

  new: the most tokens that each will have; a shared cache must be given room for them by `with_room`.
  """
  rows, width = mask.shape
  if decoder.branch is None:
    cache = enlarged(cache, decoder.init_cache(rows, width + new))
    return Copied(spread(cache, rows, count)), spread(memory, rows, count)
  return Shared(cache, jnp.broadcast_to(mask[:, None], (rows, count, width))), memory


def with_room(decoder, held, width, new):
  """The branches, if they share a cache, with room in it for `new` tokens each behind the prompt's `width` slots."""
  if isinstance(held, Copied):
    return held
  rows, count, _ = held.before.shape
  slots = width + new * count
  before = jnp.zeros((rows, count, slots), bool)
  return Shared(enlarged(held.cache, decoder.init_cache(rows, slots)), enlarged(held.before, before))


def enlarged(tree, empty):
  """The leaves of a tree at the beginning of those of a larger one."""
  return jax.tree.map(lambda leaf, room: lax.dynamic_update_slice(room, leaf, (0,) * leaf.ndim), tree, empty)


def step(decoder, params, held, tokens, memory):
  """Each branch's token of tokens [rows, branches] is fed: (logits of its next [rows, branches, vocabulary], held)."""
  if isinstance(held, Copied):
    logits, cache = decoder.step(params, held.cache, tokens.reshape(-1, 1), None, memory)
    return logits.reshape(*tokens.shape, -1), Copied(cache)
  logits, cache = decoder.branch(params, held.cache, tokens, held.before, memory)
  own = jnp.eye(tokens.shape[1], dtype=bool)[None]  # the branches' tokens took slots side by side
  before = lax.dynamic_update_slice(
    held.before, jnp.broadcast_to(own, (*tokens.shape, own.shape[1])), (0, 0, held.cache.index)
  )
  return logits, Shared(cache, before)


def follow(held, chosen):
  """Branch i of each row goes on from what was its branch chosen[row, i]; chosen [rows, branches] int32."""
  if isinstance(held, Copied):
    return Copied(reorder(held.cache, chosen))
  return held._replace(before=jnp.take_along_axis(held.before, chosen[:, :, None], axis=1))


def spread(tree, rows, count):
  """Leaves [rows * n, ...] -> [rows * count * n, ...]: what belongs to a row, for each of its branches."""

  def of_leaf(leaf):
    if leaf.ndim == 0:
      return leaf
    whole = jnp.broadcast_to(leaf.reshape(rows, 1, -1), (rows, count, leaf.size // rows))
    return whole.reshape(leaf.shape[0] * count, *leaf.shape[1:])

  return jax.tree.map(of_leaf, tree)


def reorder(tree, chosen):
  """Leaves [rows * branches * n, ...], those of each branch taken from branch chosen[row, i] of its row."""
  rows, count = chosen.shape
  flat = (jnp.arange(rows)[:, None] * count + chosen).reshape(-1)
  take = lambda leaf: leaf if leaf.ndim == 0 else leaf.reshape(rows * count, -1)[flat].reshape(leaf.shape)
  return jax.tree.map(take, tree)
