"""Language modelling: predict the next token of text, with any model that maps tokens to logits."""

import dataclasses
import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from aigc_jax import models
from aigc_jax.config import Positive
from aigc_jax.errors import UsageError
from aigc_jax.generation import text as generation
from aigc_jax.generation.strategies import Sampling
from aigc_jax.task import Task
from aigc_jax.tasks import image_language
from aigc_jax.tasks.losses import cross_entropy

HIGHER_IS_BETTER = ('accuracy',)  # metrics


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
  sample_prompt: str = ''  # what the samples shown while training go on from; '': the start of a document
  sample_tokens: Annotated[int, Positive] = 200  # of each sample shown while training
  sample_temperature: Annotated[float, Positive] = 0.8  # of these samples: what logits are divided by
  carry_state: bool = (
    False  # a recurrent network goes on from its last batch's state: truncated back-propagation
  )
  # places of each text whose logits are held at once; None: all. Less memory where the vocabulary is large
  logits_chunk: Annotated[int, Positive] | None = None


def complete(config, dataset):
  """Fills in what the data decides: the vocabulary's size and the context. Raises UsageError where they clash."""
  check_carry(config)
  check_prompt(config, dataset)
  return fit(config, dataset)


def fit(config, dataset):
  """The config with a model that has the data's vocabulary and context. Raises UsageError where they clash."""
  model, needed = dict(config['model']), dataset.tokenizer.vocabulary_size
  length = dataset.facts['sequence_length']
  model['vocabulary_size'] = model['vocabulary_size'] or needed
  if model['vocabulary_size'] < needed:
    raise UsageError(
      f'config.model.vocabulary_size: {model["vocabulary_size"]} is too small for the {needed} tokens of'
      f' {dataset.tokenizer.name!r}; leave it unset or use {needed} or more'
    )
  if 'context_length' in model:
    model['context_length'] = model['context_length'] or length
    if model['context_length'] < length:
      raise UsageError(
        f'config.model.context_length: {model["context_length"]} is shorter than config.data.sequence_length ='
        f' {length}; leave it unset or use {length} or more'
      )
  return config | {'model': model}


def check_prompt(config, dataset):
  prompt = config['task']['sample_prompt']
  if prompt and config['data']['source'].startswith('run:'):
    raise UsageError(
      f'config.task.sample_prompt: {prompt!r} is text, and tokens of images go on from a class alone'
    )
  try:
    if prompt:
      dataset.tokenizer.encode(prompt)
  except UsageError as error:
    raise UsageError(f'config.task.sample_prompt: {error}') from None


def check_carry(config):
  if not config['task']['carry_state']:
    return
  name, packing = config['model']['name'], config['data'].get('packing')
  if name != 'rnn':
    raise UsageError(f'config.task.carry_state: {name!r} has no state to carry; use --config.model.name=rnn')
  if config['data']['source'].startswith('run:'):
    raise UsageError(
      'config.task.carry_state: rows of image tokens do not go on from batch to batch; leave it off'
    )
  if packing != 'contiguous':
    raise UsageError(
      f'config.task.carry_state: with config.data.packing = {packing!r} a batch does not go on where the last one '
      'ended; use --config.data.packing=contiguous'
    )


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of `data.load`."""
  model = models.build(config['model'], jnp.dtype(config['training']['precision']))
  # made once, since generation compiles anew for another one; a model of the user's own may write nothing
  decoder = models.decoder(model) if hasattr(model, 'decode') else None

  logits_of = lambda params, x: model.apply({'params': params}, x, method='logits')
  carries = config['task']['carry_state']

  def init(key, batch):
    extra = {'carry': model.init_carry(len(batch['inputs']))} if carries else {}
    return model.init(key, batch['inputs'][:1])['params'], extra

  def loss(params, extra, batch, context):
    apply, targets, mask = functools.partial(model.apply, {'params': params}), batch['targets'], batch['mask']
    read = functools.partial(apply, batch['inputs'], train=context.train, rngs={'dropout': context.key})
    if carries:
      x, carry = read(restarted(extra['carry'], batch['begins']), method='carried')
      extra = {'carry': jax.lax.stop_gradient(carry)}
    else:
      x = read(segments=batch.get('segments'), method='hidden')  # [batch, time, width]
    total, hits = cross_entropy(logits_of, params, x, targets, mask, config['task']['logits_chunk'])
    weight, metrics = mask.sum(), {}
    if not context.train:
      metrics['accuracy'] = ((hits * mask).sum(), weight)
    if 'characters' in batch:
      characters = (batch['characters'] * mask).sum()
      metrics['bits_per_character'] = (total / math.log(2), characters)
    return total, (weight, extra, metrics)

  def show(params, extra, dataset, key):
    task = config['task']
    sampling = Sampling(temperature=task['sample_temperature'])
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    completion = generation.generate_text(
      decoder,
      params,
      dataset.tokenizer,
      sample_prompts(task['sample_prompt'], dataset),
      max_new_tokens=task['sample_tokens'],
      sampling=sampling,
      seed=seed,
    )[0]
    return {'sample.txt': completion.prompt + completion.text}

  images = config['data']['source'].startswith('run:')
  shown = functools.partial(image_language.show, decoder, config['task']['sample_temperature'])
  draw = functools.partial(image_language.draw, decoder, config['task']['sample_temperature'])
  writes = decoder is not None
  return Task(
    init,
    loss,
    report=report,
    show=(shown if images else show) if writes else None,
    draw=draw if images and writes else None,
    prompts=generation.prompts_of if writes and not images else None,
    layout='batch' if carries else 'replicated',
    unit='tokens',
    higher_is_better=HIGHER_IS_BETTER,
  )


def sample_prompts(text, dataset):
  """What samples go on from: `text`, or the start of a document.

  That is the first token that validates where the tokenizer has none that documents begin with.
  """
  tokenizer = dataset.tokenizer
  if text or tokenizer.separator:
    return generation.prompts_of(tokenizer, [text])
  first = next(dataset.validation_batches())['inputs'][0, :1]
  return generation.Prompts([tokenizer.decode(first)], [first])


def restarted(carry, begins):
  """The carried state, zero in the rows [batch] that begin anew."""
  return jax.tree.map(lambda state: jnp.where(begins[:, None] > 0, 0, state), carry)


def report(metrics):
  """Adds the perplexity, exp of the mean loss in nats."""
  return metrics | {'perplexity': math.exp(min(metrics['loss'], 700.0))}
