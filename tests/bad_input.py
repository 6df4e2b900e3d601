"""Bad input, what each prints, and its exit status. `python -m tests.bad_input` prints the table (Markdown).

`CASES` are also the tests' own: each ends in one line on standard error, before anything is compiled, and leaves no
new run folder.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import numpy as np

from tests import tiny, tiny_images

TRAIN = 'train --config=tiny.py --workdir=new'
SWEEP = 'sweep --config=tiny.py --workdir=new'
CLASSIFY = 'train --config=classes.py --workdir=new --config.data.source='
AUTOENCODE = 'train --config=pictures.py --workdir=new'


class Case(NamedTuple):
  what: str
  command: str  # after `aigc`; run in the folder that `prepare` made
  status: int
  words: tuple[str, ...]  # that the line holds


CASES = (
  Case('unknown key', f'{TRAIN} --config.optimizer.learning_rat=1', 64,
       ('config.optimizer.learning_rat: no such key', "did you mean 'optimizer.learning_rate'?")),
  Case('value of the wrong type', f'{TRAIN} --config.training.steps=many', 64,
       ("config.training.steps: 'many' is not an int", 'above 0')),
  Case('rate that is not a number', f'{TRAIN} --config.optimizer.learning_rate=nan', 64,
       ('config.optimizer.learning_rate: nan is not a finite number',)),
  Case('negative rate', f'{TRAIN} --config.optimizer.learning_rate=-0.1', 64,
       ('config.optimizer.learning_rate: -0.1 is out of range', '0 or above')),
  Case('heads that do not divide', f'{TRAIN} --config.model.heads=3', 64,
       ('config.model.heads: 3 heads do not divide config.model.width = 16', 'among 1, 2, 4, 8')),
  Case('batch that does not divide', f'{TRAIN} --config.training.microbatches=3', 64,
       ('config.data.batch_size: 4 rows', 'microbatches = 3')),
  Case('batch that does not divide over devices', f'{TRAIN} --config.parallel.data=3', 64,
       ('config.parallel.data: 3 devices', 'the 4 rows of a batch', 'data among 1, 2, 4')),
  Case('more devices than there are', f'{TRAIN} --config.parallel.data=4 --config.parallel.fsdp=512', 64,
       ('config.parallel: 2048 devices (data 4 x fsdp 512)', 'are here; use -1')),
  Case('two axes for the rest of the devices', f'{TRAIN} --config.parallel.fsdp=-1 --config.parallel.tensor=-1', 64,
       ('fsdp and tensor are both -1', '--config.parallel.fsdp=1')),
  Case('no device along an axis', f'{TRAIN} --config.parallel.fsdp=0', 64, ('config.parallel.fsdp: 0', '-1')),
  Case('axis below -1', f'{TRAIN} --config.parallel.tensor=-2', 64, ('config.parallel.tensor: -2',)),
  Case('parts of layers with pmap', f'{TRAIN} --config.parallel.mode=pmap --config.parallel.tensor=2', 64,
       ('config.parallel.tensor: 2', 'config.parallel.mode=mesh')),
  Case('mode that is unknown', f'{TRAIN} --config.parallel.mode=mehs', 64, ('config.parallel.mode', "'mehs'", 'mesh')),
  Case('span of a trace that is none', f'{TRAIN} --profile=2-4', 64, ('--profile=2-4', 'FIRST:LAST', '10:15')),
  Case('trace that ends before it begins', f'{TRAIN} --profile=4:2', 64, ('--profile=4:2', 'FIRST:LAST')),
  Case('trace from step 0', f'{TRAIN} --profile=0:2', 64, ('--profile=0:2', 'from 1')),
  Case('trace after the end', f'{TRAIN} --profile=2:99', 64, ('--profile=2:99', 'training.steps = 12')),
  Case('trace of a dry run', f'{TRAIN} --dry_run --profile=2:4', 64, ('--profile', '--dry_run')),
  Case('sweep of an unknown key', f'{SWEEP} --sweep=optimizer.learning_rat=1,2', 64,
       ('config.optimizer.learning_rat: no such key', "did you mean 'optimizer.learning_rate'?")),
  Case('sweep of the wrong type', f'{SWEEP} --sweep=model.layers=1,two', 64,
       ("config.model.layers: 'two' is not an int",)),
  Case('sweep of heads that do not divide', f'{SWEEP} --sweep=model.heads=2,3', 64, ('config.model.heads: 3 heads',)),
  Case('the same trial twice', f'{SWEEP} --sweep=seed=1,1', 64, ('the same trial twice: seed=1', 'give it once')),
  Case('sweep without trials', f'{SWEEP} --sweep=nothing', 64, ('the sweep has no trials', 'override dicts')),
  Case('sweep without values', f'{SWEEP} --sweep=seed=', 64, ("'seed=' has no values", 'KEY=VALUE,VALUE')),
  Case('function that the config file lacks', f'{SWEEP} --sweep=nothin', 64,
       ('no function sweep_nothin()', 'sweep_nothing')),
  Case('range that is empty', f'{SWEEP} --sweep=seed=4..2', 64, ('4..2 is empty', 'A..B with A at most B')),
  Case('folder of something else', 'sweep --config=tiny.py --sweep=seed=1,2 --workdir=.', 64,
       ('is not empty and not a sweep', 'choose another --workdir')),
  Case('no worker', f'{SWEEP} --sweep=seed=1,2 --jobs=0', 64, ('--jobs=0', '1 or more')),
  Case('search without a number of trials', f'{SWEEP} --sweep=seed=1..9 --search=optuna', 64, ('--trials=N',)),
  Case('search between bounds that are none', f'{SWEEP} --search=optuna --trials=3 --sweep=seed=9..2', 64,
       ('LOW below HIGH',)),
  Case('search out of range', f'{SWEEP} --search=optuna --trials=3 --sweep=model.layers=0..2', 64,
       ('config.model.layers: 0 is out of range',)),
  Case('Slurm where there is none', f'{SWEEP} --sweep=seed=1,2 --executor=slurm', 64, ('no sbatch on this machine',)),
  Case('parameters of Slurm that are none', f'{SWEEP} --sweep=seed=1,2 --executor=slurm --slurm=gpu', 64,
       ("'gpu' is no KEY=VALUE", 'partition=gpu')),
  Case('report of no sweep', 'report .', 64, ('it has no sweep.json', '`aigc sweep` makes one')),
  Case('trace of an evaluation', 'eval run --profile=2:4', 64, ('--profile=2:4',)),
  Case('model that no machine holds', f'{TRAIN} --config.model.layers=2 --config.model.width=4194304', 64,
       ('the state', 'TB on each device', '--config.parallel.fsdp')),
  Case('empty file', f'{TRAIN} --config.data.source=text:empty.txt', 65, ('empty.txt', 'is empty')),
  Case('missing file', f'{TRAIN} --config.data.source=text:wrds.txt', 65, ('wrds.txt', 'words.txt')),
  Case('file that is not UTF-8', f'{TRAIN} --config.data.source=text:latin1.txt', 65,
       ('latin1.txt', 'UTF-8', 'byte offset 5')),
  Case('corpus shorter than a context', f'{TRAIN} --config.data.source=text:short.txt', 65,
       ('short.txt', 'too few', 'data.sequence_length=')),
  Case('prompt outside the vocabulary', 'generate run --prompt=Wal-鲸', 64, ('鲸', 'vocabulary')),
  Case('sample prompt outside the vocabulary', f'{TRAIN} --config.task.sample_prompt=鲸', 64, ('鲸', 'vocabulary')),
  Case('checkpoint of another shape', 'resume wider', 64,
       ('wider/checkpoints/12: ', '[16] in the checkpoint and [32]')),
  Case('init_from of another shape', f'{TRAIN} --config.init_from=run --config.model.width=32', 64,
       ('run/checkpoints/12: ', '[16] in the checkpoint and [32]')),
  Case('damaged checkpoint, asked for by number', 'generate damaged --checkpoint=12', 74,
       ('damaged/checkpoints/12', 'is damaged')),
  Case('damaged checkpoints, all of them', 'generate ruined', 74, ('ruined/checkpoints', 'is whole')),
  Case('step without a checkpoint', 'eval run --checkpoint=7', 64, ("no checkpoint '7'", '4, 8, 12')),
  Case('run folder that is missing', 'generate rnu', 64, ('rnu: no such run folder',)),
  Case('folder that is no run', 'eval text', 64, ('text', 'config.json')),
  Case('pattern that freezes nothing', f'{TRAIN} --config.training.freeze=blok', 64,
       ("config.training.freeze: 'blok' matches no parameter", 'block_0/')),
  Case('pattern that is none', f'{TRAIN} --config.training.freeze=(', 64, ('config.training.freeze', 'expression')),
  Case('source without a place', f'{TRAIN} --config.data.source=text:', 64, ('text:',)),
  Case('folder of another config', 'train --config=tiny.py --workdir=run --config.seed=1', 64,
       ('run: holds a run of another config: seed is 0 there and 1 here',)),
  Case('fewer steps than taken', 'resume run --steps=4', 64, ('--steps=4', '12 steps')),
  Case('config file that is missing', 'train --config=tinny.py', 64, ("did you mean 'tiny.py'?",)),
  Case('unknown verb', 'trian --config=tiny.py', 64, ("'trian'",)),
  Case('unknown flag', f'{TRAIN} --steps=3', 64, ('--steps=3',)),
  Case('no verb', '', 64, ('VERB',)),
  Case('override without a value', f'{TRAIN} --config.seed', 64, ('--config.seed: a value is missing',)),
  Case('override where none belongs', 'resume run --config.seed=1', 64, ('--config.seed', 'aigc train')),
  Case('temperature of 0', 'generate run --temperature=0', 64, ('temperature',)),
  Case('top_k with greedy', 'generate run --strategy=greedy --top_k=4', 64, ('--top_k', 'greedy')),
  Case('no samples', 'generate run --num=0', 64, ('num', 'at least 1')),
  Case('prompt file that is missing', 'generate run --prompt_file=nowhere.txt', 65, ('nowhere.txt',)),
  Case('prompt file that is not UTF-8', 'generate run --prompt_file=latin1.txt', 65, ('latin1.txt', 'byte 5')),
  Case('other data that is missing', 'eval run --data=text:nowhere.txt', 65, ('nowhere.txt',)),
  Case('other data outside the vocabulary', 'eval run --data=text:chinese.txt', 65, ('chinese.txt', '鲸')),
  Case('runs under a folder that is missing', 'list nowhere', 64, ('nowhere',)),
  Case('diff with a folder that is missing', 'diff run nowhere', 64, ('nowhere',)),
  Case('images of several sizes', f'{CLASSIFY}images:mixed', 65, ('mixed', '8 x 8', '9 x 8')),
  Case('class folder without an image', f'{CLASSIFY}images:hollow', 65, ('hollow/b', 'no PNG')),
  Case('image that is cut short', f'{CLASSIFY}images:cut', 65, ('cut/a/0.png',)),
  Case('IDX file that is cut short', f'{CLASSIFY}idx:idx', 65, ('train-images-idx3-ubyte',)),
  Case('labels out of range', f'{CLASSIFY}npz:labels.npz', 65, ('labels.npz', '-1')),
  Case('values outside [0, 1]', f'{AUTOENCODE} --config.data.source=npz:bright.npz', 65, ('bright.npz', '2')),
  Case('state carried with another batch size',
       'train --config=carried.py --workdir=carried --config.data.batch_size=2', 64,
       ('carried: holds a run of another config: data.batch_size is 4 there and 2 here',)),
  Case('state carried by a model without one', f'{TRAIN} --config.task.carry_state=true', 64,
       ('config.task.carry_state', 'rnn')),
  Case('state carried between shuffled windows',
       'train --config=carried.py --workdir=new --config.data.packing=stream', 64,
       ('config.task.carry_state', 'contiguous')),
  Case('text for an autoencoder', f'{AUTOENCODE} --config.data.source=text:words.txt', 64,
       ('config.data.source', 'text', 'images')),
  Case('images for a language model', f'{TRAIN} --config.data.source=npz:images.npz', 64,
       ('config.data.source', 'images')),
  Case('model that the task cannot train', 'train --config=unfit.py --workdir=new', 64,
       ("config.model.name: 'mlp' is no model for the task 'language'", 'transformer')),
  Case('unknown environment', 'train --config=acting.py --workdir=new --config.data.source=environment:cartpol', 64,
       ('config.data.source', "did you mean 'cartpole'?")),
  Case('replay smaller than a batch', 'train --config=acting.py --workdir=new --config.task.replay_size=100', 64,
       ('config.task.replay_size: 100 transitions', 'use 128 or more')),
  Case('contrast of one image', 'train --config=contrast.py --workdir=new --config.data.batch_size=1', 64,
       ('config.data.batch_size: 1', 'use 2 or more')),
  Case('bound without a posterior',
       f'{AUTOENCODE} --config.model.posterior=none --config.task.importance_samples=9', 64,
       ('config.task.importance_samples', 'Gaussian')),
  Case('run that is no autoencoder', 'train --config=codes.py --workdir=new', 64, ('run', 'vq_autoencoder')),
)  # fmt: skip
TABLE = (
  'unknown key', 'negative rate', 'heads that do not divide', 'batch that does not divide', 'missing file',
  'file that is not UTF-8', 'corpus shorter than a context', 'prompt outside the vocabulary',
  'checkpoint of another shape', 'damaged checkpoint, asked for by number', 'images of several sizes',
  'class folder without an image', 'image that is cut short', 'IDX file that is cut short', 'labels out of range',
  'values outside [0, 1]', 'state carried with another batch size', 'unknown environment',
  'replay smaller than a batch', 'contrast of one image',
)  # fmt: skip


def prepare(folder):
  """Files good and bad, and a finished run with its damaged copies, made in `folder`."""
  from aigc_jax import api

  source = tiny.write_corpus(folder / 'words.txt')
  tiny.write_config(folder / 'tiny.py', source)
  with open(folder / 'tiny.py', 'a', encoding='utf-8') as file:
    file.write('\n\ndef sweep_nothing():\n  return []\n')
  (folder / 'empty.txt').write_bytes(b'')
  (folder / 'latin1.txt').write_bytes('Whale café'.encode('latin-1')[:4] + b' \xe9 ' + b'sea ' * 99)
  (folder / 'short.txt').write_text('Call me.', encoding='utf-8')
  (folder / 'chinese.txt').write_text('鲸' * 99, encoding='utf-8')
  (folder / 'text').mkdir()
  (folder / 'text/words.txt').write_text('whale', encoding='utf-8')
  api.train(tiny.config(source), folder / 'run', quiet=True)
  for name in ('wider', 'damaged', 'ruined'):
    shutil.copytree(folder / 'run', folder / name)
  edit_json(folder / 'wider/config.json', lambda config: config['model'].update(width=32))
  edit_json(folder / 'wider/config.json', lambda config: config['training'].update(steps=20))
  edit_json(folder / 'wider/status.json', lambda status: status.update(state='interrupted'))
  damage(folder / 'damaged/checkpoints/12')
  for step in (4, 8, 12):
    damage(folder / f'ruined/checkpoints/{step}', cut=True)
  prepare_images(folder)


def prepare_images(folder):
  """Images good and bad, and a finished run that carries its state."""
  from matplotlib import image

  from aigc_jax import api

  source = tiny_images.write_images(folder / 'images.npz')
  tiny_images.write_config(folder / 'classes.py', source, 'mlp')
  tiny_images.write_config(folder / 'pictures.py', source, 'vae')
  tiny_images.write_images(folder / 'labels.npz', train_labels=np.arange(40) % 3 - 1)
  tiny_images.write_images(folder / 'bright.npz', train_images=np.full((40, 8, 8), 2.0, np.float32))
  for name in ('mixed', 'hollow', 'cut'):
    for kind in 'ab':
      (folder / name / kind).mkdir(parents=True)
      for i in range(3):
        image.imsave(folder / name / kind / f'{i}.png', np.zeros((8, 8 + (name == 'mixed' and kind == 'b'))))
  for path in (folder / 'hollow/b').iterdir():
    path.unlink()
  picture = folder / 'cut/a/0.png'
  picture.write_bytes(picture.read_bytes()[:60])
  (folder / 'idx').mkdir()
  header = bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 8])
  (folder / 'idx/train-images-idx3-ubyte').write_bytes(header + bytes(100))
  (folder / 'idx/train-labels-idx1-ubyte').write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9))
  for name in ('images-idx3', 'labels-idx1'):
    content = (folder / f'idx/train-{name}-ubyte').read_bytes()
    (folder / f'idx/t10k-{name}-ubyte').write_bytes(content)
  text = f'text:{folder / "words.txt"}'
  carried = {'task': {'carry_state': True}, 'data': {'packing': 'contiguous'}, 'training': {'steps': 1}}
  made = tiny.config(text, **carried) | {'model': {'name': 'rnn', 'width': 8}}
  codes = tiny.config(text) | {'data': {'source': 'run:run'}}
  unfit = tiny.config(text) | {'model': {'name': 'mlp'}}
  worlds = {'source': 'environment:cartpole', 'environments': 4, 'batch_size': 128}
  acting = tiny.config(text) | {
    'task': {'name': 'q_learning'},
    'model': {'name': 'q_network'},
    'data': worlds,
  }
  contrast = tiny_images.config(source, 'mlp') | {'task': {'name': 'contrastive'}}
  given = {'carried': made, 'codes': codes, 'unfit': unfit, 'acting': acting, 'contrast': contrast}
  for name, config in given.items():
    (folder / f'{name}.py').write_text(
      f'def get_config(variant=""):\n  return {config!r}\n', encoding='utf-8'
    )
  api.train(made, folder / 'carried', quiet=True)


def edit_json(path, edit):
  content = json.loads(path.read_text(encoding='utf-8'))
  edit(content)
  path.write_text(json.dumps(content), encoding='utf-8')


def damage(checkpoint, cut=False):
  """Flips a bit of the largest array file, or cuts it in half."""
  files = (path for path in checkpoint.rglob('*') if path.parent.name == 'd')
  path = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data[: len(data) // 2] if cut else data)


def run(command):
  """(exit status, standard output, standard error) of `aigc command` in this process."""
  from aigc_jax import cli

  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = cli.main(command.split() if isinstance(command, str) else command)
  return status, out.getvalue(), err.getvalue()


def main():
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  folder = pathlib.Path(tempfile.mkdtemp())
  prepare(folder)
  os.chdir(folder)
  print('| bad input | command | standard error | status |\n|---|---|---|---|')
  for case in CASES:
    if case.what in TABLE:
      status, _, err = run(case.command)
      line = err.strip().replace(f'{folder}/', '').replace('|', '\\|').replace('\n', ' // ')
      print(f'| {case.what} | `aigc {case.command}` | {line} | {status} |')
  shutil.rmtree(folder)


if __name__ == '__main__':
  main()
