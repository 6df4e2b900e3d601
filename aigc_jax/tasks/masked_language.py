"""Masked language modelling: hide some tokens of a text and find them again from both sides (Devlin et al. 2019).

Section 3.1 and appendix A.1: 15% of the tokens are chosen; of these 80% become the mask token, 10% a random one, and
10% stay, so that the model cannot tell which tokens to trust. What is hidden is drawn anew at each step, as in RoBERTa
(Liu et al. 2019), and each token's lot by itself, so a row's number of chosen tokens varies.
"""

import dataclasses
import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import models
from aigc_jax.config import NonNegative, Positive, Range, UnitInterval
from aigc_jax.errors import UsageError
from aigc_jax.generation.fill import rank
from aigc_jax.task import Task
from aigc_jax.tasks import language
from aigc_jax.tasks.losses import cross_entropy

HIGHER_IS_BETTER = ('accuracy',)  # metrics

EVALUATION_SEED = 0  # of what evaluations hide: the same in every run, so that figures can be compared


@dataclasses.dataclass(frozen=True)
class MaskedLanguageConfig:
  mask_token: Annotated[int, NonNegative]  # the tokenizer's, as the next three are
  end_of_text: Annotated[int, NonNegative] | None  # None: there is none
  special_tokens: Annotated[tuple[int, ...], NonNegative] = ()  # others that stand for no text
  vocabulary_size: Annotated[int, Positive] | None = None  # None: the mask is the last token
  mask_fraction: Annotated[float, Range('in (0, 1]', above=0, most=1)] = (
    0.15  # of the tokens, or words, is chosen
  )
  mask_share: Annotated[float, UnitInterval] = 0.8  # of the chosen becomes the mask token
  random_share: Annotated[float, UnitInterval] = 0.1  # of the chosen becomes a random ordinary token
  whole_words: bool = False  # all tokens of a word are chosen together, or none
  # places of each text whose logits are held at once; None: all. Less memory where the vocabulary is large
  logits_chunk: Annotated[int, Positive] | None = None


def complete(config, dataset):
  """Fills in what the data decides: the special tokens, the vocabulary's size and the context. Raises UsageError."""
  task, tokenizer = config['task'], dataset.tokenizer
  if task['mask_share'] + task['random_share'] > 1 + 1e-6:
    raise UsageError(
      f'config.task.random_share: {task["random_share"]} and config.task.mask_share = {task["mask_share"]} are more '
      'than all chosen tokens; let them add up to 1 or less'
    )
  known = {'mask_token': tokenizer.mask_token, 'end_of_text': tokenizer.end_of_text}
  for name, token in known.items():
    if task[name] not in (None, token):
      raise UsageError(
        f'config.task.{name}: {task[name]}, but it is {token} in {tokenizer.name!r}; leave it unset'
      )
  known |= {'special_tokens': list(tokenizer.special), 'vocabulary_size': tokenizer.vocabulary_size}
  return language.fit(config | {'task': task | known}, dataset)


def special(task):
  """All tokens that stand for no text, in order: never chosen, never put in."""
  named = (token for token in (task['mask_token'], task['end_of_text']) if token is not None)
  return tuple(sorted({*task['special_tokens'], *named}))


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of `data.masked_text`."""
  task = config['task']
  model = models.build(config['model'], jnp.dtype(config['training']['precision']))
  logits_of = lambda params, x: model.apply({'params': params}, x, method='logits')

  def init(key, batch):
    return model.init(key, batch['inputs'][:1])['params'], {}

  def collect(params, extra, batch, context):
    del params
    return extra, hide(task, batch, row_keys(context.key, jnp.arange(len(batch['inputs']))))

  def loss(params, extra, batch, context):
    where = {name: batch.get(name) for name in ('segments', 'lengths')}
    chosen = batch['chosen']
    settings = {'train': context.train, 'rngs': {'dropout': context.key}, 'method': 'hidden'}
    x = model.apply({'params': params}, batch['inputs'], **where, **settings)  # [batch, time, width]
    total, hits = cross_entropy(logits_of, params, x, batch['targets'], chosen, task['logits_chunk'])
    weight, metrics = chosen.sum(), {}
    if not context.train:
      metrics['accuracy'] = ((hits * chosen).sum(), weight)
    return total, (weight, extra, metrics)

  def evaluate(params, extra, batch, context):
    batch = hide(task, batch, row_keys(jax.random.key(EVALUATION_SEED), batch['rows']))
    total, (weight, _, metrics) = loss(params, extra, batch, context)
    return {'loss': (total, weight), **metrics}

  def show(params, extra, dataset, key):
    del extra
    return {'sample.txt': shown(task, functools.partial(rank, model, 1), params, dataset, key)}

  return Task(
    init,
    loss,
    collect,
    evaluate,
    report,
    show,
    fills_masks=True,
    unit='masks',
    higher_is_better=HIGHER_IS_BETTER,
  )


def row_keys(key, rows):
  """One key for each of `rows` [batch], by its number alone."""
  return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)


def hide(task, batch, keys):
  """A batch with tokens hidden.

  Args:
    task: the fields of MaskedLanguageConfig, whose floats may be traced.
    batch: of `data.masked_text`. keys: [batch], one for each row.

  Returns:
    The batch with 'inputs' changed, 'targets' (what they were) and 'chosen' (float32 [batch, time], 1 where a token is
    to be found again). Padding and what stands for no text are never chosen.
  """
  tokens, ordinary = batch['inputs'], batch['mask'] > 0
  for token in special(task):
    ordinary &= tokens != token
  hidden, chosen = jax.vmap(functools.partial(hide_row, task))(keys, tokens, ordinary, batch['word_begins'])
  return batch | {'inputs': hidden, 'targets': tokens, 'chosen': chosen.astype(jnp.float32)}


def hide_row(task, key, tokens, ordinary, word_begins):
  """Of one row, all [time]: (tokens with some hidden, which are chosen); only those of `ordinary` can be."""
  choice_key, share_key, token_key = jax.random.split(key, 3)
  time = len(tokens)
  lots = jnp.cumsum(word_begins) if task['whole_words'] else jnp.arange(time)  # whose draw decides
  chosen = (jax.random.uniform(choice_key, (time + 1,))[lots] < task['mask_fraction']) & ordinary
  share = jax.random.uniform(share_key, (time,))
  becomes = jnp.where(
    share < task['mask_share'],
    task['mask_token'],
    jnp.where(
      share < task['mask_share'] + task['random_share'], ordinary_tokens(task, token_key, time), tokens
    ),
  )
  return jnp.where(chosen, becomes, tokens), chosen


def ordinary_tokens(task, key, count):
  """[count] int32, drawn uniformly from all tokens that stand for text."""
  others = special(task)
  size = task['vocabulary_size'] or task['mask_token'] + 1
  drawn = jax.random.randint(key, (count,), 0, size - len(others))
  for token in others:
    drawn = drawn + (drawn >= token)
  return drawn


def shown(task, rank_tokens, params, dataset, key):
  """The beginning of the validation text with tokens masked, and as the model fills them in.

  rank_tokens: (vocabulary_size, special_tokens, params, tokens, segments) -> as `fill.rank` of one candidate.
  """
  tokenizer = dataset.tokenizer
  batch = {name: array[:1] for name, array in next(dataset.validation_batches()).items()}
  hidden = jax.device_get(hide(task | {'mask_share': 1.0}, batch, key[None]))
  segments = batch.get('segments', batch['mask'].astype(np.int32))
  _, best = rank_tokens(
    tokenizer.vocabulary_size, tokenizer.special_tokens, params, hidden['inputs'], segments
  )
  filled = np.where(hidden['chosen'] > 0, np.asarray(best)[..., 0], batch['inputs'])
  count, right = int(hidden['chosen'].sum()), int(((filled == batch['inputs']) * hidden['chosen']).sum())
  text = lambda tokens: tokenizer.decode(tokens[batch['mask'] > 0])
  return f'{text(hidden["inputs"])}\n--- filled in, {right} of {count} as they were ---\n{text(filled)}'


def report(metrics):
  """Adds exp of the mean loss in nats at masks: no perplexity of the text, whose tokens would be hidden one by one."""
  return metrics | {'pseudo_perplexity': math.exp(min(metrics['loss'], 700.0))}
