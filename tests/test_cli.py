"""The command line: what is right prints what was asked for, what is wrong one line and the documented status."""

import json
import os
import subprocess
import sys

import pytest

from aigc_jax import api, cli
from aigc_jax.run import hold_lock
from tests import bad_input, tiny
from tests.bad_input import CASES, TRAIN
from tests.compilations import count_compilations


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where `bad_input.prepare` has been; the tests run in it."""
  made = tmp_path_factory.mktemp('cli')
  with tiny.compile_cache(tmp_path_factory.mktemp('xla')):
    bad_input.prepare(made)
    yield made


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
  monkeypatch.chdir(folder)


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


def good(*arguments):
  """Standard output of a command that ends with 0."""
  status, out, err = bad_input.run(list(arguments))
  assert status == 0, err
  return out


# What is wrong


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.what)
def test_bad_input_is_one_line_and_a_status(case, folder):
  before, there = contents(folder), set(folder.iterdir())
  with count_compilations() as names:
    status, out, err = bad_input.run(case.command)
  lines = err.splitlines()
  assert lines[-1].startswith('aigc: '), err
  assert all(line.startswith('WARNING: checkpoint') for line in lines[:-1]), (
    err
  )  # those passed over, one by one
  for words in case.words:
    assert words in lines[-1]
  assert (status, out) == (case.status, '')
  assert not [name for name in names if name in ('jit(init)', 'jit(step)', 'jit(evaluate)', 'jit(fill)')]
  assert set(folder.iterdir()) == there
  after = contents(folder)
  assert {path.name for path in after if after[path] != before.get(path)} <= {'log.txt'}


def test_a_damaged_checkpoint_falls_back_to_the_one_before_loudly(capfd):
  status = cli.main(['generate', 'damaged', '--checkpoint=latest', '--max_new_tokens=4', '--json'])
  out, err = capfd.readouterr()
  assert status == 0
  assert 'WARNING: checkpoint 12 is damaged and passed over: ' in err
  assert 'WARNING: falling back to checkpoint 8' in err
  assert json.loads(out)


def test_a_folder_in_use_is_refused(folder):
  with hold_lock(folder / 'run'):
    for command in ('train --config=tiny.py --workdir=run', 'resume run --steps=20'):
      status, _, err = bad_input.run(command)
      assert status == 64
      assert f'run: in use by process {os.getpid()} on ' in err
    assert good('generate', 'run', '--max_new_tokens=2'), 'reading is allowed'
  before = json.loads((folder / 'run/config.json').read_text(encoding='utf-8'))
  assert before['training']['steps'] == tiny.STEPS


def python(*arguments, **options):
  return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, **options)


def test_help_and_reading_do_not_start_jax(folder):
  code = 'import sys, aigc_jax; from aigc_jax import cli; code = cli.main(sys.argv[1:]); print([m for m in ' \
    '("jax", "numpy", "flax", "orbax", "matplotlib") if m in sys.modules], code)'  # fmt: skip
  found = python('-c', code.replace('code = cli.main(sys.argv[1:])', 'code = 0'))
  assert found.stdout.splitlines()[-1] == '[] 0', found.stderr
  wrong = python('-c', code, 'trian')
  assert wrong.stdout.splitlines()[-1] == '[] 64', wrong.stderr
  for verb in (['list', str(folder)], ['diff', str(folder / 'run'), str(folder / 'run')]):
    read = python('-c', code.replace('"numpy", ', ''), *verb)
    assert read.stdout.splitlines()[-1] == '[] 0', read.stderr
  found = python('-X', 'importtime', '-m', 'aigc_jax.cli', '--help')
  assert found.returncode == 0
  assert 'aigc train --config=' in found.stdout
  imported = {line.rpartition('|')[2].strip().partition('.')[0] for line in found.stderr.splitlines()}
  assert 'argparse' in imported
  assert not imported & {'jax', 'jaxlib', 'numpy', 'flax', 'orbax', 'ml_collections', 'rich'}


@pytest.mark.parametrize('verb', ['train', 'resume', 'eval', 'generate', 'list', 'diff'])
def test_every_verb_has_help(verb, capsys):
  with pytest.raises(SystemExit) as error:
    cli.main([verb, '--help'])
  assert error.value.code == 0
  assert f'usage: aigc {verb}' in capsys.readouterr().out


# What is right


def test_dry_run_takes_no_step_and_leaves_nothing(folder):
  before = contents(folder)
  with count_compilations() as names:
    text = good('train', '--config=tiny.py', '--dry_run', '--config.optimizer.learning_rate', '0.02')
  assert names.count('jit(step)') == 1
  assert not {'jit(init)', 'jit(evaluate)'} & set(names)
  assert contents(folder) == before
  total = sum(leaf.size for leaf in _leaves(api.load_run('run').params))
  assert f'{total:,}' in text
  for words in ('embed/token', 'FLOPs a step', 'memory on a device', 'steps of'):
    assert words in text


def _leaves(tree):
  import jax

  return jax.tree.leaves(tree)


def samples(*arguments):
  return [json.loads(line) for line in good('generate', 'run', '--json', *arguments).splitlines()]


def test_streamed_text_is_the_text():
  options = ['--prompt=whale', '--max_new_tokens=40', '--seed=3']
  sample = samples(*options)[0]
  assert sample['prompt'] == 'whale'
  assert len(sample['tokens']) == len(sample['log_probabilities']) == 40
  assert sample['finish_reason'] == 'length'
  assert good('generate', 'run', *options) == 'whale' + sample['text'] + '\n'
  quiet = api.load_run('run').generate('whale', max_new_tokens=40, seed=3)[0]
  assert quiet._asdict() == sample
  pieces = []
  api.load_run('run').generate(
    'whale', max_new_tokens=40, seed=3, on_text=lambda row, piece: pieces.append(piece)
  )
  assert ''.join(pieces) == sample['text']


def test_several_samples_and_prompts(folder):
  (folder / 'prompts.txt').write_text('sea\nrope mast\n', encoding='utf-8')
  options = ['--prompt_file=prompts.txt', '--prompt=ship', '--num=2', '--max_new_tokens=12', '--seed=1']
  found = samples(*options)
  assert [sample['prompt'] for sample in found] == ['ship', 'ship', 'sea', 'sea', 'rope mast', 'rope mast']
  assert found[0]['text'] != found[1]['text']
  whole = [sample['prompt'] + sample['text'] for sample in found]
  assert good('generate', 'run', *options) == '\n---\n'.join(whole) + '\n'
  assert samples(*options) == found, 'the seed decides'
  assert samples(*options[:-1], '--seed=2') != found


def test_stop_strings_and_strategies():
  free = samples('--prompt=sea', '--max_new_tokens=60', '--strategy=greedy')[0]
  stop = free['text'][20:22]
  ended = samples('--prompt=sea', '--max_new_tokens=60', '--strategy=greedy', f'--stop={stop}')[0]
  assert ended['finish_reason'] == 'stop'
  assert ended['text'] == free['text'][: free['text'].index(stop)]
  assert ended['tokens'] == free['tokens'][: len(ended['tokens'])]
  assert (
    samples('--prompt=sea', '--max_new_tokens=9', '--strategy=top_k', '--top_k=1')[0]['text']
    == free['text'][:9]
  )


def test_the_seed_of_an_empty_prompt():
  assert samples('--max_new_tokens=5')[0]['prompt'] == ''
  assert good('generate', 'run', '--max_new_tokens=5') == samples('--max_new_tokens=5')[0]['text'] + '\n'


def test_eval():
  metrics = json.loads(good('eval', 'run', '--json', '--checkpoint=latest'))
  last = [row for row in api.load_run('run').metrics if 'validation/loss' in row][-1]
  assert metrics['loss'] == pytest.approx(last['validation/loss'], rel=1e-6)
  assert set(metrics) == {'loss', 'accuracy', 'bits_per_character', 'perplexity'}
  lines = dict(line.rsplit(maxsplit=1) for line in good('eval', 'run', '--checkpoint=latest').splitlines())
  assert float(lines['bits per character']) == pytest.approx(metrics['bits_per_character'], rel=1e-4)
  older = json.loads(good('eval', 'run', '--json', '--checkpoint=4'))
  assert older['loss'] > metrics['loss']


def test_eval_on_other_text(folder):
  tiny.write_corpus(folder / 'other.txt', words=90, seed=5)
  metrics = json.loads(good('eval', 'run', '--json', '--data=text:other.txt'))
  assert 0 < metrics['loss'] < 4
  (folder / 'repeated.txt').write_text('e' * 400, encoding='utf-8')
  other = json.loads(good('eval', 'run', '--json', '--data=text:repeated.txt'))
  assert other['loss'] != metrics['loss']


def test_list_and_diff(folder):
  text = good('list', '.')
  line = next(line for line in text.splitlines() if line.startswith('run ') and '/' in line)
  assert '12/12' in line
  assert 'done' in line
  assert 'interrupted' in next(line for line in text.splitlines() if line.startswith('wider '))
  assert good('diff', 'run', 'damaged') == 'the configs are equal\n'
  text = good('diff', 'run', 'wider')
  assert [line.split() for line in text.splitlines()] == [
    ['field', 'run', 'wider'], ['model.width', '16', '32'], ['training.steps', '12', '20'],
  ]  # fmt: skip


def test_train_and_resume_by_the_command_line(folder, capsys):
  assert cli.main(TRAIN.split()) == 0
  out, err = capsys.readouterr()
  assert out == ''
  assert 'step 12/12' in err
  assert 'next: aigc generate new' in err
  assert cli.main(['resume', 'new', '--steps=14']) == 0
  assert 'resuming after step 12' in capsys.readouterr().err
  assert api.load_run('new', 'latest').config['training']['steps'] == 14
  assert good('train', '--config=tiny.py') == ''
  assert [path.name[:5] for path in (folder / 'runs').iterdir()] == ['tiny-']
