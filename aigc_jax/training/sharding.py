"""How the arrays of a State lie on a mesh: one table of rules by path for `tensor`, one rule by shape for `fsdp`.

An optimizer's moments and the moving average have the paths and shapes of their parameters at their end, so they lie as
their parameters do without being told.
"""

import re
from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.task import State
from aigc_jax.training.mesh import ROWS
from aigc_jax.training.optimizer import joined

# What of each array lies along `tensor`, by the end of its path (Shoeybi et al. 2019, section 3): attention by heads,
# the feed-forward layers by hidden units, tables and scores of symbols by symbols. A sum over devices follows each
# attention, each feed-forward layer and each look at the table; nothing else is exchanged.
TENSOR = (
  (r'(query|key|value)/kernel', (None, 'tensor', None)),  # [width, heads, head_width]
  (r'(query|key|value)/bias', ('tensor',)),
  (r'(cross_)?attention/output/kernel', ('tensor', None, None)),  # [heads, head_width, width]
  (r'mlp/(up|gate)/kernel', (None, 'tensor')),  # [width, hidden]
  (r'mlp/(up|gate)/bias', ('tensor',)),
  (r'mlp/down/kernel', ('tensor', None)),  # [hidden, width]
  (r'(embed|source_embed)/token', ('tensor', None)),  # [vocabulary, width]
  (r'head/kernel', (None, 'tensor')),  # [width, vocabulary]
  (r'(head|masked_head)/bias', ('tensor',)),
)
WHOLE = 'whole'  # the name of gathered parameters
# What the backward pass makes anew: other forms of gathered parameters, or they would be held after all, and what costs
# next to nothing, or all of it would be held at once, where XLA left to itself keeps but the products.
FORMS = ('sharding_constraint', 'convert_element_type', 'reshape', 'transpose', 'broadcast_in_dim', 'squeeze')
ELEMENTWISE = (
  'add',
  'sub',
  'mul',
  'div',
  'neg',
  'max',
  'min',
  'select_n',
  'exp',
  'log',
  'tanh',
  'logistic',
  'erf',
)
ELEMENTWISE += ('rsqrt', 'sqrt', 'square', 'integer_pow', 'custom_jvp_call')


def tensor_spec(path, shape, mesh):
  """[axis of the mesh or None] for each axis of an array, by the rules; what does not divide stays whole."""
  size = mesh.shape['tensor']
  for rule, axes in TENSOR if size > 1 else ():
    if re.search(rf'(^|/){rule}$', path) and len(axes) == len(shape):
      if all(axis is None or n % size == 0 for axis, n in zip(axes, shape, strict=True)):
        return list(axes)
      break
  return [None] * len(shape)


def spec_of(path, shape, mesh):
  """The PartitionSpec of a parameter, or of a moment or average of one.

  `fsdp` takes the largest axis of the others that it divides (Rajbhandari et al. 2020, stage 3), the first of several.
  """
  axes, size = tensor_spec(path, shape, mesh), mesh.shape['fsdp']
  free = [i for i, n in enumerate(shape) if axes[i] is None and n and n % size == 0]
  if free and size > 1:
    axes[max(free, key=lambda i: shape[i])] = 'fsdp'
  while axes and axes[-1] is None:  # so that equal layouts compare equal
    axes.pop()
  return P(*axes)


def by_path(mesh, tree):
  """A tree of arrays, or of their shapes -> the same of NamedShardings, by the rules."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, spec_of(joined(path), leaf.shape, mesh)), tree
  )


def by_layout(mesh, layout, extra):
  """The same of a task's `extra`: split by rows where its layout says so."""
  place = lambda where: NamedSharding(mesh, P() if where == 'replicated' else P(ROWS))
  return jax.tree.map(lambda where, part: jax.tree.map(lambda _: place(where), part), layout, extra)


def of_state(mesh, layout, state):
  """State of NamedShardings of a State of arrays or of their shapes."""
  whole = lambda tree: jax.tree.map(lambda _: NamedSharding(mesh, P()), tree)
  return State(
    whole(state.step),
    by_path(mesh, state.params),
    by_path(mesh, state.frozen),
    by_path(mesh, state.opt),
    by_path(mesh, state.average),
    by_layout(mesh, layout, state.extra),
    whole(state.key),
  )


def lay_in_turn(array, *shardings):
  for sharding in shardings:
    array = jax.lax.with_sharding_constraint(array, sharding)
  return array


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(array, dealt, whole):
  """An array that lies as `dealt` says, laid as `whole` says; its gradient is dealt out again as it is summed.

  Left to itself the partitioner may keep the weights where they are and move the activations instead, which costs
  more as soon as the batch is large; and it would sum whole gradients on every device.
  """
  # Dealt first, or what made the array (a cast to bfloat16) would be done to all of it, after it was sent.
  return lay_in_turn(array, dealt, whole)


def deal_out(dealt, whole, _, gradient):
  # Whole first, or a table of symbols would have its rows' gradients moved from device to device before they are added.
  return (lay_in_turn(gradient, whole, dealt),)


gathered.defvjp(lambda array, dealt, whole: (lay_in_turn(array, dealt, whole), None), deal_out)


def gather(mesh, dtype, params):
  """Parameters as their users need them: whole but for the part along `tensor`, matrices in `dtype`.

  Models cast matrices to the dtype of the computation before all else. Cast here they are half as long on their way,
  and so are their gradients, whose sum XLA makes a reduce-scatter only where nothing lies between it and its parts.
  """

  def one(path, array):
    path = joined(path)
    dealt = NamedSharding(mesh, spec_of(path, array.shape, mesh))
    whole = NamedSharding(mesh, P(*tensor_spec(path, array.shape, mesh)))
    if 'fsdp' not in dealt.spec:
      return array
    return checkpoint_name(gathered(array.astype(dtype) if array.ndim > 1 else array, dealt, whole), WHOLE)

  return jax.tree_util.tree_map_with_path(one, params)


def kept(primitive, *_, **params):
  """Whether the backward pass finds a value as the forward pass made it."""
  # JAX's own save_anything_except_these_names saves those too (0.10).
  return primitive.name not in FORMS + ELEMENTWISE and params.get('name') != WHOLE


def gathering(task, mesh, dtype):
  """The Task, each function of which gathers the parameters that it is given, matrices in `dtype`.

  Those of the forward pass are forgotten when it ends, and gathered anew by the backward pass.
  """
  if mesh.shape['fsdp'] == 1:
    return task
  whole = partial(gather, mesh, dtype)

  def loss(params, extra, batch, context):
    of_whole = lambda params: task.loss(whole(params), extra, batch, context)
    return jax.checkpoint(of_whole, policy=kept)(params) if context.train else of_whole(params)

  gathers = lambda function: lambda params, *rest: function(whole(params), *rest)
  evaluate = None if task.evaluate is None else gathers(task.evaluate)
  return task._replace(loss=loss, collect=gathers(task.collect), evaluate=evaluate)
