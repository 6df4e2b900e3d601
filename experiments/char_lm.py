"""Elman, GRU, LSTM and Transformer on Moby-Dick by characters, at equal parameters and tokens; and nanoGPT's recipe.

aigc reproduce experiments/char_lm.py [--quick]        half an hour on two CPU cores
"""

from aigc_jax.studies.study import Arm, Mean, Measure, Reference, Study

ABOUT = """The networks have 0.8 million parameters each and train 1,500 steps of 1,024 tokens, all by AdamW but the
last Transformer, each at the learning rate that did better for it than half and twice of it (with its state carried
the GRU keeps its rate). Windows of the validation text begin without context, but for the GRU that carries its state
there too. `configs/transformer_lm.py:nanogpt` is nanoGPT's own recipe for a CPU, 2,000 steps of 768 tokens, held
against nanoGPT itself on the same text, of which one run is known: its tolerance is 0.02 nats, three deviations of a
run over seeds and more. That one arm does better than another is judged by their means."""
NANOGPT = 'nanoGPT itself, its CPU recipe on the same text, one run'
TRANSFORMER = 'configs/transformer_lm.py'
# the recurrent networks' recipe, for a comparison of models alone
ADAMW = (
  ('optimizer.name', 'adamw'),
  ('optimizer.learning_rate', 2e-3),
  ('optimizer.adam_learning_rate', None),
  ('optimizer.schedule', 'cosine'),
  ('optimizer.warmup_steps', 50),
  ('optimizer.final_fraction', 0.05),
  ('optimizer.clip_norm', 1.0),
)
LOSS = 'validation loss, nats'


def loss(*references):
  return (Measure(LOSS, 'validation/loss', references=references),)


def better_than(arm, why):
  return Reference(Mean(arm, LOSS), why, side='at most')


def get_study():
  recurrent = 'configs/rnn_lm.py:'
  arms = (
    Arm('nanoGPT', f'{TRANSFORMER}:nanogpt', loss(Reference(1.849, NANOGPT, 0.02))),
    Arm('Elman', f'{recurrent}elman', loss()),
    Arm('GRU', f'{recurrent}gru', loss(better_than('Elman', 'gates help'))),
    Arm('LSTM', f'{recurrent}lstm', loss()),
    Arm('GRU, state carried', f'{recurrent}stateful', loss(better_than('GRU', 'context helps'))),
    Arm('Transformer, AdamW', TRANSFORMER, loss(), ADAMW),
    Arm('Transformer, Muon', TRANSFORMER, loss(better_than('Transformer, AdamW', 'Muon learns faster'))),
  )
  quick = (('training.steps', 20), ('training.evaluate_batches', 4), ('training.sample_every', None))
  return Study('Language models by characters', arms, about=ABOUT, quick=quick, minutes=30)
