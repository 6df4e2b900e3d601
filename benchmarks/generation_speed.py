"""Tokens per second of `aigc generate`'s path against transformers' generate, same weights, same minute, same CPU.

  python benchmarks/generation_speed.py [--size=small|large] [--batch=1|16] [--rounds=6]

Both continue 16-token prompts with one GPT-2-shaped model of random weights. Theirs: `generate` with its cache (torch,
all cores). Ours: `generate_text`, with text streamed to a callback and a stop string looked for, and `beam_text`. Each
of three ways, greedy, sampled (temperature, top-k, top-p, repetition penalty) and a beam of 4, is held against the same
of theirs. Bare: one compiled scan over the cached step, greedy and nothing else, the most that this processor could
give. They take turns; the fastest of the rounds counts, the median is printed beside it. Compilation, done before, is
timed apart. The tokens of greedy and beams must agree.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from aigc_jax import models
from aigc_jax.data import tokenizers
from aigc_jax.generation import Sampling, generate_text, prompts_of
from aigc_jax.generation.beam import Beam, beam_text
from aigc_jax.generation.processors import RepetitionPenalty
from aigc_jax.generation.strategies import greedy

SIZES = {
  'small': dict(layers=4, heads=4, width=128, vocabulary_size=512, context_length=256),
  'large': dict(layers=12, heads=12, width=768, vocabulary_size=50257, context_length=1024),
}
NEW_TOKENS = {'small': 128, 'large': 32}
SAMPLED = Sampling(temperature=0.8, top_k=40, top_p=0.95, processors=(RepetitionPenalty(1.1),))


def peer(size):
  """transformers' model, on the CPU, its weights drawn at random."""
  torch.manual_seed(0)
  config = GPT2Config(
    vocab_size=size['vocabulary_size'],
    n_positions=size['context_length'],
    n_embd=size['width'],
    n_layer=size['layers'],
    n_head=size['heads'],
    initializer_range=0.1,  # GPT-2's 0.02 would make all logits of random weights nearly equal
    bos_token_id=None,
    eos_token_id=None,
  )
  return GPT2LMHeadModel(config).eval()


def parameters(model, size):
  """Their weights in our names. Their Conv1D kernels are [inputs, outputs], as ours."""
  weights = {name: tensor.detach().numpy() for name, tensor in model.transformer.state_dict().items()}
  norm = lambda name: {'scale': weights[f'{name}.weight'], 'bias': weights[f'{name}.bias']}
  dense = lambda name: {'kernel': weights[f'{name}.weight'], 'bias': weights[f'{name}.bias']}
  heads = size['heads']

  def block(i):
    joint, output = dense(f'h.{i}.attn.c_attn'), dense(f'h.{i}.attn.c_proj')
    parts = zip(np.split(joint['kernel'], 3, axis=1), np.split(joint['bias'], 3), strict=True)
    into = {
      name: {'kernel': kernel.reshape(len(kernel), heads, -1), 'bias': bias}
      for name, (kernel, bias) in zip(('query', 'key', 'value'), parts, strict=True)
    }
    output['kernel'] = output['kernel'].reshape(heads, -1, output['kernel'].shape[1])
    return {
      'attention': {**into, 'output': output},
      'attention_norm': norm(f'h.{i}.ln_1'),
      'mlp': {'up': dense(f'h.{i}.mlp.c_fc'), 'down': dense(f'h.{i}.mlp.c_proj')},
      'mlp_norm': norm(f'h.{i}.ln_2'),
    }

  tree = {f'block_{i}': block(i) for i in range(size['layers'])}
  tree |= {
    'embed': {'token': weights['wte.weight'], 'position': weights['wpe.weight']},
    'final_norm': norm('ln_f'),
  }
  return jax.tree.map(jax.numpy.asarray, tree)


def bare_scan(decoder, params, ids, count):
  """A function that continues ids [batch, time] greedily by `count` tokens, in one program."""

  @jax.jit
  def scan(params, ids):
    def step(carry, _):
      token, cache = carry
      logits, cache = decoder.step(params, cache, token)
      return (greedy(logits[:, -1])[:, None], cache), token[:, 0]

    cache = decoder.init_cache(ids.shape[0], ids.shape[1] + count)
    logits, cache = decoder.step(params, cache, ids)
    return jax.lax.scan(step, (greedy(logits[:, -1])[:, None], cache), None, count)[1].T

  ids = jax.numpy.asarray(ids, 'int32')
  return lambda: np.asarray(scan(params, ids)).tolist()


def seconds(function):
  began = time.perf_counter()
  result = function()
  return time.perf_counter() - began, result


def prompts_for(tokenizer, batch):
  """Texts of 16 tokens each: words of one token that a space sets apart, or single characters."""
  words = [
    i for i, piece in enumerate(tokenizer.pieces[:2000]) if len(piece) > 2 and piece[:1] in (b' ', b'\xe4')
  ]
  ids = np.random.default_rng(0).choice(words, (batch, 16))
  prompts = [tokenizer.decode(row) for row in ids]
  assert all((tokenizer.encode(prompt) == row).all() for prompt, row in zip(prompts, ids, strict=True))
  return prompts, ids


def compare(name, batch, rounds):
  """Prints the rates of one size at one batch size."""
  size, count = SIZES[name], NEW_TOKENS[name]
  model = peer(size)
  params = parameters(model, size)
  decoder = models.decoder(models.build({'name': 'transformer', 'activation': 'gelu_tanh', **size}))
  characters = '\n' + ''.join(chr(0x4E00 + i) for i in range(size['vocabulary_size'] - 1))
  tokenizer = tokenizers.gpt2() if name == 'large' else tokenizers.characters(characters)
  prompts, ids = prompts_for(tokenizer, batch)
  tensor = torch.tensor(ids)

  def theirs(**choices):
    with torch.inference_mode():
      options = dict(do_sample=False, use_cache=True, max_new_tokens=count) | choices
      return model.generate(tensor, attention_mask=torch.ones_like(tensor), **options)[:, 16:].tolist()

  def ours(sampling):
    options = dict(sampling=sampling, max_new_tokens=count, stop='\0 never', on_text=lambda row, piece: None)
    return [
      c.tokens for c in generate_text(decoder, params, tokenizer, prompts_of(tokenizer, prompts), **options)
    ]

  def beams():
    inputs = decoder, params, tokenizer, prompts_of(tokenizer, prompts), Beam(4)
    return [completion.tokens for completion in beam_text(*inputs, max_new_tokens=count)]

  chances = dict(do_sample=True, temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1)
  ways = {
    'their greedy': theirs,
    'greedy': lambda: ours(Sampling(greedy=True)),
    'bare': bare_scan(decoder, params, ids, count),
    'their sampled': lambda: theirs(**chances),
    'sampled': lambda: ours(SAMPLED),
    'their beam': lambda: theirs(num_beams=4),
    'beam': beams,
  }
  first = {way: seconds(function) for way, function in ways.items()}
  agree = first['greedy'][1] == first['their greedy'][1] == first['bare'][1]
  agree = agree and first['beam'][1] == [
    row[: len(ours)] for row, ours in zip(first['their beam'][1], first['beam'][1], strict=True)
  ]
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
      f'{name:6} {batch:5} {way:13} {rate[way]:12,.0f} {batch * count / statistics.median(of_way):12,.0f} '
      f'{rate[way] / peer_rate:8.1f} {compile_seconds}',
      flush=True,
    )
  print(f'{"":21}tokens {"are" if agree else "ARE NOT"} those of transformers')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--size', choices=SIZES)
  parser.add_argument('--batch', type=int, choices=[1, 16])
  parser.add_argument('--rounds', type=int, default=6)
  options = parser.parse_args()
  print(f'{"size":6} {"batch":>5} {"":13} {"tokens/s":>12} {"median":>12} {"times":>8} {"compile s":>9}')
  for name in [options.size] if options.size else SIZES:
    for batch in [options.batch] if options.batch else [1, 16]:
      compare(name, batch, options.rounds)
