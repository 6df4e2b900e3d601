"""The sections of a card that say what a run is: each is a function of an `About` that returns lines of Markdown."""

import json
import pathlib

from aigc_jax.cards import about as facts_of
from aigc_jax.cards import descriptions, training_data
from aigc_jax.cards.markdown import fenced, number, shortened, table
from aigc_jax.training.console import size

SAMPLE = 1200  # characters of a text that are shown
TEXTS = 2  # of those drawn for the card that are shown
WEIGHTS = (
  'Licence of the weights: not stated; whoever publishes them writes it in place of `license: unknown` above.'
)
TRAINED_BY = 'The code that trained them is Apache-2.0; what is known of the data is below.'
PART = {'images': 'images', 'labelled_text': 'texts', 'pairs': 'pairs', 'synthetic_pairs': 'pairs'}


def title(about):
  base = facts_of.base_model(about)
  if about.imported:
    origin = f'It was imported from files of Hugging Face, `{base}`.'
  else:
    origin = f'It was trained on {data_in_words(about)}.'
    origin += f' It started from `{base}`.' if base else ''
  return [f'# {about.name}', '', f'{descriptions.task(about.task)} {origin}']


def data_in_words(about):
  known = training_data.licensed(about.source)
  place = f'`{about.source}`'
  size_told = about.facts.get('size')
  told = known.what.partition(':')[0] if known else size_told
  return f'{place}: {told}' if told else place


def model(about):
  config = about.config
  rows = [
    ['task', about.task.replace('_', ' ')],
    ['model', descriptions.model(config['model'])],
    ['parameters', f'{about.parameters:,} ({size(about.size)})'],
  ]
  if shape := config['model'].get('image_shape'):
    rows.append(['images', f'{" x ".join(map(str, shape))} (height, width, channels)'])
  if context := config['model'].get('context_length'):
    rows.append(['context', f'{context:,} tokens'])
  if about.facts.get('tokenizer'):
    rows.append(['tokenizer', f'{about.facts["tokenizer"]}, {about.facts["vocabulary_size"]:,} tokens'])
  if names := about.facts.get('class_names'):
    shown = ', '.join(names[:20]) + (f' and {len(names) - 20} more' if len(names) > 20 else '')
    rows.append(['classes', shown])
  if not about.imported:
    rows.append(['checkpoint', f'step {about.step:,} of {config["training"]["steps"]:,}{chosen(about)}'])
  rows.append(['computes in', config['training']['precision']])
  known = 'That of the model it was imported from still holds.' if about.imported else TRAINED_BY
  return ['## Model', '', *table(['', ''], rows), '', f'{WEIGHTS} {known}']


def chosen(about):
  if about.run.which != 'best':
    return ''
  return f', the best by `{about.config["training"]["best_metric"]}`'


def data(about):
  head = ['## Training data', '']
  if about.imported:
    return [
      *head,
      'Not known: the model was imported, and says nothing of what it was trained on; fill it in.',
    ]
  rows = [['source', f'`{about.source}`']]
  known, facts = training_data.licensed(about.source), about.facts
  if known:
    rows += [['what it is', known.what], ['form', known.form], ['licence, origin', known.licence]]
  elif about.form not in ('environment', 'synthetic_pairs'):
    rows.append(['licence', training_data.UNKNOWN])
  if about.form == 'image_tokens':
    coder = shortened(about.facts['autoencoder']).partition(':')[2]
    rows.append(['as tokens', f'the codes of the autoencoder `{coder}`, behind a token for the class'])
  if facts.get('validation_source'):
    other = shortened(facts['validation_source'])
    rows.append(['validation source', f'`{other}`; {licence_of(other)}'])
  for name in (
    'size',
    'documents',
    'train_tokens',
    'validation_tokens',
    'cut_texts',
    'cut_sources',
    'cut_targets',
  ):
    if facts.get(name) not in (None, 0):
      value = facts[name]
      label = f'{name.removeprefix("cut_")} cut to fit' if name.startswith('cut_') else name.replace('_', ' ')
      rows.append([label, f'{value:,}' if isinstance(value, int) else value])
  for name in ('binarization', 'images_per_class', 'packing', 'source_template'):
    if about.config['data'].get(name) not in (None, 'stream'):
      rows.append([name.replace('_', ' '), f'{about.config["data"][name]}'])
  rows.append(['split', facts.get('split', 'not known')])
  for name in ('sha256', 'validation_sha256'):
    if facts.get(name):
      rows.append([name.replace('_', ' '), f'`{facts[name]}`'])
  if facts.get('tokenizer') == 'gpt2':
    rows.append(['merges of the tokenizer', training_data.bundled_table()['gpt2_merges.txt.gz'].licence])
  return [*head, *table(['', ''], rows)]


def licence_of(source):
  known = training_data.licensed(source)
  return known.licence if known else training_data.UNKNOWN


def evaluation(about):
  lines = ['## Evaluation', '', f'{about.evaluated}{protocol(about)}:' if about.metrics else about.evaluated]
  single = [name for name in about.metrics if descriptions.OF_CLASS.fullmatch(name)]
  rows = [
    metric_row(about, name, about.metrics[name])
    for name in sorted(about.metrics, key=lambda name: name != 'loss')
    if name not in single
  ]
  if rows:
    lines += ['', *table(['metric', 'value', 'what it is'], rows)]
  if single:
    lines += ['', *by_class(about, single)]
  if about.scores:
    rows = [score_row(name, score) for name, score in about.scores.items()]
    lines += ['', 'Of what it writes from the sources of the validation split:', '']
    lines += table(['metric', 'value', 'what it is', 'protocol'], rows)
  elif about.run.task.answers:
    command = f'aigc eval runs/{about.name} --metrics=bleu,chrf,exact_match'
    lines += ['', f'What it writes was not scored; `{command}` does so, and the next card has the scores.']
  return lines


def protocol(about):
  """On what the metrics were computed."""
  facts, config = about.facts, about.config
  if about.form == 'environment':
    return f', over {config["data"]["validation_episodes"]:,} greedy episodes, the same ones always'
  counted = f'the validation split of `{shortened(facts.get("validation_source") or facts["source"])}`'
  if 'validation_tokens' in facts:
    counted += f', {facts["validation_tokens"]:,} tokens'
  elif facts.get(f'validation_{PART.get(about.form, "images")}'):
    kind = PART.get(about.form, 'images')
    counted += f', {facts[f"validation_{kind}"]:,} {kind}'
  limit = config['training']['evaluate_batches']
  part = f'its first {limit:,} batches of {config["data"]["batch_size"]} alone' if limit else 'each once'
  hidden = '; what is hidden is the same in every run' if about.task == 'masked_language' else ''
  return f', on {counted}, {part}{hidden}'


def metric_row(about, name, value):
  found = descriptions.metric(name, about.task)
  text = found.text
  if name == 'loss':
    task = about.run.task
    unit = '' if task.loss_unit in text else f', {task.loss_unit}'
    text += f'; mean{unit} per {task.unit.removesuffix("s")}'
  return [arrowed(name, found), number(value), text]


def score_row(name, score):
  found = descriptions.SCORES[name]
  return [arrowed(name, found), number(score['value']), found.text, score['protocol']]


def arrowed(name, found):
  return f'{name.replace("_", " ")} {found.better}'.strip()


def by_class(about, names):
  classes = about.facts.get('class_names', [])
  of = lambda name: int(descriptions.OF_CLASS.fullmatch(name)[1])
  label = lambda name: classes[of(name)] if of(name) < len(classes) else str(of(name))
  rows = [[label(name), number(about.metrics[name])] for name in sorted(names, key=of)]
  return [*table(['class', 'accuracy on its examples alone ↑'], rows)]


def curves(about, link):
  """link: a picture's path in the run folder -> its place beside the card."""
  found = sorted(path.name for path in (pathlib.Path(about.run.path) / 'plots').glob('*.png'))
  found = [name for name in found if name != NEAREST]
  if not found:
    return []
  return ['## Curves', '', *(f'![{pathlib.Path(n).stem} over steps]({link(f"plots/{n}")})' for n in found)]


NEAREST = 'nearest.png'  # of samples and the images nearest to them, under plots/


def samples(about, link, drawn):
  """Those that the run showed last before its checkpoint, and some that were drawn for the card."""
  lines, folder = [], pathlib.Path(about.run.path) / 'samples'
  step, shown = last_samples(folder, about.step)
  for path in shown:
    name = path.stem.partition('-')[2]
    told = descriptions.picture(about.task, name) or name.replace('_', ' ')
    heading = f'At step {step:,}, {told}:'
    lines += ([] if heading in lines else ['', heading]) + ['']
    lines += (
      quoted(path.read_text('utf-8'))
      if path.suffix == '.txt'
      else [f'![{name}]({link(f"samples/{path.name}")})']
    )
  if drawn:
    count = min(TEXTS, len(drawn))
    lines += ['', f'Drawn for this card at temperature 1, the first {count} of {len(drawn)}:']
    for text in drawn[:TEXTS]:
      lines += ['', *quoted(text)]
  return ['## Samples', *lines] if lines else []


def last_samples(folder, step):
  """(the last step up to `step` of which the run has samples, their paths); of later ones, the first."""
  found = {}
  for path in sorted(folder.glob('*-*')):
    number_of, _, _ = path.name.partition('-')
    if number_of.isdigit() and path.suffix in ('.txt', '.png', '.gif'):
      found.setdefault(int(number_of), []).append(path)
  if not found:
    return step, []
  at = max((n for n in found if n <= step), default=min(found))
  return at, found[at]


def quoted(text):
  cut = len(text) > SAMPLE
  return fenced(text[:SAMPLE].rstrip('\n') + ('…' if cut else ''))


def configuration(about):
  fields, note = about.config, 'All fields, as they were resolved; places of files are their names alone.'
  if about.imported:  # nothing else was chosen
    fields, note = {name: fields[name] for name in ('task', 'model')}, 'Of the task and the model.'
  text = json.dumps(fields, indent=2, ensure_ascii=False)
  return [
    '## Configuration',
    '',
    note,
    '',
    '<details>',
    '<summary>config</summary>',
    '',
    *fenced(text, 'json'),
    '',
    '</details>',
  ]
