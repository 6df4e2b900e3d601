"""Classifiers of text. The bundled poems: which of twenty tunes was a Song-dynasty ci written to?

  aigc train --config=configs/text_classifier.py                  a bidirectional GRU, the same as :gru
  aigc train --config=configs/text_classifier.py:transformer      a Transformer encoder

Own texts, one on each line with its class: --config.data.source=tsv:FILE or jsonl:FILE, with
--config.data.label_field=label --config.data.text_field=text --config.data.most_frequent_classes=none
"""

import ml_collections

from aigc_jax.sweeps.space import sweep

VARIANTS = ('', 'gru', 'transformer')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='classification')
  config.data = dict(
    source='bundled:song_ci', label_field='title', text_field='lines', most_frequent_classes=20
  )
  config.data.update(tokenizer='characters', sequence_length=128, batch_size=32)
  config.optimizer = dict(
    name='adamw', learning_rate=3e-3, schedule='cosine', warmup_steps=50, weight_decay=0.1
  )
  config.training = dict(steps=600, evaluate_every=150, checkpoint_every=150, sample_every=600)
  config.training.best_metric = 'validation/accuracy'
  (transformer if variant == 'transformer' else gru)(config)
  return config


def gru(config):
  config.model = dict(name='rnn_classifier', cell='gru', width=64, dropout=0.3, pooling='max')


def transformer(config):
  config.model = dict(name='transformer_classifier', layers=2, width=64, positions='rotary', dropout=0.1)


def sweep_learning_rate():
  return sweep('optimizer.learning_rate', (1e-3, 2e-3, 4e-3, 8e-3))
