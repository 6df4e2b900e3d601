"""The arrays of a State one by one: their names, what they are, and copies of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.training import processes

KEY_IMPLEMENTATIONS = ('threefry2x32', 'rbg', 'unsafe_rbg')


class Leaf(NamedTuple):
  """What a manifest says of one array."""

  shape: list
  dtype: str  # 'float32', or 'key<fry>' of a typed PRNG key


def flat(tree):
  """{'params/embed/token': leaf} of any pytree."""
  pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}
  if len(leaves) < len(pairs):
    raise ValueError('two leaves of the state have the same path: a key has a slash in it')
  return leaves


def is_key(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def described(leaf):
  return Leaf(list(leaf.shape), str(leaf.dtype))


def snapshot(leaves):
  """{name: array} -> copies for saving: on the host, or, of several processes, each process's own parts of them."""
  if not processes.several():
    return host_copies(leaves)
  data = {n: jax.random.key_data(a) if is_key(a) else a for n, a in leaves.items()}
  # From an accelerator Orbax copies them to the host before it returns; on a CPU it reads them where they are.
  on_host = jax.local_devices()[0].platform == 'cpu'
  return {n: jnp.copy(a) if on_host else a for n, a in data.items()}


def host_copies(leaves):
  """{name: array} -> {name: numpy copy}, which the donation of the state to the next step cannot touch.

  Arrays that are numpy's are no device's to take away, and stay as they are.
  """
  data = {n: jax.random.key_data(a) if is_key(a) else a for n, a in leaves.items()}
  for array in data.values():
    if isinstance(array, jax.Array):
      array.copy_to_host_async()
  return {n: np.array(a) if isinstance(a, jax.Array) else np.asarray(a) for n, a in data.items()}


def key_types():
  """{'key<fry>': (dtype, 'threefry2x32'), ...}: JAX tells the implementation of an array, not of a dtype."""
  types = {}
  for name in KEY_IMPLEMENTATIONS:
    dtype = jax.eval_shape(lambda: jax.random.key(0, impl=name)).dtype
    types[str(dtype)] = (dtype, name)
  return types
