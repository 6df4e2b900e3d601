"""`aigc probe RUN NAME`: what is inside a trained model, as pictures, a page and arrays; parsing and printing only."""

import json
import sys

from aigc_jax import files
from aigc_jax.errors import UsageError

ALL = 'all'
EPILOGUE = """Each writes NAME.png, NAME.html (one page, no network) and NAME.npz into RUN/probes/. Without --text or
--image it looks at row 0 of the validation split."""


def add_options(add, add_checkpoint):
  from aigc_jax.probes import KINDS

  verb = add('probe', 'look inside: attention, logit lens, saliency, gates, latents, losses, activations')
  verb.epilog = EPILOGUE
  verb.add_argument('run')
  known = '; '.join(f'{name}: {kind.shows}' for name, kind in KINDS.items())
  verb.add_argument('name', nargs='?', help=f'{known}; {ALL}: those that fit; left out: lists them')
  add_checkpoint(verb)
  verb.add_argument('--text', help='what the model reads; a source, of runs that were trained on pairs')
  verb.add_argument('--text_file', metavar='FILE', help='the same from a file, UTF-8')
  verb.add_argument('--target', help='what is written from --text; default: what the run itself writes')
  verb.add_argument('--image', metavar='FILE.png', help='an image of the size that the model takes')
  verb.add_argument('--row', type=int, help='of the validation split, from 0')
  verb.add_argument('--data', metavar='KIND:PLACE', help='of ablation: other data, such as text:PATH')
  verb.add_argument('--batches', type=int, help='of ablation: how many, default 4')
  verb.add_argument('--parts', metavar='REGEX', help='of activations: those whose path contains it')
  verb.add_argument('--output', metavar='FOLDER', help='default RUN/probes')
  verb.add_argument(
    '--json', action='store_true', help='one JSON object a probe: its files and the shapes of its arrays'
  )


def probe(options):
  from aigc_jax import api
  from aigc_jax.probes import KINDS

  run = api.load_run(options.run, options.checkpoint)
  if options.name is None:
    print('\n'.join(f'{name:<13}{kind.shows}' for name, kind in KINDS.items()))
    return
  choices, folder = choices_of(options, run), options.output or run.path / 'probes'
  for name in KINDS if options.name == ALL else [options.name]:
    try:
      takes = KINDS[name].takes if options.name == ALL else choices
      found = run.probe(name, **{key: value for key, value in choices.items() if key in takes})
    except UsageError as error:
      if options.name != ALL:
        raise
      print(f'{name}: left out: {error}', file=sys.stderr)
      continue
    tell(found, found.save(folder), options.json)


def tell(found, paths, as_json):
  if as_json:
    arrays = {name: list(array.shape) for name, array in found.arrays.items()}
    print(json.dumps({'probe': found.name, 'files': list(map(str, paths)), 'arrays': arrays}))
  else:
    print('\n'.join(map(str, paths)))


def choices_of(options, run):
  """{name: value} of what was given, for `run.probe`."""
  given = {name: getattr(options, name) for name in ('text', 'target', 'row', 'batches', 'parts')}
  given['source'] = options.data
  if options.text_file is not None:
    if options.text is not None:
      raise UsageError('--text_file: --text is given, too; leave out one of them')
    given['text'] = '\n'.join(files.read_lines(options.text_file))
  if options.image is not None:
    from aigc_jax.data.image_folders import read_image

    shape = run.config['model'].get('image_shape')
    if shape is None:
      raise UsageError(f'--image: {run.path} reads no images')
    given['image'] = read_image(options.image, shape[2])
  return {name: value for name, value in given.items() if value is not None}
