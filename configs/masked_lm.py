"""A masked language model: a Transformer that reads both ways and finds hidden tokens again (BERT).

  aigc train --config=configs/masked_lm.py                 the quick start: Moby-Dick by characters, on a laptop
  aigc train --config=configs/masked_lm.py:whole_words     the same, whole words hidden at once: much harder
  aigc train --config=configs/masked_lm.py:song_ci         Song-dynasty poems, in Chinese
  aigc train --config=configs/masked_lm.py:bert_base       BERT-base's shape and schedule; give it text of your own

What it finds behind masks, the likeliest first:

  aigc generate RUN --prompt="Call me Ish[MASK]ael."

Any field: --config.task.mask_fraction=0.3 --config.data.source=text:my_book.txt
"""

import ml_collections

VARIANTS = ('', 'whole_words', 'song_ci', 'bert_base')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='masked_language')
  config.model = dict(name='transformer_encoder')
  config.data = dict(source='bundled:moby_dick', tokenizer='characters')
  config.training = dict(steps=2000, evaluate_every=500, checkpoint_every=500, sample_every=500)
  config.optimizer = dict()
  {'': quickstart, 'whole_words': whole_words, 'song_ci': song_ci, 'bert_base': bert_base}[variant](config)
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
  config.data.update(sequence_length=128, batch_size=16)
  config.optimizer.update(
    name='muon',
    learning_rate=0.02,
    adam_learning_rate=5e-3,
    beta2=0.99,
    schedule='warmup_stable_decay',
    decay_fraction=0.7,
  )
  config.training.update(steps=2000)


def whole_words(config):
  quickstart(config)
  config.task.whole_words = True


def song_ci(config):
  quickstart(config)
  config.data.update(source='bundled:song_ci', packing='documents')


def bert_base(config):
  """Devlin et al. 2019, section 3 and appendix A.2, without its second task and with BPE in place of WordPiece."""
  config.model.update(
    layers=12,
    heads=12,
    width=768,
    norm_position='post',
    normalization_epsilon=1e-12,
    embedding_norm=True,
    token_types=2,
    head_transform=True,
    dropout=0.1,
    residual_init='normal',
  )
  config.data.update(tokenizer='bpe:30000', sequence_length=512, batch_size=256)
  config.optimizer.update(
    name='adamw',
    learning_rate=1e-4,
    schedule='linear',
    warmup_steps=10_000,
    beta2=0.999,
    weight_decay=0.01,
  )
  config.training.update(steps=1_000_000, evaluate_every=10_000, checkpoint_every=10_000, sample_every=10_000)
