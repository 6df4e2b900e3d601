"""TensorFlow Datasets builders of our own, which prepare themselves without TensorFlow. Importing imports TFDS."""

import numpy as np
import tensorflow_datasets as tfds

from aigc_jax.data import image_arrays


class FashionMnist5k(tfds.core.GeneratorBasedBuilder):
  """The bundled part of Fashion-MNIST: 4,000 training and 1,000 test images of 28 x 28 in ten classes."""

  name = 'fashion_mnist_5k'
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    # Tensor rather than Image, whose encoding takes TensorFlow
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
        'label': tfds.features.ClassLabel(names=list(image_arrays.FASHION_MNIST_CLASSES)),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=features,
      supervised_keys=('image', 'label'),
      homepage='https://github.com/zalandoresearch/fashion-mnist',
      license='MIT, Copyright (c) 2017 Zalando SE',
      disable_shuffling=True,
    )

  def _split_generators(self, download_manager):
    del download_manager
    parts = image_arrays.read_bundled(self.name, self.name).parts
    return {split: self._generate_examples(part) for split, part in parts.items()}

  def _generate_examples(self, part):
    for i, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
      yield i, {'image': image, 'label': int(label)}


BUILDERS = {FashionMnist5k.name: FashionMnist5k}
