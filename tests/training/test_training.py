"""Whole runs through the real path: what is saved when, what goes on, and what ends a run."""

import itertools
import json
import re
import shutil

import jax
import numpy as np
import pytest

from aigc_jax import api, run, tasks
from aigc_jax.errors import DataError, StorageError, UsageError
from aigc_jax.training import checkpoint, placement, prepare, state_leaves
from tests import kill_and_resume, tiny
from tests.bad_input import damage
from tests.compilations import count_compilations
from tests.tiny import train

pytestmark = pytest.mark.usefixtures('cached_programs')


@pytest.fixture(scope='module')
def plain(tmp_path_factory, source):
  """(TrainedRun of 12 steps, names of what was compiled, {step: metrics.jsonl when its checkpoint committed})."""
  folder, seen = tmp_path_factory.mktemp('plain') / 'run', {}
  commit = checkpoint.write_manifest

  def spy(path, manifest):
    if path.name.isdigit():
      seen[int(path.name)] = (folder / 'metrics.jsonl').read_text(encoding='utf-8')
    commit(path, manifest)

  with pytest.MonkeyPatch.context() as patch, count_compilations() as names:
    patch.setattr(checkpoint, 'write_manifest', spy)
    trained = train(tiny.config(source), folder)
  return trained, names, seen


def checkpoints(path):
  return path / 'checkpoints'


def arrays_of(path, which, fields=kill_and_resume.FIELDS):
  """{path: numpy array} of one checkpoint."""
  _, found = checkpoint.restore_fields(checkpoints(path), fields, which)
  return state_leaves.host_copies(checkpoint.flat(found))


def same_bits(a, b):
  return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def samples(path):
  """{step: text} of a run's samples, oldest first."""
  files = sorted((path / 'samples').iterdir())
  return {int(file.name.removesuffix('-sample.txt')): file.read_text(encoding='utf-8') for file in files}


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


# One compilation


def test_the_step_is_compiled_once_a_run(plain):
  trained, names, _ = plain
  assert names.count('jit(step)') == 1
  assert names.count('jit(evaluate)') == 1
  batches = list(prepare.prepare(trained.config).dataset.validation_batches())
  assert len(batches) > 1
  assert batches[-1]['mask'].sum() < batches[0]['mask'].sum(), 'the last batch is padded'


def test_changing_a_float_gives_the_same_program(source, plain):
  texts = set()
  for rate in (1e-2, 0.0, 3e-4):
    prepared = placement.place(prepare.prepare(api.read_config(tiny.config(source), rate_of(rate))))
    batch = prepared.program.put_batch(prepared.example)
    texts.add(prepared.program.step.lower(prepared.floats, prepared.target, batch).as_text())
  assert len(texts) == 1


def rate_of(rate):
  return [('optimizer.learning_rate', rate)]


# What is on the disk when


def test_metrics_are_on_disk_before_their_checkpoint_commits(plain):
  trained, _, seen = plain
  assert sorted(seen) == [4, 8, 12]
  for step, text in seen.items():
    rows = [json.loads(line) for line in text.splitlines()]
    # (the save commits in its own thread, so steps after it may be there as well)
    assert [row['step'] for row in rows if 'train/loss' in row][:step] == list(range(1, step + 1))
    losses = [row['step'] for row in rows if 'validation/loss' in row]
    assert losses[: step // 4] == list(range(4, step + 1, 4))
  assert (trained.path / 'metrics.jsonl').read_text(encoding='utf-8') == seen[12]


def test_what_a_run_leaves_behind(plain):
  trained, _, _ = plain
  there = {path.name for path in trained.path.iterdir()}
  assert {'config.json', 'env.json', 'status.json', 'metrics.jsonl', 'tokenizer.json', 'log.txt'} <= there
  assert (trained.path / 'plots/loss.png').read_bytes().startswith(b'\x89PNG')
  assert run.open_run(trained.path).read_status() | {'updated': ''} == {
    'state': 'done', 'step': 12, 'checkpoint': 12, 'message': 'done', 'updated': '',
  }  # fmt: skip
  # The last line of progress comes before the last checkpoint; that of step 8 may be on its way still.
  log = (trained.path / 'log.txt').read_text(encoding='utf-8')
  progress = r'^step 12/12  loss \d\.\d{4}  [\d.]+[kM]? tokens/s  ETA 0:00  saved [48]$'
  assert len(re.findall(progress, log, re.MULTILINE)) == 1
  assert list(samples(trained.path)) == [12], 'sample_every is None: at the end only'
  assert f'--- sample at step 12 ---\n{samples(trained.path)[12]}\n---\n' in log
  row = [row for row in trained.metrics if 'train/loss' in row][-1]
  assert {'train/loss', 'train/gradient_norm', 'train/parameter_norm', 'learning_rate'} <= row.keys()
  row = [row for row in trained.metrics if 'validation/loss' in row][-1]
  assert row['validation/perplexity'] == pytest.approx(np.exp(row['validation/loss']))
  # One byte a character and one token a character: bits per character are the nats in bits.
  assert row['validation/bits_per_character'] == pytest.approx(row['validation/loss'] / np.log(2), rel=1e-6)
  assert trained.evaluate()['loss'] == pytest.approx(row['validation/loss'], rel=1e-6)


# Going on


def test_a_finished_run_typed_again_does_nothing(plain, source, capsys):
  trained, _, _ = plain
  before = contents(trained.path)
  with count_compilations() as names:
    again = api.train(tiny.config(source), trained.path)
  assert not names
  assert again.path == trained.path
  after = contents(trained.path)
  assert {path for path in after if after[path] != before.get(path)} <= {trained.path / 'log.txt'}
  assert 'is done, 12 steps; nothing to do' in capsys.readouterr().err


def test_another_config_on_the_folder_is_refused(plain, source):
  trained, _, _ = plain
  before = contents(trained.path)
  with pytest.raises(
    UsageError, match=r'another config: optimizer.learning_rate is 0.01 there and 0.02 here'
  ):
    train(tiny.config(source, optimizer={'learning_rate': 0.02}), trained.path)
  with pytest.raises(UsageError, match='has taken 12 steps already'):
    api.resume(trained.path, 8, quiet=True)
  assert contents(trained.path) == before


def test_a_longer_run_goes_on_with_one_compilation(plain, source, tmp_path):
  """The schedule ends where it did, so the rate is constant here; the unbroken run has the same 16 steps."""
  constant, sampled = {'schedule': 'constant'}, {'sample_every': 5}
  short = train(tiny.config(source, optimizer=constant, training=sampled), tmp_path / 'a')
  assert list(samples(short.path)) == [5, 10, 12]
  loss = short.metrics[-1]['validation/loss']
  with count_compilations() as names:
    longer = api.resume(short.path, 16, quiet=True)
  assert names.count('jit(step)') == 1
  assert 'jit(init)' not in names
  unbroken = tiny.config(source, optimizer=constant | {'decay_steps': 12}, training=sampled | {'steps': 16})
  unbroken = train(unbroken, tmp_path / 'b')
  assert longer.config == unbroken.config
  assert kill_and_resume.differences(longer.path, unbroken.path) == []
  assert longer.metrics[-1]['validation/loss'] < loss
  there = samples(longer.path)
  assert list(there) == [5, 10, 12, 15, 16]
  assert all(0 < len(text) <= 4 for text in there.values()), (
    'config.task.sample_tokens, after an empty prompt'
  )
  del there[12]  # where the shorter run ended
  assert there == samples(unbroken.path), 'the key of a sample is of the run and its step'


def test_a_changed_corpus_is_refused(source, tmp_path):
  own = tiny.write_corpus(tmp_path / 'own.txt', seed=1)
  trained = train(tiny.config(own, training={'steps': 4}), tmp_path / 'run')
  before = contents(trained.path)
  tiny.write_corpus(tmp_path / 'own.txt', seed=2)
  with pytest.raises(DataError, match=r'is not what .*run was trained on \(sha256 was'):
    api.resume(trained.path, 8, quiet=True)
  after = contents(trained.path)
  changed = {path.name for path in after if after[path] != before.get(path)}
  assert changed <= {'log.txt'}, 'the config says what was trained, not what was refused'


# What ends a run


def test_a_rate_that_explodes_ends_with_65_and_saves_nothing(source, tmp_path):
  with pytest.raises(DataError, match=r'^step \d+: .* is (inf|nan); there is no checkpoint yet$') as error:
    train(tiny.config(source, optimizer={'learning_rate': 1e30}), tmp_path / 'run')
  assert error.value.status == 65
  assert checkpoint.steps(tmp_path / 'run/checkpoints') == []
  assert run.open_run(tmp_path / 'run').read_status()['state'] == 'non-finite'
  assert 'nan' not in (tmp_path / 'run/metrics.jsonl').read_text(encoding='utf-8').lower()


@pytest.fixture
def loss_is_nan_at(monkeypatch):
  """A function: from that step on the language loss is not a number."""

  original = tasks.language.build

  def set_step(step):
    def build(config):
      task = original(config)

      def loss(params, extra, batch, context):
        total, rest = task.loss(params, extra, batch, context)
        return jax.numpy.where(context.train & (context.step >= step - 1), jax.numpy.nan, total), rest

      return task._replace(loss=loss)

    monkeypatch.setattr(tasks.language, 'build', build)

  return set_step


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(
  source, tmp_path, loss_is_nan_at
):
  loss_is_nan_at(7)
  with pytest.raises(DataError) as error:
    train(tiny.config(source), tmp_path / 'run')
  assert str(error.value) == f'step 7: loss is nan; the last good checkpoint is {tmp_path}/run/checkpoints/4'
  assert checkpoint.steps(tmp_path / 'run/checkpoints') == [4]
  assert all(np.isfinite(leaf).all() for leaf in arrays_of(tmp_path / 'run', 'latest').values())
  status = run.open_run(tmp_path / 'run').read_status()
  assert (status['state'], status['step'], status['checkpoint']) == ('non-finite', 7, 4)
  assert 'step 7: loss is nan' in status['message']
  assert [row['step'] for row in run.read_metrics(tmp_path / 'run')][-1] == 6


def test_patience_ends_the_run_and_keeps_the_best(source, tmp_path):
  """At rate 0 nothing improves after the first evaluation."""
  training = {'patience': 2, 'steps': 40, 'evaluate_every': 4, 'checkpoint_every': 4, 'keep_checkpoints': 1}
  config = tiny.config(source, training=training, optimizer={'learning_rate': 0.0})
  trained = train(config, tmp_path / 'run')
  assert [row['step'] for row in trained.metrics if 'validation/loss' in row] == [4, 8, 12]
  assert checkpoint.steps(checkpoints(trained.path)) == [4, 12]
  assert checkpoint.best(checkpoints(trained.path)) == 4
  status = run.open_run(trained.path).read_status()
  assert (status['state'], status['step'], status['message']) == ('done', 12, 'early stop')
  before = (trained.path / 'metrics.jsonl').read_bytes()
  with count_compilations() as names:
    train(config, trained.path)
  assert not names, 'typed again it does nothing'
  run.open_run(trained.path).write_status('running', 0)  # as a kill just before the last status leaves it
  train(config, trained.path)
  assert (trained.path / 'metrics.jsonl').read_bytes() == before, 'and resumed it ends where it ended'
  assert run.open_run(trained.path).read_status()['step'] == 12


def test_a_best_metric_that_does_not_exist_is_refused(source, tmp_path):
  config = tiny.config(source, training={'patience': 2, 'best_metric': 'validation/los'})
  with pytest.raises(UsageError, match=r"best_metric: 'validation/los'.*did you mean 'validation/loss'"):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


# Which parameters


def test_the_moving_average_is_what_is_used(source, tmp_path):
  config = tiny.config(source, optimizer={'average': 0.9, 'schedule': 'constant'}, training={'steps': 8})
  trained = train(config, tmp_path / 'run')
  average, params = (arrays_of(trained.path, 'latest', (field,)) for field in ('average', 'params'))
  strip = lambda leaves: {name.partition('/')[2]: leaf for name, leaf in leaves.items()}
  average, params = strip(average), strip(params)
  used = state_leaves.host_copies(checkpoint.flat(api.load_run(trained.path, 'latest').params))
  assert same_bits(used, average)
  assert not same_bits(used, params)
  logged = [row['validation/loss'] for row in trained.metrics if 'validation/loss' in row]
  assert api.load_run(trained.path, 'latest').evaluate()['loss'] == pytest.approx(logged[-1], rel=1e-6)
  plain_run = train(
    tiny.config(source, optimizer={'schedule': 'constant'}, training={'steps': 8}), tmp_path / 'b'
  )
  assert same_bits(strip(arrays_of(plain_run.path, 'latest', ('params',))), params), 'it only watches'
  # The average of the first steps lags behind, so its loss is higher.
  assert logged[-1] > [row['validation/loss'] for row in plain_run.metrics if 'validation/loss' in row][-1]


def test_the_average_is_the_recursion_over_the_steps(source, tmp_path):
  config = tiny.config(
    source, optimizer={'average': 0.9}, training={'steps': 3, 'checkpoint_every': 1, 'keep_checkpoints': 9}
  )
  trained = train(config, tmp_path / 'run')
  name = 'embed/token'
  found = [arrays_of(trained.path, step) for step in (1, 2, 3)]
  for before, after in itertools.pairwise(found):
    expected = 0.9 * before[f'average/{name}'] + 0.1 * after[f'params/{name}']
    np.testing.assert_allclose(after[f'average/{name}'], expected, rtol=1e-5, atol=1e-7)  # float32 rounding


def test_init_from_starts_from_another_runs_parameters(plain, source, tmp_path):
  trained, _, _ = plain
  still = {'learning_rate': 0.0}
  for name in (trained.path, f'{checkpoints(trained.path)}/8'):
    which = 'best' if name == trained.path else 8
    config = tiny.config(source, init_from=str(name), optimizer=still, training={'steps': 1}, seed=9)
    started = train(config, tmp_path / f'run-{which}')
    assert same_bits(arrays_of(started.path, 1, ('params',)), arrays_of(trained.path, which, ('params',)))
  assert int(arrays_of(started.path, 1)['step']) == 1, 'only the parameters, not the step or the optimizer'


def test_a_run_goes_on_when_the_one_it_started_from_is_gone(plain, source, tmp_path, monkeypatch):
  trained, _, _ = plain
  shutil.copytree(trained.path, tmp_path / 'first')
  monkeypatch.chdir(tmp_path)
  still = {'learning_rate': 0.0, 'schedule': 'constant'}
  train(tiny.config(source, init_from='first', optimizer=still, training={'steps': 1}), 'second')
  shutil.rmtree('first')
  monkeypatch.chdir('/')
  assert api.resume(tmp_path / 'second', 2, quiet=True).metrics[-1]['step'] == 2


def test_init_from_another_shape_is_refused_before_anything_is_made(plain, source, tmp_path):
  trained, _, _ = plain
  config = tiny.config(source, init_from=str(trained.path), model={'width': 32})
  with count_compilations() as names, pytest.raises(UsageError) as error:
    train(config, tmp_path / 'run')
  assert 'checkpoints/12: ' in str(error.value)
  assert '[16] in the checkpoint and [32]' in str(error.value)
  assert '\n' not in str(error.value)
  assert not [name for name in names if name in ('jit(init)', 'jit(step)')]
  assert not (tmp_path / 'run').exists()


def test_init_from_with_frozen_parameters(plain, source, tmp_path):
  """What is frozen comes from the other run too, and stays."""
  trained, _, _ = plain
  config = tiny.config(source, init_from=str(trained.path), training={'steps': 2, 'freeze': 'block_0'})
  started = train(config, tmp_path / 'run')
  theirs = arrays_of(trained.path, 'best', ('params',))
  ours = arrays_of(started.path, 2, ('frozen',))
  assert ours
  for name, leaf in ours.items():
    assert leaf.tobytes() == theirs[name.replace('frozen/', 'params/')].tobytes()
  assert not same_bits(arrays_of(started.path, 2, ('params',)), theirs)


# A damaged checkpoint


def test_a_damaged_checkpoint_is_passed_over_loudly_and_the_run_ends_the_same(
  plain, source, tmp_path, capsys
):
  trained, _, _ = plain
  stopped = train(tiny.config(source, training={'steps': 8}, optimizer={'decay_steps': 12}), tmp_path / 'run')
  damage(checkpoints(stopped.path) / '8')
  longer = api.resume(stopped.path, 12)
  said = capsys.readouterr().err
  assert 'WARNING: checkpoint 8 is damaged and passed over' in said
  assert 'resuming after step 4' in said
  assert kill_and_resume.differences(longer.path, trained.path) == []
  for step in checkpoint.steps(checkpoints(longer.path)):
    damage(checkpoints(longer.path) / str(step))
  with pytest.raises(StorageError, match='checkpoints is whole') as error:
    api.resume(longer.path, 16, quiet=True)
  assert error.value.status == 74
