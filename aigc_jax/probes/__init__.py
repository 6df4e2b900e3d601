"""What is inside a trained model: each probe is a file with `probe(run, ...)`, and gives a `result.Probe`."""

import importlib
from typing import NamedTuple

from aigc_jax.errors import UsageError, nearest


class Kind(NamedTuple):
  """One probe: its module in this room, what it shows, and what it takes."""

  module: str
  shows: str
  takes: tuple  # names of arguments
  most: int | None = None  # tokens of a row of the validation split, unless a text is given


READS = ('text', 'target', 'image', 'row')
KINDS = {
  'attention': Kind('attention', 'where each head of each layer looks', READS, 48),
  'lens': Kind('lens', 'what the model would say after each layer', READS, 24),
  'saliency': Kind('saliency', 'which tokens or pixels an answer depends on', READS, 48),
  'ablation': Kind('ablation', 'what each head is worth', ('source', 'batches')),
  'gates': Kind('gates', 'states and gates of a recurrent network over a text', READS, 160),
  'latents': Kind('latents', 'what each latent of an autoencoder changes and tells', ('image', 'row')),
  'loss': Kind('losses', 'how hard each token of a text was', READS, 512),
  'activations': Kind('activations', 'what every part gives, by its path', (*READS, 'parts'), 48),
}


def probe(run, name, **choices):
  """Looks inside a TrainedRun with the probe of that name.

  choices: those that it takes; of `reading.read`: text, target, image, row.

  Returns a `result.Probe`. Raises UsageError for an unknown probe or choice, or where the probe does not fit the run.
  """
  if name not in KINDS:
    raise UsageError(f'probe: {name!r} is not known; {nearest(name, KINDS)}there are {", ".join(KINDS)}')
  kind = KINDS[name]
  for choice, value in choices.items():
    if value is not None and choice not in kind.takes:
      raise UsageError(f'{choice}: means nothing to the probe {name}, which takes {", ".join(kind.takes)}')
  given = {choice: value for choice, value in choices.items() if value is not None}
  module = importlib.import_module(f'aigc_jax.probes.{kind.module}')
  if not set(READS) & set(kind.takes):
    return titled(run, module.probe(run, **given))
  from aigc_jax.probes import reading

  own = {choice: value for choice, value in given.items() if choice not in READS}
  of = {choice: value for choice, value in given.items() if choice in READS}
  read = reading.fitting(reading.read(run, **of, most=kind.most), run.path)
  return titled(run, module.probe(run, read, **own))


def titled(run, found):
  return found._replace(title=f'{found.title}: {run.path.absolute().name}, step {run.step}')
