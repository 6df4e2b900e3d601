"""Every family on every layout: how far 20 steps on several devices are from 20 steps on one.

  python -m tests.equality [FAMILY ...]

prints, for each, the largest relative difference of a step's loss, and the norm of the difference of the final
parameters over their norm.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from types import SimpleNamespace

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np

from aigc_jax import api
from aigc_jax.training import checkpoint, placement, prepare, state_leaves
from tests import processes, tiny, tiny_images

STEPS = 20
WIDE = {'layers': 2, 'heads': 8, 'width': 32}  # so that eight devices divide all that there is to divide
ADAM = {'name': 'adamw', 'learning_rate': 3e-3, 'weight_decay': 0.1, 'clip_norm': 1.0, 'average': 0.9}


def text(source, model, **sections):
  config = tiny.config(source, optimizer=ADAM, training={'steps': STEPS}, data={'batch_size': 16})
  return config | {'model': model} | sections


def pairs(source, model):
  data = {'source': 'bundled:en_zh', 'tokenizer': 'characters', 'batch_size': 16, 'buckets': 2}
  return text(
    source,
    model | {'vocabulary_size': 2048},
    task={'name': 'translation'},
    data=data | {'source_length': 24, 'target_length': 16},
  )


def images(family, model=None):
  """Of a family of tests.tiny_images, or of another model that classifies."""

  def make(source):
    path = beside(source, 'images.npz')
    place = f'npz:{path}' if path.exists() else tiny_images.write_images(path, train=64)
    sizes = {'training': {'steps': STEPS}, 'data': {'batch_size': 16}, 'optimizer': ADAM}
    made = tiny_images.config(place, family, **sizes)
    return made | ({'model': model} if model else {})

  return make


def labelled(model):
  """A classifier of texts: of words that are long or short."""

  def make(source):
    path = beside(source, 'labelled.tsv')
    if not path.exists():
      words = pathlib.Path(source.removeprefix('text:')).read_text(encoding='utf-8').split()
      rows = [f'{"long" if len(word) > 5 else "short"}\t{word}' for word in words[:200]]
      path.write_text('class\ttext\n' + '\n'.join(rows), encoding='utf-8')
    data = {'source': f'tsv:{path}', 'label_field': 'class', 'sequence_length': 8, 'batch_size': 16}
    made = text(source, model | {'vocabulary_size': 32}, task={'name': 'classification'})
    return made | {'data': data}

  return make


def beside(source, name):
  return pathlib.Path(source.removeprefix('text:')).parent / name


def carried(source):
  """A state that goes on from batch to batch."""
  config = text(source, {'name': 'rnn', 'cell': 'gru', 'width': 32, 'vocabulary_size': 32})
  config['task'] = config['task'] | {'carry_state': True}
  config['data'] = config['data'] | {'packing': 'contiguous'}
  return config


def acting(source):
  """Worlds that are acted in, prioritized replay, a target network."""
  task = {
    'name': 'q_learning',
    'n_step': 2,
    'priority_exponent': 0.6,
    'replay_size': 256,
    'learning_starts': 0,
  }
  data = {'source': 'environment:cartpole', 'environments': 8, 'batch_size': 16}
  model = {'name': 'q_network', 'widths': (32,), 'dueling': True}
  return text(source, model, task=task | {'target_every': 5, 'steps_per_update': 2}, data=data)


FAMILIES = {
  'transformer': lambda source: text(source, {'name': 'transformer', 'vocabulary_size': 32, **WIDE}),
  'rotary': lambda source: text(
    source,
    {'name': 'transformer', 'positions': 'rotary', 'activation': 'swiglu', 'tie_embeddings': False}
    | {'vocabulary_size': 32, 'key_value_heads': 4, **WIDE},
    optimizer=ADAM | {'name': 'muon'},
  ),
  'rnn': carried,
  'masked': lambda source: text(
    source, {'name': 'transformer_encoder', 'head_transform': True, **WIDE}, task={'name': 'masked_language'}
  ),
  'encoder_decoder': lambda source: pairs(source, {'name': 'transformer_encoder_decoder', **WIDE}),
  'rnn_encoder_decoder': lambda source: pairs(source, {'name': 'rnn_encoder_decoder', 'width': 32}),
  'vae': images('vae'),
  'vq': images('vq'),
  'mlp': images('mlp'),
  'cnn': images('mlp', {'name': 'cnn', 'channels': [8, 16], 'dense_width': 32}),
  'resnet': images('resnet', {'name': 'resnet', 'channels': [8, 16]}),
  'contrastive': images('contrastive', {'name': 'resnet', 'channels': [8, 16]}),
  'masked_images': images('masked_images', {'name': 'vision_transformer', 'patch_size': 2, **WIDE}),
  'transformer_classifier': labelled({'name': 'transformer_classifier', **WIDE}),
  'q_learning': acting,
  'rnn_classifier': labelled({'name': 'rnn_classifier', 'cell': 'lstm', 'width': 32}),
}
LAYOUTS = ('data', 'fsdp', 'tensor', 'pmap')
# Under pmap each device draws its own noise, so these differ by nature; tests.training.test_rehearsal holds such
# against the same rows on one device after another.
OTHER_NOISE = ('masked', 'vae', 'q_learning', 'contrastive', 'masked_images')


def parallel_of(layout, devices):
  """config.parallel."""
  if layout == 'pmap':
    return {'mode': 'pmap', 'data': devices}
  if layout == 'mixed':
    return {'data': devices // 4, 'fsdp': 2, 'tensor': 2}
  return {'data': 1} | {layout: devices}


def prepared(config, layout, devices):
  """(Experiment, Prepared) of a config on a layout."""
  made = prepare.prepare(api.read_config(config | {'parallel': parallel_of(layout, devices)}))
  return made, placement.place(made)


def run(config, layout='data', devices=1, steps=STEPS):
  """(losses [steps], final State)."""
  made, placed = prepared(config, layout, devices)
  state, losses = placed.program.init(placed.floats, placed.key, placed.example), []
  for i in range(steps):
    batch = placement.batch_on_devices(placed, made.dataset, i)
    state, metrics = placed.program.step(placed.floats, state, batch)
    losses.append(float(metrics['loss']))  # awaited, since many pretended devices share two cores
  return np.array(losses), state


def differences(found, expected):
  """(largest relative difference of a loss, relative distance of the final parameters)."""
  (losses, state), (alone, one) = found, expected
  norm = lambda arrays: np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays.values()))
  ours, theirs = (state_leaves.host_copies(checkpoint.flat(s.params)) for s in (state, one))
  distance = norm({path: ours[path] - theirs[path] for path in theirs}) / norm(theirs)
  return np.abs(losses / alone - 1).max(), distance


def of_processes(families, source, folder):
  """{family: what `run` gives of two processes with a device each}."""
  port, started = processes.free_port(), []
  for number in range(2):
    command = [sys.executable, '-m', 'tests.equality', '--process', str(number), str(port), source, folder]
    # where a process says how its exchanges go
    started.append(subprocess.Popen([*command, *families], stdout=subprocess.DEVNULL))
  assert processes.wait(started) == [0, 0]
  found = {}
  for family in families:
    arrays = dict(np.load(f'{folder}/{family}.npz'))
    losses = arrays.pop('losses')
    found[family] = losses, SimpleNamespace(params=arrays)
  return found


def one_of_processes(number, port, source, folder, *families):
  """What each of the two does; the first one writes FOLDER/FAMILY.npz."""
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(number), cluster_detection_method='deactivate')
  for family in families:
    losses, state = run(FAMILIES[family](source), 'data', 2)
    if not int(number):
      np.savez(
        f'{folder}/{family}.npz', losses=losses, **state_leaves.host_copies(checkpoint.flat(state.params))
      )


def table(families):
  """Markdown, printed line by line."""
  counts = (2, 4, 8)
  names = [f'{layout} {n}' for layout in LAYOUTS for n in counts] + ['2 x 2 x 2', '2 processes']
  with tempfile.TemporaryDirectory() as folder:
    source = tiny.write_corpus(pathlib.Path(folder) / 'words.txt')
    configs = {family: FAMILIES[family](source) for family in families}  # (which write their images)
    apart = of_processes(families, source, folder)
    print('| family | ' + ' | '.join(names) + ' |\n' + '|---' * (len(names) + 1) + '|', flush=True)
    for family in families:
      config = configs[family]
      expected = run(config)
      found = [(layout, differences(run(config, layout, n), expected)) for layout in LAYOUTS for n in counts]
      found.append(('mixed', differences(run(config, 'mixed', 8), expected)))
      found.append(('processes', differences(apart[family], expected)))
      cells = [f'{loss:.0e}, {distance:.0e}{note(family, layout)}' for layout, (loss, distance) in found]
      print(f'| {family} | ' + ' | '.join(cells) + ' |', flush=True)
      jax.clear_caches()


def note(family, layout):
  return ' (other noise)' if layout == 'pmap' and family in OTHER_NOISE else ''


if __name__ == '__main__':
  jax.config.update('jax_disable_most_optimizations', True)  # compiling is most of it
  if sys.argv[1:2] == ['--process']:
    one_of_processes(*sys.argv[2:])
  else:
    jax.config.update('jax_num_cpu_devices', 8)
    table(sys.argv[1:] or list(FAMILIES))
