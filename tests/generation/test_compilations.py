"""A hundred prompts of mixed length are few programs."""

import jax
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.data import tokenizers
from aigc_jax.generation import Prompts, Sampling, generate_text, prompts_of
from aigc_jax.generation.beam import Beam, beam_text
from tests.compilations import count_compilations

SHAPE = {'vocabulary_size': 256, 'width': 32}
MODELS = {
  'a context of its own': SHAPE | {'name': 'transformer', 'context_length': 600, 'layers': 1},
  'windows that jump': SHAPE
  | {'name': 'transformer', 'context_length': 128, 'layers': 1, 'positions': 'rotary'},
  'recurrent': SHAPE | {'name': 'rnn'},
  'encoder-decoder': SHAPE | {'name': 'transformer_encoder_decoder', 'context_length': 600, 'layers': 1},
  'recurrent encoder-decoder': SHAPE | {'name': 'rnn_encoder_decoder'},
}


@pytest.fixture(params=MODELS)
def given(request):
  """(decoder, params, tokenizer, 100 prompts of 1 to 500 letters)."""
  module, generator, known = (
    models.build(MODELS[request.param]),
    np.random.default_rng(0),
    tokenizers.byte_values(),
  )
  one = np.zeros((1, 4), np.int32)
  pairs = 'encoder' in request.param
  params = module.init(jax.random.key(0), *([one, one] if pairs else [one]))['params']
  texts = [''.join(map(chr, generator.integers(97, 122, n))) for n in generator.integers(1, 500, 100)]
  prompts = prompts_of(known, texts)
  if pairs:
    prompts = Prompts(texts, [np.array([3], np.int32)] * 100, prompts.tokens)
  return models.decoder(module), params, known, prompts


def test_100_prompts_of_1_to_500_tokens_compile_at_most_five_programs(given):
  with count_compilations() as compiled:
    made = generate_text(*given, max_new_tokens=20, sampling=Sampling(temperature=1.0))
  assert [len(completion.tokens) for completion in made] == [20] * 100
  print(f'100 prompts, drawn: {len(compiled)} programs')
  assert 2 <= len(compiled) <= 5, compiled


def test_so_do_their_beams(given):
  if given[0].context_length == 128:
    pytest.skip('beams do not jump to another window')
  with count_compilations() as compiled:
    made = beam_text(*given, Beam(2), max_new_tokens=20)
  assert [len(completion.tokens) for completion in made] == [20] * 100
  print(f'100 prompts, searched: {len(compiled)} programs')
  assert 2 <= len(compiled) <= 5, compiled
