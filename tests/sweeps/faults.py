"""Kills the driver and the workers of a sweep at random moments, and holds the table against an undisturbed one.

  python -m tests.sweeps.faults [--drivers=5] [--workers=10] [--trials=24] [--seed=0]

Prints each kill and PASS or FAIL; ends with 0 or 1. Every trial's metrics.jsonl must be equal byte for byte but for
what stands under time/, and so must be the numbers of the final table.
"""

import argparse
import csv
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests import kill_and_resume, tiny


def command(folder, config, trials):
  """The sweep that is disturbed: two structures, so that there are two groups, each in its worker."""
  seeds = trials // 8
  space = f'optimizer.learning_rate=1e-3,3e-3,1e-2,3e-2;model.layers=1,2;seed=0..{seeds - 1}'
  options = [f'--config={config}', f'--sweep={space}', '--jobs=2', f'--workdir={folder}']
  return [sys.executable, '-m', 'aigc_jax.cli', 'sweep', *options]


def write_config(folder, steps):
  source = tiny.write_corpus(folder / 'text.txt')
  training = {'steps': steps, 'evaluate_every': 20, 'checkpoint_every': 20}
  return tiny.write_config(folder / 'config.py', source, training=training)


def workers_of(driver):
  """The processes that a driver has started."""
  found = subprocess.run(['pgrep', '-P', str(driver)], capture_output=True, text=True, check=False).stdout
  return [int(number) for number in found.split()]


def disturbed(folder, config, trials, drivers, workers, random):
  """Runs the sweep to its end, killed so many times."""
  kills = ['driver'] * drivers + ['worker'] * workers
  random.shuffle(kills)
  arguments, starts = command(folder, config, trials), 0
  while True:
    starts += 1
    with open(folder.with_suffix('.log'), 'ab') as log:
      process = subprocess.Popen(arguments, stdout=log, stderr=log)
    again = end_or_kill(process, kills, random)
    if not again:
      return starts, len(kills)


def end_or_kill(process, kills, random):
  """Waits for the end of a driver, and kills what is next meanwhile. Returns whether it was the driver."""
  while process.poll() is None:
    time.sleep(random.uniform(4, 14))
    if not kills or process.poll() is not None:
      continue
    found = workers_of(process.pid)
    if kills[0] == 'worker' and found:
      victim = random.choice(found)
      os.kill(victim, signal.SIGKILL)
      print(f'killed worker {victim}, {len(kills) - 1} kills left', flush=True)
      kills.pop(0)
    elif kills[0] == 'driver':
      process.kill()
      process.wait()
      print(f'killed the driver, {len(kills) - 1} kills left', flush=True)
      kills.pop(0)
      return True
  if process.returncode:
    raise SystemExit(f'FAIL: the driver ended with status {process.returncode}')
  return False


def table(folder):
  """{trial: row} of table.csv without what depends on time and place."""
  with open(folder / 'table.csv', encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  return {row['trial']: {k: v for k, v in row.items() if k not in ('cost_seconds', 'path')} for row in rows}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  for name, value in (('drivers', 5), ('workers', 10), ('trials', 24), ('seed', 0), ('steps', 2500)):
    parser.add_argument(f'--{name}', type=int, default=value)
  options = parser.parse_args()
  random_of = random.Random(options.seed)
  with tempfile.TemporaryDirectory() as place:
    place = pathlib.Path(place)
    config, (whole, killed) = write_config(place, options.steps), (place / 'whole', place / 'killed')
    began = time.perf_counter()
    subprocess.run(command(whole, config, options.trials), check=True, capture_output=True)
    print(f'undisturbed: {time.perf_counter() - began:.0f} s', flush=True)
    began = time.perf_counter()
    starts, left = disturbed(killed, config, options.trials, options.drivers, options.workers, random_of)
    print(
      f'disturbed: {time.perf_counter() - began:.0f} s, {starts} starts of the driver, {left} kills left',
      flush=True,
    )
    tables = table(whole), table(killed)
    timeless = lambda folder, name: kill_and_resume.timeless_lines(folder / name)
    lines = [timeless(whole, name) == timeless(killed, name) for name in tables[0]]
    same = tables[0] == tables[1] and all(lines) and len(lines) == options.trials and not left
    print(f'{"PASS" if same else "FAIL"}: {sum(lines)} of {options.trials} trials have the same metrics')
    return 0 if same else 1


if __name__ == '__main__':
  sys.exit(main())
