"""Attention by cuDNN against attention by XLA: the same masks, the same numbers; who uses which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.models import attention
from aigc_jax.models.masks import Structure
from tests import cudnn

TIME = 12
LENGTHS = (12, 5, 0, 1)  # of each row; 0: a row that fills up a batch
STRUCTURES = {
  'bidirectional': Structure(),
  'causal': Structure(causal=True),
  'window': Structure(causal=True, window=4),
  'window of one': Structure(causal=True, window=1),
  'lengths': Structure(lengths=np.array(LENGTHS, np.int32)),
  'causal with lengths': Structure(causal=True, lengths=np.array(LENGTHS, np.int32)),
}


@pytest.fixture(params=STRUCTURES)
def structure(request):
  return STRUCTURES[request.param]


def test_the_array_of_a_structure_says_what_each_token_sees(structure):
  array = np.broadcast_to(structure.array(TIME), (len(LENGTHS), 1, TIME, TIME))
  for row, place, slot in np.ndindex(len(LENGTHS), TIME, TIME):
    sees = slot <= place or not structure.causal
    sees &= structure.window is None or place - slot < structure.window
    sees &= structure.lengths is None or slot < structure.lengths[row]
    assert array[row, 0, place, slot] == sees


def inputs_of(dtype, key_value_heads, time, slots):
  """query [4, 4, time, 8], key and value [4, key_value_heads, slots, 8], and weights of the outputs."""
  shapes = [(4, 4, time, 8)] + [(4, key_value_heads, slots, 8)] * 2
  keys = jax.random.split(jax.random.key(0), 4)
  arrays = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False)]
  return arrays, jax.random.normal(keys[3], shapes[0])


def outputs_and_slopes(ways, arrays, weights):
  """[outputs, gradients of their weighted sum by query, key and value] of each way, float32 numpy arrays."""

  def one(attend):
    outputs, pull = jax.vjp(attend, *arrays)
    return outputs, *pull(weights.astype(outputs.dtype))

  found = jax.jit(lambda: [one(attend) for attend in ways])()
  return [[np.asarray(x, np.float32) for x in way] for way in found]


def compared(structure, dtype, key_value_heads, tolerance, time=TIME, slots=TIME):
  arrays, weights = inputs_of(dtype, key_value_heads, time, slots)
  if structure.lengths is not None:  # what is at padding, and in a row without tokens, is read by nobody
    inside = structure.lengths[:, None] > (np.arange(time) if time == slots else np.zeros(time))
    weights = weights * inside[:, None, :, None]
  ways = (lambda *x: attention.attend(*x, structure.array(slots)), lambda *x: attention.flash(*x, structure))
  wanted, found = outputs_and_slopes(ways, arrays, weights)
  counts = np.asarray(weights != 0)
  np.testing.assert_allclose(found[0] * counts, wanted[0] * counts, atol=tolerance)
  for one, other in zip(found[1:], wanted[1:], strict=True):
    np.testing.assert_allclose(one, other, atol=tolerance)
  assert all(np.isfinite(x).all() for x in found)


def test_jax_means_the_same_mask_by_the_same_arguments(structure, monkeypatch):
  theirs = jax.nn.dot_product_attention
  swapped = lambda *x, implementation, **settings: theirs(*x, implementation='xla', **settings)
  monkeypatch.setattr(jax.nn, 'dot_product_attention', swapped)
  compared(structure, jnp.float32, 2, 1e-5)  # sums in another order


def test_cudnn_is_handed_the_same_mask(structure):
  with cudnn.pretended():
    compared(structure, jnp.float16, 4, 1e-2)  # weights and gradients rounded to 2^-11


@pytest.mark.parametrize(
  ('name', 'time', 'slots'),
  [('lengths', 7, 12), ('lengths', 11, 13), ('bidirectional', 6, 13), ('causal', 11, 11), ('window', 13, 13)],
)
def test_cudnn_attends_over_another_text_and_over_an_odd_number_of_tokens(name, time, slots):
  with cudnn.pretended():
    compared(STRUCTURES[name], jnp.float16, 2, 1e-2, time, slots)


SIZES = {'vocabulary_size': 11, 'context_length': TIME, 'layers': 2, 'heads': 2, 'width': 16}
TOKENS = np.ones((4, TIME), np.int32)
CALLS = {  # (model, fields, inputs, named inputs): calls of cuDNN
  'language': (('transformer', {}, (TOKENS,), {}), 2),
  'window': (('transformer', {'window': 3}, (TOKENS,), {}), 2),
  'remat': (('transformer', {'remat': 'full'}, (TOKENS,), {}), 2),
  'packed': (('transformer', {}, (TOKENS,), {'segments': TOKENS}), 0),
  'prefix': (('transformer', {'bidirectional_prefix': True}, (TOKENS,), {'prefix': TOKENS[:, 0]}), 0),
  'no prefix': (('transformer', {}, (TOKENS,), {'prefix': TOKENS[:, 0]}), 2),
  'dropout': (('transformer', {'dropout': 0.1}, (TOKENS,), {}), 0),
  'masked': (('transformer_encoder', {}, (TOKENS,), {'lengths': TOKENS[:, 0]}), 2),
  'whole rows': (('transformer_encoder', {}, (TOKENS,), {}), 2),
  'packed masked': (('transformer_encoder', {}, (TOKENS,), {'segments': TOKENS}), 0),
  'translation': (
    ('transformer_encoder_decoder', {'encoder_layers': 3}, (TOKENS, TOKENS), {'lengths': TOKENS[:, 0]}),
    3 + 2 * 2,
  ),
  'classification': (('transformer_classifier', {'classes': 3}, (TOKENS,), {'lengths': TOKENS[:, 0]}), 2),
}


def traced(name, fields, inputs, named, method='__call__'):
  """The text of a call's jaxpr, in bfloat16."""
  module = models.build({'name': name, **SIZES, **fields}, jnp.bfloat16)
  params = jax.eval_shape(module.init, jax.random.key(0), *([TOKENS] * (2 if 'decoder' in name else 1)))
  call = lambda params, inputs, named: module.apply(params, *inputs, **named, method=method)
  return str(jax.make_jaxpr(call)(params, inputs, named))


@pytest.mark.parametrize('case', CALLS)
def test_cudnn_attends_where_a_call_has_a_structure_and_holds_no_mask(case):
  (name, fields, inputs, named), count = CALLS[case]
  with cudnn.pretended():
    text = traced(name, {'attention': 'cudnn', **fields}, inputs, named)
  assert text.count(f'{cudnn.CALL}[') == count
  assert (f'{TIME},{TIME}]' in text) == (count == 0)  # of scores and masks
  for how in ('xla', 'auto'):  # without cuDNN, which would be an error
    assert cudnn.CALL not in traced(name, {'attention': how, **fields}, inputs, named)


def test_writing_token_by_token_is_by_xla():
  cache = models.build({'name': 'transformer', **SIZES}, jnp.bfloat16).init_cache(4, TIME)
  with cudnn.pretended():
    text = traced('transformer', {'attention': 'cudnn'}, (TOKENS[:, :1], cache), {}, 'decode')
  assert cudnn.CALL not in text


def test_what_a_source_leaves_for_writing_has_its_mask_as_an_array():
  lengths = np.array(LENGTHS, np.int32)
  with cudnn.pretended():
    module = models.build(
      {'name': 'transformer_encoder_decoder', **SIZES, 'attention': 'cudnn'}, jnp.bfloat16
    )
    params = jax.eval_shape(module.init, jax.random.key(0), TOKENS, TOKENS)
    memory = jax.eval_shape(lambda p: module.apply(p, TOKENS, lengths, method='encode'), params)
  assert memory.mask == jax.ShapeDtypeStruct((4, 1, 1, TIME), bool)
