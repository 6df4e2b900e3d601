"""Runs that start from another's parameters: its settings, a new head, another vocabulary, as far as they fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aigc_jax
from aigc_jax.errors import UsageError
from aigc_jax.schemas import read_config
from aigc_jax.training import checkpoint, initials
from tests import tiny

STILL = {'learning_rate': 0.0}


@pytest.fixture(scope='module')
def masked(tmp_path_factory):
  """A masked language model of settings unlike the defaults, and its text."""
  folder = tmp_path_factory.mktemp('masked')
  source = tiny.write_corpus(folder / 'words.txt')
  config = tiny.config(
    source,
    task={'name': 'masked_language'},
    model={
      'name': 'transformer_encoder',
      'positions': 'rotary',
      'query_key_norm': True,
      'activation': 'swiglu',
    },
    training={'steps': 2},
  )
  del config['task']['sample_tokens']
  return aigc_jax.train(config, folder / 'run', quiet=True)


def labelled(folder):
  words = [f'{tiny.WORDS[i % 4]} {tiny.WORDS[i % 11]}\t{"ab"[i % 2]}' for i in range(40)]
  (folder / 'texts.tsv').write_text('text\tlabel\n' + '\n'.join(words) + '\n', encoding='utf-8')
  return f'tsv:{folder}/texts.tsv'


def start(masked, folder, said=None, **fields):
  config = {
    'task': {'name': 'classification'},
    'model': {'name': 'transformer_classifier'},
    'data': {'source': labelled(folder), 'sequence_length': 16, 'batch_size': 4},
    'optimizer': STILL,
    'training': {'steps': 1, 'evaluate_every': None, 'sample_every': None, 'tensorboard': False},
    'parallel': {'data': 1},
    'init_from': str(masked.path),
  }
  return aigc_jax.train(config, folder / 'run', list(fields.items()), quiet=said is None)


def test_a_classifier_of_an_encoder_has_its_settings_and_a_new_head(masked, tmp_path, capsys):
  run = start(masked, tmp_path, said=True)
  for field in ('layers', 'heads', 'width', 'positions', 'query_key_norm', 'activation'):
    assert run.config['model'][field] == masked.config['model'][field]
  assert run.tokenizer.sha256 == masked.tokenizer.sha256
  assert f'starting from the parameters of {masked.path}; new: head\n' in capsys.readouterr().err
  ours, theirs = checkpoint.flat(run.params), checkpoint.flat(masked.params)
  assert set(ours) - set(theirs) == {'head/kernel', 'head/bias'}
  assert np.std(ours['head/kernel']) > 0  # drawn anew
  for path in theirs:
    np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def test_what_is_given_is_not_taken_from_there(masked, tmp_path):
  with pytest.raises(UsageError, match=r'block_0/mlp/.* in the checkpoint and .* in the config'):
    start(masked, tmp_path, **{'model.mlp_width': 24})
  config = {'init_from': str(masked.path), 'task': {'name': 'masked_language'}, 'model': {'width': 8}}
  found = read_config(config)
  assert (found['model']['name'], found['model']['width']) == ('transformer_encoder', 8)
  assert found['model']['activation'] == 'swiglu'


def test_what_is_typed_may_name_fields_that_come_from_there(masked, tmp_path):
  """Where neither the config nor what is typed names a model: `--config.init_from=RUN --config.model.dropout=0.3`."""
  config = {'task': {'name': 'masked_language'}, 'init_from': 'runs/masked'}
  typed = [('model.dropout', '0.3'), ('init_from', str(masked.path)), ('data.sequence_length', '12')]
  found = read_config(config, typed)
  expected = masked.config['model'] | {'dropout': 0.3}
  assert {name: found['model'][name] for name in expected if name != 'vocabulary_size'} == {
    name: value for name, value in expected.items() if name != 'vocabulary_size'
  }
  assert found['data']['sequence_length'] == 12
  with pytest.raises(UsageError, match=r'config.model.dropuot: no such key; did you mean .*dropout'):
    read_config(config, [*typed, ('model.dropuot', '0.3')])
  with pytest.raises(UsageError, match=r'config.init_from: .*masked: no such folder, and nothing else says'):
    read_config(config, typed[:1])


def test_more_tokens_keep_the_rows_of_those_that_were(masked, tmp_path):
  many = masked.config['model']['vocabulary_size'] + 5
  run = start(masked, tmp_path, **{'model.vocabulary_size': many})
  ours, theirs = run.params['embed']['token'], masked.params['embed']['token']
  assert len(ours) == many
  np.testing.assert_array_equal(ours[: len(theirs)], theirs)
  assert np.std(ours[len(theirs) :]) > 0


@pytest.mark.parametrize(
  ('typed', 'message'),
  [
    ({'lora.rank': 2}, r"lora.trained: 'head/bias' is new, .* use --config.lora.trained=\"\^\(head\)\""),
    ({'training.freeze': 'kernel'}, r"training.freeze: 'head/kernel' is new, and would never learn"),
    (
      {'lora.rank': 2, 'lora.trained': '^head', 'model.vocabulary_size': 90},
      r"'embed/token' has rows that are new, .*=\"\^head\|\^\(embed/token\)\"",
    ),
  ],
)
def test_what_is_new_must_learn(masked, tmp_path, typed, message):
  with pytest.raises(UsageError, match=message):
    start(masked, tmp_path, **typed)
  assert not (tmp_path / 'run').exists()


def test_what_is_frozen_is_theirs_and_the_head_learns(masked, tmp_path):
  frozen = {
    'training.freeze': '^(block|embed|final)',
    'optimizer.learning_rate': 0.1,
    'optimizer.schedule': 'constant',
  }
  run = start(masked, tmp_path, **frozen)
  _, fields = checkpoint.restore_fields(run.path / 'checkpoints', ('params', 'frozen'), 'latest')
  assert set(fields['params']) == {'head'}
  np.testing.assert_array_equal(fields['frozen']['embed']['token'], masked.params['embed']['token'])


def test_lanes_begin_alike_but_for_what_is_new():
  tokens, kernel = jnp.arange(24.0).reshape(2, 6, 2), jnp.arange(8.0).reshape(2, 2, 2)
  saved = {'embed/token': -np.ones((4, 2), np.float32), 'masked_head/bias': np.zeros(4, np.float32)}
  there = initials.Initial('', '', None, saved, saved.items)
  (found,) = initials.overlay(({'embed': {'token': tokens}, 'head': {'kernel': kernel}},), there, lanes=1)
  np.testing.assert_array_equal(found['embed']['token'][:, :4], -np.ones((2, 4, 2)))
  np.testing.assert_array_equal(found['embed']['token'][:, 4:], tokens[:, 4:])
  np.testing.assert_array_equal(found['head']['kernel'], kernel)


def test_columns_of_classes_are_no_tokens():
  """Output weights of other classes are new; those of more tokens keep the first."""
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  classes = initials.plan(
    {'embed/token': leaf(9, 2), 'head/kernel': leaf(2, 3)},
    {'embed/token': leaf(9, 2), 'head/kernel': leaf(2, 4)},
  )
  assert (classes.new, classes.rows) == (['head/kernel'], {})
  tokens = initials.plan(
    {'embed/token': leaf(9, 2), 'head/kernel': leaf(2, 9)},
    {'embed/token': leaf(11, 2), 'head/kernel': leaf(2, 11)},
  )
  assert tokens.rows == {'embed/token': (0, 9), 'head/kernel': (1, 9)}
