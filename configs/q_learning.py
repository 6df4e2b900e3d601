"""Q-learning: a network that learns by acting what each action is worth.

  aigc train --config=configs/q_learning.py                     CartPole-v1 by DQN: double, with a target network
  aigc train --config=configs/q_learning.py:dueling             the same with dueling heads and prioritized replay
  aigc train --config=configs/q_learning.py:table               a table, no memory: cliff walking, exact
  aigc train --config=configs/q_learning.py:slippery            the same on a lake of slippery ice

How it plays is shown in RUN/samples, as a film and as a strip of pictures; more of it: aigc generate RUN --num=4

Other worlds: --config.data.source=gymnax:Acrobot-v1, where gymnax is installed. Seeds, as lanes of one program:
aigc sweep --config=configs/q_learning.py --sweep=seeds
"""

import ml_collections

from aigc_jax.sweeps.space import sweep

VARIANTS = ('', 'dueling', 'table', 'slippery')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='q_learning')
  config.model = dict(name='q_network')
  config.data = dict(source='environment:cartpole')
  config.optimizer = dict(name='adam')
  config.training = dict(best_metric='validation/return', log_every=100, steps_per_call=50)
  {'': cartpole, 'dueling': dueling, 'table': cliff_walking, 'slippery': frozen_lake}[variant](config)
  return config


def cartpole(config):
  config.data.update(environments=16, batch_size=128)
  config.task.update(replay_size=10_000, learning_starts=1000, target_every=100, n_step=5)
  config.task.exploration_steps = 2500
  config.optimizer.update(learning_rate=2.5e-3, schedule='linear', clip_norm=10.0)
  config.training.update(steps=10_000, evaluate_every=500, checkpoint_every=2500, sample_every=5000)


def dueling(config):
  cartpole(config)
  config.model.dueling = True
  config.task.priority_exponent = 0.6


def table(config, source):
  config.model = dict(name='q_table')
  config.data = dict(source=source, environments=256, batch_size=256, validation_episodes=16)
  config.task.update(replay_size=256, learning_starts=0, double=False, target_every=None)
  # what is learned is of the best policy, whatever is played
  config.task.update(epsilon_start=1.0, epsilon_end=1.0)
  config.optimizer = dict(name='sgd')


def cliff_walking(config):
  table(config, 'environment:cliff_walking')
  config.task.discount = 1.0
  config.optimizer.update(learning_rate=1.0)  # nothing here is left to chance
  config.training.update(steps=2000, evaluate_every=200, checkpoint_every=1000, sample_every=2000)


def frozen_lake(config):
  table(config, 'environment:frozen_lake')
  config.data.update(environments=4096, batch_size=4096)
  config.task.update(replay_size=4096, epsilon_start=0.5, epsilon_end=0.5)
  # slips are chance, of which an average is left
  config.optimizer.update(learning_rate=0.1, schedule='linear', average=0.999)
  config.training.update(steps=15_000, evaluate_every=1500, checkpoint_every=7500, sample_every=15_000)


def sweep_seeds():
  return sweep('seed', range(10))
