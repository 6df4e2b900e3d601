"""English to Chinese: BLEU and chrF beside the same model in PyTorch.

  aigc reproduce experiments/translation.py [--quick]    ten minutes on two CPU cores

PyTorch's figures: python benchmarks/translation_quality.py --only=torch
"""

import functools

from aigc_jax import scoring
from aigc_jax.studies.study import Arm, Measure, Reference, Study

ABOUT = """An encoder-decoder of 3 + 3 layers x 128 on the English-Chinese pairs of the package, 3,000 steps, which
writes the 207 held-out targets greedily from its last parameters; BLEU is sacrebleu's with `tok:zh`. The peer is the
same function in PyTorch, by the same recipe on the same batches: BLEU 40.68, 41.34 and 42.33, chrF 37.26, 38.12 and
38.49 of seeds 0, 1 and 2. Its means are to be reached, less two of its deviations of a run."""
SOURCE = 'PyTorch, `python benchmarks/translation_quality.py --only=torch`'


@functools.cache
def scores(run):
  """{name: value} of what a run writes."""
  found, _ = scoring.score(run, ['bleu', 'chrf'])
  return {score.name: score.value for score in found}


def get_study():
  at_least = lambda value, tolerance: (Reference(value, SOURCE, tolerance, 'at least'),)
  measures = (
    Measure('BLEU', lambda run: scores(run)['bleu'], references=at_least(41.45, 1.66), digits=2),
    Measure('chrF', lambda run: scores(run)['chrf'], references=at_least(37.96, 1.26), digits=2),
    Measure('validation loss, nats', 'validation/loss'),
  )
  encoder_decoder = Arm(
    'encoder-decoder', 'configs/translation.py', measures, seeds=(0, 1), seeded=('seed', 'data.seed')
  )
  quick = (
    ('training.steps', 10),
    ('training.evaluate_every', 10),
    ('training.sample_every', None),
    ('data.buckets', 1),
  )
  return Study('English to Chinese', (encoder_decoder,), about=ABOUT, quick=quick, minutes=10)
