"""Muon: momentum, orthogonalized (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

`optax.contrib.muon` takes five Newton-Schulz iterations from a Frobenius bound, matrix by matrix. Here the
matrices of one shape are one batched product, a tighter bound comes free with the first iteration, iterations
have the best coefficients for what the ones before left, and long matrices iterate on their Gram matrix.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# {iterations: ((a, b, c), ...)} of a x + b x^3 + c x^5. Each quintic is the nearest to 1 over the interval
# that the one before left (Amsel et al. 2025, "The Polar Express", algorithm 1), from singular values in
# [0.1, 1], [0.02, 1], [0.005, 1], [0.001, 1], which end within 0.12 of 1; smaller ones end below that.
COEFFICIENTS = {
  2: ((5.6037, -13.8837, 9.7334), (2.1306, -1.5116, 0.4020)),
  3: ((7.7110, -22.1138, 16.2487), (3.2153, -2.4112, 0.5013), (2.2183, -1.5940, 0.4107)),
  4: (
    (8.2987, -24.4305, 18.0903),
    (3.9152, -2.9211, 0.5592),
    (3.1746, -2.3804, 0.4978),
    (2.1895, -1.5672, 0.4079),
  ),
  5: (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
  ),
}


class MuonState(NamedTuple):
  momentum: Any  # moving average of the gradients


def scale_by_muon(momentum, iterations: int, side_by_side) -> optax.GradientTransformation:
  """Gradients of matrices -> their orthogonalized Nesterov momentum times sqrt(max(1, out / in)).

  An array is one matrix [in, out] or several, as attention's heads are, each orthogonalized by itself: one above the
  other, [..., in, out], where all their inputs count as `in`, since what they write adds up; or side by side.

  Args:
    momentum: () decay of the gradients' moving average.
    iterations: of Newton-Schulz, a key of COEFFICIENTS.
    side_by_side: (path, array) -> whether the array is [in, matrices, out].
  """
  turn = lambda path, x: x.swapaxes(-3, -2) if side_by_side(path, x) else x

  def init(params):
    return MuonState(jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    del params
    blend = lambda average, gradient: momentum * average + (1 - momentum) * gradient
    average = jax.tree.map(blend, state.momentum, updates)
    ahead = jax.tree_util.tree_map_with_path(turn, jax.tree.map(blend, average, updates))
    matrices, tree = jax.tree.flatten(ahead)
    updates = jax.tree.unflatten(tree, orthogonalize_all(matrices, iterations))
    return jax.tree_util.tree_map_with_path(turn, updates), MuonState(average)

  return optax.GradientTransformation(init, update)


def orthogonalize_all(matrices, iterations):
  """Matrices [..., in, out], each orthogonalized and scaled; those of one shape (or transposed) in one batch."""
  wide = [m.mT if m.shape[-2] > m.shape[-1] else m for m in matrices]
  wide = [m.reshape(-1, *m.shape[-2:]) for m in wide]  # [batch, rows, columns], rows <= columns
  done = [None] * len(matrices)
  for shape in dict.fromkeys(m.shape[1:] for m in wide):
    places = [i for i, m in enumerate(wide) if m.shape[1:] == shape]
    joined = orthogonalize(jnp.concatenate([wide[i] for i in places]), iterations)
    ends = itertools.accumulate(wide[i].shape[0] for i in places)
    for i, result in zip(places, jnp.split(joined, list(ends)[:-1]), strict=True):
      *batch, rows, columns = matrices[i].shape
      result = result.mT if rows > columns else result
      fan_in = math.prod(batch) * rows
      done[i] = result.reshape(*batch, rows, columns) * max(1, columns / fan_in) ** 0.5
  return done


def orthogonalize(x, iterations):
  """U S V^T -> about U V^T, for a batch x [batch, rows, columns] with rows <= columns."""
  x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)  # a gradient of 0 stays 0
  gram = x @ x.mT  # [batch, rows, rows]
  square = gram @ gram
  # No singular value exceeds the Schatten-8 norm, |gram^2|^(1/4), a far tighter bound than the Frobenius norm
  # (Grishina et al. 2025 use the Schatten-4 norm).
  bound = jnp.maximum(jnp.linalg.norm(square, axis=(1, 2), keepdims=True), 1e-12) ** 0.5
  x, gram, square = x * jax.lax.rsqrt(bound), gram / bound, square / bound**2
  long, eye = x.shape[2] >= 2 * x.shape[1], jnp.eye(x.shape[1], dtype=x.dtype)
  product = x  # or, for long matrices, what x is multiplied by at the end: all factors commute with `gram`
  for i, (a, b, c) in enumerate(COEFFICIENTS[iterations]):
    factor = a * eye + b * gram + c * square
    product = factor if long and i == 0 else factor @ product
    if i + 1 < iterations:
      gram = factor @ gram @ factor if long else product @ product.mT
      square = gram @ gram
  return product @ x if long else product
