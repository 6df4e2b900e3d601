"""Names and numbers as people give them, and what is told beside tokens."""

import jax
import numpy as np
import pytest

from aigc_jax.data import tokenizers
from aigc_jax.errors import UsageError
from aigc_jax.generation import Sampling, choices, decode, generate_text, picture, prompts_of
from aigc_jax.generation.beam import Beam
from tests.generation import toys

KNOWN = tokenizers.build('characters', 'abcdefgh ', lambda: (), separated=True)
ENDLESS = tokenizers.build('characters', 'abc', lambda: ())


def test_names_become_a_way_of_writing():
  make = lambda strategy, num=1, **given: choices.make(KNOWN, strategy, num, given)
  assert make('sample') == Sampling(temperature=0.8)
  assert make('top_k', temperature=0.5) == Sampling(temperature=0.5, top_k=40)
  assert make('greedy', top_k=None, forbid=()) == Sampling(greedy=True)
  assert make('beam', 2, length_penalty=0.5) == Beam(4, 0.5, False, 2)
  assert make('beam', 6) == Beam(6, num=6)
  chain = make('greedy', repetition_penalty=1.2, forbid=['ab'], force=['c'], min_new_tokens=3).processors
  assert [type(processor).__name__ for processor in chain] == [
    'RepetitionPenalty',
    'ForbiddenText',
    'MinimumLength',
    'ForcedWords',
  ]


@pytest.mark.parametrize(
  ('strategy', 'given', 'message'),
  [
    ('greedly', {}, "strategy: 'greedly' is not known; did you mean 'greedy'"),
    ('greedy', {'temperature': 1.0}, '--temperature: means nothing with --strategy=greedy'),
    ('beam', {'top_k': 5}, '--top_k: means nothing with --strategy=beam'),
    ('sample', {'beam_size': 4}, '--beam_size: means nothing with --strategy=sample'),
    ('sample', {'temprature': 4}, "temprature: no such choice; did you mean 'temperature'"),
    ('sample', {'allow': ['a'], 'force': ['b']}, '--force: could leave none of the strings of --allow'),
    ('sample', {'allow': ['a', 'xyz']}, "allow: 'xyz' cannot be spelled"),
    ('sample', {'force': ['']}, 'force: a word must have at least one character'),
    ('sample', {'watermark_strength': 3.0}, 'means nothing without --watermark=KEY'),
  ],
)
def test_what_is_unknown_or_clashes_is_one_clear_line(strategy, given, message):
  with pytest.raises(UsageError, match=message) as raised:
    choices.make(KNOWN, strategy, 1, given)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', ['allow', 'min_new_tokens'])
def test_what_needs_an_end_is_refused_where_there_is_none(name):
  with pytest.raises(UsageError, match=f'--{name}: this tokenizer has no token for the end'):
    choices.make(ENDLESS, 'sample', 1, {name: ['a'] if name == 'allow' else 2})


def test_allowed_strings_are_all_that_is_written():
  toy = toys.recurrent()
  allowed = ['ab', 'abc', 'ghh', 'e']
  way = choices.make(KNOWN, 'sample', 1, {'temperature': 3.0, 'allow': allowed})
  made = generate_text(
    toy.decoder, toy.params, KNOWN, prompts_of(KNOWN, ['a', 'fg']), num=40, max_new_tokens=9, sampling=way
  )
  assert {completion.text for completion in made} == set(allowed)
  assert {completion.finish_reason for completion in made} == {'end'}
  with pytest.raises(UsageError, match=r'allow: .* use a max_new_tokens of as many'):
    generate_text(toy.decoder, toy.params, KNOWN, prompts_of(KNOWN, ['a']), max_new_tokens=3, sampling=way)


def test_alternatives_are_the_models_likeliest_tokens():
  toy, prompt = toys.recurrent(), np.array([3, 1])
  run = lambda n: decode.generate(
    toy.decoder, toy.params, [prompt] * 2, jax.random.key(0), Sampling(temperature=2.0), 6, alternatives=n
  )
  found, plain = run(3), run(0)
  assert plain.alternatives is None
  np.testing.assert_array_equal(found.tokens, plain.tokens)
  for row in range(2):
    for i in range(6):
      logits = toy.full(np.concatenate([prompt, found.tokens[row, :i]])).astype(np.float64)
      nats = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
      best = np.argsort(-nats)[:3]
      np.testing.assert_array_equal(found.alternatives[0][row, i], best)
      np.testing.assert_allclose(found.alternatives[1][row, i], nats[best], atol=1e-4)


def test_a_picture_has_a_cell_for_each_character_and_wraps():
  pieces = ['春'.encode()[:1], '春'.encode()[1:], b'a\nb', b' ' * picture.WIDTH, b'z']
  assert picture.cells(pieces)[:3] == [[], [('春', 0, 0)], [('a', 0, 2), ('⏎', 0, 3), ('b', 1, 0)]]
  assert picture.cells(pieces)[4][0][1] == 2  # a line is full
  toy = toys.recurrent()
  made = generate_text(toy.decoder, toy.params, KNOWN, prompts_of(KNOWN, ['a']), max_new_tokens=100)[0]
  image = picture.draw(made, KNOWN)
  assert image.dtype == np.uint8
  assert image.ndim == 3
  assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 20
