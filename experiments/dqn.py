"""CartPole by DQN, ten seeds against the best return there is and against CleanRL's.

aigc reproduce experiments/dqn.py [--quick]            a minute on two CPU cores
"""

from aigc_jax.studies.study import Arm, Measure, Reference, Study

CLEANRL = 'CleanRL, DQN in JAX, 3 seeds of 500,000 steps: 498.38 ± 2.29, docs.cleanrl.dev/rl-algorithms/dqn'
ABOUT = """Double DQN with a target network, 160,000 steps of CartPole-v1 in 16 worlds. A return is the mean of 100
greedy episodes, the same ones always, of 500 steps at most. Half a step short of the greatest return passes;
CleanRL's mean is to be reached, less its deviation."""


def get_study():
  measure = Measure(
    'return at the end',
    'validation/return',
    references=(
      Reference(500.0, 'the greatest return of CartPole-v1', 0.5, 'at least'),
      Reference(498.38, CLEANRL, 2.29, 'at least'),
    ),
    digits=2,
  )
  return Study(
    'DQN on CartPole',
    (Arm('double DQN', 'configs/q_learning.py', (measure,), seeds=tuple(range(10))),),
    about=ABOUT,
    quick=(('training.steps', 1000), ('training.evaluate_every', 500), ('training.sample_every', None)),
    minutes=1,
  )
