"""The memorization check of a run: what it makes beside what it was trained on, and held-out data beside that."""

from typing import NamedTuple

import numpy as np

from aigc_jax import tasks
from aigc_jax.cards import training_data
from aigc_jax.cards.markdown import fenced, number, shortened, table
from aigc_jax.cards.memorization import SEPARATOR, compare, nearest, symbols, unit
from aigc_jax.errors import AigcError, UsageError
from aigc_jax.tasks.pictures import grid, tiles

GRAM = 50  # characters of a passage that is looked for
QUOTED = 240  # characters of a passage that are shown
ANSWERED = 64  # validation sources that are answered
DRAWN, SHOWN = 64, 8  # images
TEMPERATURE, SEED = 1.0, 0
NOT_KNOWN = (
  'What the model was trained on before it was imported is not known here, so nothing was compared; `aigc card RUN '
  '--data=text:PATH` compares its samples with a text.'
)
# what samples go on from: the first of these that the tokenizer makes a token of
STARTS = {'': 'from the beginning of a document', '\n': 'after a line break', ' ': 'after a space'}


class Check(NamedTuple):
  lines: list  # of Markdown
  summary: str  # a sentence, for the limits
  texts: tuple = ()  # that were drawn
  held_out: str | None = None  # how the held-out text begins
  picture: np.ndarray | None = None  # of images and their nearest


def check(run, facts, samples, length, source) -> Check:
  """Draws from the run and compares.

  Args:
    run: a TrainedRun. facts: what its data was. samples, length: how many texts, of how many tokens at most.
    source: 'text:PATH', a text to compare with in place of what the run was trained on; None.
  """
  form, task = tasks.form_of(run.config), run.task
  writes = task.prompts is not None and run.tokenizer is not None
  if source is not None and (not writes or task.answers):
    raise UsageError(
      f'--data: {run.path} writes no text that goes on by itself, so there is nothing to compare with one'
    )
  if form == 'environment':
    return none('It learned from a world that it acted in, and there is no data that it could give away.')
  if form == 'synthetic_pairs':
    return none('Its pairs are made by a rule, on the fly; there is no text that it could give away.')
  if task.fills_masks:
    return none('It fills in hidden tokens and writes no text of its own, so no samples were compared.')
  if task.prompts is not None and not writes:
    return none('It came without a tokenizer, so it writes no text, and no samples were compared.')
  if not writes and task.draw is None:
    return none('It makes nothing: what it gives are classes, features or images of what it is shown.')
  if not writes or task.answers:
    return of_images(run, facts) if not writes else of_answers(run, facts)
  return of_texts(run, facts, samples, length, source)


def none(sentence):
  return Check([sentence], '')


def unavailable(facts, error, texts=()):
  """A Check for data that is gone or has changed."""
  told = 'has changed since' if 'has changed' in str(error) else 'could not be read'
  sentence = (
    f'The data, `{shortened(facts["source"])}`, {told} when this card was written, so nothing was compared.'
  )
  return Check([sentence], 'Whether it gives its training data away was not checked.', texts)


def of_texts(run, facts, samples, length, source):
  """Texts from the beginning of a document against the training text, beside held-out text."""
  other = None if source is None else training_data.other_text(source)  # refused before anything is drawn
  start = next((start for start in STARTS if begins(run, start)), None)
  if start is None:
    return none('Its tokenizer has nothing that a text could begin with, so no samples were compared.')
  drawn = run.generate(
    start, num=samples, max_new_tokens=length, strategy='sample', temperature=TEMPERATURE, seed=SEED
  )
  texts = tuple(sample.text for sample in drawn)
  train, held_out = other, None
  if 'imported' not in facts:
    try:
      own, held_out = training_data.text(run.config['data'], facts)
      train = own if other is None else other
    except AigcError as error:
      if other is None:
        return unavailable(facts, error, texts)
  if train is None:
    return Check([NOT_KNOWN], 'Whether it gives its training data away is not known.', texts)
  sides = [compare([symbols(text) for text in texts], train, GRAM)]
  if held_out is not None:
    sides.append(compare(windows(held_out, [len(text) for text in texts]), train, GRAM))
  rows = text_rows(sides, sum(map(len, texts)))
  if run.tokenizer.name != 'characters' and source is None:
    rows += token_rows(run, drawn)
  beside = (
    ' Beside them passages of held-out text of the same lengths, evenly spaced.'
    if held_out is not None
    else ''
  )
  lines = [
    f'{len(texts)} texts of up to {length} tokens, drawn {STARTS[start]} at temperature '
    f'{TEMPERATURE:g} with seed {SEED}, none left out, against {against(source, train)}. An overlap is '
    f'the longest run of characters of a text that is there, too; case, punctuation and white space count.{beside}',
    '',
    *table(['', 'samples', *(['held-out text'] if held_out is not None else [])], rows),
  ]
  passage, summary = longest_passage(texts, sides, train, 'that text' if source else 'the training text')
  return Check(lines + passage, summary, texts, None if held_out is None else beginning(held_out))


def beginning(text):
  """The first symbols of a text, as a text."""
  return ''.join(chr(symbol) if symbol != SEPARATOR else '\n' for symbol in text[:QUOTED].tolist())


def begins(run, text):
  """Whether a text is at least one token, so that samples can go on from it."""
  try:
    return len(run.task.prompts(run.tokenizer, [text]).tokens[0]) > 0
  except UsageError:
    return False


def against(source, train):
  count = f'{int((train != SEPARATOR).sum()):,} characters'
  return f'the {count} of `{shortened(source)}`' if source else f'the {count} that it was trained on'


def windows(text, lengths):
  """Passages of `text` of the given lengths, evenly spaced."""
  starts = [
    int(i * max(len(text) - length, 0) / max(len(lengths) - 1, 1)) for i, length in enumerate(lengths)
  ]
  return [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def text_rows(sides, characters):
  """Rows of the table of texts."""
  grams = [
    f'{side.found:,} of {side.grams:,} ({side.found / side.grams:.1%})' if side.grams else 'none is so long'
    for side in sides
  ]
  return [
    ['characters in all', *[f'{characters:,}'] * len(sides)],
    ['longest verbatim overlap in characters: median; maximum', *map(spread, sides)],
    [f'passages of {GRAM} characters found verbatim', *grams],
  ]


def spread(side):
  return f'{number(np.median(side.lengths))}; {side.lengths.max(initial=0):,}'


def token_rows(run, drawn):
  """The same runs, counted in tokens."""
  train, held_out = training_data.tokens(run.config['data'], run.tokenizer)
  ids = [training_data.plain_tokens(run.tokenizer, sample.tokens) for sample in drawn]
  sides = [compare(part, train, GRAM) for part in (ids, windows(held_out, list(map(len, ids))))]
  return [['longest verbatim overlap in tokens: median; maximum', *map(spread, sides)]]


def longest_passage(texts, sides, train, name):
  """(lines that quote the longest passage, a sentence); `name`: what the text is called."""
  overlaps = sides[0].overlaps
  i = max(range(len(texts)), key=lambda i: overlaps[i].length)
  length, start, place = overlaps[i]
  if not length:
    return [], f'Its samples share no character with {name}.'
  document = int((train[:place] == SEPARATOR).sum())
  begins = place - int(np.flatnonzero(train[:place] == SEPARATOR)[-1]) if document else place + 1
  where = (
    f'from character {begins:,} of its document {document + 1:,}'
    if document
    else f'from character {begins:,}'
  )
  passage = texts[i][start : start + length]
  cut = f', of which the first {QUOTED} are' if length > QUOTED else ''
  sentence = f'The longest passage that a sample shares with {name} has {length:,} characters'
  compared = ''
  if len(sides) > 1 and (most := int(sides[1].lengths.max(initial=0))):
    compared = f', {length / most:.2g} times the longest of held-out text ({most:,})'
  lines = [f'{sentence}{compared}. There it stands {where}{cut}:', '', *fenced(passage[:QUOTED])]
  return ['', *lines], f'{sentence}{compared}.'


def of_answers(run, facts):
  """What it writes for validation sources against the targets that it was trained on."""
  try:
    train, validation = training_data.pair_texts(run.config['data'], facts)
  except AigcError as error:
    return unavailable(facts, error)
  count = min(ANSWERED, len(validation))
  asked = [validation[i * len(validation) // count] for i in range(count)]
  written = [answer.text for answer in run.generate([source for source, _ in asked], strategy='greedy')]
  targets = [target for _, target in train]
  text = np.concatenate([part for t in targets for part in (symbols(t), np.array([SEPARATOR], np.int32))])
  known, sides = {target.strip() for target in targets}, (written, [target for _, target in asked])
  compared = [compare([symbols(text) for text in side], text, GRAM) for side in sides]
  copies = [sum(text.strip() in known for text in side) for side in sides]
  rows = [
    ['exact copies of a training target', *(f'{n} of {count} ({n / count:.1%})' for n in copies)],
    [
      'longest verbatim overlap with a training target in characters: median; maximum',
      *map(spread, compared),
    ],
    ['characters in all', *(f'{sum(map(len, side)):,}' for side in sides)],
  ]
  lines = [
    f'{count} sources of the validation split, evenly spaced, answered greedily, against the {len(targets):,} targets '
    'that it was trained on. Beside them the right answers of the same sources: what is alike in all such texts is in '
    'them, too.',
    '',
    *table(['', 'its answers', 'right answers'], rows),
  ]
  summary = (
    f'Of {count} answers to held-out sources {copies[0]} are a training target word for word, and of the right answers '
    f'{copies[1]}.'
  )
  return Check(lines, summary)


def of_images(run, facts):
  """Images that it draws, each beside the nearest that it was trained on."""
  try:
    config = run.config['data']
    if tasks.form_of(run.config) == 'image_tokens':
      config = run.tokenizer.saved['data']
    train, validation = training_data.pictures(config, facts)
  except AigcError as error:
    return unavailable(facts, error)
  drawn = tiles(run.draw(DRAWN, seed=SEED), facts['image_shape'], DRAWN)
  rows = np.arange(min(DRAWN, len(validation))) * len(validation) // min(DRAWN, len(validation))
  sides = [unit(np.asarray(side)) for side in (drawn, validation[rows])]
  found = [nearest(side, train) for side in sides]
  row = lambda name, of: [
    name,
    *(f'{number(np.median(of(each)))}; {number(of(each).min())}' for each in found),
  ]
  lines = [
    f'{DRAWN} images, drawn with seed {SEED}, none left out, against the {len(train):,} that it was trained on: the '
    f'Euclidean distance to the nearest of them, pixels from 0 to 1. Beside them {len(rows)} held-out images. What is '
    'smooth or dark is near to many images; the share of the mean distance to the 50 nearest (Carlini et al. 2023) '
    'leaves that out: a copy has a share near 0.',
    '',
    *table(
      ['', 'samples', 'held-out images'],
      [
        row('distance to the nearest training image: median; minimum', lambda found: found.distance),
        row('its share of the mean distance to the 50 nearest: median; minimum', lambda found: found.share),
      ],
    ),
  ]
  closest = np.argsort(found[0].share, kind='stable')[:SHOWN]
  shown = np.concatenate([sides[0][closest], unit(train[found[0].index[closest]])])
  least = [number(each.share.min()) for each in found]
  summary = (
    f'The sample most like one training image is at {least[0]} of the mean distance to the 50 nearest; of held-out '
    f'images, at {least[1]}.'
  )
  return Check(lines, summary, picture=grid(shown.astype(np.float32), len(closest)))
