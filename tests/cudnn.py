"""cuDNN's attention on CPUs: what jax hands to it, computed plainly by the meaning that cuDNN documents.

The calls are checked, traced, differentiated, batched and dealt out over devices by jax's own code for them; only the
two kernels, forward and backward, are put in. jax gives no public way to do so, hence its private modules here.
"""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as calls
from jax._src.interpreters import mlir

VERSION = 91800  # that jax is told of
CALL = 'dot_product_attention_fwd_wrapper'  # as a jaxpr has it
KERNELS = ('__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward')  # as a program for CUDA has them


def seen(query, key, query_lengths, lengths, mask_type, window):
  """[batch or 1, 1, time, slots] bool; the window is (place - window, place]."""
  places, slots = jnp.arange(query.shape[1])[:, None], jnp.arange(key.shape[1])
  mask = jnp.ones((1, 1, query.shape[1], key.shape[1]), bool)
  if mask_type in (calls.MaskType.CAUSAL, calls.MaskType.PADDING_CAUSAL):
    mask &= slots <= places
  if calls.has_padding(mask_type):
    assert len(lengths) == len(query_lengths) == len(query)
    mask &= (slots < lengths[:, None, None, None]) & (places < query_lengths[:, None, None, None])
  return mask & (slots > places - window) if window else mask


def attention(query, key, value, mask, scale):
  """[batch, time, heads, head_width], key and value [batch, slots, key_value_heads, head_width] -> as the query."""
  dtype, groups = query.dtype, query.shape[2] // key.shape[2]
  query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
  key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
  scores = jnp.where(mask, jnp.einsum('btnh,bsnh->bnts', query, key) * scale, -jnp.inf)
  return jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(scores), value).astype(
    dtype
  )  # NaN where nothing is seen


def described(arrays, settings):
  """The attention that the operands and settings of a call ask for, a function of query, key and value."""
  query, key, _, _, query_lengths, lengths, *_ = arrays
  assert settings['layout'] == calls.AttentionLayout.BTNH.value
  assert settings['dropout_rate'] == 0
  assert settings['variadic_args'] == (False, False), 'a bias is an array of [time, slots]'
  window = settings['sliding_window_length']
  mask = seen(query, key, query_lengths, lengths, settings['mask_type'], window)
  return lambda *inputs: attention(*inputs, mask, settings['scale'])


def forward(*arrays, is_training, **settings):
  batch, time, heads, _ = arrays[0].shape
  mixed = described(arrays, settings)(*arrays[:3])
  return [mixed, jnp.zeros((batch, heads, time))] if is_training else [mixed]


def backward(*arrays, **settings):
  return jax.vjp(described(arrays, settings), *arrays[:3])[1](arrays[-1])


@contextlib.contextmanager
def pretended():
  """Inside, jax finds cuDNN: its attention runs on CPUs, and is lowered for CUDA as ever."""
  kernels = {calls._dot_product_attention_fwd_p: forward, calls._dot_product_attention_bwd_p: backward}
  for primitive, kernel in kernels.items():
    mlir.register_lowering(primitive, mlir.lower_fun(kernel, multiple_results=True), platform='cpu')
  with mock.patch.object(calls, 'check_cudnn_version', return_value=VERSION):
    yield
