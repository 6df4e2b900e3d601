"""config.json of Hugging Face <-> `config.model`: one list of fields an architecture, and what it must not ask for."""

from typing import NamedTuple

from aigc_jax.errors import DataError, UsageError, listed, nearest

ACTIVATIONS = {
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}


class Architecture(NamedTuple):
  """What a config.json's `model_type` stands for."""

  classes: dict  # names under "architectures" -> our model
  fields: dict  # their key -> (our field, their default)
  fixed: dict  # fields of ours that all such models have
  demanded: dict  # their key -> the only value that is supported, also where the key is missing
  activation: str  # their key


GPT2 = Architecture(
  {'GPT2LMHeadModel': 'transformer', 'GPT2Model': 'transformer'},
  {
    'vocab_size': ('vocabulary_size', 50257),
    'n_positions': ('context_length', 1024),
    'n_layer': ('layers', 12),
    'n_head': ('heads', 12),
    'n_embd': ('width', 768),
    'n_inner': ('mlp_width', None),
    'layer_norm_epsilon': ('normalization_epsilon', 1e-5),
    'tie_word_embeddings': ('tie_embeddings', True),
    'initializer_range': ('init_scale', 0.02),
  },
  {'positions': 'learned', 'normalization': 'layer_norm', 'bias': True},
  {'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False, 'add_cross_attention': False},
  'activation_function',
)

DECODER_FIELDS = {  # of Llama and Qwen 2; the defaults are Llama's
  'vocab_size': ('vocabulary_size', 32000),
  'max_position_embeddings': ('context_length', 2048),
  'num_hidden_layers': ('layers', 32),
  'num_attention_heads': ('heads', 32),
  'num_key_value_heads': ('key_value_heads', None),
  'head_dim': ('head_width', None),
  'hidden_size': ('width', 4096),
  'intermediate_size': ('mlp_width', 11008),
  'rms_norm_eps': ('normalization_epsilon', 1e-6),
  'tie_word_embeddings': ('tie_embeddings', False),
  'initializer_range': ('init_scale', 0.02),
}
DECODER_FIXED = {'positions': 'rotary', 'normalization': 'rms_norm', 'activation': 'swiglu'}

LLAMA = Architecture(
  {'LlamaForCausalLM': 'transformer'},
  DECODER_FIELDS | {'attention_bias': ('bias', False), 'mlp_bias': ('mlp_bias', False)},
  DECODER_FIXED,
  {'hidden_act': 'silu', 'pretraining_tp': 1},
  '',
)

QWEN2 = Architecture(
  {'Qwen2ForCausalLM': 'transformer'},
  DECODER_FIELDS
  | {
    'vocab_size': ('vocabulary_size', 151936),
    'max_position_embeddings': ('context_length', 32768),
    'num_key_value_heads': ('key_value_heads', 32),
    'intermediate_size': ('mlp_width', 22016),
  },
  DECODER_FIXED | {'bias': False, 'query_key_value_bias': True},
  {'hidden_act': 'silu', 'use_sliding_window': False},
  '',
)

ENCODER_FIELDS = {
  'vocab_size': ('vocabulary_size', 30522),
  'max_position_embeddings': ('context_length', 512),
  'num_hidden_layers': ('layers', 12),
  'num_attention_heads': ('heads', 12),
  'hidden_size': ('width', 768),
  'intermediate_size': ('mlp_width', 3072),
  'type_vocab_size': ('token_types', 2),
  'layer_norm_eps': ('normalization_epsilon', 1e-12),
  'initializer_range': ('init_scale', 0.02),
}
ENCODER_FIXED = {
  'positions': 'learned',
  'normalization': 'layer_norm',
  'norm_position': 'post',
  'embedding_norm': True,
  'bias': True,
}
ENCODER_DEMANDED = {'is_decoder': False, 'add_cross_attention': False, 'position_embedding_type': 'absolute'}

BERT_CLASSES = {
  'BertForMaskedLM': 'transformer_encoder',
  'BertForPreTraining': 'transformer_encoder',
  'BertModel': 'transformer_encoder',
  'BertForSequenceClassification': 'transformer_classifier',
}
ROBERTA_CLASSES = {
  'RobertaForMaskedLM': 'transformer_encoder',
  'RobertaModel': 'transformer_encoder',
  'RobertaForSequenceClassification': 'transformer_classifier',
}
BERT = Architecture(BERT_CLASSES, ENCODER_FIELDS, ENCODER_FIXED, ENCODER_DEMANDED, 'hidden_act')
ROBERTA = BERT._replace(classes=ROBERTA_CLASSES)
ARCHITECTURES = {'gpt2': GPT2, 'llama': LLAMA, 'qwen2': QWEN2, 'bert': BERT, 'roberta': ROBERTA}


def known(path, config):
  """The `model_type` of a config.json's content. Raises DataError, UsageError."""
  if not isinstance(config, dict) or not isinstance(config.get('model_type'), str):
    raise DataError(f'{path}: names no "model_type"; those read here are {listed(ARCHITECTURES)}')
  kind = config['model_type']
  if kind not in ARCHITECTURES:
    raise UsageError(
      f'{path}: its model_type {kind!r} is not read here; {nearest(kind, ARCHITECTURES)}there are '
      f'{listed(ARCHITECTURES)}'
    )
  return kind


def model_of(path, config, names):
  """`config.model` as a dict without defaults.

  Args:
    path: of config.json, for errors. config: its content. names: of the tensors, which tell the head.

  Raises UsageError for what is not supported, DataError for what is no such config.
  """
  kind = known(path, config)
  architecture = ARCHITECTURES[kind]
  for key, only in architecture.demanded.items():
    if config.get(key, only) not in (only, None):
      raise UsageError(f'{path}: {key} = {config[key]!r} is not supported, {only!r} is')
  model = {'name': name_of(path, kind, config, names)} | architecture.fixed
  model |= {ours: config.get(theirs, default) for theirs, (ours, default) in architecture.fields.items()}
  if architecture.activation:
    model['activation'] = activation(path, architecture.activation, config)
  if kind in ('llama', 'qwen2'):
    model |= rotary(path, config)
  if kind in ('bert', 'roberta'):
    model = encoder(path, kind, config, names, model)
  return {name: value for name, value in model.items() if value is not None}


def name_of(path, kind, config, names):
  """Our model of a checkpoint, by its class and, where it names none, by its tensors."""
  classes, given = ARCHITECTURES[kind].classes, config.get('architectures') or []
  if given:
    name = str(given[0] if isinstance(given, list) else given)
    if name not in classes:
      raise UsageError(f'{path}: a {name} is not read here; of {kind} there are {listed(classes)}')
    return classes[name]
  classifies = any(name.startswith('classifier.') for name in names)
  return 'transformer_classifier' if classifies else next(iter(classes.values()))


def activation(path, key, config):
  found = config.get(key, 'gelu_new' if key == 'activation_function' else 'gelu')
  if not isinstance(found, str) or found not in ACTIVATIONS:
    raise UsageError(f'{path}: {key} = {found!r} is not supported; there are {listed(ACTIVATIONS)}')
  return ACTIVATIONS[found]


ROTARY = {  # their rope_type -> {their key: (our field, their default)}
  'linear': {'factor': ('rotary_factor', None)},
  'llama3': {
    'factor': ('rotary_factor', None),
    'low_freq_factor': ('rotary_low', None),
    'high_freq_factor': ('rotary_high', None),
    'original_max_position_embeddings': ('rotary_context', None),
  },
  'yarn': {
    'factor': ('rotary_factor', None),
    'beta_slow': ('rotary_low', 1.0),
    'beta_fast': ('rotary_high', 32.0),
    'original_max_position_embeddings': ('rotary_context', None),
  },
}
ROTARY_DEMANDED = {
  'partial_rotary_factor': 1.0,
  'attention_factor': None,
  'mscale': None,
  'mscale_all_dim': None,
  'truncate': True,
}


def rotary(path, config):
  """The rotary fields, of `rope_parameters` or, as it was before, `rope_theta` and `rope_scaling`."""
  given, older = config.get('rope_parameters') or {}, config.get('rope_scaling') or {}
  if not isinstance(given, dict) or not isinstance(older, dict):
    raise DataError(f'{path}: rope_parameters is no JSON object')
  given = {'rope_theta': config.get('rope_theta') or 10000.0} | older | given
  kind, model = (
    str(given.get('rope_type', given.get('type', 'default'))),
    {'rotary_base': given['rope_theta']},
  )
  for key, only in ROTARY_DEMANDED.items():
    if given.get(key, only) not in (only, None):
      raise UsageError(f'{path}: {key} = {given[key]!r} of its rope_parameters is not supported')
  if kind == 'default':
    return model
  if kind not in ROTARY:
    raise UsageError(f'{path}: rope_type {kind!r} is not supported; there are default, {listed(ROTARY)}')
  for key, (ours, default) in ROTARY[kind].items():
    model[ours] = given.get(key, default)
    if model[ours] is None:
      raise DataError(f'{path}: rope_type {kind!r} needs {key}')
  return model | {'rotary_scaling': kind}


def labels_of(config):
  """{'0': name} of a classifier's classes; {} where they have none."""
  labels = config.get('id2label')
  return labels if isinstance(labels, dict) else {}


def encoder(path, kind, config, names, model):
  """What BERT and RoBERTa have besides: heads, and RoBERTa's two positions that no token takes."""
  unused = 0
  if kind == 'roberta':
    padding = config.get('pad_token_id', 1)
    unused = (padding if isinstance(padding, int) and padding >= 0 else 1) + 1
  context = model['context_length']
  if not isinstance(context, int) or context <= unused:
    raise DataError(f'{path}: max_position_embeddings = {context!r}; it takes a number above {unused}')
  model |= {'context_length': context - unused, 'unused_positions': unused}
  if model['name'] == 'transformer_classifier':
    classes = len(labels_of(config)) or config.get('num_labels', 2)
    return model | {'classes': classes, 'pooling': 'first'}
  has = lambda part: any(part in name for name in names)
  masked = has('cls.predictions.') or has('lm_head.')
  if masked and kind == 'roberta' and model['activation'] != 'gelu':
    raise UsageError(f"{path}: hidden_act is not 'gelu', which the head of roberta has in any case")
  tied = bool(config.get('tie_word_embeddings', True)) or not masked
  return model | {'head_transform': masked, 'tie_embeddings': tied, 'pooler': has('pooler.dense.')}
