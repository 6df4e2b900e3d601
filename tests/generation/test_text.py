"""Text as it streams: whole characters, stop strings, several prompts and samples."""

import random

import pytest

from aigc_jax.data import tokenizers
from aigc_jax.errors import UsageError
from aigc_jax.generation import Sampling, generate_text
from aigc_jax.generation.text import TextStream, prompts_of
from tests.generation import toys

GREEDY = Sampling(greedy=True)
HARD = '明月几时有，把酒问青天。👩‍🚀🎉 naïve café\n\nab abc 停 end'
BYTES = tokenizers.byte_values()


def scripted(text, tokenizer=BYTES, end=(), context_length=None):
  """A model that says `text` whatever it is asked, if the prompt is one token long; then zeros."""
  script = [*tokenizer.encode(text).tolist(), *end, *[0] * 20]
  return toys.scripted(script, tokenizer.vocabulary_size, context_length)


def run(toy, prompts, tokenizer=BYTES, **options):
  pieces = {}
  on_text = lambda row, piece: pieces.setdefault(row, []).append(piece)
  options = {'sampling': GREEDY, 'max_new_tokens': 200, 'on_text': on_text} | options
  completions = generate_text(toy.decoder, toy.params, tokenizer, prompts_of(tokenizer, prompts), **options)
  assert [''.join(pieces.get(row, [])) for row in range(len(completions))] == [c.text for c in completions]
  assert all('\ufffd' not in piece for row in pieces.values() for piece in row)
  return completions, pieces


@pytest.mark.parametrize(
  'stop', [(), ('abc',), ('问青', 'x'), ('🎉 na', '\n\n'), ('abx', '停 e', ' '), ('b abcd', 'ab')]
)
def test_the_stream_is_the_text_before_the_first_stop_string_however_bytes_are_split(stop):
  ends = [(HARD.find(s) + len(s), HARD.find(s)) for s in stop if s in HARD]
  expected = HARD[: min(ends)[1]] if ends else HARD
  data, dice = HARD.encode('utf-8'), random.Random(0)
  for _ in range(200):
    stream, text, at = TextStream(stop), '', 0
    while at < len(data):
      size = dice.choice([1, 1, 2, 3, 7, 30])
      piece = stream.feed(data[at : at + size])
      text, at = text + piece, at + size
      assert expected.startswith(text)
    assert stream.stopped == bool(ends)
    assert text + stream.close() == expected
    assert not stream.stopped or stream.feed(b'more') == stream.close() == ''


def test_text_comes_as_soon_as_it_is_certain():
  stream = TextStream(('END',))
  assert [stream.feed(bytes([b])) for b in '天E!EN'.encode()] == ['', '', '天', '', 'E!', '', '']
  assert stream.close() == 'EN'


def test_bytes_that_are_no_text_become_replacement_characters():
  data = bytes([0xFF, 0x41, 0xE5, 0xA4, 0x42, 0xF0, 0x9F])
  stream = TextStream()
  text = ''.join(stream.feed(bytes([b])) for b in data) + stream.close()
  assert text == data[:-2].decode('utf-8', 'replace')  # the unfinished character at the end is left out


@pytest.mark.parametrize(
  'tokenizer', [BYTES, tokenizers.gpt2(), tokenizers.characters(HARD)], ids=lambda t: t.name
)
def test_pieces_add_up_and_a_stop_string_ends_the_text(tokenizer):
  toy = scripted(HARD, tokenizer)
  count = len(tokenizer.encode(HARD))
  (whole,), _ = run(toy, ['a'], tokenizer, max_new_tokens=count)
  assert (whole.text, whole.finish_reason, len(whole.tokens)) == (HARD, 'length', count)
  (stopped,), _ = run(toy, ['a'], tokenizer, stop='🎉')
  assert (stopped.text, stopped.finish_reason) == (HARD[: HARD.index('🎉')], 'stop')
  assert tokenizer.decode(stopped.tokens).endswith('🎉')
  assert tokenizer.decode(stopped.tokens[:-1]) != tokenizer.decode(stopped.tokens)
  assert '🎉' not in tokenizer.decode(stopped.tokens[:-1])


def test_a_character_cut_by_the_length_is_left_out():
  (completion,), _ = run(scripted('青天'), ['a'], max_new_tokens=5)
  assert completion.text == '青'
  assert len(completion.tokens) == len(completion.log_probabilities) == 5


WITH_END = [tokenizers.gpt2(), tokenizers.characters('aThe nd', True), tokenizers.byte_values(True)]


@pytest.mark.parametrize('tokenizer', WITH_END, ids=lambda t: t.name)
def test_the_end_of_text_token_ends_the_text_and_is_no_text(tokenizer):
  toy = scripted('The end', tokenizer, [tokenizer.end_of_text])
  (completion,), _ = run(toy, ['a'], tokenizer)
  assert (completion.text, completion.finish_reason) == ('The end', 'end')
  assert completion.tokens[-1] == tokenizer.end_of_text


def test_prompts_and_samples_keep_their_order_whatever_the_batches():
  toy, prompts = toys.windowed(8), ['\x05\x03\x01', '\x01', '\x02' * 12, '\x07\x08']
  tokenizer = tokenizers.characters('\n' + ''.join(map(chr, range(1, 10))) + 'x')
  options = dict(sampling=Sampling(), num=3, max_new_tokens=12, seed=5)
  together, _ = run(toy, prompts, tokenizer, **options)
  assert [c.prompt for c in together] == [prompt for prompt in prompts for _ in range(3)]
  assert [c.prompt_tokens_dropped for c in together[::3]] == [0, 0, 5, 0]
  assert len({c.text for c in together[:3]}) == 3
  by_five, _ = run(toy, prompts, tokenizer, **options, batch_size=5)
  assert [c.text for c in by_five] == [c.text for c in together]
  other, _ = run(toy, prompts, tokenizer, **options | {'seed': 6})
  assert [c.text for c in other] != [c.text for c in together]


def test_an_empty_prompt_begins_a_document():
  known = tokenizers.byte_values(True)  # a document of several follows the end of another
  toy = scripted('.x', known)
  assert (
    generate_text(toy.decoder, toy.params, known, prompts_of(known, ['']), max_new_tokens=2)[0].text == '.x'
  )
  toy = scripted('..x')  # without such a token a blank line comes nearest to a beginning
  assert (
    run(toy, [''], max_new_tokens=2)[0][0].text == run(toy, ['\n\n'], max_new_tokens=2)[0][0].text == '.x'
  )
  assert generate_text(toy.decoder, toy.params, BYTES, prompts_of(BYTES, [])) == []


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'num': 0}, 'num'),
    ({'max_new_tokens': -1}, 'max_new_tokens'),
    ({'stop': ['ok', '']}, 'stop string'),
    ({'seed': -1}, 'seed'),
    ({'sampling': Sampling(top_p=0.0)}, 'top_p'),
  ],
)
def test_bad_input_is_refused_in_one_line(options, said):
  toy = scripted('x')
  with pytest.raises(UsageError, match=said) as raised:
    generate_text(toy.decoder, toy.params, BYTES, prompts_of(BYTES, ['a']), **options)
  assert '\n' not in str(raised.value)


def test_a_character_outside_the_vocabulary_is_refused():
  with pytest.raises(UsageError, match='é'):
    prompts_of(tokenizers.characters('abc'), ['aé'])
