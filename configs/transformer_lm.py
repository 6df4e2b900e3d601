"""A Transformer language model.

  aigc train --config=configs/transformer_lm.py             the quick start: Moby-Dick, characters
  aigc train --config=configs/transformer_lm.py:nanogpt     nanoGPT's recipe for a CPU
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='language')
  config.model = dict(name='transformer', layers=4, heads=4, width=128)
  config.data = dict(source='bundled:moby_dick', tokenizer='characters', sequence_length=64, batch_size=12)
  config.optimizer = dict(name='adamw', learning_rate=1e-3, schedule='cosine', warmup_steps=100)
  config.training = dict(steps=2000)
  return config
