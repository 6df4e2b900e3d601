"""Recurrent language models: Elman's network, the GRU and the LSTM on Moby-Dick by characters.

  aigc train --config=configs/rnn_lm.py                an LSTM
  aigc train --config=configs/rnn_lm.py:gru            the gated recurrent unit
  aigc train --config=configs/rnn_lm.py:elman          h_t = tanh(W_hh h_{t-1} + W_xh x_t + b_h)
  aigc train --config=configs/rnn_lm.py:stateful       a GRU whose state goes on from batch to batch

Their sizes are those of configs/transformer_lm.py's quick start, 0.8 million parameters.
"""

import ml_collections

from aigc_jax.sweeps.space import sweep, zipit

# cell: (layers, width, learning rate, which did better than half and twice of it)
SIZES = {'elman': (3, 351, 2e-3), 'gru': (2, 254, 4e-3), 'lstm': (2, 220, 1.6e-2)}
VARIANTS = ('', *SIZES, 'stateful')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  # a GRU's state stays within -1 and 1, while the cells of an LSTM that is never reset grow into the thousands
  cell = {'': 'lstm', 'stateful': 'gru'}.get(variant, variant)
  layers, width, learning_rate = SIZES[cell]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='language', sample_tokens=200)
  config.model = dict(name='rnn', cell=cell, layers=layers, width=width)
  config.model.tie_embeddings = cell != 'elman'  # which reads token vectors as small as these poorly
  config.data = dict(source='bundled:moby_dick', tokenizer='characters', sequence_length=128, batch_size=8)
  config.optimizer = dict(
    name='adamw',
    learning_rate=learning_rate,
    schedule='cosine',
    warmup_steps=50,
    final_fraction=0.05,
    beta2=0.99,
    clip_norm=1.0,
  )
  config.training = dict(steps=1500, evaluate_every=500, checkpoint_every=500, sample_every=500)
  if variant == 'stateful':
    config.task.carry_state = True
    config.data.packing = 'contiguous'
  return config


def sweep_learning_rate():
  return sweep('optimizer.learning_rate', (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))


def sweep_cell():
  names = 'model.cell', 'model.layers', 'model.width', 'model.tie_embeddings', 'optimizer.learning_rate'
  found = [get_config(cell) for cell in SIZES]
  value = lambda config, name: config[name.split('.')[0]][name.split('.')[1]]
  return zipit(*(sweep(name, [value(config, name) for config in found]) for name in names))
