"""What an answer depends on: the gradient of its log-probability by each token's vector, or by each pixel.

Tokens: gradient times vector (Shrikumar et al. 2016; Denil et al. 2014), whose sign says whether a token speaks for or
against the answer. Pixels: the gradient's size (Simonyan et al. 2014), and the mean gradient over noisy copies of the
image (SmoothGrad, Smilkov et al. 2017).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.models import inspection
from aigc_jax.probes.lens import quoted, shown_each
from aigc_jax.probes.panels import Axis, Heat, Pictures, Text
from aigc_jax.probes.result import Probe

SEED, COPIES, NOISE = 0, 32, 0.15  # of noisy copies, and their deviation as a part of the range of pixels
MEASURES = {
  'gradient_norm': ('size of the gradient', 'sequential'),
  'saliency': ('gradient times vector', 'diverging'),
}
MOST_IMAGES, MOST_CLASSES, AT_ONCE = 8, 5, 16
TOKEN_NOTES = (
  'For each answer, the gradient of its log-probability by the vector of each token read: its size, and times that '
  'vector, where above 0 a token speaks for the answer and below 0 against it, to first order. Of a norm the latter is '
  'near 0, whatever the token says: a norm does not see how long a vector is.'
)
PIXEL_NOTES = (
  'The size of the gradient of the log-probability of the likeliest class, by pixels: of the image, and the mean over '
  '32 noisy copies of it (SmoothGrad, Smilkov et al. 2017). Each picture has its own scale.'
)


def probe(run, reading):
  """Saliency of a Reading: of tokens, arrays 'saliency' and 'gradient_norm' [answers, time] (of a source with 'source_'
  before); of pixels, 'gradients' and 'smooth_gradients' [images, height, width].

  Raises UsageError where there are no answers.
  """
  classifies = run.config['task']['name'] == 'classification'
  if reading.tokens:
    return of_tokens(run, reading, *(classes if classifies else told)(run, reading))
  if not classifies:
    raise UsageError(
      f'{run.path}: its task, {run.config["task"]["name"]}, tells neither tokens nor classes, so there is no answer'
    )
  return of_pixels(run, reading)


def logits_of(run, reading):
  """[places or (), tokens or classes] of what can be said at all."""
  logits = reading.module.apply(reading.variables, *reading.inputs, **reading.settings)[0]
  return logits if logits.ndim == 1 else logits[:, : run.tokenizer.target.vocabulary_size]


def classes(run, reading):
  """(words, places, numbers) of the likeliest classes of a text."""
  chances = np.asarray(jax.nn.softmax(logits_of(run, reading)))
  best = np.argsort(-chances)[:MOST_CLASSES]
  names = class_names(run, len(chances))
  return [f'{names[i]} {chances[i]:.3f}' for i in best], None, best


def class_names(run, count):
  known = run.facts.get('class_names', [])
  return [*known, *map(str, range(len(known), count))]


def told(run, reading):
  """(words, places, tokens) of what is told: what is hidden, or else each token that a place is to tell."""
  if reading.targets is None:
    raise UsageError(f'{run.path}: its task, {run.config["task"]["name"]}, tells no tokens')
  tokenizer, places, answers = run.tokenizer.target, np.flatnonzero(reading.counted), reading.targets
  hidden = np.flatnonzero(np.asarray(reading.inputs[-1])[0] == tokenizer.mask_token)
  if tokenizer.mask_token is not None and len(hidden):
    places, answers = hidden, np.asarray(logits_of(run, reading).argmax(-1))
  return shown_each(tokenizer, answers[places]), places, answers[places]


def of_tokens(run, reading, words, places, answers):
  """What each token that was read says of each answer."""

  def nats_of(variables, shifts):
    logits, vectors = inspection.with_shifts(
      reading.module, variables, reading.inputs, reading.settings, shifts
    )
    if places is None:
      return jax.nn.log_softmax(logits[0])[answers], vectors
    nats = jax.nn.log_softmax(logits[0, :, : run.tokenizer.target.vocabulary_size])
    return nats[places, answers], vectors

  @jax.jit
  def work_out(variables, shifts):
    nats, back, vectors = jax.vjp(functools.partial(nats_of, variables), shifts, has_aux=True)
    of_one = lambda chosen: jax.tree.map(measures, back(chosen)[0], vectors)
    return nats, jax.lax.map(of_one, jnp.eye(len(answers), dtype=nats.dtype), batch_size=AT_ONCE)

  none = tuple(jnp.zeros((array.shape[1], 1)) for array in reading.inputs)
  _, shapes = jax.eval_shape(nats_of, reading.variables, none)
  shifts = tuple(jnp.zeros(shape.shape, jnp.float32) for shape in shapes)
  nats, found = jax.device_get(work_out(reading.variables, shifts))
  panels, kept = [], {'log_probabilities': nats}
  details = [f'{quoted(word)}: probability {np.exp(n):.3g}' for word, n in zip(words, nats, strict=True)]
  parts = {'source_': ('the source', reading.sources)} if reading.sources else {}
  parts[''] = ('what was read', reading.tokens)
  for (prefix, (what, tokens)), measured in zip(parts.items(), found, strict=True):
    axes = Axis('answer', words), Axis('token', tokens)
    for (name, (title, colours)), values in zip(MEASURES.items(), measured, strict=True):
      kept[prefix + name] = values
      colouring = dict(others=tokens, pairwise=True, colours=colours, details=details, unit=title)
      panels.append(Text(f'{title}, by {what}', words, values, (), **colouring))
      panels.append(Heat(f'{title}: all answers by {what}', values, axes, colours=colours))
  return Probe('saliency', 'gradient saliency', panels, kept, TOKEN_NOTES)


def measures(gradient, vectors):
  """[time, width] both -> the MEASURES, each [time]."""
  return jnp.linalg.norm(gradient, axis=-1), (gradient * vectors).sum(-1)


def of_pixels(run, reading):
  images, *_ = reading.inputs
  images, count = images[:MOST_IMAGES], min(len(images), MOST_IMAGES)
  apply = lambda variables, images: reading.module.apply(variables, images, mask=jnp.ones(len(images)))

  @jax.jit
  def slopes(variables, images, best):
    told = lambda images: jax.nn.log_softmax(apply(variables, images))
    return jax.grad(lambda images: jnp.take_along_axis(told(images), best[:, None], 1).sum())(images)

  chances = np.asarray(jax.nn.softmax(jax.jit(apply)(reading.variables, images)))
  best = chances.argmax(-1)
  keys = jax.random.split(jax.random.key(SEED), COPIES)
  noisy = lambda key: images + NOISE * jax.random.normal(key, images.shape)
  plain = slopes(reading.variables, images, best)
  smooth = sum(slopes(reading.variables, noisy(key), best) for key in keys) / COPIES
  size = lambda gradient: np.abs(np.asarray(gradient)).max(
    -1
  )  # [images, height, width], of channels the largest
  kept = {'images': np.asarray(images), 'gradients': size(plain), 'smooth_gradients': size(smooth)}
  scaled = lambda array: array / np.maximum(array.max((1, 2), keepdims=True), 1e-30)
  grey = lambda array: np.repeat(scaled(array)[..., None], images.shape[-1], -1)
  names = class_names(run, chances.shape[1])
  rows = [f'{names[i]} {chances[row, i]:.3f}' for row, i in enumerate(best)]
  columns = np.stack([kept['images'], grey(kept['gradients']), grey(kept['smooth_gradients'])], 1)
  axes = Axis('likeliest class', rows), Axis('', ['image', 'gradient', 'SmoothGrad'])
  panels = [Pictures(f'which pixels count, of {count} images', columns, *axes)]
  return Probe('saliency', 'gradient saliency', panels, kept, PIXEL_NOTES)
