"""How runs begin and go on: what they take from other runs, from their own folder, and what they refuse or tell."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from aigc_jax import api, run
from aigc_jax.config import SECTIONS
from aigc_jax.errors import DataError, StorageError, UsageError
from aigc_jax.training import attention, checkpoint, hooks, optimizer, parallel, placement, prepare
from tests import tiny
from tests.tiny import train

pytestmark = pytest.mark.usefixtures('cached_programs')


@pytest.fixture(scope='module')
def averaged(tmp_path_factory, source):
  """A run that keeps a moving average of its parameters."""
  config = tiny.config(source, optimizer={'average': 0.9}, training={'steps': 4})
  return train(config, tmp_path_factory.mktemp('averaged') / 'run')


def leaves(path, fields):
  _, found = checkpoint.restore_fields(path / 'checkpoints', fields, 'latest')
  return {name.partition('/')[2]: np.array(leaf) for name, leaf in checkpoint.flat(found).items()}


def same_bits(a, b):
  return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


# Taken from another run


def test_init_from_starts_from_what_the_other_run_is_used_with(averaged, source, tmp_path):
  still = tiny.config(
    source, init_from=str(averaged.path), optimizer={'learning_rate': 0.0}, training={'steps': 1}
  )
  started = leaves(train(still, tmp_path / 'run').path, ('params',))
  assert same_bits(started, leaves(averaged.path, ('average',)))
  assert not same_bits(started, leaves(averaged.path, ('params',)))


def test_init_from_brings_the_vocabulary(averaged, tmp_path):
  """A text with fewer characters would have another one, and every embedding would mean another symbol."""
  (tmp_path / 'few.txt').write_text('sea rope ' * 300, encoding='utf-8')
  config = tiny.config(f'text:{tmp_path}/few.txt', init_from=str(averaged.path), training={'steps': 1})
  started = train(config, tmp_path / 'run')
  assert list(started.tokenizer.pieces) == list(averaged.tokenizer.pieces)
  assert api.resume(started.path, 2, quiet=True).tokenizer.sha256 == averaged.tokenizer.sha256
  (tmp_path / 'more.txt').write_text('sea 鲸 ' * 300, encoding='utf-8')
  config = tiny.config(f'text:{tmp_path}/more.txt', init_from=str(averaged.path))
  with pytest.raises(DataError, match=r"outside the vocabulary of \d+ characters: '鲸'"):
    train(config, tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def test_init_from_another_kind_of_tokenizer_is_refused(averaged, source, tmp_path):
  config = tiny.config(source, init_from=str(averaged.path), data={'tokenizer': 'bytes'})
  with pytest.raises(UsageError, match=r"data.tokenizer: 'bytes', but .* has 'characters'; use --config"):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


# Typed again


def test_train_typed_again_goes_on_though_what_it_started_from_is_gone(averaged, source, tmp_path):
  shutil.copytree(averaged.path, tmp_path / 'first')
  config = tiny.config(source, init_from=str(tmp_path / 'first'), training={'steps': 2})
  before = train(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'first')
  run.open_run(before.path).write_status('interrupted', 2)
  assert train(config, before.path).metrics == before.metrics


def test_train_typed_again_keeps_its_tokenizer_and_wants_its_data(tmp_path):
  source = tiny.write_corpus(tmp_path / 'words.txt')
  config = tiny.config(source, training={'steps': 2}, data={'tokenizer': 'bpe:300'})
  before = train(config, tmp_path / 'run')
  found = before.tokenizer.sha256
  prepared = prepare.prepare(api.read_config(config), run.open_run(before.path))
  assert prepared.dataset.tokenizer.sha256 == found
  tiny.write_corpus(tmp_path / 'words.txt', seed=5)
  with pytest.raises(DataError, match=r'is not what .* was trained on'):
    train(config, before.path)


def test_another_config_is_refused_before_the_data_is_read(averaged, source, tmp_path):
  config = tiny.config('text:/nowhere.txt', optimizer={'average': 0.9}, training={'steps': 4})
  with pytest.raises(UsageError, match=r'holds a run of another config: data\.source is'):
    train(config, averaged.path)


def test_a_folder_from_before_a_field_was_there_goes_on(averaged, source, tmp_path):
  shutil.copytree(averaged.path, tmp_path / 'run')
  stored = json.loads((tmp_path / 'run/config.json').read_text(encoding='utf-8'))
  for section, name in (('training', 'best_metric'), ('optimizer', 'nesterov')):
    del stored[section][name]
  (tmp_path / 'run/config.json').write_text(json.dumps(stored), encoding='utf-8')
  config = tiny.config(source, optimizer={'average': 0.9}, training={'steps': 4})
  assert train(config, tmp_path / 'run').metrics == averaged.metrics
  assert run.open_run(tmp_path / 'run').config == run.open_run(averaged.path).config
  with pytest.raises(UsageError, match='nesterov is False there and True here'):
    train(config | {'optimizer': config['optimizer'] | {'nesterov': True}}, tmp_path / 'run')


def test_a_folder_of_the_first_format_goes_on(averaged, tmp_path):
  shutil.copytree(averaged.path, tmp_path / 'run')
  stored = json.loads((tmp_path / 'run/config.json').read_text(encoding='utf-8'))
  stored['training']['patience_metric'] = stored['training'].pop('best_metric')
  (tmp_path / 'run/config.json').write_text(json.dumps(stored | {'format': 1}), encoding='utf-8')
  assert api.resume(tmp_path / 'run', quiet=True).config == averaged.config
  stored = json.loads((tmp_path / 'run/config.json').read_text(encoding='utf-8'))
  assert stored['format'] == 1, 'reading changes nothing'


def test_a_field_that_is_no_more_is_named_with_its_file(averaged, tmp_path):
  shutil.copytree(averaged.path, tmp_path / 'run')
  stored = json.loads((tmp_path / 'run/config.json').read_text(encoding='utf-8'))
  stored['training']['patients'] = 3
  (tmp_path / 'run/config.json').write_text(json.dumps(stored), encoding='utf-8')
  with pytest.raises(UsageError, match=r'run/config.json: config.training.patients: no such key'):
    api.resume(tmp_path / 'run')


# On other devices


@pytest.mark.parametrize('wanted', [4, pytest.param(-1, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_fewer_devices(wanted, source, tmp_path, monkeypatch, capsys):
  config = tiny.config(source, parallel={'data': wanted}, training={'steps': 4, 'checkpoint_every': 2})
  whole = train(config, tmp_path / 'whole')
  half = train(
    config
    | {
      'training': config['training'] | {'steps': 2},
      'optimizer': config['optimizer'] | {'decay_steps': 4},
    },
    tmp_path / 'half',
  )
  here = jax.devices()[:2]
  monkeypatch.setattr(parallel.jax, 'devices', lambda: here)
  if wanted == 4:
    with pytest.raises(UsageError, match='data: 4 devices are wanted, 2 are here; use -1'):
      train(config, tmp_path / 'new')
  longer = api.resume(half.path, 4)
  said = capsys.readouterr().err
  assert 'devices: 2 of 2' in said
  assert 'WARNING: the run goes on with 2 devices after 4: it adds in another order' in said
  losses = lambda trained: [row['train/loss'] for row in trained.metrics if 'train/loss' in row]
  np.testing.assert_allclose(losses(longer)[2:], losses(whole)[2:], rtol=1e-5)  # sums in another order
  assert longer.evaluate()['loss'] == pytest.approx(whole.evaluate()['loss'], rel=1e-5)


def test_a_carried_state_lies_on_all_devices_in_evaluation_too(source, tmp_path):
  config = tiny.config(
    source,
    task={'carry_state': True},
    data={'packing': 'contiguous'},
    training={'steps': 1},
    parallel={'data': 2},
  )
  trained = train(config | {'model': {'name': 'rnn', 'width': 8}}, tmp_path / 'run')
  assert trained.evaluate()['loss'] == pytest.approx(trained.metrics[-1]['validation/loss'], rel=1e-5)


def test_places_of_the_data_hold_from_any_folder():
  data = {'source': 'tfds:fashion_mnist_5k', 'validation_source': 'npz:a.npz', 'data_dir': 'prepared'}
  config = {'task': {'name': 'classification'}, 'model': {'name': 'mlp'}, 'data': data}
  filled = prepare.fill_in(api.read_config(config))['data']
  assert filled['source'] == 'tfds:fashion_mnist_5k'
  assert filled['validation_source'] == f'npz:{os.getcwd()}/a.npz'
  assert filled['data_dir'] == f'{os.getcwd()}/prepared'


# Patience


def test_patience_by_a_metric_of_which_more_is_better(source, tmp_path, monkeypatch):
  accuracies = iter([0.1, 0.3, 0.2, 0.25, 0.29, 0.9])
  found = lambda *_: {'loss': 9.0, 'accuracy': next(accuracies)}
  monkeypatch.setattr(hooks, 'evaluate', found)
  training = {'best_metric': 'validation/accuracy', 'patience': 2, 'evaluate_every': 2, 'checkpoint_every': 2}
  trained = train(tiny.config(source, training=training), tmp_path / 'run')
  assert trained.metrics[-1]['step'] == 8  # 2 evaluations after that of step 4
  assert checkpoint.best(trained.path / 'checkpoints') == trained.step == 4


def test_patience_used_up_at_the_last_step_is_an_early_stop(source, tmp_path):
  training = {'steps': 4, 'patience': 1, 'evaluate_every': 2}
  trained = train(tiny.config(source, training=training, optimizer={'learning_rate': 0.0}), tmp_path / 'run')
  assert run.open_run(trained.path).read_status()['message'] == 'early stop'
  with pytest.raises(UsageError, match=r'ended at step 4 by config.training.patience'):
    api.resume(trained.path, 8)


def test_patience_without_evaluations_is_refused(source):
  config = api.read_config(tiny.config(source, training={'patience': 1, 'evaluate_every': None}))
  with pytest.raises(UsageError, match='patience: counts evaluations, so it needs'):
    prepare.prepare(config)


# Told


def unused(config):
  return {field for field, _ in optimizer.unused(config)}


def test_options_without_effect_are_named(source, capsys):
  defaults = api.read_config(tiny.config(source))['optimizer']
  for name in ('adamw', 'adam', 'sgd', 'lion', 'muon', 'adafactor', 'rmsprop', 'lamb'):
    assert optimizer.unused(defaults | {'name': name}) == []
  given = {'momentum': 0.9, 'adam_learning_rate': 0.1, 'beta2': 0.5, 'decay_on': 'all', 'decay_fraction': 0.1}
  for name, idle in (
    ('adamw', {'momentum', 'adam_learning_rate'}),
    ('sgd', {'adam_learning_rate', 'beta2'}),
    ('rmsprop', {'adam_learning_rate'}),
    ('muon', {'momentum'}),
  ):
    assert unused(defaults | given | {'name': name}) == idle | {'decay_on', 'decay_fraction'}
  assert unused(defaults | {'schedule': 'constant', 'final_fraction': 0.1}) == {'final_fraction'}
  used = {
    'weight_decay': 0.1,
    'schedule': 'warmup_stable_decay',
    'name': 'rmsprop',
    'adam_learning_rate': None,
  }
  assert unused(defaults | given | used) == set()
  api.dry_run(tiny.config(source, optimizer={'momentum': 0.9, 'decay_fraction': 0.1}))
  assert capsys.readouterr().out.splitlines()[-2:] == [
    'note: config.optimizer.momentum does nothing with adamw',
    'note: config.optimizer.decay_fraction does nothing with schedule cosine',
  ]


def updates_change(source, field, value, name):
  """Whether two updates differ by a field of the optimizer: the oracle for `unused`."""
  base = api.read_config(tiny.config(source))['optimizer'] | {
    'name': name,
    'decay_steps': 9,
    'weight_decay': 0.1,
  }
  draw = np.random.default_rng(0)
  params = {'w': draw.normal(size=(16, 8)).astype(np.float32), 'b': np.ones(8, np.float32)}
  gradients = [  # ever smaller and of either sign, so that signs of sums (Lion) tell the betas apart
    {n: (scale * draw.normal(size=p.shape)).astype(np.float32) for n, p in params.items()}
    for scale in (1, 0.01, 0.003)
  ]
  results = []
  for config in (base, base | {field: value}):
    transform, moved = optimizer.build(config, 9), params
    state = transform.init(params)
    for gradient in gradients:
      updates, state = transform.update(gradient, state, moved)
      moved = jax.tree.map(lambda a, b: a + b, moved, updates)
    results.append(moved)
  return not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, results), strict=True))


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'lion', 'muon', 'adafactor', 'rmsprop', 'lamb'])
def test_unused_is_what_changes_no_update(source, name):
  base = api.read_config(tiny.config(source))['optimizer'] | {'name': name, 'weight_decay': 0.1}
  for field, value in (
    ('momentum', 0.5), ('adam_learning_rate', 0.5), ('nesterov', True), ('muon_momentum', 0.5),
    ('muon_iterations', 2), ('beta1', 0.5), ('beta2', 0.5), ('epsilon', 0.1),
  ):  # fmt: skip
    changes = updates_change(source, field, value, name)
    assert changes == (field not in unused(base | {field: value})), field


def test_the_dry_run_shows_frozen_parameters(source, capsys):
  config = tiny.config(source, training={'freeze': 'embed'})
  api.dry_run(config)
  first = capsys.readouterr().out
  assert 'frozen' in next(line for line in first.splitlines() if line.startswith('embed/'))
  numbers = lambda word: int(
    next(x for x in first.splitlines() if x.startswith(f'{word} ')).split()[-1].replace(',', '')
  )
  assert numbers('all') > numbers('trained') > 0


def test_a_run_and_a_dry_run_say_how_they_attend(averaged, source, capsys):
  log = (averaged.path / 'log.txt').read_text(encoding='utf-8')
  assert log.count('attention: XLA, since the devices are CPUs') == log.count('attention') == 1
  kept = json.loads((averaged.path / 'config.json').read_text(encoding='utf-8'))
  assert kept['model']['attention'] == 'auto'  # for the run may go on elsewhere
  api.dry_run(tiny.config(source, training={'freeze': 'embed'}))
  assert 'attention               XLA, since the devices are CPUs' in capsys.readouterr().out.splitlines()


def test_a_run_trained_by_cudnn_is_used_on_a_machine_without_it(averaged):
  moved = api.load_run(averaged.path)
  moved.config = attention.attending(moved.config, 'cudnn')
  assert moved.evaluate()['loss'] == pytest.approx(averaged.metrics[-1]['validation/loss'])
  assert len(moved.generate('whale', max_new_tokens=2)) == 1
  assert moved.model.attention == 'auto'  # that is by XLA, also where an encoder reads a whole text


def test_flops_are_those_of_the_whole_step_however_it_is_run(source):
  found = []
  for places, microbatches in (
    ({'data': 1}, 1),
    ({'data': 4}, 1),
    ({'data': 4, 'mode': 'pmap'}, 1),
    ({'data': 2}, 2),
  ):
    config = tiny.config(source, parallel=places, training={'microbatches': microbatches})
    made = prepare.prepare(api.read_config(config))
    prepared = placement.place(made)
    found.append(placement.flops_of(placement.lower_step(prepared), made, prepared))
  assert len(set(found)) == 1
  assert found[0] > 6 * 4 * 16 * sum(leaf.size for leaf in jax.tree.leaves(prepared.target.params)) / 2


def test_the_dry_run_refuses_a_folder_of_another_config(averaged, source):
  """Fields that are off here and on there too: only what the data decides is left open."""
  for optimized in ({}, {'average': 0.9, 'clip_norm': 1.0}):
    with pytest.raises(UsageError, match='holds a run of another config'):
      api.dry_run(tiny.config(source, optimizer=optimized, training={'steps': 4}), averaged.path)


@pytest.mark.parametrize('name', ['x' * 300, 'x' * 300 + '/run'])
def test_a_folder_that_cannot_be_made_is_one_line(name, source, tmp_path):
  with pytest.raises(StorageError, match='File name too long'):
    train(tiny.config(source), tmp_path / name)


@pytest.mark.parametrize('name', ['tokenizer.json', 'data.json'])
def test_what_a_begun_run_has_lost_is_not_made_anew(name, averaged, tmp_path):
  """Another tokenizer would train on with other ids; other data would go unseen."""
  shutil.copytree(averaged.path, tmp_path / 'run')
  (tmp_path / 'run' / name).unlink()
  run.open_run(tmp_path / 'run').write_status('interrupted', 4)
  with pytest.raises((StorageError, UsageError), match=name):
    api.resume(tmp_path / 'run', quiet=True)


def test_frozen_parameters_of_a_start_that_came_to_nothing_are_not_kept(tmp_path):
  state = lambda value: {'frozen': {'a': np.full(3, value)}, 'params': {'b': np.ones(2)}}
  with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
    saver.save(1, state(1.0))
  shutil.rmtree(tmp_path / '1')  # killed after the frozen part, before the step
  with checkpoint.Checkpointer(tmp_path, keep=1, resumed_from=0) as saver:
    saver.save(1, state(2.0))
  _, fields = checkpoint.restore_fields(tmp_path, ('frozen',))
  np.testing.assert_array_equal(fields['frozen']['a'], np.full(3, 2.0))


def test_a_vocabulary_larger_than_the_tokenizers_is_no_matter(source, tmp_path):
  """A model may have logits to spare (a multiple of 64, say): no such token is ever chosen."""
  config = tiny.config(
    source, model={'vocabulary_size': 500}, training={'steps': 1}, optimizer={'learning_rate': 0.0}
  )
  trained = train(config, tmp_path / 'run')  # samples at its end
  assert {token < 18 for c in trained.generate('sea', num=4) for token in c.tokens} == {True}
  greedy = trained.generate('sea', strategy='greedy', repetition_penalty=1.2, max_new_tokens=20)
  assert len(greedy[0].tokens) == 20


def test_every_field_of_the_sections_is_resolved(source):
  config = api.read_config(tiny.config(source))
  for section, schema in SECTIONS.items():
    assert set(config[section]) == set(schema.__dataclass_fields__)


# A full disk


@pytest.mark.parametrize('file', ['log.txt', 'samples/00000002-sample.txt', 'plots/loss.png'])
def test_a_full_disk_is_one_line(file, source, tmp_path):
  """/dev/full takes no byte, like a full disk."""
  config = tiny.config(source, training={'steps': 2, 'sample_every': 2})
  config = config | {'data': config['data'] | {'tokenizer': 'bytes'}}
  folder = tmp_path / 'run'
  train(config, folder)
  (folder / file).unlink()
  partial = (folder / file).with_name(
    f'.{(folder / file).name}.tmp'
  )  # as samples are written: beside, and moved
  os.symlink('/dev/full', partial if file.startswith('samples') else folder / file)
  shutil.rmtree(folder / 'checkpoints')
  run.open_run(folder).write_status('interrupted', 0)
  with pytest.raises(StorageError) as error:
    train(config, folder)
  assert 'No space left on device' in str(error.value)
  assert '\n' not in str(error.value)
