"""Which tensor of each architecture is which parameter of ours: one table an architecture, to be read as a page.

A row is (the tensor's name, our path, how one lies in the other). `{i}` is a layer. A row whose parameter the model
does not have (a bias that is off, output weights that are tied) does not apply, nor does one that ends in the name of
another model of ours. Several paths, joined by `+`, lie side by side in one tensor.

How: a view of our array that is laid out as the tensor is, so that reading and writing are one thing:
  same             vectors, and tables with one row a token or position
  linear           torch's Linear [outputs, inputs] of our kernel [inputs, ...outputs]
  linear_of_heads  the same of our kernel [heads, head_width, outputs]
  conv             GPT-2's Conv1D [inputs, outputs] of our kernel [inputs, ...outputs]
  conv_of_heads    the same of our kernel [heads, head_width, outputs]
"""

from typing import NamedTuple

HOW = {
  'same': lambda array: array,
  'linear': lambda array: array.reshape(array.shape[0], -1).T,
  'linear_of_heads': lambda array: array.reshape(-1, array.shape[-1]).T,
  'conv': lambda array: array.reshape(array.shape[0], -1),
  'conv_of_heads': lambda array: array.reshape(-1, array.shape[-1]),
}


class Table(NamedTuple):
  """An architecture's tensors."""

  prefix: str  # of the names of all but the heads, where a model has a head; a bare model's names go without
  heads: tuple  # how the names of heads begin, which never have the prefix
  rows: tuple
  unread: tuple  # patterns of tensors that say nothing more: masks, angles, tied copies
  renamed: tuple = ()  # (old, new) parts of names that older checkpoints have


GPT2 = Table(
  'transformer.',
  ('lm_head.',),
  (
    ('transformer.wte.weight', 'embed/token', 'same'),
    ('transformer.wpe.weight', 'embed/position', 'same'),
    ('transformer.h.{i}.ln_1.weight', 'block_{i}/attention_norm/scale', 'same'),
    ('transformer.h.{i}.ln_1.bias', 'block_{i}/attention_norm/bias', 'same'),
    (
      'transformer.h.{i}.attn.c_attn.weight',
      'block_{i}/attention/query/kernel + block_{i}/attention/key/kernel + block_{i}/attention/value/kernel',
      'conv',
    ),
    (
      'transformer.h.{i}.attn.c_attn.bias',
      'block_{i}/attention/query/bias + block_{i}/attention/key/bias + block_{i}/attention/value/bias',
      'same',
    ),
    ('transformer.h.{i}.attn.c_proj.weight', 'block_{i}/attention/output/kernel', 'conv_of_heads'),
    ('transformer.h.{i}.attn.c_proj.bias', 'block_{i}/attention/output/bias', 'same'),
    ('transformer.h.{i}.ln_2.weight', 'block_{i}/mlp_norm/scale', 'same'),
    ('transformer.h.{i}.ln_2.bias', 'block_{i}/mlp_norm/bias', 'same'),
    ('transformer.h.{i}.mlp.c_fc.weight', 'block_{i}/mlp/up/kernel', 'conv'),
    ('transformer.h.{i}.mlp.c_fc.bias', 'block_{i}/mlp/up/bias', 'same'),
    ('transformer.h.{i}.mlp.c_proj.weight', 'block_{i}/mlp/down/kernel', 'conv'),
    ('transformer.h.{i}.mlp.c_proj.bias', 'block_{i}/mlp/down/bias', 'same'),
    ('transformer.ln_f.weight', 'final_norm/scale', 'same'),
    ('transformer.ln_f.bias', 'final_norm/bias', 'same'),
    ('lm_head.weight', 'head/kernel', 'linear'),
  ),
  (r'^transformer\.h\.\d+\.attn\.(masked_)?bias$', r'^lm_head\.weight$'),
)

# Llama 2 and 3, and Qwen 2, whose queries, keys and values have biases
LLAMA = Table(
  'model.',
  ('lm_head.',),
  (
    ('model.embed_tokens.weight', 'embed/token', 'same'),
    ('model.layers.{i}.input_layernorm.weight', 'block_{i}/attention_norm/scale', 'same'),
    ('model.layers.{i}.self_attn.q_proj.weight', 'block_{i}/attention/query/kernel', 'linear'),
    ('model.layers.{i}.self_attn.q_proj.bias', 'block_{i}/attention/query/bias', 'same'),
    ('model.layers.{i}.self_attn.k_proj.weight', 'block_{i}/attention/key/kernel', 'linear'),
    ('model.layers.{i}.self_attn.k_proj.bias', 'block_{i}/attention/key/bias', 'same'),
    ('model.layers.{i}.self_attn.v_proj.weight', 'block_{i}/attention/value/kernel', 'linear'),
    ('model.layers.{i}.self_attn.v_proj.bias', 'block_{i}/attention/value/bias', 'same'),
    ('model.layers.{i}.self_attn.o_proj.weight', 'block_{i}/attention/output/kernel', 'linear_of_heads'),
    ('model.layers.{i}.self_attn.o_proj.bias', 'block_{i}/attention/output/bias', 'same'),
    ('model.layers.{i}.post_attention_layernorm.weight', 'block_{i}/mlp_norm/scale', 'same'),
    ('model.layers.{i}.mlp.gate_proj.weight', 'block_{i}/mlp/gate/kernel', 'linear'),
    ('model.layers.{i}.mlp.gate_proj.bias', 'block_{i}/mlp/gate/bias', 'same'),
    ('model.layers.{i}.mlp.up_proj.weight', 'block_{i}/mlp/up/kernel', 'linear'),
    ('model.layers.{i}.mlp.up_proj.bias', 'block_{i}/mlp/up/bias', 'same'),
    ('model.layers.{i}.mlp.down_proj.weight', 'block_{i}/mlp/down/kernel', 'linear'),
    ('model.layers.{i}.mlp.down_proj.bias', 'block_{i}/mlp/down/bias', 'same'),
    ('model.norm.weight', 'final_norm/scale', 'same'),
    ('lm_head.weight', 'head/kernel', 'linear'),
  ),
  (r'^model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$', r'^lm_head\.weight$'),
)


def encoder(prefix):
  """The rows that BERT and RoBERTa share."""
  layer, ours = f'{prefix}encoder.layer.{{i}}.', 'block_{i}/'
  return (
    (f'{prefix}embeddings.word_embeddings.weight', 'embed/token', 'same'),
    (f'{prefix}embeddings.position_embeddings.weight', 'embed/position', 'same'),
    (f'{prefix}embeddings.token_type_embeddings.weight', 'embed/token_type', 'same'),
    (f'{prefix}embeddings.LayerNorm.weight', 'embed_norm/scale', 'same'),
    (f'{prefix}embeddings.LayerNorm.bias', 'embed_norm/bias', 'same'),
    (f'{layer}attention.self.query.weight', f'{ours}attention/query/kernel', 'linear'),
    (f'{layer}attention.self.query.bias', f'{ours}attention/query/bias', 'same'),
    (f'{layer}attention.self.key.weight', f'{ours}attention/key/kernel', 'linear'),
    (f'{layer}attention.self.key.bias', f'{ours}attention/key/bias', 'same'),
    (f'{layer}attention.self.value.weight', f'{ours}attention/value/kernel', 'linear'),
    (f'{layer}attention.self.value.bias', f'{ours}attention/value/bias', 'same'),
    (f'{layer}attention.output.dense.weight', f'{ours}attention/output/kernel', 'linear_of_heads'),
    (f'{layer}attention.output.dense.bias', f'{ours}attention/output/bias', 'same'),
    (f'{layer}attention.output.LayerNorm.weight', f'{ours}attention_norm/scale', 'same'),
    (f'{layer}attention.output.LayerNorm.bias', f'{ours}attention_norm/bias', 'same'),
    (f'{layer}intermediate.dense.weight', f'{ours}mlp/up/kernel', 'linear'),
    (f'{layer}intermediate.dense.bias', f'{ours}mlp/up/bias', 'same'),
    (f'{layer}output.dense.weight', f'{ours}mlp/down/kernel', 'linear'),
    (f'{layer}output.dense.bias', f'{ours}mlp/down/bias', 'same'),
    (f'{layer}output.LayerNorm.weight', f'{ours}mlp_norm/scale', 'same'),
    (f'{layer}output.LayerNorm.bias', f'{ours}mlp_norm/bias', 'same'),
  )


BERT = Table(
  'bert.',
  ('cls.', 'classifier.'),
  (
    *encoder('bert.'),
    ('bert.pooler.dense.weight', 'pool/transform/kernel', 'linear'),
    ('bert.pooler.dense.bias', 'pool/transform/bias', 'same'),
    ('cls.predictions.transform.dense.weight', 'masked_head/transform/kernel', 'linear'),
    ('cls.predictions.transform.dense.bias', 'masked_head/transform/bias', 'same'),
    ('cls.predictions.transform.LayerNorm.weight', 'masked_head/norm/scale', 'same'),
    ('cls.predictions.transform.LayerNorm.bias', 'masked_head/norm/bias', 'same'),
    ('cls.predictions.bias', 'masked_head/bias', 'same'),
    ('cls.predictions.decoder.weight', 'masked_head/output/kernel', 'linear'),
    ('cls.predictions.decoder.bias', 'masked_head/output/bias', 'same'),
    ('classifier.weight', 'head/kernel', 'linear'),
    ('classifier.bias', 'head/bias', 'same'),
  ),
  (
    r'^bert\.embeddings\.position_ids$',
    r'^cls\.seq_relationship\.',  # whether a sentence follows another
    r'^cls\.predictions\.(bias|decoder\.(weight|bias))$',
  ),
  (('LayerNorm.gamma', 'LayerNorm.weight'), ('LayerNorm.beta', 'LayerNorm.bias')),
)

ROBERTA = Table(
  'roberta.',
  ('lm_head.', 'classifier.'),
  (
    *encoder('roberta.'),
    ('roberta.pooler.dense.weight', 'pool/transform/kernel', 'linear', 'transformer_encoder'),
    ('roberta.pooler.dense.bias', 'pool/transform/bias', 'same', 'transformer_encoder'),
    ('lm_head.dense.weight', 'masked_head/transform/kernel', 'linear'),
    ('lm_head.dense.bias', 'masked_head/transform/bias', 'same'),
    ('lm_head.layer_norm.weight', 'masked_head/norm/scale', 'same'),
    ('lm_head.layer_norm.bias', 'masked_head/norm/bias', 'same'),
    ('lm_head.bias', 'masked_head/bias', 'same'),
    ('lm_head.decoder.weight', 'masked_head/output/kernel', 'linear'),
    ('lm_head.decoder.bias', 'masked_head/output/bias', 'same'),
    ('classifier.dense.weight', 'pool/transform/kernel', 'linear', 'transformer_classifier'),
    ('classifier.dense.bias', 'pool/transform/bias', 'same', 'transformer_classifier'),
    ('classifier.out_proj.weight', 'head/kernel', 'linear'),
    ('classifier.out_proj.bias', 'head/bias', 'same'),
  ),
  (r'^roberta\.embeddings\.position_ids$', r'^lm_head\.(bias|decoder\.(weight|bias))$'),
)

TABLES = {'gpt2': GPT2, 'llama': LLAMA, 'qwen2': LLAMA, 'bert': BERT, 'roberta': ROBERTA}
