"""cuDNN's attention on a CPU: what jax hands to it, computed in plain float32 by the meaning that cuDNN documents.

The calls are traced, differentiated, batched and dealt out over devices by jax's own rules for them; only the two kernels,
forward and backward, are put in.
"""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as calls
from jax._src.interpreters import mlir

NO_CUDNN = 91800  # the version that jax is told of


def seen(query, key, query_lengths, lengths, mask_type, sliding_window_length):
  """[batch or 1, 1, time, slots] bool; the window is (place - length, place]."""
  places, slots = jnp.arange(query.shape[1])[:, None], jnp.arange(key.shape[1])
  mask = jnp.ones((1, 1, len(places), len(slots)), bool)
  if mask_type in (calls.MaskType.CAUSAL, calls.MaskType.PADDING_CAUSAL):
    mask &= slots <= places
  if calls.has_padding(mask_type):
    mask &= (slots < lengths[:, None, None, None]) & (places < query_lengths[:, None, None, None])
  if sliding_window_length:
    mask &= slots > places - sliding_window_length
  return mask


def attention(scale, mask, query, key, value):
  """[batch, time, heads, head_width], key and value [batch, slots, key_value_heads, head_width] -> as the query."""
  dtype, groups = query.dtype, query.shape[2] // key.shape[2]
  query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
  key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
  scores = jnp.einsum('btnh,bsnh->bnts', query, key) * scale
  weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)  # NaN where a token sees nothing
  return jnp.einsum('bnts,bsnh->btnh', weights, value).astype(dtype)


def described(arrays, settings):
  """A function of query, key and value."""
  query, key, _, _, query_lengths, lengths, *_ = arrays
  assert settings['layout'] == calls.AttentionLayout.BTNH.value
  assert not settings['dropout_rate']
  assert settings['variadic_args'] == (False, False)  # no bias
  mask = seen(query, key, query_lengths, lengths, settings['mask_type'], settings['sliding_window_length'])
  return lambda *inputs: attention(settings['scale'], mask, *inputs)


def forward(*arrays, is_training, **settings):
  query = arrays[0]
  mixed = described(arrays, settings)(*arrays[:3])
  statistics = jnp.zeros((query.shape[0], query.shape[2], query.shape[1]), jnp.float32)
  return [mixed, statistics] if is_training else [mixed]


def backward(*arrays, **settings):
  return jax.vjp(described(arrays, settings), *arrays[:3])[1](arrays[-1])


@contextlib.contextmanager
def pretended():
  """Inside, jax finds cuDNN; its attention runs on CPUs, and lowers for CUDA as ever."""
  with mock.patch.object(calls, 'check_cudnn_version', lambda: NO_CUDNN):
    yield


for primitive, kernel in ((calls._dot_product_attention_fwd_p, forward), (calls._dot_product_attention_bwd_p, backward)):
  mlir.register_lowering(primitive, mlir.lower_fun(kernel, multiple_results=True), platform='cpu')
