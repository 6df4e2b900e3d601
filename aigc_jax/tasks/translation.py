"""Sequence to sequence: write a target from a source, with an encoder and a decoder or with a decoder alone.

A decoder alone reads the source, its end, and writes on: prefix language modelling, with a loss on the target only. So
are instructions learned, where `config.data.source_template` says how one is put.
"""

import dataclasses
import functools
import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import models
from aigc_jax.config import Fraction, Positive
from aigc_jax.data import pairs
from aigc_jax.errors import UsageError
from aigc_jax.evaluation import report as reports
from aigc_jax.generation import decode
from aigc_jax.generation.strategies import Sampling
from aigc_jax.generation.text import Prompts
from aigc_jax.task import Task
from aigc_jax.tasks.losses import cross_entropy

HIGHER_IS_BETTER = ('accuracy', 'exact_match')  # metrics

ENCODER_DECODERS = ('transformer_encoder_decoder', 'rnn_encoder_decoder')
MODELS = (*ENCODER_DECODERS, 'transformer', 'rnn')


@dataclasses.dataclass(frozen=True)
class TranslationConfig:
  label_smoothing: Annotated[float, Fraction] | None = None  # of the training loss (Szegedy et al. 2016)
  sample_pairs: Annotated[int, Positive] = 6  # of the validation split, translated while training
  # places of each text whose logits are held at once; None: all. Less memory where the vocabulary is large
  logits_chunk: Annotated[int, Positive] | None = None


def complete(config, dataset):
  """Fills in what the data decides: vocabularies and the context. Raises UsageError where they clash."""
  model, tokenizer, facts = dict(config['model']), dataset.tokenizer, dataset.facts
  separate = tokenizer.source is not tokenizer.target
  lengths = facts['source_length'], facts['target_length']
  if model['name'] not in ENCODER_DECODERS:
    if separate:
      raise UsageError(
        f'config.data.source_tokenizer: {model["name"]!r} reads and writes one text, so it has one vocabulary; leave '
        f'it unset, or use --config.model.name={ENCODER_DECODERS[0]}'
      )
    fill_in(model, 'context_length', sum(lengths) - 1, 'the lengths of sources and targets')
  else:
    fill_in(model, 'context_length', max(lengths), 'the longer of source_length and target_length')
    if separate:
      fill_in(model, 'source_vocabulary_size', tokenizer.source.vocabulary_size, 'the tokens of sources')
    elif model['source_vocabulary_size'] is not None:
      raise UsageError(
        'config.model.source_vocabulary_size: sources and targets have one vocabulary; leave it unset, or give '
        'sources a config.data.source_tokenizer'
      )
  fill_in(model, 'vocabulary_size', tokenizer.vocabulary_size, f'the tokens of {tokenizer.name!r}')
  return config | {'model': model}


def fill_in(model, field, needed, why):
  """Sets a field of the model that is unset. Raises UsageError where it is too small; models without it have none."""
  if field not in model:
    return
  model[field] = model[field] or needed
  if model[field] < needed:
    raise UsageError(
      f'config.model.{field}: {model[field]} is too small for {why}; leave it unset or use {needed} or more'
    )


class Joined(NamedTuple):
  """Sources and targets in one row each, for a decoder alone."""

  tokens: jax.Array  # [batch, time]: source, target
  targets: jax.Array  # [batch, time]: the next token
  mask: jax.Array  # [batch, time]: 1 where that is a token of the target
  prefix: jax.Array  # [batch]: tokens of the source but its last, from which the target is drawn


def join(batch):
  """A batch of pairs as `Joined`; time is one less than both lengths, for a source's last token begins its target."""
  sources, lengths = batch['sources'], batch['lengths']
  time = sources.shape[1] + batch['inputs'].shape[1] - 1
  slots = jnp.arange(time)[None]  # [1, time]
  prefix = jnp.maximum(lengths - 1, 0)
  behind = slots - prefix[:, None]  # [batch, time]: the place in the target; the source's last is its begin
  pick = lambda array, places: jnp.take_along_axis(array, jnp.clip(places, 0, array.shape[1] - 1), axis=1)
  inside = (behind >= 0) & (behind < batch['inputs'].shape[1])
  source = pick(sources, jnp.broadcast_to(slots, behind.shape))
  target = jnp.where(inside, pick(batch['inputs'], behind), 0)
  tokens = jnp.where((behind <= 0) & (slots < lengths[:, None]), source, target)
  mask = jnp.where(inside, pick(batch['mask'], behind), 0)
  return Joined(tokens, pick(batch['targets'], behind), mask, prefix)


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of `data.pairs`."""
  model = models.build(config['model'], jnp.dtype(config['training']['precision']))
  decoder, smoothing = models.decoder(model), config['task']['label_smoothing']
  logits_of = lambda params, x: model.apply({'params': params}, x, method='logits')
  encodes, both_ways = decoder.encode is not None, config['model'].get('bidirectional_prefix', False)

  def init(key, batch):
    one = {name: array[:1] for name, array in batch.items()}
    if encodes:
      return model.init(key, one['sources'], one['inputs'], lengths=one['lengths'])['params'], {}
    return model.init(key, join(one).tokens)['params'], {}

  def read(params, batch, context):
    """(what the output layer reads [batch, time, width], targets and mask [batch, time])."""
    settings = {'train': context.train, 'rngs': {'dropout': context.key}, 'method': 'hidden'}
    if encodes:
      inputs = batch['sources'], batch['inputs']
      x = model.apply({'params': params}, *inputs, lengths=batch['lengths'], **settings)
      return x, batch['targets'], batch['mask']
    row = join(batch)
    if both_ways:
      settings['prefix'] = row.prefix
    return model.apply({'params': params}, row.tokens, **settings), row.targets, row.mask

  def loss(params, extra, batch, context):
    x, targets, mask = read(params, batch, context)
    smoothed = smoothing if context.train else None
    total, hits = cross_entropy(logits_of, params, x, targets, mask, config['task']['logits_chunk'], smoothed)
    weight, metrics = mask.sum(), {}
    if not context.train:
      rows = mask.max(1)  # [batch]: 0 for those that fill up a batch
      metrics['accuracy'] = ((hits * mask).sum(), weight)
      # Where each token is the likeliest one behind the right ones, greedy decoding writes the target.
      metrics['exact_match'] = ((jnp.where(mask > 0, hits, True).all(1) * rows).sum(), rows.sum())
    return total, (weight, extra, metrics)

  show = functools.partial(translations, config, decoder)
  return Task(
    init,
    loss,
    report=report,
    show=show,
    prompts=functools.partial(prompts, config, encodes),
    answers=True,
    unit='tokens',
    higher_is_better=HIGHER_IS_BETTER,
  )


def prompts(config, encodes, tokenizer, texts):
  """Prompts of sources as texts. Raises UsageError for one that is too long, where config.data refuses that."""
  texts = list(texts)
  encoded, dropped = pairs.read_sources(tokenizer.source, texts, config['data'])
  if any(dropped) and config['data']['too_long'] == 'refuse':
    long = next(i for i, count in enumerate(dropped) if count)
    raise UsageError(
      f'prompt: has {len(encoded[long]) + dropped[long]} tokens, all in all, and config.data.source_length was '
      f'{config["data"]["source_length"]}; shorten it'
    )
  if encodes:
    return Prompts(texts, [np.array([tokenizer.target.end_of_text], np.int32)] * len(texts), encoded, dropped)
  return Prompts(texts, encoded, None, dropped)


def translations(config, decoder, params, extra, dataset, key):
  """'translations.txt': some pairs of the validation split, and what the model makes of their sources, greedily."""
  del extra, key
  count = min(config['task']['sample_pairs'], len(dataset.pairs))
  chosen = [dataset.pairs[i * len(dataset.pairs) // count] for i in range(count)]
  tokenizer = dataset.tokenizer
  read = prompts(config, decoder.encode is not None, tokenizer, [source for source, _ in chosen])
  end = tokenizer.target.end_of_text
  settings = {'sources': read.sources, 'vocabulary_size': tokenizer.vocabulary_size, 'end_token': end}
  length = dataset.facts['target_length']
  made = decode.generate(
    decoder, params, read.tokens, jax.random.key(0), Sampling(greedy=True), length, **settings
  )
  kept = [tokens[:n] for tokens, n in zip(made.tokens, made.lengths, strict=True)]
  written = [tokenizer.target.decode(tokens[tokens != end]) for tokens in kept]
  rows = [
    {'source': source, 'prediction': text, 'reference': target}
    for (source, target), text in zip(chosen, written, strict=True)
  ]
  return {'translations.txt': reports.table(rows)}


def report(metrics):
  """Adds the perplexity, exp of the mean loss in nats."""
  return metrics | {'perplexity': math.exp(min(metrics['loss'], 700.0))}
