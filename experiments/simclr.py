"""Contrastive learning: what a linear probe makes of features that no label was used for.

aigc reproduce experiments/simclr.py [--quick]         a quarter of an hour on two CPU cores
"""

import functools

import numpy as np

from aigc_jax.data.image_sources import open_images
from aigc_jax.studies.study import Arm, Mean, Measure, Reference, Study
from aigc_jax.tasks.representations import labelled, linear_probe

CONFIG, LABELS = 'configs/contrastive.py', 10  # of each class
ABOUT = """SimCLR with a small convolutional network on 4,000 images of Fashion-MNIST, without their labels. A linear
probe learns from ten labelled images of each class, which each seed draws anew, and is asked for the 1,000 test
images: from the features, from those of the same network as it begins, and from raw pixels. The gains are of the
same labelled images and must be above nothing."""
PROBE, GAIN = 'linear probe on the features, accuracy', 'the same, above raw pixels'


@functools.cache
def images_of(source, seed):
  """(the labelled images, their labels, test images, theirs): the training images in an order that the seed draws."""
  parts = open_images(source).parts
  train, test = parts['train'], parts['test']
  order = np.random.default_rng(seed).permutation(len(train.images))
  known = labelled({'images': train.images[order], 'labels': train.labels[order]}, LABELS, 10)
  return np.asarray(known['images']), known['labels'], test.images, test.labels


def probed(run, features_of):
  """The part of the test images that a linear probe tells right."""
  images, labels, asked, answers = images_of(run.config['data']['source'], run.config['seed'])
  guesses = linear_probe(features_of(images), labels, 10, features_of(asked))
  return float((np.asarray(guesses) == answers).mean())


def pixels(images):
  return images.reshape(len(images), -1).astype(np.float32) / 255


@functools.cache
def probe(run):
  return probed(run, run.features)


def get_study():
  beats = lambda value, why: (Reference(value, why, side='at least'),)
  measures = lambda *references: Measure(PROBE, probe, references=references, digits=4)
  gain = lambda references: Measure(
    GAIN, lambda run: probe(run) - probed(run, pixels), references=references, digits=4
  )
  begin = (('training.steps', 1), ('training.evaluate_every', None), ('optimizer.learning_rate', 0.0))
  learned = measures(Reference(Mean('as it begins', PROBE), 'learning helps', side='at least'))
  arms = (
    Arm('as it begins', CONFIG, (measures(), gain(())), begin),
    Arm(
      'SimCLR',
      CONFIG,
      (learned, gain(beats(0.0, 'features beat pixels'))),
      (('training.evaluate_every', 1000),),
    ),
  )
  quick = (('training.steps', 4), ('training.evaluate_every', 4), ('training.sample_every', None))
  return Study('Contrastive learning', arms, about=ABOUT, quick=quick, minutes=15)
