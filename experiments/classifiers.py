"""Classifiers of Fashion-MNIST beside the same models in PyTorch, and beside published accuracies.

aigc reproduce experiments/classifiers.py [--quick]    a quarter of an hour on two CPU cores
"""

from aigc_jax.studies.study import Arm, Measure, Reference, Study

CONFIG = 'configs/classifier.py:'
FULL = '/usr/share/datasets/fashion-mnist'
WHERE = f"{FULL}: Debian's package dataset-fashion-mnist has it"
BENCHMARK = 'github.com/zalandoresearch/fashion-mnist, table of benchmarks: '
ABOUT = """The first three are trained as the same networks in PyTorch are, on the same batches of the 4,000 training
images that come with the package, 400 steps of Adam, without dropout or other images; the others by the recipes of
`configs/classifier.py` for few epochs of all 60,000. Accuracies are of the test images after the last step. Networks
that begin as He et al. have it are ahead of PyTorch's smaller first weights after so few steps: so no less than
PyTorch's mean is asked for, less a percentage point, which is a deviation of a run. The published accuracies are
single figures that their submitters gave; after its 20 epochs, as the config has it, one run of `:cnn_full` reached
0.934, and five are what this study has time for."""
ADAM = (
  ('optimizer.name', 'adam'),
  ('optimizer.learning_rate', 1e-3),
  ('optimizer.schedule', 'constant'),
  ('optimizer.warmup_steps', 0),
  ('optimizer.weight_decay', None),
  ('optimizer.beta2', 0.999),
  ('data.batch_size', 128),
  ('training.steps', 400),
  ('training.evaluate_every', 400),
  ('training.checkpoint_every', None),
)
PLAIN = {
  'mlp': (('model.dropout', None),),
  'cnn': (('model.dropout', None), ('task.flip', False)),
  'resnet': (('task.flip', False), ('task.crop', None)),
}
TORCH = {'mlp': 0.8353, 'cnn': 0.8553, 'resnet': 0.8220}  # means of seeds 0, 1, 2
EPOCH = 469  # steps of 128 images


def accuracy(*references):
  return (Measure('accuracy', 'validation/accuracy', references=references, digits=4),)


def beside_torch(model):
  command = f'python benchmarks/family_quality.py --family={model}'
  reference = Reference(TORCH[model], f'PyTorch, `{command}`', 0.01, 'at least')
  overrides = (*ADAM, *PLAIN[model])
  return Arm(model, CONFIG + model, accuracy(reference), overrides, seeded=('seed', 'data.seed'))


def on_all(name, variant, epochs, value, who, more=()):
  reference = Reference(value, BENCHMARK + who, 0.0, 'at least')
  steps = tuple(
    (f'training.{key}', epochs * EPOCH) for key in ('steps', 'evaluate_every', 'checkpoint_every')
  )
  overrides = (('data.source', f'idx:{FULL}'), ('data.batch_size', 128), *more, *steps)
  return Arm(
    f'{name}, all images, {epochs} epochs', CONFIG + variant, accuracy(reference), overrides, needs=WHERE
  )


def get_study():
  wide = (('model.widths', (256, 128, 64)),)
  arms = (
    *map(beside_torch, TORCH),
    on_all('mlp', 'mlp', 20, 0.900, 'MLP 256-128-64, 0.900', wide),
    on_all(
      'cnn',
      'cnn_full',
      5,
      0.916,
      '2 convolutional layers with max pooling, TensorFlow, over 300 epochs, 0.916',
    ),
  )
  quick = (('training.steps', 20), ('training.evaluate_every', 20), ('training.sample_every', None))
  return Study('Classifiers of Fashion-MNIST', arms, about=ABOUT, quick=quick, minutes=12)
