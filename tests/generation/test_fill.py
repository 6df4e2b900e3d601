"""Masks filled in: candidates against a plain forward pass, whatever is filled in beside; and the command line."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import api, cli, filling, models
from aigc_jax.data import tokenizers
from aigc_jax.errors import DataError, UsageError
from aigc_jax.generation.fill import fill
from tests import tiny

ALPHABET = 'abcdefgh 深度学习'
PROMPTS = ['深度[MASK]习', 'a[MASK]c [MASK] def', '[MASK]', 'abcdefgh abcdefgh [MASK]']


@pytest.fixture(scope='module')
def made():
  """(model, params, tokenizer), the model with logits to spare."""
  tokenizer = tokenizers.with_mask(tokenizers.characters(ALPHABET, end_of_text=True))
  size = tokenizer.vocabulary_size + 5
  model = models.SCHEMAS['transformer_encoder'](size, 24, layers=2, heads=2, width=16, init_scale=0.5)
  params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
  return model, params, tokenizer


def test_candidates_are_those_of_a_plain_forward_pass(made):
  model, params, tokenizer = made
  found = fill(model, params, tokenizer, PROMPTS, candidates=4)
  assert [filled.prompt for filled in found] == PROMPTS
  for filled, count in zip(found, (1, 2, 1, 1), strict=True):
    tokens = tokenizer.encode_masked(filled.prompt)
    logits = np.array(model.apply({'params': params}, tokens[None])[0], np.float64)
    logits[:, [tokenizer.end_of_text, *range(tokenizer.mask_token, model.vocabulary_size)]] = -np.inf
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    places = np.flatnonzero(tokens == tokenizer.mask_token)
    assert len(filled.masks) == len(places) == count
    for mask, place in zip(filled.masks, places, strict=True):
      expected = np.argsort(-chances[place])[:4]
      assert [candidate.token for candidate in mask] == expected.tolist()
      # one row in a padded batch and alone: sums in another order
      np.testing.assert_allclose([c.probability for c in mask], chances[place, expected], rtol=1e-4)
      assert [candidate.text for candidate in mask] == [tokenizer.decode([token]) for token in expected]
    best = filled.prompt
    for mask in filled.masks:
      best = best.replace('[MASK]', mask[0].text, 1)
    assert filled.text == best


def test_all_ordinary_tokens_are_candidates_at_most(made):
  model, params, tokenizer = made
  (mask,) = fill(model, params, tokenizer, ['深[MASK]'], candidates=1000)[0].masks
  assert sorted(c.token for c in mask) == [
    i for i in range(tokenizer.mask_token) if i != tokenizer.end_of_text
  ]
  assert sum(c.probability for c in mask) == pytest.approx(1, rel=1e-5)
  assert fill(model, params, tokenizer, []) == []


def test_what_cannot_be_filled_is_refused_in_one_line(made):
  model, params, tokenizer = made
  plain = tokenizers.without_mask(tokenizer)
  for tokenizer_given, prompt, words in (
    (tokenizer, 'abc', r"^prompt 'abc' has no \[MASK\] to fill in$"),
    (tokenizer, 'abc' * 8 + '[MASK]', 'has 25 tokens, and the model reads 24 at most'),
    (tokenizer, 'x[MASK]', "'x' .* is outside the vocabulary"),
    (plain, 'a[MASK]', r'the tokenizer has no \[MASK\]'),
    (None, 'a[MASK]', r'the tokenizer has no \[MASK\]'),
  ):
    with pytest.raises(UsageError, match=words):
      fill(model, params, tokenizer_given, [prompt])
  with pytest.raises(UsageError, match='candidates must be a whole number of at least 1'):
    fill(model, params, tokenizer, ['a[MASK]'], candidates=0)
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
  with pytest.raises(DataError, match='not finite'):
    fill(model, broken, tokenizer, ['a[MASK]'])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  source = tiny.write_corpus(folder / 'text.txt')
  config = tiny.config(source, training={'sample_every': 6}, optimizer={'learning_rate': 3e-2})
  config |= {'task': {'name': 'masked_language', 'whole_words': True}}
  config['model'] |= {'name': 'transformer_encoder'}
  return tiny.train(config, folder / 'run')


def test_a_run_fills_in_masks_from_the_command_line(run, capsys):
  filled = run.fill('wh[MASK]le s[MASK]a', candidates=3)[0]
  assert [len(mask) for mask in filled.masks] == [3, 3]
  command = ['generate', str(run.path), f'--prompt={filled.prompt}', '--num=3']
  assert cli.main(command) == 0
  text, *lines = capsys.readouterr().out.splitlines()
  assert text == filled.text
  assert len(lines) == 6
  for line, candidate in zip(lines, filled.masks[0] + filled.masks[1], strict=True):
    assert line.startswith('mask ')
    assert line.endswith(f'{candidate.probability:.4f}  {json.dumps(candidate.text)}')
  assert cli.main([*command, '--json']) == 0
  read = json.loads(capsys.readouterr().out)
  assert read['text'] == filled.text
  assert [[c['token'] for c in mask] for mask in read['masks']] == [
    [c.token for c in m] for m in filled.masks
  ]


def test_what_means_nothing_to_such_a_run_is_refused(run, capsys):
  for given, words in (
    ([], 'give a text with [MASK] in it'),
    (['--prompt=ship'], "prompt 'ship' has no [MASK] to fill in"),
    (['--prompt=s[MASK]ip', '--temperature=0.5'], '--temperature: '),
    (['--prompt=s[MASK]ip', '--label=1'], '--label: '),
  ):
    assert cli.main(['generate', str(run.path), *given]) == 64
    assert words in capsys.readouterr().err
  with pytest.raises(
    UsageError, match=r'masked_language, writes no text; fill\(prompts\) fills in their masks'
  ):
    run.generate('ship')
  model_of_text = types.SimpleNamespace(path='runs/text')
  with pytest.raises(UsageError, match=r'runs/text fills in no \[MASK\]'):
    filling.refuse_masks(model_of_text, types.SimpleNamespace(prompt=['a[MASK]']))


def test_a_run_shows_and_evaluates_what_it_fills_in(run):
  shown = sorted((run.path / 'samples').iterdir())
  assert [path.name for path in shown] == ['00000006-sample.txt', '00000012-sample.txt']
  masked, _, filled = shown[-1].read_text(encoding='utf-8').partition('\n--- filled in, ')
  assert '[MASK]' in masked
  assert '[MASK]' not in filled
  last = [line for line in run.metrics if 'validation/loss' in line][-1]
  assert last['validation/pseudo_perplexity'] == pytest.approx(np.exp(last['validation/loss']))
  again = api.load_run(run.path, 'latest').evaluate()
  for name in ('loss', 'accuracy', 'pseudo_perplexity'):
    assert again[name] == pytest.approx(last[f'validation/{name}'], rel=1e-6)
