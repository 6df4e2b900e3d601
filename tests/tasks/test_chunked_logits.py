"""Cross-entropy by chunks of time: the numbers of the plain one, on every layout, and no logits of a whole batch."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aigc_jax import config as configs
from aigc_jax import models, tasks
from aigc_jax.config import floats_of
from aigc_jax.task import Context
from aigc_jax.tasks import losses
from aigc_jax.training import parallel
from aigc_jax.training import step as step_module
from aigc_jax.training.optimizer import OptimizerConfig

BATCH, TIME, VOCABULARY, WIDTH = 4, 11, 96, 8
SMALL = {'layers': 1, 'width': WIDTH, 'vocabulary_size': VOCABULARY}
HEADS = SMALL | {'heads': 2, 'context_length': 2 * TIME}
TEXT = {'name': 'language'}
PAIRS = {'name': 'translation', 'label_smoothing': 0.2}
MASKED = {'name': 'masked_language', 'mask_token': 90, 'end_of_text': 91}
CASES = {  # name: (config.task, config.model)
  'tied': (TEXT, {'name': 'transformer', 'dropout': 0.3, **HEADS}),
  'capped': (
    TEXT,
    {'name': 'transformer', 'logit_cap': 2.0, 'tie_embeddings': False, 'norm_position': 'post', **HEADS},
  ),
  'carried': (TEXT | {'carry_state': True}, {'name': 'rnn', **SMALL}),
  'tied_rnn': (TEXT, {'name': 'rnn', 'tie_embeddings': True, 'variational_dropout': 0.3, **SMALL}),
  'masked': (MASKED, {'name': 'transformer_encoder', **HEADS}),
  'masked_head': (MASKED, {'name': 'transformer_encoder', 'head_transform': True, **HEADS}),
  'pairs': (PAIRS, {'name': 'transformer_encoder_decoder', 'tie_embeddings': False, **HEADS}),
  'rnn_pairs': (PAIRS, {'name': 'rnn_encoder_decoder', 'dropout': 0.3, **SMALL}),
  'prefix': (PAIRS, {'name': 'transformer', 'bidirectional_prefix': True, **HEADS}),
}

MORE = ('tied_rnn', 'masked', 'pairs', 'prefix', 'capped')  # the last is what steps on layouts are taken of


def config_of(case, chunk=None, **sections):
  task, model = CASES[case]
  form = {'language': 'text', 'translation': 'pairs', 'masked_language': 'masked_text'}[task['name']]
  source = {'pairs': 'bundled:en_zh'}.get(form, 'bundled:moby_dick')
  given = {
    'task': task | {'logits_chunk': chunk},
    'model': model,
    'data': {'source': source, 'batch_size': BATCH},
    'optimizer': {'name': 'sgd', 'learning_rate': 0.1},
  }
  schemas = configs.Schemas(tasks.SCHEMAS, models.SCHEMAS, OptimizerConfig, tasks.data_schema)
  return configs.resolve(given | sections, schemas)


def batch_of(case):
  """Random tokens whose rows count for very different numbers of places."""
  draw = np.random.default_rng(0)
  tokens = lambda: draw.integers(0, 90, (BATCH, TIME)).astype(np.int32)
  lengths = np.array([TIME, 3, 7, 5], np.int32)
  mask = (np.arange(TIME) < lengths[:, None]).astype(np.float32)
  batch = {'inputs': tokens(), 'targets': tokens(), 'mask': mask}
  name = CASES[case][0]['name']
  if name == 'translation':
    return batch | {'sources': tokens(), 'lengths': lengths[::-1].copy()}
  if name == 'masked_language':
    chosen = mask * (draw.random((BATCH, TIME)) < 0.6)
    begins = np.ones((BATCH, TIME), bool)
    return batch | {'lengths': lengths, 'chosen': chosen.astype(np.float32), 'word_begins': begins}
  return batch | {'characters': 2 * mask, 'begins': np.array([1, 0, 0, 1], np.int32)}


def numbers_of(config, batch, params, extra):
  """What a training and an evaluation give: (total, the rest, gradients), (total, the rest)."""
  task = tasks.build(config)
  loss = lambda params, train: task.loss(params, extra, batch, Context(jax.random.key(5), 0, train))
  (total, rest), slopes = jax.value_and_grad(loss, has_aux=True)(params, True)
  return (total, rest, slopes), loss(params, False)


def largest_array(function, *inputs):
  """Elements of the largest float array that a function's program makes, its inner programs included."""

  def sizes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (
        math.prod(v.aval.shape) for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)
      )
      for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from sizes(inner)

  return max(sizes(jax.make_jaxpr(function)(*inputs).jaxpr))


@pytest.mark.parametrize(
  'case', [pytest.param(case, marks=pytest.mark.slow if case in MORE else ()) for case in CASES]
)
def test_every_task_and_model_gives_the_numbers_of_the_plain_loss(case):
  """A chunk of 4 does not divide the time of 11, nor that of joined pairs, 21."""
  plain, chunked, batch = config_of(case), config_of(case, 4), batch_of(case)
  params, extra = tasks.build(plain).init(jax.random.key(0), batch)
  draw = np.random.default_rng(1)  # larger than at first, so that likeliest tokens are clear
  params = jax.tree.map(lambda x: x + 0.3 * draw.standard_normal(x.shape).astype(np.float32), params)
  functions = [functools.partial(numbers_of, config, batch) for config in (plain, chunked)]
  expected, found = jax.jit(lambda *state: [function(*state) for function in functions])(params, extra)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  assert float(expected[1][1][2]['accuracy'][0]) == float(found[1][1][2]['accuracy'][0])
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    # Sums of a few thousand float32 in another order.
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
  places = (2 * TIME - 1 if case == 'prefix' else TIME) * BATCH
  assert largest_array(functions[0], params, extra) >= places * VOCABULARY
  assert largest_array(functions[1], params, extra) < places * VOCABULARY


@pytest.mark.parametrize(
  ('chunk', 'dtype', 'tolerance'),
  [
    *((chunk, 'float32', 1e-5) for chunk in (None, 1, 4, 50)),
    (None, 'bfloat16', 2e-2),
    (4, 'bfloat16', 2e-2),
  ],
)
def test_sums_hits_and_slopes_are_those_of_torch(chunk, dtype, tolerance):
  """bfloat16 keeps 8 bits, and products are rounded to it; float32 differs by the order of sums."""
  draw = np.random.default_rng(0)
  x, kernel = draw.standard_normal((BATCH, TIME, WIDTH)), draw.standard_normal((WIDTH, VOCABULARY))
  targets, weights = draw.integers(0, VOCABULARY, (BATCH, TIME)), draw.random((BATCH, TIME))
  targets[0] = (x[0] @ kernel).argmax(-1)

  def total(params, x):
    logits_of = lambda params, x: (x.astype(dtype) @ params['kernel'].astype(dtype)).astype(jnp.float32)
    settings = jnp.float32(weights), chunk, jnp.float32(0.1)
    total, hits = losses.cross_entropy(logits_of, params, x, targets, *settings)
    return 3 * total, hits

  params = {'kernel': jnp.float32(kernel), 'unread': jnp.ones(3)}
  (found, hits), slopes = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, jnp.float32(x))
  ours = [torch.tensor(array, requires_grad=True) for array in (kernel, x)]
  logits = (ours[1] @ ours[0]).flatten(0, 1)
  nats = torch.nn.functional.cross_entropy(
    logits, torch.tensor(targets).flatten(), reduction='none', label_smoothing=0.1
  )
  theirs = 3 * (nats * torch.tensor(weights).flatten()).sum()
  theirs.backward()
  np.testing.assert_allclose(found, theirs.item(), rtol=tolerance)
  for slope, tensor in zip((slopes[0]['kernel'], slopes[1]), ours, strict=True):
    expected = tensor.grad.numpy()
    np.testing.assert_allclose(slope, expected, atol=tolerance * np.abs(expected).max())
  np.testing.assert_array_equal(slopes[0]['unread'], 0)
  if dtype == 'float32':
    np.testing.assert_array_equal(hits, logits.detach().numpy().argmax(-1).reshape(BATCH, TIME) == targets)


def test_slopes_of_parameters_are_added_in_float32_whatever_the_product_is_computed_in():
  """A thousand slopes of about 1/2 each: in bfloat16 the sum would stay at 128, where it has no halves."""
  time, half = 1024, jnp.bfloat16
  logits_of = lambda params, x: (x.astype(half) @ params.astype(half)).astype(jnp.float32)
  zeros, ones = jnp.zeros((1, time), jnp.int32), jnp.ones((1, time))
  total = lambda params: losses.cross_entropy(logits_of, params, ones[..., None], zeros, ones, 1)[0]
  slope = jax.jit(jax.grad(total))(jnp.zeros((1, 2)))
  assert slope.dtype == jnp.float32
  np.testing.assert_allclose(slope, [[-time / 2, time / 2]])


def trained(case, chunk, devices=1, training=(), parallel_=()):
  """([loss, gradient norm], params, compiled) of one step."""
  sections = {'training': {'steps': 5, **dict(training)}, 'parallel': {'data': 1, **dict(parallel_)}}
  config = config_of(case, chunk, **sections)
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:devices])
  floats, batch = program.put_floats(floats_of(config)), program.put_batch(batch_of(case))
  state = program.init(floats, jax.random.key(0), batch)
  compiled = program.step.lower(floats, state, batch).compile()
  state, metrics = compiled(floats, state, batch)
  return [metrics['loss'], metrics['gradient_norm']], jax.device_get(state.params), compiled


def largest_on_a_device(compiled):
  """Elements of the largest float array that a compiled program makes."""
  shapes = re.findall(r'\b(?:f32|bf16)\[([\d,]+)\]', compiled.as_text())
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


@functools.cache
def alone(case):
  return trained(case, None)


LAYOUTS = {  # parts of the logits, config.training, config.parallel
  'data': (4, {}, {'data': 4}),
  'fsdp': (4, {}, {'fsdp': 4}),
  'tensor': (2, {}, {'tensor': 2}),
  'pmap': (4, {}, {'data': 4, 'mode': 'pmap'}),
  'microbatches': (2, {'microbatches': 2}, {}),
}
SLOW = [
  ('capped', 'tensor'),
  ('capped', 'microbatches'),
  ('carried', 'pmap'),
  ('masked_head', 'fsdp'),
  ('carried', 'microbatches'),
  *(('pairs', layout) for layout in LAYOUTS),
]


@pytest.mark.parametrize(
  ('case', 'layout'),
  [
    *(('capped', layout) for layout in ('data', 'fsdp', 'pmap')),
    *(pytest.param(*both, marks=pytest.mark.slow) for both in SLOW),
  ],
)
def test_a_step_on_every_layout_is_the_plain_step_of_one_device(case, layout):
  parts, training, parallel_ = LAYOUTS[layout]
  devices = 1 if layout == 'microbatches' else parts
  expected, found = alone(case), trained(case, 4, devices, training, parallel_)
  # Sums in another order; one step of plain descent magnifies nothing.
  np.testing.assert_allclose(found[0], expected[0], rtol=2e-5)
  for ours, theirs in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
  # Of all of time no device holds the logits: not of its rows, nor of its part of the vocabulary.
  assert largest_on_a_device(found[2]) < BATCH * TIME * VOCABULARY / parts


@pytest.mark.parametrize('precision', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)])
def test_a_compiled_step_holds_no_logits_of_all_places_and_less_memory(precision):
  training = {'precision': precision}
  plain = alone('capped') if precision == 'float32' else trained('capped', None, training=training)
  chunked = trained('capped', 2, training=training)
  # bfloat16 keeps 8 bits; the products differ in nothing but the order of their sums.
  np.testing.assert_allclose(chunked[0], plain[0], rtol=1e-2 if precision == 'bfloat16' else 2e-5)
  assert largest_on_a_device(plain[2]) >= BATCH * TIME * VOCABULARY
  assert largest_on_a_device(chunked[2]) < BATCH * TIME * VOCABULARY
  before, after = (made[2].memory_analysis().temp_size_in_bytes for made in (plain, chunked))
  # At least the float32 logits of all places but a chunk's are gone.
  assert before - after >= 4 * BATCH * (TIME - 2) * VOCABULARY


def test_lanes_give_the_numbers_of_each_alone():
  """Two lanes that differ in the cap, which the chunks read."""
  floats = {'model.logit_cap': (1.0, 4.0), 'optimizer.learning_rate': (0.1, 0.2)}
  config, batch = config_of('capped', 4), batch_of('capped')
  both = jax.tree.map(lambda x: jnp.full(2, x, jnp.float32), floats_of(config))
  both |= {name: jnp.array(values) for name, values in floats.items()}
  program = step_module.make_program(config, tasks.build)
  run = lambda program: lambda floats, key: program.step(floats, program.init(floats, key, batch), batch)
  keys = jax.random.split(jax.random.key(0), 2)
  lanes, alone = jax.jit(run(step_module.lanes(program))), jax.jit(run(program))
  state, metrics = lanes(both, keys)
  assert metrics['loss'][0] != metrics['loss'][1]
  for lane in range(2):
    pick = lambda tree: jax.tree.map(lambda x: x[lane], tree)
    solo, expected = alone(pick(both), keys[lane])
    np.testing.assert_allclose(metrics['loss'][lane], expected['loss'], rtol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (pick(state.params), solo.params)), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
