"""Steps a second of trials as lanes of one program against the same trials one after another, in one process.

  python benchmarks/lane_steps.py [--configs=NAME,...] [--lanes=1,4,16]

What a long sweep comes to, where starting and compiling no longer count: `ratio` is how many times more steps the lanes
take, all together, than a solo run does in the same time. The two are timed in turns, and the median of each counts.
Steps are awaited ten at a time, so that a device that runs ahead of the program may.
"""

import argparse
import pathlib
import statistics
import time

import jax

from aigc_jax.schemas import read_config
from aigc_jax.sweeps import estimate
from aigc_jax.sweeps.trials import trials_of
from aigc_jax.training.experiment import set_up

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {'model.layers': 2, 'model.heads': 4, 'model.width': 64, 'data.sequence_length': 64}
CONFIGS = {
  'transformer': ('transformer_lm.py', SMALL),
  'transformer_config': ('transformer_lm.py', {}),
  'gru': ('rnn_lm.py:gru', {}),
  'vae': ('autoencoder.py:vae', {}),
  'mlp': ('classifier.py:mlp', {}),
  'cnn': ('classifier.py:cnn', {}),
}
ROUNDS, SECONDS = 5, 1.0  # of each; seconds of a round at least
AWAITED = 10  # steps between two looks at the clock


def trials_for(name, count):
  path, fields = CONFIGS[name]
  config = read_config(str(ROOT / 'configs' / path), list(fields.items()))
  return trials_of(
    config, [{'optimizer.learning_rate': 1e-3 / (1 + i / count), 'seed': i} for i in range(count)], []
  )


def seconds_of_step(take, state, seconds):
  """(seconds of a step, the state that is left) over `seconds` or so of steps."""
  began, steps = time.perf_counter(), 0
  while time.perf_counter() - began < seconds:
    for _ in range(AWAITED):
      state = take(state)
    jax.block_until_ready(state)
    steps += AWAITED
  return (time.perf_counter() - began) / steps, state


def compare(name, solo, count, of_a_round):
  """Prints a line; returns the state of the solo run after it."""
  take, state = solo
  lanes, take_all, states, _ = estimate.as_lanes(trials_for(name, count))
  state, states = take(state), take_all(states)
  alone, together = [], []
  for _ in range(ROUNDS):
    seconds, state = seconds_of_step(take, state, of_a_round)
    alone.append(seconds)
    seconds, states = seconds_of_step(take_all, states, of_a_round)
    together.append(seconds)
  alone, together = statistics.median(alone), statistics.median(together)
  print(
    f'{name:<20}{lanes:>6}{1000 * alone:>12.2f}{1000 * together:>12.2f}{lanes / together:>12.1f}'
    f'{lanes * alone / together:>8.2f}',
    flush=True,
  )
  return state


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--configs', default=','.join(CONFIGS))
  parser.add_argument('--lanes', default='16')
  parser.add_argument('--seconds', type=float, default=SECONDS, help='of a round')
  options = parser.parse_args()
  set_up()
  print(jax.devices()[0].device_kind)
  print(f'{"":<20}{"lanes":>6}{"alone, ms":>12}{"lanes, ms":>12}{"steps/s":>12}{"ratio":>8}')
  for name in options.configs.split(','):
    _, take, state, _ = estimate.alone(trials_for(name, 1)[0])
    for count in map(int, options.lanes.split(',')):
      state = compare(name, (take, state), count, options.seconds)


if __name__ == '__main__':
  main()
