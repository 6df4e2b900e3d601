"""A decoder-only Transformer language model.

  aigc train --config=configs/transformer_lm.py             the quick start: Moby-Dick by characters, on a laptop
  aigc train --config=configs/transformer_lm.py:nanogpt     nanoGPT's recipe for a CPU
  aigc train --config=configs/transformer_lm.py:small       10M parameters, for a GPU (or an evening)
  aigc train --config=configs/transformer_lm.py:song_ci     Song-dynasty poems, in Chinese
  aigc train --config=configs/transformer_lm.py:gpt2        GPT-2's shape and tokenizer; give it text of your own
  aigc train --config=configs/transformer_lm.py:llama       the same with Llama's choices

Images, by the codes of an autoencoder, class by class:

  aigc train --config=configs/autoencoder.py:vq --workdir=runs/vq
  aigc train --config=configs/transformer_lm.py:image_tokens --config.data.source=run:runs/vq

Sweeps of it: aigc sweep --config=configs/transformer_lm.py --sweep=learning_rate

Any field: --config.optimizer.learning_rate=3e-4 --config.data.source=text:my_book.txt
"""

import ml_collections

from aigc_jax.sweeps.space import logarithmic, product, sweep

VARIANTS = ('', 'nanogpt', 'small', 'song_ci', 'gpt2', 'llama', 'image_tokens')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='language', sample_tokens=200)
  config.model = dict(name='transformer')
  config.data = dict(source='bundled:moby_dick', tokenizer='characters')
  config.training = dict(steps=2000, evaluate_every=500, checkpoint_every=500, sample_every=500)
  config.optimizer = dict()
  {
    '': quickstart,
    'nanogpt': nanogpt,
    'small': small,
    'song_ci': song_ci,
    'gpt2': gpt2,
    'llama': llama,
    'image_tokens': image_tokens,
  }[variant](config)
  return config


def quickstart(config):
  config.model.update(
    layers=4,
    heads=4,
    width=128,
    positions='rotary',
    normalization='rms_norm',
    activation='relu2',
    bias=False,
    query_key_norm=True,
    init_scale=0.09,
    residual_init='zero',
  )
  config.data.update(sequence_length=256, batch_size=4)
  config.optimizer.update(
    name='muon',
    learning_rate=0.02,
    adam_learning_rate=5e-3,
    beta2=0.99,
    schedule='warmup_stable_decay',
    decay_fraction=0.7,
  )
  config.training.update(steps=1500)


def nanogpt(config):
  """https://github.com/karpathy/nanoGPT, "I only have a macbook", without its dropout of 0."""
  config.model.update(layers=4, heads=4, width=128, bias=False, activation='gelu', residual_init='scaled')
  config.data.update(sequence_length=64, batch_size=12)
  config.optimizer.update(
    name='adamw',
    learning_rate=1e-3,
    schedule='cosine',
    warmup_steps=100,
    final_fraction=0.1,
    beta2=0.99,
    weight_decay=0.1,
    clip_norm=1.0,
  )


def small(config):
  quickstart(config)
  config.model.update(layers=6, heads=6, width=384, dropout=0.2)
  config.data.update(sequence_length=256, batch_size=64)
  config.training.update(steps=5000)


def song_ci(config):
  quickstart(config)
  config.data.update(source='bundled:song_ci', packing='documents')


def image_tokens(config):
  quickstart(config)
  config.task.sample_temperature = 1.0
  config.model.update(dropout=0.1)
  config.data = dict(source='run:runs/vq', batch_size=32)
  config.training.update(steps=1000)


def gpt2(config):
  config.model.update(layers=12, heads=12, width=768, activation='gelu_tanh')
  config.data.update(tokenizer='gpt2', sequence_length=1024, batch_size=8)
  config.optimizer.update(
    name='adamw',
    learning_rate=6e-4,
    schedule='cosine',
    warmup_steps=2000,
    final_fraction=0.1,
    beta2=0.95,
    weight_decay=0.1,
    clip_norm=1.0,
  )
  config.training.update(steps=100_000, precision='bfloat16')


def llama(config):
  gpt2(config)
  config.model.update(
    positions='rotary',
    normalization='rms_norm',
    activation='swiglu',
    bias=False,
    tie_embeddings=False,
    key_value_heads=4,
  )


def sweep_learning_rate():
  """Two seeds of each, so that the report can tell a better rate from luck."""
  return product(sweep('optimizer.learning_rate', logarithmic(1e-3, 1e-1, 5)), sweep('seed', range(2)))
