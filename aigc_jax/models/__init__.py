"""Model definitions: the only place that imports flax.linen. Pure functions of parameters and arrays."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from aigc_jax import own_code
from aigc_jax.models import (
  autoencoder,
  classifier,
  q_network,
  recurrent_encoder_decoder,
  rnn,
  transformer,
  transformer_classifier,
  transformer_encoder_decoder,
  vision_transformer,
  vq_autoencoder,
)

SCHEMAS = {
  'transformer': transformer.Transformer,
  'transformer_encoder': transformer.TransformerEncoder,
  'transformer_encoder_decoder': transformer_encoder_decoder.TransformerEncoderDecoder,
  'rnn': rnn.RecurrentNetwork,
  'rnn_encoder_decoder': recurrent_encoder_decoder.RecurrentEncoderDecoder,
  'autoencoder': autoencoder.Autoencoder,
  'vq_autoencoder': vq_autoencoder.VectorQuantizedAutoencoder,
  'q_network': q_network.QNetwork,
  'q_table': q_network.QTable,
  'mlp': classifier.MultilayerPerceptron,
  'cnn': classifier.ConvolutionalNetwork,
  'resnet': classifier.ResidualNetwork,
  'vision_transformer': vision_transformer.VisionTransformer,
  'rnn_classifier': rnn.RecurrentClassifier,
  'transformer_classifier': transformer_classifier.TransformerClassifier,
}
CHECKS = {
  'transformer': transformer.check,
  'transformer_encoder': transformer.check,
  'transformer_encoder_decoder': transformer.check,
  'rnn': rnn.check,
  'rnn_classifier': rnn.check,
  'transformer_classifier': transformer.check,
  'autoencoder': autoencoder.check,
  'vq_autoencoder': vq_autoencoder.check,
  'resnet': classifier.check,
  'vision_transformer': vision_transformer.check,
}


def schema_of(name):
  """The Linen module of that name, ours or the user's own 'module:name'. Raises UsageError for the latter."""
  if own_code.is_own(name):
    is_module = lambda value: isinstance(value, type) and issubclass(value, nn.Module)
    return own_code.found('model', name, is_module, 'a class of flax.linen.Module')
  return SCHEMAS[name]


def check(model_config):
  """Rules across the fields of a resolved `config.model`. Raises UsageError."""
  if model_config['name'] in CHECKS:
    CHECKS[model_config['name']](model_config)


def build(model_config, dtype='float32'):
  """The module of a resolved `config.model` (plain dict, floats possibly traced), computing in `dtype`."""
  fields, schema = {n: v for n, v in model_config.items() if n != 'name'}, schema_of(model_config['name'])
  if 'dtype' in schema.__dataclass_fields__:  # a user's own may compute in float32 alone
    fields['dtype'] = dtype
  return schema(**fields)


class Decoder(NamedTuple):
  """What generation needs of a model that writes text, as pure functions."""

  init_cache: (
    Callable  # batch_size, length -> cache; its leaves are () or have the rows first, times anything
  )
  step: Callable  # params, cache, tokens [batch, n], mask=None, memory=None -> (logits [batch, n, vocabulary], cache)
  vocabulary_size: int
  context_length: int | None  # tokens the model was made for; None: any number
  # params, sources [batch, time], lengths [batch] -> memory, whose leaves have the rows first; None: reads no source
  encode: Callable | None = None
  # cache, count -> the cache without its last `count` tokens; None: it cannot be taken back, as a recurrent state
  rewind: Callable | None = None
  # params, cache, tokens [batch, n], before [batch, n, slots] bool, memory=None -> as `step`, for tokens that each
  # follow the slots of their own branch; None: the cache holds one text a row
  branch: Callable | None = None


def decoder(module):
  """The Decoder of a language model or an encoder-decoder; `params` are what `module.init(...)['params']` gives."""
  apply = lambda params, *inputs: module.apply({'params': params}, *inputs[1:], method=inputs[0])

  def step(params, cache, tokens, mask=None, memory=None):
    return apply(params, 'decode', tokens, cache, mask, *(() if memory is None else (memory,)))

  def branch(params, cache, tokens, before, memory=None):
    return apply(params, 'branch', tokens, cache, before, *(() if memory is None else (memory,)))

  encode = (lambda params, *sources: apply(params, 'encode', *sources)) if hasattr(module, 'encode') else None
  rewind = getattr(module, 'rewind', None)
  branch = branch if hasattr(module, 'branch') else None
  return Decoder(
    module.init_cache, step, module.vocabulary_size, module.context_length, encode, rewind, branch
  )
