"""Kills a training run at random moments, resumes it each time, and holds what comes out against an unbroken run.

  python -m tests.kill_and_resume --config=configs/transformer_lm.py --config.training.steps=300 \
    --config.training.evaluate_every=50 --config.training.checkpoint_every=25

Arguments that begin with --config go to `aigc train`. Prints each kill and PASS or FAIL; ends with 0 or 1. The final
state must be equal bit for bit, and metrics.jsonl byte for byte but for what stands under time/.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from aigc_jax.training import checkpoint, state_leaves

FIELDS = ('step', 'params', 'frozen', 'opt', 'average', 'extra', 'key')


def start(*arguments, **options):
  """`aigc ...` as a process of its own."""
  return subprocess.Popen([sys.executable, '-m', 'aigc_jax.cli', *map(str, arguments)], **options)


def last_step(folder):
  """The step of the last whole line of metrics.jsonl, or 0."""
  try:
    lines = (folder / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
  except FileNotFoundError:
    return 0
  whole = [line for line in lines if line.endswith(b'\n')]
  return json.loads(whole[-1])['step'] if whole else 0


def end_at(process, folder, step, number, delay=0.0):
  """Sends signal `number` once metrics.jsonl has reached `step`, `delay` seconds later; (exit status, step then)."""
  while process.poll() is None and last_step(folder) < step:
    time.sleep(0.002)
  time.sleep(delay)
  process.send_signal(number)
  return process.wait(), last_step(folder)


def timeless_lines(folder):
  """metrics.jsonl, as lines of text without what stands under time/."""
  lines = (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
  keep = lambda line: {k: v for k, v in json.loads(line).items() if not k.startswith('time/')}
  return [json.dumps(keep(line)) for line in lines]


def final_state(folder):
  """(step, {path: bytes}) of the last checkpoint, the optimizer's state and the key included."""
  step, fields = checkpoint.restore_fields(folder / 'checkpoints', FIELDS)
  return step, {
    path: state_leaves.host_copies({path: leaf})[path] for path, leaf in checkpoint.flat(fields).items()
  }


def differences(folder, other):
  """[what differs between two finished runs], empty where nothing does."""
  found = []
  lines, others = timeless_lines(folder), timeless_lines(other)
  if lines != others:
    pairs = [pair for pair in zip(lines, others, strict=False) if pair[0] != pair[1]]
    first = f'; the first: {pairs[0][0]} | {pairs[0][1]}' if pairs else ''
    found.append(f'metrics.jsonl: {len(lines)} and {len(others)} lines, {len(pairs)} differ{first}')
  (step, leaves), (other_step, others) = final_state(folder), final_state(other)
  if step != other_step or leaves.keys() != others.keys():
    found.append(
      f'the last checkpoints are {step} and {other_step}, of {len(leaves)} and {len(others)} arrays'
    )
  same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  found += [f'{path} differs' for path in leaves if path in others and not same(leaves[path], others[path])]
  return found


def kill_and_resume(arguments, folder, kills, draw, steps, **options):
  """Trains in `folder`, killed `kills` times at moments that `draw` chooses; yields a line about each end."""
  for number in range(kills + 1):
    verb = ('train', *arguments, f'--workdir={folder}') if not number else ('resume', folder)
    process = start(*verb, **options)
    if number == kills:
      status = process.wait()
      yield f'resumed to the end: status {status}'
      return
    least = last_step(folder)
    at = draw.randint(min(least + 1, steps - 1), max(least + 1, steps * (number + 1) // (kills + 1)))
    status, reached = end_at(process, folder, at, signal.SIGKILL, draw.uniform(0, 0.02))
    yield f'kill -9 with metrics through step {reached} of {steps}: status {status}'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=3)
  parser.add_argument('--seed', type=int, help='of the moments; default: another each time')
  parser.add_argument('--folder', help='where the two runs go; default: a temporary one')
  options, arguments = parser.parse_known_args()
  seed = int(time.time()) if options.seed is None else options.seed
  folder = pathlib.Path(options.folder or tempfile.mkdtemp(prefix='kill_and_resume-'))
  folder.mkdir(parents=True, exist_ok=True)
  quiet = {'stderr': open(folder / 'stderr.txt', 'ab')}  # noqa: SIM115 (open as long as this process lives)
  print(f'in {folder}, --seed={seed}', flush=True)
  began = time.perf_counter()
  status = start('train', *arguments, f'--workdir={folder / "unbroken"}', **quiet).wait()
  print(f'unbroken: status {status}, {time.perf_counter() - began:.0f} s', flush=True)
  if status:
    sys.exit((folder / 'stderr.txt').read_text(encoding='utf-8', errors='replace').splitlines()[-1])
  steps = json.loads((folder / 'unbroken/config.json').read_text(encoding='utf-8'))['training']['steps']
  for line in kill_and_resume(
    arguments, folder / 'killed', options.kills, random.Random(seed), steps, **quiet
  ):
    print(line, flush=True)
  found = differences(folder / 'killed', folder / 'unbroken')
  count, arrays = len(timeless_lines(folder / 'unbroken')), len(final_state(folder / 'unbroken')[1])
  for name, wrong in (
    (f'metrics.jsonl, {count} lines', [text for text in found if text.startswith('metrics')]),
    (f'final state, {arrays} arrays', [text for text in found if not text.startswith('metrics')]),
  ):
    print(f'{"FAIL" if wrong else "PASS"}  {name}: {"; ".join(wrong) or "equal"}')
  sys.exit(1 if found else 0)


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
