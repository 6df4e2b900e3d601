"""Write a target from a source: translation, continuation, and tasks whose answer is known.

  aigc train --config=configs/translation.py                 English to Chinese, an encoder and a decoder
  aigc train --config=configs/translation.py:rnn             the same with a recurrent network and attention
  aigc train --config=configs/translation.py:prefix          the same with a decoder alone: prefix language modelling
  aigc train --config=configs/translation.py:song_ci         the second half of a Song-dynasty poem from its first
  aigc train --config=configs/translation.py:addition        135+27 -> 162; also copy, reverse
  aigc train --config=configs/translation.py:addition_rnn    the same, a recurrent network; also copy_rnn, reverse_rnn
  aigc train --config=configs/translation.py:original        the base model of Vaswani et al. 2017; give it pairs

Pairs of your own, a line each:

  aigc train --config=configs/translation.py --config.data.source=tsv:PAIRS.tsv
  aigc train --config=configs/translation.py --config.data.source=jsonl:NEWS.jsonl \
    --config.data.source_field=article --config.data.target_field=summary
"""

import ml_collections

SYNTHETIC = {'copy': 10, 'reverse': 10, 'addition': 3}
VARIANTS = ('', 'rnn', 'prefix', 'song_ci', 'original', *SYNTHETIC, *(f'{name}_rnn' for name in SYNTHETIC))


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='translation')
  config.model = dict(name='transformer_encoder_decoder')
  config.data = dict(source='bundled:en_zh')
  config.training = dict(steps=3000, evaluate_every=500, checkpoint_every=500, sample_every=1000)
  config.optimizer = dict(name='adamw', beta2=0.98, weight_decay=0.01, warmup_steps=200, schedule='cosine')
  kind, _, network = variant.partition('_')
  if kind in SYNTHETIC:
    synthetic(config, kind, network == 'rnn')
  else:
    {'': english_chinese, 'rnn': recurrent, 'prefix': prefix, 'song_ci': song_ci, 'original': original}[
      variant
    ](config)
  return config


def small(config):
  config.model.update(
    layers=3, heads=4, width=128, positions='rotary', normalization='rms_norm', bias=False, dropout=0.1
  )


def pairs(config):
  config.data.update(tokenizer='bpe:2000', source_length=64, target_length=64, buckets=4, batch_size=32)
  config.task.label_smoothing = 0.1
  config.training.best_metric = 'validation/accuracy'


def english_chinese(config):
  small(config)
  pairs(config)
  config.model.init_scale = 0.09  # about 1 / sqrt(width): with 0.02 it learned to look at its source too late
  config.optimizer.learning_rate = 1e-3


def recurrent(config):
  pairs(config)
  config.model = dict(name='rnn_encoder_decoder', cell='lstm', layers=1, width=256, dropout=0.2)
  config.optimizer.learning_rate = 2e-3


def prefix(config):
  small(config)
  pairs(config)
  config.model.update(name='transformer', layers=4, bidirectional_prefix=True)
  config.optimizer.learning_rate = 1e-3


def song_ci(config):
  """The tune and the first half of the lines are the source; characters, one vocabulary for both."""
  small(config)
  pairs(config)
  config.data.update(source='bundled:song_ci', tokenizer='characters', source_length=96, target_length=96)
  config.optimizer.learning_rate = 1e-3


def original(config):
  """Vaswani et al. 2017, table 3, base; the warmup and the vocabulary are theirs too."""
  config.model.update(
    layers=6,
    heads=8,
    width=512,
    mlp_width=2048,
    positions='sinusoidal',
    norm_position='post',
    activation='relu',
    scale_embeddings=True,
    dropout=0.1,
  )
  config.data.update(tokenizer='bpe:37000', source_length=256, target_length=256, buckets=8, batch_size=256)
  config.task.label_smoothing = 0.1
  config.training.update(steps=100_000, evaluate_every=5000, checkpoint_every=1000, sample_every=5000)
  config.optimizer.update(learning_rate=7e-4, warmup_steps=4000, schedule='inverse_sqrt')


def synthetic(config, kind, recurs):
  small(config)
  config.model.update(layers=2, dropout=None)
  config.data = dict(source=f'synthetic:{kind}', longest=SYNTHETIC[kind], batch_size=128)
  config.training.update(best_metric='validation/exact_match')
  config.optimizer.update(learning_rate=1e-3, weight_decay=0.0, warmup_steps=100)
  if recurs:
    config.model = dict(name='rnn_encoder_decoder', cell='lstm', layers=1, width=256)
    config.optimizer.learning_rate = 2e-3
    config.training.steps = 4000 if kind == 'copy' else 3000
