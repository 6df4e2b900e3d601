"""Tokens per second of `aigc generate`'s path against transformers' generate, same weights, same minute, same CPU.

  python benchmarks/generation_speed.py [--shape=decoder|encoder_decoder] [--size=small|large] [--batch=1|16]

A decoder is GPT-2-shaped and continues prompts of 16 tokens; an encoder-decoder is Marian-shaped (Vaswani et al. 2017)
and reads sources of 16 tokens; their weights are random. Theirs: `generate` with its cache (torch, all cores). Ours:
`generate_text`, with text streamed to a callback and a stop string looked for, and `beam_text`. Each of three ways,
greedy, sampled (temperature, top-k, top-p, repetition penalty) and a beam of 4, is held against the same of theirs.
Bare: one compiled scan over the cached step, greedy and nothing else, the most that this processor could give. They
take turns; the fastest of the rounds counts, the median is printed beside it. Compilation, done before, is timed apart.
The tokens of greedy and beams must agree.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import torch

from aigc_jax import models
from aigc_jax.data import tokenizers
from aigc_jax.generation import Prompts, Sampling, decode, generate_text
from aigc_jax.generation.beam import Beam, beam_text
from aigc_jax.generation.processors import RepetitionPenalty
from aigc_jax.generation.strategies import greedy
from tests import peers

SMALL = dict(layers=4, heads=4, width=128, vocabulary_size=512, context_length=256)
LARGE = dict(vocabulary_size=50257, context_length=1024)
SIZES = {
  ('decoder', 'small'): SMALL,
  ('decoder', 'large'): LARGE | dict(layers=12, heads=12, width=768),
  ('encoder_decoder', 'small'): SMALL,
  ('encoder_decoder', 'large'): LARGE | dict(layers=6, heads=8, width=512),
}
PEERS = {'decoder': peers.gpt2, 'encoder_decoder': peers.marian}
NEW_TOKENS = {'small': 128, 'large': 32}
SAMPLED = Sampling(temperature=0.8, top_k=40, top_p=0.95, processors=(RepetitionPenalty(1.1),))


def bare_scan(decoder, params, prompts, count):
  """A function that continues the prompts greedily by `count` tokens, in one program."""
  tokens, width = np.stack(prompts.tokens), len(prompts.tokens[0])
  sources = decode.padded(decoder, prompts.sources, len(tokens))

  @jax.jit
  def scan(params, tokens):
    def step(carry, _):
      token, cache = carry
      logits, cache = decoder.step(params, cache, token, None, memory)
      return (greedy(logits[:, -1])[:, None], cache), token[:, 0]

    memory = None if sources is None else decoder.encode(params, *sources)
    logits, cache = decoder.step(params, decoder.init_cache(len(tokens), width + count), tokens, None, memory)
    return jax.lax.scan(step, (greedy(logits[:, -1])[:, None], cache), None, count)[1].T

  return lambda: np.asarray(scan(params, tokens)).tolist()


def seconds(function):
  began = time.perf_counter()
  result = function()
  return time.perf_counter() - began, result


def ways_of(shape, size, batch, count):
  """{name: function without arguments -> tokens of each row}."""
  settings = SIZES[shape, size]
  config, params, model = PEERS[shape](**settings, deviation=0.1)
  params = jax.tree.map(jax.numpy.asarray, params)
  decoder = models.decoder(models.build(config))
  model.generation_config.eos_token_id = None  # every text runs to its full length
  characters = '\n' + ''.join(chr(0x4E00 + i) for i in range(settings['vocabulary_size'] - 1))
  tokenizer = tokenizers.gpt2() if size == 'large' else tokenizers.characters(characters)
  ids = np.random.default_rng(0).integers(4, 512, (batch, 16)).astype(np.int32)
  prompts = Prompts([''] * batch, list(ids))
  if shape == 'encoder_decoder':
    begin = np.array([model.config.decoder_start_token_id], np.int32)
    prompts = Prompts([''] * batch, [begin] * batch, list(ids))
  tensor, first = torch.tensor(ids), len(prompts.tokens[0])

  def theirs(**choices):
    with torch.inference_mode():
      options = dict(do_sample=False, use_cache=True, max_new_tokens=count) | choices
      return model.generate(tensor, attention_mask=torch.ones_like(tensor), **options)[:, first:].tolist()

  def ours(sampling):
    options = dict(sampling=sampling, max_new_tokens=count, stop='\0 never', on_text=lambda row, piece: None)
    return [c.tokens for c in generate_text(decoder, params, tokenizer, prompts, **options)]

  def beams():
    found = beam_text(decoder, params, tokenizer, prompts, Beam(4), max_new_tokens=count)
    return [completion.tokens for completion in found]

  chances = dict(do_sample=True, temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1)
  return {
    'their greedy': theirs,
    'greedy': lambda: ours(Sampling(greedy=True)),
    'bare': bare_scan(decoder, params, prompts, count),
    'their sampled': lambda: theirs(**chances),
    'sampled': lambda: ours(SAMPLED),
    'their beam': lambda: theirs(num_beams=4),
    'beam': beams,
  }


def compare(shape, size, batch, rounds):
  """Prints the rates of one model at one batch size."""
  count = NEW_TOKENS[size]
  ways = ways_of(shape, size, batch, count)
  first = {way: seconds(function) for way, function in ways.items()}
  pairs = ('greedy', 'their greedy'), ('bare', 'their greedy'), ('beam', 'their beam')
  agree = all(first[a][1] == first[b][1] for a, b in pairs)
  times = {way: [] for way in ways}
  for _ in range(rounds):
    for way, function in ways.items():
      time.sleep(0.3)  # lets the other library's threads stop spinning
      times[way].append(seconds(function)[0])
  rate = {way: batch * count / min(of_way) for way, of_way in times.items()}
  for way, of_way in times.items():
    peer_rate = rate[f'their {"greedy" if way == "bare" else way.removeprefix("their ")}']
    compile_seconds = '' if way.startswith('their') else f'{first[way][0] - statistics.median(of_way):8.1f}'
    print(
      f'{shape:15} {size:6} {batch:5} {way:13} {rate[way]:10,.0f} '
      f'{batch * count / statistics.median(of_way):10,.0f} {rate[way] / peer_rate:6.1f} {compile_seconds}',
      flush=True,
    )
  print(f'{"":29}tokens {"are" if agree else "ARE NOT"} those of transformers')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', choices=PEERS)
  parser.add_argument('--size', choices=NEW_TOKENS)
  parser.add_argument('--batch', type=int, choices=[1, 16])
  parser.add_argument('--rounds', type=int, default=6)
  options = parser.parse_args()
  print(
    f'{"shape":15} {"size":6} {"batch":>5} {"":13} {"tokens/s":>10} {"median":>10} {"times":>6} {"compile s":>9}'
  )
  for shape, size in SIZES:
    for batch in [options.batch] if options.batch else [1, 16]:
      if options.shape in (None, shape) and options.size in (None, size):
        compare(shape, size, batch, options.rounds)
