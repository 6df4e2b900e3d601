"""Masked language modelling: what is hidden, by chance and by words, and that only what is hidden is learned from."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aigc_jax import api, data, models, tasks
from aigc_jax.config import floats_of
from aigc_jax.data import masked_text, tokenizers
from aigc_jax.errors import UsageError
from aigc_jax.task import Context
from aigc_jax.tasks import masked_language
from aigc_jax.training import parallel, prepare
from aigc_jax.training import step as step_module
from tests import tiny

ROWS, TIME, MASK, END = 400, 100, 20, 7  # END lies among the ordinary tokens, as in a trained BPE
TASK = {
  'mask_token': MASK,
  'end_of_text': END,
  'special_tokens': (),
  'vocabulary_size': None,
  'mask_fraction': 0.15,
  'mask_share': 0.8,
  'random_share': 0.1,
  'whole_words': False,
}
LEAST_P = 1e-4  # seeds are fixed; a share that is off by a tenth gives p below 1e-8 here


def drawn_batch(seed=0, rows=ROWS):
  """Random tokens in words of 1 to 6, with ends of texts, and rows that end in padding."""
  draw = np.random.default_rng(seed)
  tokens = draw.integers(0, MASK, (rows, TIME)).astype(np.int32)
  lengths = draw.integers(TIME // 2, TIME + 1, rows).astype(np.int32)
  mask = (np.arange(TIME) < lengths[:, None]).astype(np.float32)
  begins = (draw.random((rows, TIME)) < 0.4) | (tokens == END)
  begins[:, 1:] |= tokens[:, :-1] == END
  return {'inputs': tokens, 'word_begins': begins, 'mask': mask, 'lengths': lengths}


def hide(task, batch, seed=0):
  keys = masked_language.row_keys(jax.random.key(seed), jnp.arange(len(batch['inputs'])))
  return jax.device_get(hidden_by(tuple(task.items()))(batch, keys))


@functools.cache
def hidden_by(items):
  return jax.jit(functools.partial(masked_language.hide, dict(items)))


def chi_square(observed, shares):
  return stats.chisquare(observed, np.array(shares) * sum(observed)).pvalue


@pytest.mark.parametrize('fields', [{}, {'mask_fraction': 0.4, 'mask_share': 0.5, 'random_share': 0.3}])
def test_tokens_are_chosen_and_changed_in_the_shares_asked_for(fields):
  task, batch = TASK | fields, drawn_batch()
  found = hide(task, batch)
  ordinary = (batch['mask'] > 0) & (batch['inputs'] != END)
  chosen = found['chosen'] > 0
  assert not chosen[~ordinary].any(), 'padding and the ends of texts are never chosen'
  fraction = task['mask_fraction']
  assert chi_square([chosen.sum(), (ordinary & ~chosen).sum()], [fraction, 1 - fraction]) > LEAST_P
  np.testing.assert_array_equal(found['targets'], batch['inputs'])
  before, after = batch['inputs'][chosen], found['inputs'][chosen]
  masks, stays = (after == MASK).sum(), (after == before).sum()
  # A random token is the one that was there in 1 of the 19 ordinary ones.
  share, changes = task['mask_share'], task['random_share'] * 18 / 19
  counts = [masks, len(after) - masks - stays, stays]
  assert chi_square(counts, [share, changes, 1 - share - changes]) > LEAST_P
  for place in (
    np.arange(TIME),
    batch['inputs'],
  ):  # the lots of tokens side by side are independent of where and what
    number = np.broadcast_to(place, chosen.shape)[ordinary] % 5
    table = [np.bincount(number[chosen[ordinary] == kind], minlength=5) for kind in (False, True)]
    assert stats.chi2_contingency(table).pvalue > LEAST_P


def test_random_tokens_are_ordinary_and_equally_likely():
  found = hide(TASK | {'mask_share': 0.0, 'random_share': 1.0, 'mask_fraction': 1.0}, batch := drawn_batch())
  ordinary = (batch['mask'] > 0) & (batch['inputs'] != END)
  counts = np.bincount(found['inputs'][ordinary], minlength=MASK + 1)
  assert counts[END] == counts[MASK] == 0
  assert stats.chisquare(np.delete(counts[:MASK], END)).pvalue > LEAST_P
  without = hide(
    TASK | {'end_of_text': None, 'mask_share': 0.0, 'random_share': 1.0, 'mask_fraction': 1.0}, batch
  )
  counts = np.bincount(without['inputs'][batch['mask'] > 0], minlength=MASK + 1)
  assert counts[MASK] == 0
  assert stats.chisquare(counts[:MASK]).pvalue > LEAST_P


def words_of(batch):
  """[(row, the columns of a word)], its padding and ends of texts left out, by plain Python."""
  words = []
  for row, begins in enumerate(batch['word_begins']):
    for column, begin in enumerate(begins.tolist()):
      if begin or column == 0:
        words.append((row, []))
      if batch['mask'][row, column] and batch['inputs'][row, column] != END:
        words[-1][1].append(column)
  return [(row, columns) for row, columns in words if columns]


def test_a_word_is_chosen_whole_or_not_at_all():
  task, batch = TASK | {'whole_words': True}, drawn_batch()
  found, words = hide(task, batch), words_of(batch)
  shares = np.array([found['chosen'][row, columns].mean() for row, columns in words])
  assert set(shares.tolist()) == {0.0, 1.0}
  whole = shares.sum()
  assert chi_square([whole, len(words) - whole], [0.15, 0.85]) > LEAST_P
  long = np.array([len(columns) > 2 for _, columns in words])
  table = [[shares[long].sum(), (1 - shares[long]).sum()], [shares[~long].sum(), (1 - shares[~long]).sum()]]
  assert stats.chi2_contingency(table).pvalue > LEAST_P, 'long words are as likely as short ones'
  after, before = (found[name][found['chosen'] > 0] for name in ('inputs', 'targets'))
  counts = [(after == MASK).sum(), ((after != MASK) & (after != before)).sum(), (after == before).sum()]
  assert chi_square(counts, [0.8, 0.1 * 18 / 19, 0.1 + 0.1 / 19]) > LEAST_P, (
    'tokens of a word change one by one'
  )


@pytest.mark.parametrize('specification', ['characters', 'bytes', 'bpe:300'])
def test_words_of_a_text_are_those_of_a_regular_expression(specification):
  text = 'the white whale,\nand  the 春花秋月 sea of 往事 wonders ' * 8
  tokenizer = tokenizers.with_mask(tokenizers.build(specification, text, lambda: [text]))
  ids = tokenizer.encode(text)
  batch = {
    'inputs': ids[None],
    'word_begins': masked_text.word_begins(ids, tokenizer)[None],
    'mask': np.ones((1, len(ids)), np.float32),
  }
  task = TASK | {
    'mask_token': tokenizer.mask_token,
    'end_of_text': tokenizer.end_of_text,
    'special_tokens': tokenizer.special,
    'vocabulary_size': tokenizer.vocabulary_size,
    'whole_words': True,
  }
  ends = np.cumsum([len(tokenizer.pieces[i]) for i in ids.tolist()])
  starts, partly = ends - np.diff(ends, prepend=0), 0
  for seed in range(20):
    chosen = hide(task | {'mask_fraction': 0.3}, batch, seed)['chosen'][0] > 0
    for word in re.finditer(r'\s*(?:[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+)|\s+', text):
      first, last = (len(text[:place].encode()) for place in word.span())
      inside = chosen[
        (starts >= first) & (starts < last)
      ]  # BPE may join two characters into one token: no word then
      assert inside.all() or not inside.any()
      partly += inside.any() and len(inside) > 1
  assert partly > 20, 'words of several tokens are chosen'


def test_equal_keys_hide_the_same_and_others_do_not():
  batch = drawn_batch()
  first, again, other = hide(TASK, batch, 0), hide(TASK, batch, 0), hide(TASK, batch, 1)
  np.testing.assert_array_equal(first['inputs'], again['inputs'])
  np.testing.assert_array_equal(first['chosen'], again['chosen'])
  assert 0.2 < (first['chosen'] != other['chosen']).mean() / (2 * 0.15 * 0.85) < 1.2, (
    'as two independent draws'
  )
  assert (first['chosen'][0] != first['chosen'][1]).any(), 'rows differ too'


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
  """The experiment on a JSON-lines file of documents of 3 to 12 characters."""
  path, draw = tmp_path_factory.mktemp('corpus') / 'poems.jsonl', np.random.default_rng(0)
  texts = [''.join(draw.choice(list('abcdefg '), draw.integers(3, 13))) for _ in range(300)]
  path.write_text('\n'.join(json.dumps({'text': text}) for text in texts), encoding='utf-8')
  return prepare.prepare(
    api.read_config(config(f'jsonl:{path}', data={'packing': 'documents'}, optimizer={'clip_norm': 0.1}))
  )


def config(source, **sections):
  made = tiny.config(source, **sections)
  made['task'] = {'name': 'masked_language', 'mask_fraction': 0.3} | sections.get('task', {})
  made['model'] = made['model'] | {'name': 'transformer_encoder'}
  made['data'] = made['data'] | {'batch_size': 8}
  return made


def with_fields(experiment, **sections):
  return {name: fields | sections.get(name, {}) if isinstance(fields, dict) else fields
          for name, fields in experiment.config.items()}  # fmt: skip


@pytest.fixture(scope='module')
def made(packed):
  """(task, params, a hidden batch) of the experiment."""
  task, batch = packed.task, packed.dataset.train_batch(0)
  params, extra = task.init(jax.random.key(1), batch)
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
  return task, params, task.collect(params, extra, batch, Context(jax.random.key(2), 0, True))[1]


def test_the_loss_is_the_cross_entropy_of_the_chosen_alone(packed, made):
  task, params, batch = made
  batch = jax.device_get(batch)
  model = models.build(packed.config['model'])
  logits = np.asarray(
    model.apply({'params': params}, batch['inputs'], segments=batch['segments']), np.float64
  )
  total = count = hits = 0
  for row, column in np.argwhere(batch['chosen'] > 0).tolist():
    scores, target = logits[row, column], batch['targets'][row, column]
    total -= np.log(np.exp(scores[target]) / np.exp(scores).sum())
    hits += int(scores.argmax() == target)
    count += 1
  assert 10 < count < batch['mask'].sum()
  loss, (weight, _, metrics) = task.loss(params, {}, batch, Context(jax.random.key(0), 0, False))
  np.testing.assert_allclose(loss, total, rtol=1e-5)  # float32 against float64
  assert weight == count == metrics['accuracy'][1]
  assert metrics['accuracy'][0] == hits
  assert task.report({'loss': 2.0})['pseudo_perplexity'] == pytest.approx(np.exp(2.0))


def test_targets_that_were_not_chosen_change_nothing(made):
  task, params, batch = made
  context = Context(jax.random.key(0), 0, True)
  other = batch | {'targets': jnp.where(batch['chosen'] > 0, batch['targets'], 0)}
  assert (other['targets'] != batch['targets']).any()
  gradient = jax.value_and_grad(lambda params, batch: task.loss(params, {}, batch, context)[0])
  for one, two in zip(*map(jax.tree.leaves, (gradient(params, batch), gradient(params, other))), strict=True):
    np.testing.assert_array_equal(one, two)
  changed = batch | {'targets': jnp.where(batch['chosen'] > 0, 0, batch['targets'])}
  assert gradient(params, changed)[0] != gradient(params, batch)[0]


def run(experiment, devices=1, **sections):
  """(losses, gradient norms and weights [steps, 3], last State, evaluation of all batches)."""
  fields = with_fields(experiment, **sections)
  program = parallel.make_parallel(fields, tasks.build, jax.devices()[:devices])
  floats = program.put_floats(floats_of(fields))
  state, seen = program.init(floats, jax.random.key(0), experiment.dataset.train_batch(0)), []
  batches = list(experiment.dataset.validation_batches())
  evaluate = lambda batch: jax.device_get(program.evaluate(floats, state, program.put_batch(batch))[0])
  sums = [evaluate(batch) for batch in (batches[0], batches[-1])]
  for i in range(3):
    state, metrics = program.step(floats, state, program.put_batch(experiment.dataset.train_batch(i)))
    seen.append([float(metrics[name]) for name in ('loss', 'gradient_norm', 'weight')])
  return np.array(seen), state, sums


@pytest.fixture(scope='module')
def alone(packed):
  return run(packed)


@pytest.mark.parametrize('sections', [{'training': {'microbatches': 2}}, {'parallel': {'data': 4}}])
def test_microbatches_and_devices_give_the_numbers_of_one(packed, alone, sections):
  found = run(packed, sections.get('parallel', {}).get('data', 1), **sections)
  assert len(set(alone[0][:, 2].tolist())) > 1, 'steps choose different numbers of tokens'
  # Sums in another order: 1e-7 of rounding in the gradients, which three steps of Adam magnify where they are tiny.
  np.testing.assert_allclose(found[0], alone[0], rtol=2e-5)
  for ours, theirs in zip(*(jax.tree.leaves(state.params) for state in (found[1], alone[1])), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)


def test_per_device_programs_evaluate_as_one_device_does(packed, alone):
  _, _, sums = run(packed, 4, parallel={'mode': 'pmap', 'data': 4})
  for ours, theirs in zip(sums, alone[2], strict=True):
    assert ours.keys() == theirs.keys() == {'loss', 'accuracy'}
    for name in ours:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


def test_an_evaluation_hides_the_same_in_batches_of_any_size(packed):
  """What is drawn for a row follows from its number, not from the batch, the run's seed or the step."""
  totals = []
  params = packed.task.init(jax.random.key(0), packed.dataset.train_batch(0))[0]
  for size in (3, 8):
    dataset = data.load(packed.config['data'] | {'batch_size': size}, packed.dataset.tokenizer, 'masked_text')
    evaluate = jax.jit(
      lambda batch, seed: packed.task.evaluate(params, {}, batch, Context(jax.random.key(seed), 0, False))
    )
    found = [evaluate(batch, size) for batch in dataset.validation_batches()]
    totals.append(jax.tree.map(lambda *sums: float(sum(sums)), *found))
  assert totals[0]['loss'][1] == totals[1]['loss'][1] > 30
  np.testing.assert_allclose(totals[0]['loss'], totals[1]['loss'], rtol=1e-5)
  assert totals[0]['accuracy'] == totals[1]['accuracy']


def test_lanes_have_fractions_of_their_own(packed):
  program = step_module.lanes(step_module.make_program(packed.config, tasks.build))
  fractions = jnp.array([0.1, 0.5, 1.0])
  floats = {name: jnp.full(3, value, jnp.float32) for name, value in floats_of(packed.config).items()}
  floats['task.mask_fraction'] = fractions
  batch, keys = packed.dataset.train_batch(0), jax.random.split(jax.random.key(0), 3)
  state = jax.jit(program.init)(floats, keys, batch)
  _, metrics = jax.jit(program.step)(floats, state, batch)
  ordinary = int(((batch['inputs'] != packed.config['task']['end_of_text']) * batch['mask']).sum())
  for fraction, weight in zip(fractions.tolist(), metrics['weight'].tolist(), strict=True):
    assert stats.binomtest(int(weight), ordinary, min(fraction, 1.0)).pvalue > LEAST_P
  assert metrics['weight'][2] == ordinary


def test_the_data_decides_the_special_tokens(packed):
  task, tokenizer = packed.config['task'], packed.dataset.tokenizer
  assert (task['mask_token'], task['end_of_text']) == (tokenizer.mask_token, tokenizer.end_of_text)
  assert packed.config['model']['vocabulary_size'] == tokenizer.vocabulary_size
  assert packed.config['model']['context_length'] == 16
  for fields, words in (
    ({'mask_share': 0.95}, 'random_share: 0.1 and config.task.mask_share = 0.95 are more than all'),
    ({'mask_token': 3}, 'mask_token: 3, but it is'),
  ):
    with pytest.raises(UsageError, match=words):
      tasks.complete(with_fields(packed, task=fields), packed.dataset)
  with pytest.raises(UsageError, match="'transformer' is no model for the task 'masked_language'"):
    prepare.prepare(with_fields(packed, model={'name': 'transformer'}))
