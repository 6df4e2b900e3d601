"""Start from a trained model. Each is a pair of commands on bundled data: what is learned first, and what then.

A masked language model of poems, then a classifier of them: to which of twenty tunes were the words written?

  aigc train --config=configs/masked_lm.py:song_ci --workdir=runs/masked
  aigc train --config=configs/finetune.py:classifier --config.init_from=runs/masked

A language model of English prose, by bytes, then Chinese poems:

  aigc train --config=configs/transformer_lm.py --config.data.tokenizer=bytes --workdir=runs/prose
  aigc train --config=configs/finetune.py:poems --config.init_from=runs/prose

A language model of poems, then instructions, "write a poem to this tune", with a loss on the answers alone:

  aigc train --config=configs/transformer_lm.py:song_ci --workdir=runs/poems
  aigc train --config=configs/finetune.py:instructions --config.init_from=runs/poems --workdir=runs/poet
  aigc generate runs/poet --prompt=水调歌头

The model and its tokenizer are those of `config.init_from`: a run, or a folder of a pretrained model's files. Less of
it learns with --config.lora.rank=8, or with --config.training.freeze='^(embed|block)'. Own instructions, a line each:

  aigc train --config=configs/finetune.py:instructions --config.init_from=FOLDER --config.data.source=jsonl:MINE.jsonl \
    --config.data.source_field=instruction --config.data.target_field=output \
    --config.data.source_template='Instruction: {source} Answer:' \
    --config.data.source_length=256 --config.data.target_length=256
"""

import ml_collections

VARIANTS = ('classifier', 'poems', 'instructions')


def get_config(variant='classifier'):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS)}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.training = dict(steps=300, evaluate_every=100, checkpoint_every=100, sample_every=300)
  config.optimizer = dict(name='adamw', schedule='cosine', warmup_steps=50, weight_decay=0.1, clip_norm=1.0)
  {'classifier': classifier, 'poems': poems, 'instructions': instructions}[variant](config)
  return config


def classifier(config):
  config.init_from = 'runs/masked'
  config.task = dict(name='classification')
  config.model = dict(name='transformer_classifier', dropout=0.1)
  config.data = dict(
    source='bundled:song_ci', label_field='title', text_field='lines', most_frequent_classes=20
  )
  config.data.update(sequence_length=128, batch_size=32)
  config.optimizer.learning_rate = 1e-3
  config.training.best_metric = 'validation/accuracy'


def poems(config):
  config.init_from = 'runs/prose'
  config.task = dict(name='language', sample_tokens=200)
  config.data = dict(source='bundled:song_ci', packing='documents', sequence_length=256, batch_size=8)
  config.optimizer.learning_rate = 1e-3


def instructions(config):
  config.init_from = 'runs/poems'
  config.task = dict(name='translation')
  config.data = dict(source='bundled:song_ci', source_field='title', target_field='lines')
  config.data.update(source_template='以{source}为题填词一首。\n', source_length=32, target_length=176)
  config.data.update(buckets=3, batch_size=16)
  config.optimizer.learning_rate = 1e-3
