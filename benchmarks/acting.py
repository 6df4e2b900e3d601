"""Steps of CartPole a second, learning included: the run's own compiled step beside PyTorch and Gymnasium.

  python benchmarks/acting.py [--environments=1,16,256,1024] [--steps=1,8] [--seconds=10] [--threads=2]

Both act in the same number of worlds, put what they saw into a memory, and update the same double DQN by Adam on a
batch of 128 (or one transition of each world) after each `steps` of all worlds, as configs/q_learning.py does (without
its returns of five steps, so that the peer's memory is the plain one). The peer is PyTorch, eager, with Gymnasium's
SyncVectorEnv, as CleanRL has it, and with the form of CartPole that Gymnasium itself has written in numpy for many.
"""

import argparse
import itertools
import time

import gymnasium
import jax
import numpy as np
import torch

from aigc_jax import api
from aigc_jax.training import placement, prepare

CAPACITY, BATCH, RATE, DISCOUNT, TARGET_EVERY = 8192, 128, 1e-3, 0.99, 50


def ours(worlds, steps, seconds):
  """Steps of worlds a second."""
  batch = max(BATCH, worlds)
  task = {
    'n_step': 1,
    'replay_size': max(CAPACITY, worlds * steps),
    'target_every': TARGET_EVERY,
    'learning_starts': 0,
    'steps_per_update': steps,
  }
  overrides = {f'task.{name}': value for name, value in task.items()}
  overrides |= {'data.environments': worlds, 'data.batch_size': batch, 'optimizer.schedule': 'constant'}
  experiment = prepare.prepare(api.read_config('configs/q_learning.py', [*overrides.items()]))
  prepared = placement.place(experiment)
  stride = experiment.config['training']['steps_per_call']
  call = placement.step_function(prepared, placement.compile_calls(experiment, prepared)[0])
  state = prepared.program.init(prepared.floats, prepared.key, prepared.example)
  count, began, metrics = 0, None, None
  while began is None or time.perf_counter() - began < seconds:
    state, new = call(state, placement.batches_on_devices(prepared, experiment.dataset, count, stride))
    if metrics is not None:
      jax.device_get(metrics)  # as the loop reads them
    metrics, count = new, count + stride
    if count == 2 * stride:
      jax.block_until_ready(state)
      began = time.perf_counter()
  jax.block_until_ready(state)
  return (count - 2 * stride) * worlds * steps / (time.perf_counter() - began)


def network():
  layers = [
    torch.nn.Linear(4, 120),
    torch.nn.ReLU(),
    torch.nn.Linear(120, 84),
    torch.nn.ReLU(),
    torch.nn.Linear(84, 2),
  ]
  return torch.nn.Sequential(*layers)


def theirs(worlds, steps, seconds, mode):
  """Steps of worlds a second of a plain script, by Gymnasium's `vectorization_mode`."""
  made = gymnasium.make_vec('CartPole-v1', worlds, vectorization_mode=mode)
  generator = np.random.default_rng(0)
  model, target = network(), network()
  optimizer = torch.optim.Adam(model.parameters(), RATE)
  kinds = {'observation': (4,), 'next_observation': (4,), 'action': (), 'reward': (), 'terminal': ()}
  capacity = max(CAPACITY, worlds * steps)
  memory = {name: np.zeros((capacity, *shape), np.float32) for name, shape in kinds.items()}
  observation, _ = made.reset(seed=0)
  count, added, began, batch = 0, 0, None, max(BATCH, worlds)
  while began is None or time.perf_counter() - began < seconds:
    for _ in range(steps):
      with torch.no_grad():
        greedy = model(torch.as_tensor(observation)).argmax(1).numpy()
      action = np.where(generator.random(worlds) < 0.05, generator.integers(2, size=worlds), greedy)
      after, reward, terminal, _, _ = made.step(action)
      places = (added + np.arange(worlds)) % capacity
      for name, value in zip(kinds, (observation, after, action, reward, terminal), strict=True):
        memory[name][places] = value
      observation, added = after, added + worlds
    chosen = generator.integers(min(added, capacity), size=batch)
    rows = {name: torch.as_tensor(array[chosen]) for name, array in memory.items()}
    with torch.no_grad():
      best = model(rows['next_observation']).argmax(1, keepdim=True)
      worth = target(rows['next_observation']).gather(1, best)[:, 0]
      wanted = rows['reward'] + DISCOUNT * (1 - rows['terminal']) * worth
    value = model(rows['observation']).gather(1, rows['action'].long()[:, None])[:, 0]
    loss = torch.nn.functional.mse_loss(value, wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if count % TARGET_EVERY == 0:
      target.load_state_dict(model.state_dict())
    count += 1
    if count == 20:
      began = time.perf_counter()
  return (count - 20) * worlds * steps / (time.perf_counter() - began)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--environments', default='1,16,256,1024')
  parser.add_argument('--steps', default='1,8', help='of each world before an update')
  parser.add_argument('--seconds', type=float, default=10)
  parser.add_argument('--threads', type=int, default=2)
  arguments = parser.parse_args()
  torch.set_num_threads(arguments.threads)
  counts = [map(int, given.split(',')) for given in (arguments.environments, arguments.steps)]
  for worlds, steps in itertools.product(*counts):
    found = {'ours': ours(worlds, steps, arguments.seconds)}
    for name, mode in (('SyncVectorEnv', 'sync'), ('numpy', 'vector_entry_point')):
      found[name] = theirs(worlds, steps, arguments.seconds, mode)
    rates = '  '.join(f'{name} {rate:,.0f}' for name, rate in found.items())
    times = ' and '.join(f'{found["ours"] / found[name]:.1f}' for name in ('SyncVectorEnv', 'numpy'))
    print(f'{worlds} worlds, {steps} steps an update, steps a second: {rates}; {times} times', flush=True)


if __name__ == '__main__':
  main()
