"""What a probe looks at: one text, one pair or some images, as the model of a run takes them."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import data, environments, tasks
from aigc_jax.errors import UsageError
from aigc_jax.models import inspection
from aigc_jax.tasks import rollouts, translation
from aigc_jax.tasks.images import as_floats
from aigc_jax.tasks.masked_language import special

END, PART = '∎', '·'  # for the end of a text, and for bytes whose character ends in a later token
IMAGES = 8  # of the validation split, unless a row is asked for
ENCODES = ('contrastive', 'masked_images')  # tasks whose models are encoders alone


class Reading(NamedTuple):
  """A model before its inputs. Texts are one row [1, time] without padding; images are some rows."""

  module: Any  # the Linen definition
  variables: dict  # {'params': ..., 'batch_stats': ...}
  inputs: tuple  # arrays
  settings: dict  # of the call, {'prefix': [1]}
  method: str | None  # of the module; None: its call
  tokens: list  # of str: what the model reads, or a decoder; [] of images
  sources: list  # of str: what an encoder reads before; [] without one
  targets: Any  # int32 [time]: the token that each place is to tell; None where none is
  counted: Any  # bool [time]: where that is known
  labels: Any  # int32 [rows]: classes; None where there are none

  def capture(self):
    """(what the model gives, {path: array} of its parts), see `inspection.capture`."""
    return captured(self.module, self.method, self.variables, self.inputs, self.settings)


def fitting(reading, path):
  """The Reading of the run at `path`. Raises UsageError where a model of the user's own is not called as ours are."""
  module = reading.module
  try:
    inspect.signature(getattr(module, reading.method or '__call__')).bind(*reading.inputs, **reading.settings)
  except (TypeError, AttributeError) as error:
    raise UsageError(
      f'{path}: a probe calls a model as ours are called, and {type(module).__name__}: {error}'
    ) from None
  return reading


def captured(module, method, variables, inputs, settings):
  look = lambda variables, inputs, settings: inspection.capture(
    module, variables, *inputs, method=method, **settings
  )
  return jax.device_get(jax.jit(look)(variables, inputs, settings))


def read(run, text=None, target=None, image=None, row=None, most=64):
  """The Reading of a text, of images, of a row of the validation split, or of an episode.

  Args:
    run: a TrainedRun.
    text: what is read; with '[MASK]' where the model fills masks. None: a row of the validation split.
    target: of runs that answer: what is written from the text; None: what the run itself writes, greedily.
    image: [height, width, channels] or several [images, height, width, channels], uint8 or from 0 to 1.
    row: of the validation split, from 0; None: the first, of images the first eight.
    most: tokens of a row of the validation split; the rest is left out.

  Raises UsageError for what the run does not read, for a text that is too long, or where a run has no data of its own.
  """
  form, task = tasks.form_of(run.config), run.config['task']['name']
  if form == 'environment':
    if any(given is not None for given in (text, target, image)):
      raise UsageError(f'{run.path}: its task, {task}, acts in a world; row is the number of an episode')
    return of_episode(run, row or 0, most)
  if form == 'images':
    if text is not None or target is not None:
      raise UsageError(f'text: {run.path} reads images; give image, or row of the validation split')
    return of_images(run, validation_rows(run, row, IMAGES) if image is None else given_images(run, image))
  if image is not None:
    raise UsageError(f'image: {run.path} reads text; give text, or row of the validation split')
  if target is not None and not (run.task.answers and text is not None):
    raise UsageError('target: is what a run that was trained on pairs writes from `text`; give it both')
  if text is not None:
    if task not in OF_TEXT:
      raise UsageError(
        f'text: how the task {task} reads one is not known here; give row of the validation split'
      )
    return of_text(run, OF_TEXT[task](run, text, target))
  return of_text(run, shortened(validation_rows(run, row), most))


def validation_rows(run, row, most=1):
  """A batch of row `row` of the validation split; None: of the first `most` rows. Raises UsageError."""
  if run.imported:
    raise UsageError(f'{run.path}: was imported, and has no data of its own; give text (--text="...")')
  dataset = data.load(run.config['data'], run.tokenizer, tasks.form_of(run.config))
  if row is not None and row < 0:
    raise UsageError(f'row: {row} is none of the validation split; its rows are numbered from 0')
  first, passed = row or 0, 0
  for batch in dataset.validation_batches():
    held = batch['mask'] if 'mask' in batch else np.ones(len(batch['inputs']))
    real = np.flatnonzero(held.reshape(len(held), -1).any(1))
    if first < passed + len(real):
      chosen = real[first - passed :][: most if row is None else 1]
      return {name: array[chosen] for name, array in batch.items()}
    passed += len(real)
  raise UsageError(f'row: {row} is none of the validation split, which has {passed:,} rows')


def shortened(batch, most):
  """A batch of one without its padding, without all but its first document, and with at most `most` tokens."""
  count = int(batch['lengths'][0]) if 'lengths' in batch and 'sources' not in batch else None
  if 'segments' in batch:
    count = int((batch.pop('segments')[0] == 1).sum())
  elif count is None:
    count = int(batch['mask'].sum())
  count = count if 'sources' in batch or most is None else min(count, most)
  kept = {name: array[:, :count] for name, array in batch.items() if name in ('inputs', 'targets', 'mask')}
  if 'sources' in batch:
    kept |= {'sources': batch['sources'][:, : batch['lengths'][0]], 'lengths': batch['lengths']}
  elif 'lengths' in batch:
    kept['lengths'] = np.array([count], np.int32)
  return kept | {name: batch[name] for name in ('labels',) if name in batch}


def continued(run, text, target):
  """Of a language model: each token is to tell the next."""
  del target
  if run.config['data']['source'].startswith('run:'):
    raise UsageError(f'text: {run.path} reads tokens of images; give row of the validation split')
  ids = run.task.prompts(run.tokenizer, [text]).tokens[0]
  return {'inputs': ids[None], 'targets': np.append(ids[1:], 0)[None], 'mask': known_but_last(ids)[None]}


def known_but_last(ids):
  return (np.arange(len(ids)) < len(ids) - 1).astype(np.float32)


def masked(run, text, target):
  del target
  return {'inputs': run.tokenizer.encode_masked(text)[None]}


def labelled(run, text, target):
  del target
  ids = run.tokenizer.framed(run.tokenizer.encode(text))
  return {'inputs': ids[None], 'lengths': np.array([len(ids)], np.int32)}


def paired(run, text, target):
  """A source and its target, or what the run itself writes from it."""
  prompts, tokenizer = run.task.prompts(run.tokenizer, [text]), run.tokenizer.target
  source = prompts.tokens[0] if prompts.sources is None else prompts.sources[0]
  if target is None:
    target = run.generate(text, strategy='greedy')[0].text
  ids = np.append(tokenizer.encode(target), tokenizer.end_of_text).astype(np.int32)
  return {
    'sources': source[None],
    'lengths': np.array([len(source)], np.int32),
    'inputs': np.append(tokenizer.end_of_text, ids[:-1])[None].astype(np.int32),
    'targets': ids[None],
    'mask': np.ones((1, len(ids)), np.float32),
  }


OF_TEXT = {
  'language': continued,
  'masked_language': masked,
  'translation': paired,
  'classification': labelled,
}


def of_text(run, batch):
  """The Reading of a batch of one text, see `data` for its arrays. Raises UsageError for one that is too long."""
  task, module = run.config['task']['name'], plain(run.model)
  variables, settings, names = {'params': run.params}, {}, run.tokenizer.target
  inputs, targets, mask = batch['inputs'], batch.get('targets'), batch.get('mask')
  sources = []
  if task == 'translation' and hasattr(module, 'encode'):
    sources, inputs = shown(run.tokenizer.source, batch['sources'][0]), (batch['sources'], inputs)
  elif task == 'translation':
    row = jax.device_get(translation.join(batch))
    inputs, targets, mask = (row.tokens,), row.targets, row.mask
    if getattr(module, 'bidirectional_prefix', False):
      settings['prefix'] = row.prefix
  else:
    inputs = (inputs,)
  if task == 'masked_language':
    targets = inputs[
      0
    ]  # each place tells its own token, but for hidden ones and those that stand for no text
    mask = ~np.isin(inputs[0], special(run.config['task']))
  check_length(run, module, inputs)
  read = inputs[-1][0]
  return Reading(
    module,
    variables,
    tuple(jnp.asarray(array, jnp.int32) for array in inputs),
    {name: jnp.asarray(array) for name, array in settings.items()},
    None,
    shown(names, read),
    sources,
    None if targets is None else np.asarray(targets[0]),
    None if targets is None else np.asarray(mask[0]) > 0,
    batch.get('labels'),
  )


def plain(module):
  """The module without what saves memory in training and hides what is inside."""
  return module.clone(remat='none') if hasattr(module, 'remat') else module


def check_length(run, module, inputs):
  room, longest = module.context_length, max(array.shape[1] for array in inputs)
  if room is not None and longest > room:
    raise UsageError(f'text: has {longest:,} tokens, and {run.path} reads {room:,} at most; shorten it')
  if longest < 1 or min(array.shape[1] for array in inputs) < 1:
    raise UsageError('text: is empty; give some')


def shown(tokenizer, ids):
  """Tokens as people read them: white space as it is, '∎' for the end of a text, bytes of half a character as '·'."""
  texts, held = [], b''
  for token in np.asarray(ids).tolist():
    if token == tokenizer.end_of_text:
      texts.append(END)
    elif token == tokenizer.mask_token:
      texts.append('[MASK]')
    else:
      held += tokenizer.pieces[token] if token < tokenizer.vocabulary_size else b''
      try:
        text, held = held.decode(), b''
      except UnicodeDecodeError as error:
        whole = error.reason == 'unexpected end of data'  # the rest of the character is in the next token
        text, held = held[: error.start].decode() + PART, held[error.start :] if whole else b''
      texts.append(text)
  return texts


def of_episode(run, number, most):
  """The Reading of what is observed in the first steps of an episode that the run plays greedily."""
  environment, module = environments.make(run.config['data']['source']), run.model
  values_of = lambda params, observations: module.apply({'params': params}, observations)
  states, _, alive = rollouts.watcher(environment, values_of)(run.params, jax.random.key(number), 1)
  steps = min(int(alive.sum()), most)
  observed = jax.vmap(environment.observe)(jax.tree.map(lambda leaf: jnp.asarray(leaf[:steps, 0]), states))
  return Reading(module, {'params': run.params}, (observed,), {}, None, [], [], None, None, None)


def given_images(run, images):
  """Images of the user's as a batch. Raises UsageError where the model takes others."""
  images, shape = np.asarray(images), tuple(run.config['model']['image_shape'])
  images = images[None] if images.ndim == len(shape) else images
  if images.shape[1:] != shape or not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
    raise UsageError(
      f'image: is {images.dtype} of shape {list(images.shape)}; {run.path} takes uint8, or floats from 0 to 1, of '
      f'{list(shape)}'
    )
  return {'images': images, 'mask': np.ones(len(images), np.float32)}


def of_images(run, batch):
  task = run.config['task']['name']
  kept = {name: value for name, value in run.state.extra.items() if name == 'batch_stats'}
  images, labels, settings = jnp.asarray(as_floats(jnp.asarray(batch['images']))), batch.get('labels'), {}
  inputs = (images,)
  if task == 'autoencoding':
    inputs = (images, jnp.asarray(np.zeros(len(images), np.int32) if labels is None else labels))
  else:
    settings['mask'] = jnp.asarray(batch['mask'])
  method = 'encode' if task in ENCODES else None
  module = plain(run.model)
  return Reading(module, {'params': run.params, **kept}, inputs, settings, method, [], [], None, None, labels)
