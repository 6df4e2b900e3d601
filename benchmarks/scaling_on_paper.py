"""What a training step costs each of 1 to 16 devices, from the compiled program: FLOPs, bytes sent, memory.

  python benchmarks/scaling_on_paper.py [--models=124M,1B] [--devices=1,2,4,8,16] [--layouts=data,fsdp,...]
  uv run --with jax-cuda12-plugin==VERSION_OF_JAX python benchmarks/scaling_on_paper.py --target=h100

Nothing runs. With --target=cpu the program is the one for pretended CPU devices, in float32, since that compiler turns
bfloat16 into float32; with --target=h100 it is the one for H100s, in bfloat16, and FLOPs are still those of the CPU's
program, since XLA's account of a GPU program has none.

FLOPs are XLA's count of the program of one device, which has no loops, beside the count on one device divided by the
devices. Bytes sent by each device are `aigc_jax.training.collectives`', beside what the layout needs (`ideal_bytes`).
The last columns are derived and not measured: FLOPs for each byte sent, and the bandwidth of each device that would
send it all while an H100 does the FLOPs at 989 TFLOP/s. Each program is compiled in a process of its own, which bounds
the memory that compiling takes.
"""

import argparse
import json
import os
import subprocess
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

TARGETS = {'cpu': ('float32', 4), 'h100': ('bfloat16', 2)}  # precision, bytes of a number in it
SHARED = {'vocabulary_size': 50304, 'context_length': 1024}  # GPT-2's 50,257 does not divide; so it is padded
MODELS = {
  '124M': SHARED | {'layers': 12, 'heads': 12, 'width': 768},
  '1B': SHARED | {'layers': 24, 'heads': 16, 'width': 2048},
}
ROWS = 128  # of a batch, on all devices together
PEAK = 989e12  # FLOP/s of an H100 in bfloat16, without sparsity
LAYOUTS = ('data', 'fsdp', 'tensor', 'data x fsdp', 'fsdp x tensor')
KINDS = ('all-reduce', 'reduce-scatter', 'all-gather')


def axes_of(layout, count):
  """{axis: size} of a layout on as many devices; None where it has too few for its axes."""
  if ' x ' not in layout:
    return {layout: count}
  outer, inner = layout.split(' x ')
  second = {'fsdp': count // 2, 'tensor': 4 if count >= 16 else 2}[inner]
  return {outer: count // second, inner: second} if count >= 4 else None


def ideal_bytes(model, axes, parts, width):
  """Bytes that each device has to send in a step, by the algorithms on a ring.

  Gradients are summed over `data`; over `fsdp` parameters are gathered twice and gradients reduced and scattered
  (Rajbhandari et al. 2020, section 7); over `tensor` activations are summed four times in a layer (Shoeybi et al. 2019,
  section 3), once for the table of symbols, and once for the scores' gradient.

  Args:
    model: fields of config.model.
    axes: {axis: size}.
    parts: parameters that each device of an `fsdp` group has once they are gathered.
    width: bytes of a parameter and of an activation on their way.
  """
  data, fsdp, tensor = (axes.get(axis, 1) for axis in ('data', 'fsdp', 'tensor'))
  activations = ROWS // (data * fsdp) * model['context_length'] * model['width']
  share = lambda n: (n - 1) / n
  return width * (
    share(data) * 2 * parts / fsdp
    + share(fsdp) * 3 * parts
    + share(tensor) * 2 * (4 * model['layers'] + 2) * activations
  )


def measure(name, layout, count, target):
  """What one compiled step says of itself, as a dict."""
  import compiled_step

  from aigc_jax.training import collectives, memory_use, sharding
  from aigc_jax.training.mesh import make_mesh
  from aigc_jax.training.optimizer import joined

  compiled_step.set_up(count, target)
  axes, (precision, width) = axes_of(layout, count), TARGETS[target]
  config = compiled_step.resolved(MODELS[name], ROWS, axes, precision)
  began = time.perf_counter()
  compiled, state = compiled_step.compile_step(config, target)
  seconds = time.perf_counter() - began
  counted = compiled if target == 'cpu' else compiled_step.compile_step(config, 'cpu')[0]
  params = jax.tree_util.tree_leaves_with_path(state.params)
  cut = lambda path, shape: any(sharding.tensor_spec(joined(path), shape, make_mesh(config, jax.devices())))
  parts = sum(leaf.size // (axes.get('tensor', 1) if cut(path, leaf.shape) else 1) for path, leaf in params)
  sent = dict.fromkeys((*KINDS, 'other'), 0.0)
  for collective in collectives.find(compiled):
    sent[collective.kind if collective.kind in KINDS else 'other'] += collective.sent
  use = memory_use.of_program(compiled)
  return {
    'parameters': sum(leaf.size for _, leaf in params),
    'flops': counted.cost_analysis()['flops'],
    'sent': sent,
    'ideal': ideal_bytes(MODELS[name], axes, parts, width),
    'arguments': use.arguments,
    'temporaries': use.temporaries,
    'seconds': seconds,
  }


def measured_apart(name, layout, count, target):
  """The same, in a process of its own."""
  command = [sys.executable, __file__, f'--target={target}', '--one', name, layout, str(count)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise SystemExit(done.stderr[-2000:])
  return json.loads(done.stdout.splitlines()[-1])


def row(found, alone, count):
  """One line of the table, as cells."""
  sent, ideal = sum(found['sent'].values()), alone['flops'] / count
  mega, giga = lambda n: f'{n / 1e6:,.1f}', lambda n: f'{n / 1e9:.2f}'
  cells = [f'{found["flops"] / 1e12:.1f}', f'{found["flops"] / ideal:.3f}']
  cells += [mega(found['sent'][kind]) for kind in (*KINDS, 'other')] + [mega(sent), mega(found['ideal'])]
  if sent:
    needed = sent / (found['flops'] / PEAK)  # bytes a second
    cells += [f'{sent / found["ideal"]:.2f}', f'{found["flops"] / sent:,.0f}', f'{needed / 1e9:,.0f}']
  else:
    cells += ['-'] * 3
  return [*cells, giga(found['arguments']), giga(found['temporaries']), f'{found["seconds"]:.0f}']


def table(name, layouts, counts, target):
  """Markdown, line by line as programs are compiled."""
  alone = measured_apart(name, 'data', 1, target)
  tokens = ROWS * MODELS[name]['context_length']
  model = MODELS[name]
  by_hand = tokens * (
    6 * alone['parameters'] + 12 * model['layers'] * model['width'] * model['context_length']
  )
  print(
    f'\n{name}: {alone["parameters"]:,} parameters, {ROWS} rows of {model["context_length"]}, {TARGETS[target][0]}, '
    f'compiled for {target}; on one device {alone["flops"] / 1e12:,.1f} TFLOP, {alone["flops"] / by_hand:.3f} of '
    '6 x parameters x tokens and attention by hand\n'
  )
  heads = ['layout', 'devices', 'TFLOP', '/ ideal', *(f'{kind} MB' for kind in (*KINDS, 'other'))]
  heads += ['sent MB', 'ideal MB']
  heads += ['/ ideal', 'FLOP / byte', 'GB/s to hide it', 'arguments GB', 'temporaries GB', 'compiled in s']
  print('| ' + ' | '.join(heads) + ' |\n' + '|---' * len(heads) + '|')
  print('| one device | 1 | ' + ' | '.join(row(alone, alone, 1)) + ' |', flush=True)
  for layout in layouts:
    for count in counts:
      if count > 1 and axes_of(layout, count):
        sizes = (
          layout if ' x ' not in layout else ' x '.join(f'{a} {n}' for a, n in axes_of(layout, count).items())
        )
        cells = row(measured_apart(name, layout, count, target), alone, count)
        print(f'| {sizes} | {count} | ' + ' | '.join(cells) + ' |', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  listed = lambda kind: lambda text: [kind(part) for part in text.split(',')]
  parser.add_argument('--models', type=listed(str), default=list(MODELS))
  parser.add_argument('--layouts', type=listed(str), default=list(LAYOUTS))
  parser.add_argument('--devices', type=listed(int), default=[1, 2, 4, 8, 16])
  parser.add_argument('--target', choices=list(TARGETS), default='cpu')
  parser.add_argument('--one', nargs=3, metavar=('MODEL', 'LAYOUT', 'DEVICES'), help='one program, as JSON')
  given = parser.parse_args()
  if given.one:
    name, layout, count = given.one
    print(json.dumps(measure(name, layout, int(count), given.target)))
    return
  for name in given.models:
    table(name, given.layouts, given.devices, given.target)


if __name__ == '__main__':
  main()
