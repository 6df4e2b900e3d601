"""Autoencoders of images, on 5,000 pictures of clothes by default; each runs for a minute or less on a laptop.

  aigc train --config=configs/autoencoder.py                 the variational autoencoder, the same as :vae
  aigc train --config=configs/autoencoder.py:ae              plain: a latent without a prior, by squared error
  aigc train --config=configs/autoencoder.py:conv            variational, with convolutions
  aigc train --config=configs/autoencoder.py:vq              codes of a codebook
  aigc train --config=configs/autoencoder.py:denoising       plain, from images with noise
  aigc train --config=configs/autoencoder.py:conditional     variational, given the class
  aigc train --config=configs/autoencoder.py:logistic        variational, of all 256 levels of a pixel
  aigc train --config=configs/autoencoder.py:map             two latents, for a map of them

  aigc generate RUN --num=16                                 draws from the prior of a variational run

Sweeps of it: aigc sweep --config=configs/autoencoder.py:vae --sweep=learning_rate_and_beta

Any field: --config.model.latent_width=10 --config.task.importance_samples=5000 --config.data.source=images:my_folder
"""

import ml_collections

from aigc_jax.sweeps.space import Between, logarithmic, product, sweep

VARIANTS = ('', 'ae', 'vae', 'conv', 'vq', 'denoising', 'conditional', 'logistic', 'map')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='autoencoding')
  config.model = dict(name='autoencoder')
  config.data = dict(source='bundled:fashion_mnist_5k', batch_size=128)
  config.optimizer = dict(name='adamw', learning_rate=1e-3)
  config.training = dict(steps=3000, evaluate_every=500, checkpoint_every=1000, sample_every=1000)
  {
    '': vae,
    'ae': ae,
    'vae': vae,
    'conv': conv,
    'vq': vq,
    'denoising': denoising,
    'conditional': conditional,
    'logistic': logistic,
    'map': latent_map,
  }[variant](config)
  return config


def vae(config):
  """Kingma & Welling 2014: pixels drawn black or white anew at each step, 784-400-20-400-784."""
  config.data.binarization = 'dynamic'


def ae(config):
  config.model.update(posterior='none', likelihood='squared_error')


def conv(config):
  vae(config)
  config.model.update(architecture='convolutional', widths=(32, 64))
  config.training.update(steps=2000)


def vq(config):
  """van den Oord et al. 2017, smaller: an image becomes 7 x 7 codes of 128."""
  config.model = dict(name='vq_autoencoder', likelihood='squared_error')
  config.model.update(widths=(32, 64), residual_blocks=1, code_width=32, codebook_size=128)
  config.training.update(steps=1500)


def denoising(config):
  ae(config)
  config.task.update(noise=0.3)


def conditional(config):
  vae(config)
  config.model.update(conditional=True, latent_width=8)  # few, so that the class is told by the class
  config.optimizer.update(learning_rate=2e-3)
  config.training.update(steps=6000)


def logistic(config):
  config.model.update(likelihood='logistic')


def latent_map(config):
  vae(config)
  config.model.update(latent_width=2, widths=(400, 200))


def sweep_beta():
  return sweep('task.beta', (0.25, 0.5, 1.0, 2.0, 4.0))


def sweep_learning_rate_and_beta():
  return product(
    sweep('optimizer.learning_rate', logarithmic(3e-4, 1e-2, 4)), sweep('task.beta', (0.5, 1.0, 2.0, 4.0))
  )


def sweep_latent_width():
  return sweep('model.latent_width', (2, 5, 10, 20, 50))


def sweep_codebook_size():
  """For :vq."""
  return sweep('model.codebook_size', (16, 64, 256))


def search_learning_rate_and_beta():
  return {
    'optimizer.learning_rate': Between(1e-4, 3e-2, logarithmic=True),
    'task.beta': Between(0.25, 4.0, logarithmic=True),
  }
