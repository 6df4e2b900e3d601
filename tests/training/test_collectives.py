"""What a compiled step's devices exchange, by layout; and that the counting of it counts right."""

import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from aigc_jax.training import checkpoint, collectives, placement, sharding
from aigc_jax.training.parallel import make_parallel
from tests import equality, tiny
from tests.training.test_rehearsal import toy_config
from tests.training.test_resident import ROWS, gathering, resident
from tests.training.toys import TOYS, batch_at

# Untied, since the gradient of a tied table is the sum of two, and XLA for CPUs exchanges both. No two kinds of arrays
# are of one shape.
MODEL = {'name': 'transformer', 'layers': 1, 'heads': 8, 'width': 32, 'mlp_width': 96, 'vocabulary_size': 64}
MODEL |= {'positions': 'rotary', 'tie_embeddings': False, 'activation': 'swiglu'}
OPTIMIZER = {'name': 'adamw', 'weight_decay': 0.1, 'clip_norm': 1.0, 'average': 0.9}
SCALARS = 8  # elements: a sum of so many is one of losses, weights and norms
FEW = 300  # elements: of vectors, such as a norm's scale and its neighbours in one exchange


@pytest.fixture(scope='module')
def step_on(source):
  """layout -> (collectives of a train step on 8 devices, {path: array} of its parameters' shapes)."""
  found = {}

  def compiled(layout):
    if layout not in found:
      config = equality.text(source, MODEL, optimizer=OPTIMIZER)
      _, placed = equality.prepared(config, layout, 8)
      exchanged = collectives.find(placement.lower_step(placed).compile())
      found[layout] = exchanged, checkpoint.flat(placed.target.params)
    return found[layout]

  return compiled


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')


def sizes(exchanged, *kinds):
  """Elements of each array that is exchanged so; scalars left out."""
  shapes = [shape for c in exchanged if c.kind in kinds for shape in c.shapes]
  return [math.prod(shape) for shape in shapes if math.prod(shape) > SCALARS]


def flat_shapes(params):
  """Shapes of parameters as products of matrices have them, and as they are."""
  whole = {leaf.shape for leaf in params.values() if leaf.ndim > 1}
  return whole | {(math.prod(s[:i]), math.prod(s[i:])) for s in whole for i in range(1, len(s))}


def test_data_parallelism_sums_each_gradient_once_and_nothing_else(step_on):
  exchanged, params = step_on('data')
  assert {c.kind for c in exchanged} == {'all-reduce'}
  # losses and weights besides
  assert sum(c.bytes for c in exchanged) == pytest.approx(
    4 * sum(p.size for p in params.values()), abs=4 * 16
  )


def test_fsdp_gathers_parameters_twice_at_most_and_scatters_gradients(step_on):
  exchanged, params = step_on('fsdp')
  assert {c.kind for c in exchanged} <= {'all-reduce', 'reduce-scatter', 'all-gather'}
  summed = [shape for c in exchanged if c.kind == 'all-reduce' for shape in c.shapes]
  assert not set(summed) & flat_shapes(params)
  assert max(map(math.prod, summed)) <= FEW
  total = sum(p.size for p in params.values())
  # Vectors may be summed whole, and all that is, is so small; every matrix is scattered, once.
  matrices = sum(p.size for p in params.values() if p.ndim > 1)
  assert matrices <= sum(sizes(exchanged, 'reduce-scatter')) <= total
  gathered = sizes(exchanged, 'all-gather')
  assert sum(gathered) <= 2 * total
  for size in {p.size for p in params.values()}:
    assert gathered.count(size) <= 2 * sum(p.size == size for p in params.values())


def test_fsdp_never_sums_the_whole_gradient_of_a_tied_table_or_of_positions(source):
  changes = {'tie_embeddings': True, 'positions': 'learned', 'width': 64}
  config = equality.text(source, MODEL | changes, optimizer=OPTIMIZER)
  _, placed = equality.prepared(config, 'fsdp', 8)
  exchanged = collectives.find(placement.lower_step(placed).compile())
  assert max(sizes(exchanged, 'all-reduce'), default=0) <= FEW
  for table in ('token', 'position'):
    assert math.prod(placed.target.params['embed'][table].shape) in sizes(exchanged, 'reduce-scatter')


@pytest.mark.slow
def test_fsdp_for_gpus_sums_no_matrix_whole():
  """GPT-2 124M, its table tied: XLA for GPUs adds the two gradients of the table before it exchanges them, once."""
  pytest.importorskip(
    'jax_plugins.xla_cuda12', reason='uv run --with jax-cuda12-plugin==VERSION_OF_JAX pytest'
  )
  command = [sys.executable, 'benchmarks/scaling_on_paper.py', '--target=h100', '--one', '124M', 'fsdp', '4']
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['sent']['all-reduce'] < 5e5  # of 560e6 bytes: vectors alone, whose gradients are in bfloat16
  assert sum(found['sent'].values()) < 1.01 * found['ideal']


def test_fsdp_forgets_matrices_after_the_forward_pass(step_on):
  exchanged, params = step_on('fsdp')
  gathered = sizes(exchanged, 'all-gather')
  up = params['block_0/mlp/up/kernel']
  alike = sum(p.size == up.size for p in params.values())
  assert gathered.count(up.size) == 2 * alike  # the backward pass gathers them anew


def test_fsdp_gathers_matrices_in_the_dtype_of_the_computation():
  mesh = jax.make_mesh((1, 8, 1), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  params = {'kernel': jnp.ones((8, 16)), 'scale': jnp.ones(16), 'odd': jnp.ones((3, 5))}
  found = jax.eval_shape(lambda params: sharding.gather(mesh, jnp.bfloat16, params), params)
  # what does not divide is not gathered
  assert {name: leaf.dtype.name for name, leaf in found.items()} == {
    'kernel': 'bfloat16',
    'scale': 'float32',
    'odd': 'float32',
  }


def test_tensor_parallelism_sums_activations_and_gathers_nothing(step_on):
  exchanged, _ = step_on('tensor')
  assert {c.kind for c in exchanged} == {'all-reduce'}
  rows, time, width = 16, 16, MODEL['width']
  # Each holds a part of the logits, [rows, time, vocabulary / 8]; what is summed is narrower than the whole of them.
  large = [size for size in sizes(exchanged, 'all-reduce') if size > rows * time]
  assert set(large) == {rows * time * width}
  # Forward: table, attention, feed-forward. Backward: scores; one for each product that reads a layer's input, which
  # XLA for GPUs adds before it sums them: three of attention, two of a gated feed-forward.
  assert len(large) == 3 + 1 + 3 + 2


@pytest.mark.parametrize('layout', ['data', 'fsdp', 'tensor', pytest.param('mixed', marks=pytest.mark.slow)])
def test_moments_and_the_average_never_move(step_on, layout):
  exchanged, _ = step_on(layout)
  # What the loss and its gradient do is named after JAX's transformations; the optimizer's work is not.
  others = [c for c in exchanged if 'jvp' not in c.source]
  assert sizes(others, *collectives.KINDS) == []


def step_of(toy, axes, batch, held=None):
  """(collectives of a toy's train step on 8 devices, its State of shapes); nothing is run."""
  program = make_parallel(toy_config('bandit', parallel=axes), toy, jax.devices())
  batch = program.put_batch(batch) | program.put_resident(held)
  floats = program.put_floats({})
  shapes = jax.eval_shape(program.init, floats, jax.random.key(0), batch)
  state = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, program.shardings(shapes))
  return collectives.find(program.step.lower(floats, state, batch).compile()), state


@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 2, 'fsdp': 4}])
def test_a_resident_data_set_is_never_exchanged(axes):
  exchanged, state = step_of(gathering, axes, {'rows': ROWS, 'mask': batch_at(0)['mask']}, resident())
  largest = max(leaf.size for leaf in jax.tree.leaves(state.params))
  assert exchanged
  assert max(math.prod(shape) for c in exchanged for shape in c.shapes) <= largest


@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 2, 'fsdp': 4}])
def test_rows_that_live_on_the_devices_are_never_gathered(axes):
  exchanged, state = step_of(TOYS['bandit'], axes, batch_at(0))
  world = state.extra['world']
  assert world.sharding.shard_shape(world.shape)[0] == len(world) // 8
  assert not any(shape[:1] == (len(world),) for c in exchanged for shape in c.shapes)
  # of the parameters [4, 3] at most
  assert max(sizes(exchanged, *collectives.KINDS), default=0) <= 12


# The counting of them. Each row: what one device does with x [8, 16] float32, and what is found: kind, elements of the
# whole array, devices of a group, times, and bytes sent by each device, by hand.
HAND_MADE = {
  'psum': (lambda x: jax.lax.psum(x, 'b'), ('all-reduce', 128, 4, 1, 2 * 3 / 4 * 512)),
  'psum over both': (lambda x: jax.lax.psum(x, ('a', 'b')), ('all-reduce', 128, 8, 1, 2 * 7 / 8 * 512)),
  'psum over the other': (lambda x: jax.lax.psum(x, 'a'), ('all-reduce', 128, 2, 1, 2 * 1 / 2 * 512)),
  'all_gather': (lambda x: jax.lax.all_gather(x, 'b', tiled=True), ('all-gather', 512, 4, 1, 3 / 4 * 2048)),
  'psum_scatter': (
    lambda x: jax.lax.psum_scatter(x, 'b', tiled=True),
    ('reduce-scatter', 128, 4, 1, 3 / 4 * 512),
  ),
  'ppermute': (
    lambda x: jax.lax.ppermute(x, 'b', [(i, (i + 1) % 4) for i in range(4)]),
    ('collective-permute', 128, 2, 1, 512),
  ),
  'all_to_all': (
    lambda x: jax.lax.all_to_all(x, 'b', 0, 0, tiled=True),
    ('all-to-all', 128, 4, 1, 3 / 4 * 512),
  ),
  'in a loop': (
    lambda x: jax.lax.scan(lambda y, _: (jax.lax.psum(y, 'b') * 0.1, None), x, None, length=5)[0],
    ('all-reduce', 128, 4, 5, 5 * 2 * 3 / 4 * 512),
  ),
}


@pytest.mark.parametrize('name', HAND_MADE)
def test_finds_what_was_asked_for(name):
  function, expected = HAND_MADE[name]
  mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  run = jax.shard_map(function, mesh=mesh, in_specs=P(('a', 'b')), out_specs=P(('a', 'b')), check_vma=False)
  (one,) = collectives.find(jax.jit(run).lower(jnp.ones((64, 16))).compile())
  # all-to-all may be a tuple of the pieces
  elements = sum(map(math.prod, one.shapes))
  assert (one.kind, elements, one.devices, one.times, one.sent) == expected


def test_a_sum_that_is_cut_at_once_is_a_reduce_scatter_and_one_that_is_used_whole_is_not():
  mesh = jax.make_mesh((8,), ('a',), axis_types=(AxisType.Auto,))
  own = lambda total: jax.lax.dynamic_slice_in_dim(total, jax.lax.axis_index('a'), 1)

  def kinds(function):
    run = jax.shard_map(function, mesh=mesh, in_specs=P('a'), out_specs=P('a'), check_vma=False)
    return [c.kind for c in collectives.find(jax.jit(run).lower(np.ones((64, 16), np.float32)).compile())]

  assert kinds(lambda x: own(jax.lax.psum(x, 'a'))) == ['reduce-scatter']
  assert kinds(lambda x: own(jax.lax.psum(x, 'a')) + jax.lax.psum(x, 'a').max()) == ['all-reduce']
  half = lambda total: jax.lax.dynamic_slice_in_dim(total, jax.lax.axis_index('a') % 2, 4)
  assert kinds(lambda x: half(jax.lax.psum(x, 'a'))) == ['all-reduce'], 'more than its own part'


# As XLA prints a program for GPUs: exchanges that begin and end, groups as an iota, several arrays in one.
GPU_TEXT = r"""HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%cut (whole: f32[64]) -> f32[16] {
  %whole = f32[64]{0} parameter(0)
  %place = s32[] constant(0)
  ROOT %part = f32[16]{0} dynamic-slice(%whole, %place), dynamic_slice_sizes={16}
}

%hidden (operand: f32[64]) -> f32[8] {
  %operand = f32[64]{0} parameter(0)
  ROOT %scattered = f32[8]{0} reduce-scatter(%operand), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%left (operand.1: f32[64]) -> f32[64] {
  ROOT %operand.1 = f32[64]{0} parameter(0)
}

%right (operand.2: f32[64]) -> f32[64] {
  %operand.2 = f32[64]{0} parameter(0)
  ROOT %sent = f32[64]{0} collective-broadcast(%operand.2), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}
}

%body (carry: (s32[], bf16[1024])) -> (s32[], bf16[1024]) {
  %carry = (s32[], bf16[1024]{0}) parameter(0)
  %held = bf16[1024]{0} get-tuple-element(%carry), index=1
  %all-reduce-start = bf16[1024]{0} all-reduce-start(%held), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add, metadata={op_name="jit(step)/while/psum"}
  %all-reduce-done = bf16[1024]{0} all-reduce-done(%all-reduce-start)
  ROOT %next = (s32[], bf16[1024]{0}) tuple(%all-reduce-done)
}

%condition (carry: (s32[], bf16[1024])) -> pred[] {
  ROOT %more = pred[] constant(true)
}

ENTRY %main (p0: bf16[1024], p1: f32[64]) -> f32[64] {
  %p0 = bf16[1024]{0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %which = pred[] constant(true)
  %while = (s32[], bf16[1024]{0}) while(%p0), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %all-gather-start = ((f32[16]{0}, bf16[2,3]{1,0}), (f32[64]{0}, bf16[8,3]{1,0})) all-gather-start(%p1, %p1), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %all-gather-done = (f32[64]{0}, bf16[8,3]{1,0}) all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((f32[64]{0}), f32[16]{0}) reduce-scatter-start(%p1), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[16]{0} reduce-scatter-done(%reduce-scatter-start)
  %all-reduce-start.1 = f32[64]{0} all-reduce-start(%p1), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %all-reduce-done.1 = f32[64]{0} all-reduce-done(%all-reduce-start.1)
  %fusion = f32[16]{0} fusion(%all-reduce-done.1), kind=kLoop, calls=%cut
  %async-start = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%p1), calls=%hidden
  %async-done = f32[8]{0} async-done(%async-start)
  %branched = f32[64]{0} conditional(%which, %p1, %p1), true_computation=%left, false_computation=%right
  %alone = f32[64]{0} all-reduce(%p1), channel_id=6, replica_groups=[8,1]<=[8], to_apply=%add
  ROOT %permuted = f32[64]{0} collective-permute(%p1), channel_id=7, source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501
GPU_FOUND = [
  ('all-reduce', ((1024,),), 4, 6, 6 * 2 * 3 / 4 * 2048),
  ('all-gather', ((64,), (8, 3)), 4, 1, 3 / 4 * (256 + 48)),
  ('reduce-scatter', ((64,),), 4, 1, 3 / 4 * 256),
  ('all-reduce', ((64,),), 4, 1, 2 * 3 / 4 * 256),  # what is cut after it has been summed whole
  ('reduce-scatter', ((64,),), 8, 1, 7 / 8 * 256),  # the one in a computation of its own
  ('collective-permute', ((64,),), 2, 1, 256),
  ('collective-broadcast', ((64,),), 8, 1, 256),  # in a branch
]


# How XLA names groups of the 8 devices -> how many are in each.
GROUPS = {
  'replica_groups={{0,1,2,3},{4,5,6,7}}': 4,
  'replica_groups={}': 8,
  'replica_groups=[2,4]<=[8]': 4,
  'replica_groups=[4,2]<=[2,4]T(1,0)': 2,
  "replica_groups=mesh['a'=4,'b'=2] {'a'}": 4,
  "replica_groups=mesh['a'=4,'b'=2] {'a','b'}": 8,
  "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}": 4,
  "replica_groups=mesh['a'=8] {'a':(2)4}": 4,
}


@pytest.mark.parametrize('groups', GROUPS)
def test_reads_how_many_devices_take_part(groups):
  assert (
    collectives.group_size(f'%x), channel_id=1, {groups}, use_global_device_ids=true', 8) == GROUPS[groups]
  )


def test_reads_the_program_of_a_gpu():
  found = collectives.find(GPU_TEXT)
  assert sorted((c.kind, c.shapes, c.devices, c.times, c.sent) for c in found) == sorted(GPU_FOUND)
  assert [c.source for c in found if c.times == 6] == ['jit(step)/while/psum']
  text = re.sub(r'\s+', ' ', ' '.join(collectives.table(found)))
  assert 'all-reduce 7 of 12,544, 18,816 sent by each device' in text
