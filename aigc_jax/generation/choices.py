"""A way of writing from names and numbers, as people give them: `Sampling` or `Beam`, with its chain of processors."""

from aigc_jax.errors import UsageError, listed, nearest
from aigc_jax.generation import constraints
from aigc_jax.generation.beam import Beam
from aigc_jax.generation.constraints import AllowedStrings, ForbiddenText, ForcedWords
from aigc_jax.generation.processors import CountPenalty, MinimumLength, NoRepeatedNgrams, RepetitionPenalty
from aigc_jax.generation.strategies import Sampling
from aigc_jax.generation.watermark import Watermark

FILTERS = {'top_k': 40, 'top_p': 0.9, 'min_p': 0.05}
BEAM = ('beam_size', 'length_penalty', 'early_stopping')
STRATEGIES = ('greedy', 'sample', *FILTERS, 'beam')
PROCESSORS = (
  'repetition_penalty',
  'presence_penalty',
  'frequency_penalty',
  'no_repeat_ngram_size',
  'min_new_tokens',
  'forbid',
  'force',
  'allow',
  'watermark',
  'watermark_fraction',
  'watermark_strength',
)
ALL = ('temperature', *FILTERS, *BEAM, *PROCESSORS)


def make(tokenizer, strategy, num, choices) -> Sampling | Beam:
  """The way of writing that a strategy and {name: value} ask for; a value of None is not given.

  tokenizer: of what is written. num: texts of each prompt. Raises UsageError for what is unknown or clashes.
  """
  given = {name: value for name, value in choices.items() if value not in (None, (), [])}
  if strategy not in STRATEGIES:
    raise UsageError(
      f'strategy: {strategy!r} is not known; {nearest(strategy, STRATEGIES)}it takes {listed(STRATEGIES)}'
    )
  for name in given:
    if name not in ALL:
      raise UsageError(f'{name}: no such choice; {nearest(name, ALL)}there are {listed(ALL)}')
  check_together(strategy, given)
  chain = processors_of(tokenizer, given)
  if strategy == 'beam':
    return Beam(num=num, processors=chain, **with_room(given, num))
  if strategy == 'greedy':
    return Sampling(greedy=True, processors=chain)
  filters = {name: given[name] for name in FILTERS if name in given}
  if strategy in FILTERS:
    filters.setdefault(strategy, FILTERS[strategy])
  return Sampling(temperature=given.get('temperature', 0.8), processors=chain, **filters)


def with_room(given, num):
  """The fields of Beam that are given; where its size is not, it is 4, or as many as there are to be texts."""
  return {'beam_size': max(4, num)} | {name: given[name] for name in BEAM if name in given}


def check_together(strategy, given):
  """Raises UsageError for choices that mean nothing beside others."""
  idle = ('temperature', *FILTERS) if strategy in ('greedy', 'beam') else ()
  idle += () if strategy == 'beam' else BEAM
  for name in idle:
    if name in given:
      raise UsageError(
        f'--{name}: means nothing with --strategy={strategy}; leave it out or choose another strategy'
      )
  if 'allow' in given:
    for name in ('forbid', 'force', 'min_new_tokens', 'no_repeat_ngram_size'):
      if name in given:
        raise UsageError(f'--{name}: could leave none of the strings of --allow; use one or the other')
  for name in ('watermark_fraction', 'watermark_strength'):
    if name in given and 'watermark' not in given:
      raise UsageError(f'--{name}: means nothing without --watermark=KEY')


def processors_of(tokenizer, given) -> tuple:
  """The chain, in the order of transformers, and then what it has not."""
  chain, end = [], tokenizer.end_of_text
  if 'repetition_penalty' in given:
    chain.append(RepetitionPenalty(given['repetition_penalty']))
  if 'presence_penalty' in given or 'frequency_penalty' in given:
    chain.append(CountPenalty(given.get('presence_penalty', 0.0), given.get('frequency_penalty', 0.0)))
  if 'no_repeat_ngram_size' in given:
    chain.append(NoRepeatedNgrams(given['no_repeat_ngram_size']))
  if 'forbid' in given:
    chain.append(ForbiddenText.of(given['forbid'], tokenizer))
  if 'min_new_tokens' in given:
    check_end(end, 'min_new_tokens')
    chain.append(MinimumLength(given['min_new_tokens'], end))
  if 'force' in given:
    words = [tuple(constraints.spell(tokenizer, word, 'force').tolist()) for word in given['force']]
    if not all(words):
      raise UsageError('force: a word must have at least one character')
    chain.append(ForcedWords.of(words, end))
  if 'allow' in given:
    check_end(end, 'allow')
    texts = [tuple(constraints.spell(tokenizer, text, 'allow').tolist()) for text in given['allow']]
    chain.append(AllowedStrings.of(texts, end))
  if 'watermark' in given:
    numbers = {
      name: given[f'watermark_{name}'] for name in ('fraction', 'strength') if f'watermark_{name}' in given
    }
    chain.append(Watermark(given['watermark'], **numbers))
  return tuple(chain)


def check_end(end, name):
  if end is None:
    raise UsageError(
      f'--{name}: this tokenizer has no token for the end of a text, having learned from one document alone'
    )
