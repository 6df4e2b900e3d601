"""What a card is about: everything that the run folder says, read once."""

import json
import math
import pathlib
from typing import NamedTuple

import jax

from aigc_jax import run as run_folder
from aigc_jax import tasks
from aigc_jax.cards import descriptions
from aigc_jax.cards.markdown import public, shortened
from aigc_jax.errors import AigcError
from aigc_jax.files import read_json

SCORES = 'predictions/scores.json'


class About(NamedTuple):
  run: object  # a TrainedRun
  name: str
  task: str  # its name
  form: str  # of its data
  config: dict  # complete; places are file names alone
  facts: dict  # what the data was when the run began
  source: str  # of its data, its place a file name alone
  step: int  # of the checkpoint
  parameters: int
  size: int  # bytes of the parameters
  metrics: dict  # {name: value} of the validation split at that step, finite ones
  evaluated: str  # what was evaluated when, or a sentence on why there are none
  scores: dict  # {name: {'value', 'protocol'}} of what it writes, at that step
  rows: list  # of metrics.jsonl
  status: dict
  starts: list  # of env.json: how each start found the machine

  @property
  def imported(self):
    return 'imported' in self.facts


def gather(run) -> About:
  """Reads a TrainedRun and its folder. Raises UsageError and StorageError where it has no checkpoint that is whole."""
  step, leaves = run.step, jax.tree.leaves(run.params)
  facts, folder = run.facts, run_folder.open_run(run.path)
  rows = run.metrics
  metrics, evaluated = validation(run, rows, step, 'imported' in facts)
  environment = folder.path / run_folder.ENVIRONMENT
  return About(
    run=run,
    name=pathlib.Path(run.path).resolve().name,
    task=run.config['task']['name'],
    form=tasks.form_of(run.config),
    config=public(run.config),
    facts=facts,
    source=shortened(facts['source']),
    step=step,
    parameters=sum(leaf.size for leaf in leaves),
    size=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
    metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    evaluated=evaluated,
    scores=scores_at(folder.path, step),
    rows=rows,
    status=folder.read_status(),
    starts=read_json(environment) if environment.exists() else [],
  )


def validation(run, rows, step, imported):
  """({metric: value}, what was evaluated when, or a sentence that says why there are none)."""
  name = 'validation/'
  for row in reversed(rows):
    found = {key.removeprefix(name): value for key, value in row.items() if key.startswith(name)}
    if found and row['step'] == step:
      return found, f'The checkpoint of step {step:,}, as the run evaluated it'
  if imported:
    return (
      {},
      'It was not evaluated here: no data belongs to it. `aigc eval RUN --data=KIND:PLACE` does so.',
    )
  try:
    return run.evaluate(), f'The checkpoint of step {step:,}, evaluated when this card was written'
  except AigcError:
    return (
      {},
      'The run was not evaluated at this step, and its data could not be read when this card was written.',
    )


def scores_at(folder, step):
  """What `aigc eval --metrics` found for the validation split with the checkpoint of that step; {} where nothing."""
  try:
    found = json.loads((folder / SCORES).read_text(encoding='utf-8'))
    settings = found['settings']
    fits = settings['checkpoint'] == step and settings['data'] == 'the validation split'
    return {
      name: score | {'protocol': f'{score["protocol"]}; {decoding(settings)}'}
      for name, score in found['scores'].items()
      if fits and name in descriptions.SCORES
    }
  except (OSError, ValueError, KeyError, TypeError):
    return {}


def decoding(settings):
  if settings.get('strategy') == 'beam':
    return f'a beam of {settings["beam_size"]}'
  return 'greedy decoding'


def base_model(about):
  """The model that it came from, as a name; None: it was trained from nothing."""
  place = about.facts.get('imported') or about.run.config['init_from']
  if not place:
    return None
  path = pathlib.Path(place)
  for part in path.parts:  # the hub's own cache: models--owner--name/snapshots/...
    if part.startswith('models--'):
      return part.removeprefix('models--').replace('--', '/')
  folder, _ = run_folder.of_checkpoint(place)
  return pathlib.Path(folder).name


def seen(about):
  """What the checkpoint has learned from, in words; '' where nothing."""
  if about.imported or not about.step:
    return ''
  data, steps, each = about.config['data'], about.step, about.facts.get('steps_per_epoch')
  rows = steps * data['batch_size']
  times = f' ({steps / each:.3g} epochs)' if each else ''
  if about.form in ('text', 'masked_text'):
    padded = ', padding included' if data['packing'] == 'documents' else ''
    return f'{rows * data["sequence_length"]:,} tokens{padded}{times}'
  if about.form == 'pairs':  # a bucket's last batch is not full
    rows = round(steps / each * about.facts['train_pairs'])
  what = {
    'images': 'images',
    'image_tokens': 'images',
    'labelled_text': 'texts',
    'pairs': 'pairs',
    'synthetic_pairs': 'pairs',
    'environment': 'transitions, some of them many times',
  }
  return f'{rows:,} {what[about.form]}{times}'


def seconds(about):
  """Seconds of all starts together, evaluations included, compiling not; None where they are not known."""
  total, last = 0.0, 0.0
  for row in about.rows:
    if (now := row.get('time/seconds')) is None:
      continue
    if now < last:  # a new start counts from 0
      total += last
    last = now
  return total + last or None
