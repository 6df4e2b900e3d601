"""Pairs whose answer is known, addition and reversal: all of them right, by Transformers and recurrent networks.

aigc reproduce experiments/sequences.py [--quick]      twenty minutes on two CPU cores
"""

from aigc_jax.studies.study import Arm, Measure, Reference, Study

ABOUT = """Numbers of up to three digits are added (135+27 -> 162) and strings of up to ten letters reversed, by
encoder-decoders: Transformers of 2 + 2 layers, and an LSTM with attention. Pairs are made on the fly; none of the
1,000 held-out ones is trained on. The answers are known, so all of them are to be right after the last step, at
every seed."""
EXACT = Measure(
  'exact match',
  'validation/exact_match',
  references=(Reference(1.0, 'the answers are known', 0.0, 'at least'),),
  digits=4,
)


def get_study():
  arms = tuple(
    Arm(f'{task}, {network}', f'configs/translation.py:{variant}', (EXACT,), seeds=(0, 1))
    for task, name in (('addition', 'addition'), ('reversal', 'reverse'))
    for network, variant in (('Transformer', name), ('LSTM', f'{name}_rnn'))
  )
  quick = (('training.steps', 20), ('training.evaluate_every', 20), ('training.sample_every', None))
  return Study('Sequences with known answers', arms, about=ABOUT, quick=quick, minutes=20)
