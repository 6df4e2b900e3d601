"""Autoencoders of Fashion-MNIST beside the same models in PyTorch: plain, variational, by codes.

  aigc reproduce experiments/autoencoders.py [--quick]   a quarter of an hour on two CPU cores

PyTorch's figures: python benchmarks/family_quality.py --family=NAME --only=torch (ae, vae, vae_bound, beta_vae, vq).
"""

from aigc_jax.studies.study import Arm, Mean, Measure, Reference, Study

CONFIG = 'configs/autoencoder.py:'
FULL = '/usr/share/datasets/fashion-mnist'
WHERE = f"{FULL}: Debian's package dataset-fashion-mnist has it"
ABOUT = """Both libraries train the same networks on the same batches in the same order by Adam, and begin with their
own noise. Squared errors are of an image, the bounds in nats of a binarized one; the importance-weighted bound is of
256 samples. The first arms learn from the 4,000 training images that come with the package, the last one from all
60,000. A tolerance is about three times the deviation of a run over seeds, in both libraries; the networks with
convolutions begin as He et al. have it, which PyTorch's do not, so of these no less than PyTorch reaches is asked
for."""
# what the benchmark's peers do, instead of each config's own recipe
ADAM = (
  ('optimizer.name', 'adam'),
  ('optimizer.schedule', 'constant'),
  ('optimizer.clip_norm', None),
  ('optimizer.beta2', 0.999),
  ('training.checkpoint_every', None),
)
ELBO, BOUND, ERROR = 'evidence bound, nats', 'importance-weighted bound, nats', 'squared error'


def torch(family, value, tolerance, side='within', more=''):
  command = f'python benchmarks/family_quality.py --only=torch --family={family}{more}'
  return Reference(value, f'PyTorch, `{command}`', tolerance, side)


def arm(name, variant, steps, *measures, more=(), **fields):
  overrides = (*ADAM, ('training.steps', steps), ('training.evaluate_every', steps), *more)
  return Arm(name, CONFIG + variant, measures, overrides, seeded=('seed', 'data.seed'), **fields)


def error(reference):
  return Measure(ERROR, 'validation/reconstruction', references=(reference,), digits=2)


def bounds(name, elbo, *bound):
  """Both bounds, beside PyTorch's, and the second beside the first."""
  jensen = Reference(Mean(name, ELBO), 'Burda et al. 2016, theorem 1', side='at least')
  return (
    Measure(ELBO, 'validation/elbo', references=(elbo,), digits=2),
    Measure(BOUND, 'validation/importance_bound', references=(*bound, jensen), digits=2),
  )


def variational(name, steps, elbo, *bound, more=(), needs=''):
  measures, more = bounds(name, elbo, *bound), (('task.importance_samples', 256), *more)
  return arm(name, 'vae', steps, *measures, more=more, quick=(('task.importance_samples', 2),), needs=needs)


def get_study():
  all_images = f' --steps=2345 --source=idx:{FULL}'
  arms = (
    arm('plain', 'ae', 2000, error(torch('ae', 10.66, 0.1))),
    variational('variational', 2000, torch('vae', -245.39, 1.0), torch('vae_bound', -241.25, 1.0)),
    variational('beta = 4', 2000, torch('beta_vae', -255.23, 2.0), more=(('task.beta', 4.0),)),
    arm('codes', 'vq', 1500, error(torch('vq', 5.64, 0.5, 'at most'))),
    variational(
      'variational, all images',
      2345,
      torch('vae', -245.54, 0.5, more=f'{all_images} --seeds=0,1,2,3,4'),
      more=(('data.source', f'idx:{FULL}'),),
      needs=WHERE,
    ),
  )
  quick = (('training.steps', 20), ('training.evaluate_every', 20), ('training.sample_every', None))
  return Study('Autoencoders of Fashion-MNIST', arms, ABOUT, quick, 15)
