"""A card of a run: a README in Hugging Face's form, with the pictures that it shows lying beside it.

`card(run)` composes what the rooms here say: front matter, sections, and the memorization check.
"""

import pathlib
import re
import shutil

from aigc_jax import files
from aigc_jax.cards import about as facts_of
from aigc_jax.cards import front_matter, memorized, sections, training_data, use
from aigc_jax.errors import AigcError, UsageError

NAME = 'README.md'
MASKED = '... [MASK] ...'
WORDS = re.compile(r'\w+(?:[ ,]+\w+){0,2}')  # of a sample that make a prompt


def card(run, output=None, *, samples=16, tokens=256, source=None):
  """Writes the card of a TrainedRun. Returns its path.

  Args:
    output: the file; None: README.md in the run folder. Elsewhere the pictures that it shows are copied beside it: of a
      README.md into plots/ and samples/, of NAME.md into NAME/.
    samples, tokens: how many texts the memorization check draws, and of how many tokens at most.
    source: 'text:PATH', a text to compare them with in place of what the run was trained on.

  Raises UsageError, DataError and StorageError in one line. Where the run's data is gone or has changed, the card says
  so.
  """
  output = pathlib.Path(run.path) / NAME if output is None else pathlib.Path(output)
  if output.is_dir():
    raise UsageError(f'--output={output}: is a folder; name the file, such as {output / NAME}')
  if samples < 1 or tokens < 1:
    raise UsageError(f'samples and tokens must be 1 or more, not {samples} and {tokens}')
  about = facts_of.gather(run)
  check = memorized.check(run, about.facts, samples, tokens, source)
  pictures = Beside(run, output)
  text = '\n'.join(compose(about, check, pictures)) + '\n'
  with files.storage_errors(output):
    output.parent.mkdir(parents=True, exist_ok=True)
  pictures.write(check.picture)
  files.write_atomically(output, text)
  return output


def compose(about, check, pictures):
  """All lines of a card."""
  exported = exported_beside(pictures.output)
  memory = ['## Memorization', '', *check.lines]
  if check.picture is not None:
    link = pictures.link(f'plots/{sections.NEAREST}')
    told = 'In the upper row the samples most like one training image, in the lower row these images:'
    memory += ['', told, '', f'![nearest]({link})']
  parts = [
    front_matter.lines(about, 'aigc_jax' if exported is None else 'transformers'),
    sections.title(about),
    sections.model(about),
    use.usage(about, prompt_for(about, check), exported),
    sections.data(about),
    sections.evaluation(about),
    sections.curves(about, pictures.link),
    sections.samples(about, pictures.link, check.texts),
    memory,
    use.limits(about, check.summary),
    use.cost(about),
    use.reproduction(about),
    sections.configuration(about),
  ]
  return '\n\n'.join('\n'.join(part) for part in parts if part).split('\n')


def exported_beside(output):
  """config.json of Hugging Face that lies beside the card; None where there is none."""
  path = output.parent / 'config.json'
  found = files.read_json(path) if path.is_file() else {}
  return found if isinstance(found, dict) and found.get('model_type') and found.get('architectures') else None


def prompt_for(about, check):
  """A text that the run can read, or the name of a class that it can draw; '' where it needs none."""
  task, names = about.run.task, about.facts.get('class_names', [])
  if task.fills_masks:
    return MASKED
  if task.draw is not None:
    told = about.config['model'].get('conditional') or about.form == 'image_tokens'
    return names[0] if told and names else ''
  if task.prompts is None:
    return ''
  if task.answers:
    return asked(about)
  if given := about.config['task'].get('sample_prompt'):
    return given
  texts = (check.held_out or '', *check.texts)
  found = [match[0] for text in texts if (match := WORDS.search(text))]
  return found[0][:24] if found else ''


def asked(about):
  """A source that an answering run can be asked: of its validation split, where that can still be read."""
  if about.form == 'synthetic_pairs':
    return '12+34' if about.source.endswith('addition') else 'abc'
  try:
    return training_data.pair_texts(about.run.config['data'], about.facts).validation[0][0]
  except AigcError:
    return '...'


class Beside:
  """The pictures that a card shows: where each lies, and those that have to be copied there."""

  def __init__(self, run, output):
    self.output, self.run = output, pathlib.Path(run.path)
    self.prefix = '' if output.name == NAME else f'{output.stem}/'
    self.shown = set()

  def link(self, name):
    """The place of a picture of the run folder, such as 'plots/loss.png', as the card links to it."""
    self.shown.add(name)
    return self.prefix + name

  def write(self, nearest):
    """Copies what is shown, and writes the picture that the card itself has made, or None."""
    for name in sorted(self.shown):
      path = self.output.parent / (self.prefix + name)
      with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
      if name == f'plots/{sections.NEAREST}':
        files.write_image(path, nearest)
      elif path.resolve() != (self.run / name).resolve():
        with files.storage_errors(path):
          shutil.copyfile(self.run / name, path)
