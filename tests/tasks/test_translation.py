"""Writing a target from a source: the loss and what counts, joined rows, and runs that learn to copy."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import api, cli, data, tasks
from aigc_jax.errors import UsageError
from aigc_jax.task import Context
from aigc_jax.tasks import translation
from aigc_jax.tasks.language import LanguageConfig
from aigc_jax.training import placement, prepare
from tests.compilations import count_compilations

SMALL = {'layers': 1, 'width': 16}
MODELS = {
  'transformer_encoder_decoder': SMALL | {'heads': 2},
  'rnn_encoder_decoder': SMALL,
  'transformer': SMALL | {'heads': 2, 'bidirectional_prefix': True},
  'rnn': SMALL,
}


def config_of(model, source='synthetic:copy', task=(), **fields):
  named = {'task': {'name': 'translation', **dict(task)}, 'model': {'name': model, **MODELS[model]}}
  rows = {'source': source, 'batch_size': 4} | ({'longest': 3} if source.startswith('synthetic') else {})
  return named | {
    'data': rows | fields.pop('data', {}),
    'training': {'tensorboard': False} | fields.pop('training', {}),
    **fields,
  }


@functools.cache
def made(model, smoothing=None):
  """(Task, params, batch)."""
  config = config_of(model, task={'label_smoothing': smoothing}.items())
  found = prepare.prepare(api.read_config(config, ()))
  batch = found.dataset.train_batch(0)
  return found.task, found.task.init(jax.random.key(0), batch)[0], batch


def sums(task, params, batch, train=False):
  context = Context(jax.random.key(0), jnp.int32(0), train)
  total, (weight, _, metrics) = jax.jit(lambda params, batch: task.loss(params, {}, batch, context))(
    params, batch
  )
  return float(total), float(weight), {name: (float(a), float(b)) for name, (a, b) in metrics.items()}


def test_rows_are_joined_as_plain_python_joins_them():
  batch = {
    'sources': np.array([[5, 6, 9, 0], [7, 9, 0, 0], [0, 0, 0, 0]]),
    'lengths': np.array([3, 2, 0]),
    'inputs': np.array([[9, 1, 2], [9, 3, 0], [0, 0, 0]]),
    'targets': np.array([[1, 2, 9], [3, 9, 0], [0, 0, 0]]),
    'mask': np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], np.float32),
  }
  row = translation.join(batch)
  np.testing.assert_array_equal(row.tokens[:2], [[5, 6, 9, 1, 2, 0], [7, 9, 3, 0, 0, 0]])
  np.testing.assert_array_equal(row.mask, [[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0] * 6])
  kept = np.asarray(row.mask) > 0
  np.testing.assert_array_equal(np.asarray(row.targets)[kept], [1, 2, 9, 3, 9])
  np.testing.assert_array_equal(row.prefix, [2, 1, 0])


@pytest.mark.parametrize('model', list(MODELS))
def test_the_loss_is_the_cross_entropy_of_targets_alone(model):
  """By asking for each next token in a row of its own: what a model says of one prefix, padding left out."""
  task, params, batch = made(model)
  total, weight, metrics = sums(task, params, batch)
  decoder = translation.models.decoder(
    translation.models.build(prepare.prepare(api.read_config(config_of(model), ())).config['model'])
  )
  nats, hits, exact = 0.0, 0, 0
  for i in range(4):
    source, count = batch['sources'][i : i + 1, : batch['lengths'][i]], int(batch['mask'][i].sum())
    memory = decoder.encode(params, source, batch['lengths'][i : i + 1]) if decoder.encode else None
    cache = decoder.init_cache(1, 32)
    if memory is None and source.shape[1] > 1:
      _, cache = decoder.step(params, cache, source[:, :-1], np.ones((1, source.shape[1] - 1), bool))
    right = 0
    for t in range(count):
      logits, cache = decoder.step(params, cache, batch['inputs'][i : i + 1, t : t + 1], None, memory)
      shares = np.asarray(jax.nn.log_softmax(logits[0, 0]))
      nats -= shares[batch['targets'][i, t]]
      right += shares.argmax() == batch['targets'][i, t]
    hits, exact = hits + right, exact + (right == count)
  np.testing.assert_allclose(total, nats, rtol=1e-4)
  assert weight == batch['mask'].sum()
  assert metrics['accuracy'] == (hits, weight)
  assert metrics['exact_match'] == (exact, 4)


@pytest.mark.parametrize('model', ['transformer', 'rnn'])
def test_an_instruction_is_learned_as_one_text_with_a_loss_on_its_answer_alone(model, tmp_path):
  """As the task of language itself has it: the whole text in one row, and a mask on the answer."""
  (tmp_path / 'p.tsv').write_text('ab\tcd\nb\tdca\nabcab\td\n' * 2)
  template = 'a{source}b'
  fields = {'tokenizer': 'characters', 'source_template': template, 'batch_size': 1}
  config = config_of(model, f'tsv:{tmp_path}/p.tsv', data=fields)
  found = prepare.prepare(api.read_config(config, ()))
  known = found.dataset.tokenizer
  params = found.task.init(jax.random.key(0), found.dataset.train_batch(0))[0]
  language = {'name': 'language', **dataclasses.asdict(LanguageConfig())}
  as_text = tasks.build(found.config | {'task': language})
  (batch,), ((source, target),) = found.dataset.validation_batches(), found.dataset.pairs
  asked = known.encode(template.replace('{source}', source))
  tokens = np.array([[*asked, *known.encode(target), known.end_of_text]])
  mask = np.arange(tokens.shape[1] - 1)[None] >= len(asked) - 1
  row = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'mask': mask.astype(np.float32)}
  expected = sums(as_text, params, row)
  np.testing.assert_allclose(sums(found.task, params, batch)[:2], expected[:2], rtol=1e-5)
  assert expected[1] == len(target) + 1
  np.testing.assert_array_equal(found.task.prompts(known, [source]).tokens[0], asked)


@pytest.mark.parametrize('model', list(MODELS))
def test_padding_and_rows_that_fill_up_count_nothing_and_rows_add_up(model):
  task, params, batch = made(model)
  whole = sums(task, params, batch)
  noisy = dict(batch)
  noisy['targets'] = np.where(batch['mask'] > 0, batch['targets'], 1)
  noisy['inputs'] = np.where(batch['mask'] > 0, batch['inputs'], 1)
  noisy['sources'] = np.where(
    np.arange(batch['sources'].shape[1]) < batch['lengths'][:, None], batch['sources'], 1
  )
  np.testing.assert_allclose(sums(task, params, noisy)[:2], whole[:2], rtol=1e-5)
  empty = {name: np.concatenate([array, np.zeros_like(array)]) for name, array in batch.items()}
  filled = sums(task, params, empty)
  np.testing.assert_allclose(filled[:2], whole[:2], rtol=1e-5)
  assert filled[2]['exact_match'][1] == 4
  parts = [sums(task, params, {name: array[i : i + 2] for name, array in batch.items()}) for i in (0, 2)]
  np.testing.assert_allclose(parts[0][0] + parts[1][0], whole[0], rtol=1e-5)


def test_labels_are_smoothed_in_training_alone():
  model = 'rnn_encoder_decoder'
  plain, params, batch = made(model)
  smooth, _, _ = made(model, 0.2)
  assert sums(smooth, params, batch)[0] == pytest.approx(sums(plain, params, batch)[0])
  # an even distribution's cross-entropy with even labels, for a part of 0.2
  assert sums(smooth, params, batch, train=True)[0] != pytest.approx(
    sums(plain, params, batch, train=True)[0], rel=1e-4
  )


def completed(model, source_tokenizer=None, **fields):
  dataset = data.load(
    {
      'source': 'bundled:en_zh',
      'source_tokenizer': source_tokenizer,
      'source_length': 20,
      'target_length': 30,
    },
    form='pairs',
  )
  config = api.read_config(config_of(model, 'bundled:en_zh'), ())
  return translation.complete(config | {'model': prepare.fill_in(config)['model'] | fields}, dataset)['model']


@pytest.mark.parametrize(
  ('model', 'fields', 'message'),
  [
    ('transformer', {'context_length': 48}, 'config.model.context_length: 48 is too small .* use 49 or more'),
    ('transformer_encoder_decoder', {'context_length': 29}, 'use 30 or more'),
    ('transformer', {'source_tokenizer': 'bytes'}, 'config.data.source_tokenizer: .* has one vocabulary'),
    ('rnn_encoder_decoder', {'source_vocabulary_size': 500}, 'sources and targets have one vocabulary'),
    ('rnn', {'vocabulary_size': 5}, 'config.model.vocabulary_size: 5 is too small'),
  ],
)
def test_models_that_do_not_fit_the_pairs_are_refused(model, fields, message):
  with pytest.raises(UsageError, match=message) as raised:
    completed(model, **fields)
  assert '\n' not in str(raised.value)


@pytest.fixture(scope='module')
def copying(tmp_path_factory):
  """A run that has learned to copy a letter or two."""
  training = {
    'steps': 400,
    'evaluate_every': 200,
    'checkpoint_every': None,
    'sample_every': 200,
    'log_every': 100,
  }
  config = config_of(
    'rnn_encoder_decoder', data={'longest': 2, 'batch_size': 64, 'validation_pairs': 40}, training=training
  )
  config['model'] = {'name': 'rnn_encoder_decoder', 'width': 48}
  config['optimizer'] = {'learning_rate': 1e-2}
  return api.train(config, tmp_path_factory.mktemp('runs') / 'copy', quiet=True)


def test_a_run_answers_prompts_and_its_exact_match_is_that_of_greedy_decoding(copying):
  found = copying.metrics[-1]['validation/exact_match']
  dataset = data.load(copying.config['data'], form='synthetic_pairs')
  made = copying.generate([source for source, _ in dataset.pairs])
  hits = sum(c.text == target for c, (_, target) in zip(made, dataset.pairs, strict=True))
  assert found == pytest.approx(hits / 40)
  assert hits > 20
  beams = copying.generate(['ab', 'c'], strategy='beam', num=2, beam_size=3)
  assert len(beams) == 4
  assert beams[0].score >= beams[1].score
  shown = next((copying.path / 'samples').glob('*translations.txt')).read_text(encoding='utf-8')
  assert shown.split()[:3] == ['source', 'prediction', 'reference']


def test_the_command_line_answers_scores_and_refuses(copying, capsys):
  run = str(copying.path)
  assert cli.main(['generate', run, '--prompt=ab', '--prompt=c']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line == copying.generate(p)[0].text for line, p in zip(lines, ['ab', 'c'], strict=True)] == [
    True,
    True,
  ]
  assert cli.main(['generate', run, '--prompt=ab', '--strategy=beam', '--num=2']) == 0
  scored = [line.split('\t') for line in capsys.readouterr().out.splitlines()]
  assert float(scored[0][0]) >= float(scored[1][0])
  assert cli.main(['eval', run, '--metrics=exact_match,chrf', '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['exact_match']['value'] == pytest.approx(100 * copying.metrics[-1]['validation/exact_match'])
  rows = (copying.path / 'predictions' / 'predictions.jsonl').read_text(encoding='utf-8').splitlines()
  assert len(rows) == 40
  assert cli.main(['eval', run, '--metrics=blue']) == 64
  assert "'blue' is no score" in capsys.readouterr().err
  assert cli.main(['generate', run, '--prompt=ab', '--strategy=beam', '--stop=x']) == 64
  assert '--stop: means nothing with --strategy=beam' in capsys.readouterr().err


def test_length_buckets_compile_one_step_each():
  config = config_of('rnn_encoder_decoder', 'bundled:en_zh', data={'buckets': 3, 'tokenizer': 'bpe:600'})
  found = prepare.prepare(api.read_config(config, ()))
  placed = placement.place(found)
  with count_compilations() as names:
    compiled, flops = placement.compile_steps(found, placed)
  assert len(compiled) == 3
  assert [name for name in names if 'step' in name] == names
  assert len(names) == 3
  assert flops is None
  state = placed.program.init(placed.floats, placed.key, placed.example)
  seen = set()
  with count_compilations() as names:
    for step in range(30):
      batch = placement.batch_on_devices(placed, found.dataset, step)
      seen.add(placement.shape_of(batch))
      state, _ = compiled[placement.shape_of(batch)](placed.floats, state, batch)
      state = jax.block_until_ready(state)
  assert len(seen) == 3
  assert not names
