"""What one GPU gives: training of GPT-2's 124M in bfloat16, writing with it, and acting; PyTorch beside the first two.

  python benchmarks/gpu.py [--parts=attention,training,generation,acting] [--batches=8,32] [--seconds=4]

Training: tokens a second of our compiled step (cuDNN's attention and XLA's), and of the same model in PyTorch,
compiled, under autocast, with its flash attention and fused AdamW; the share of the peak is of the products that a
token needs (6 parameters + 12 layers x width x context, Chowdhery et al. 2022, appendix B) by what a product of large
matrices of bfloat16 reaches on the same device. The vocabulary is 50,304 for both, a multiple of 64. Generation:
greedy, against transformers' `generate` with its cache, the same weights. Acting: ours of `benchmarks/acting.py`.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import config as configs
from aigc_jax import models, tasks
from aigc_jax.schemas import resolved
from aigc_jax.task import Context
from aigc_jax.training import attention, parallel

LAYERS, WIDTH, CONTEXT, VOCABULARY = 12, 768, 1024, 50304
SHAPE = {
  'layers': LAYERS,
  'heads': 12,
  'width': WIDTH,
  'context_length': CONTEXT,
  'vocabulary_size': VOCABULARY,
}
NEW_TOKENS = 128


def peak():
  """FLOP/s of a product of bfloat16 matrices [8192, 8192]."""
  size, times = 8192, 20
  a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
  product = jax.jit(lambda a, b: a @ b)
  product(a, b).block_until_ready()
  began = time.perf_counter()
  for _ in range(times):
    found = product(a, b)
  found.block_until_ready()
  return 2 * size**3 * times / (time.perf_counter() - began)


def tokens_of(rows, context=CONTEXT):
  return np.random.default_rng(0).integers(0, 50257, (rows, context + 1), dtype=np.int32)


def config_of(rows, **model):
  training = {'precision': 'bfloat16', 'steps': 1000}
  optimizer = {'name': 'adamw', 'learning_rate': 6e-4, 'beta2': 0.95, 'weight_decay': 0.1, 'clip_norm': 1.0}
  return resolved(
    {
      'task': {'name': 'language'},
      'model': {'name': 'transformer', 'bias': False, 'activation': 'gelu', **SHAPE, **model},
      'data': {'batch_size': rows, 'sequence_length': CONTEXT},
      'optimizer': optimizer,
      'training': training,
    }
  )


def check_attention():
  """How far loss and gradients with cuDNN's attention are from those with XLA's, in float32 and bfloat16."""
  tokens = tokens_of(2)
  batch = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'mask': np.ones((2, CONTEXT), np.float32)}
  found = {}
  for precision, how in (('float32', 'xla'), ('bfloat16', 'xla'), ('bfloat16', 'cudnn')):
    config = attention.attending(config_of(2, layers=4), how)
    config |= {'training': config['training'] | {'precision': precision}}
    task = tasks.build(config)
    context = Context(jax.random.key(0), jnp.int32(0), True)
    params, extra = task.init(jax.random.key(0), batch)
    loss = lambda params, task=task, extra=extra: (
      task.loss(params, extra, batch, context)[0] / tokens[:, 1:].size
    )
    found[precision, how] = jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
  exact = found['float32', 'xla']
  norm = lambda tree: np.sqrt(sum(np.square(x.astype(np.float64)).sum() for x in jax.tree.leaves(tree)))
  for name in (('bfloat16', 'xla'), ('bfloat16', 'cudnn')):
    value, slope = found[name]
    apart = norm(jax.tree.map(lambda a, b: a - b, slope, exact[1])) / norm(exact[1])
    print(
      f'attention {name}: loss {value:.5f} (float32 {exact[0]:.5f}), gradients {apart:.1e} apart', flush=True
    )


def ours(rows, how, chunk=None):
  config = config_of(rows)
  config |= {'task': config['task'] | {'logits_chunk': chunk}}
  tokens = tokens_of(rows)
  batch = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'mask': np.ones((rows, CONTEXT), np.float32)}
  devices = jax.devices()[:1]
  config, _ = attention.settled(attention.attending(config, how), batch, devices)
  program = parallel.make_parallel(config, tasks.build, devices)
  floats, batch = program.put_floats(configs.floats_of(config)), program.put_batch(batch)
  state = program.init(floats, jax.random.key(0), batch)

  def run(steps):
    nonlocal state
    for _ in range(steps):
      state, metrics = program.step(floats, state, batch)
    return float(metrics['loss'])

  return run


def theirs(rows):
  import peers_torch
  import torch

  torch.set_float32_matmul_precision('high')
  model = peers_torch.Transformer(VOCABULARY, CONTEXT, LAYERS, 12, WIDTH).to('cuda')
  decayed = [p for p in model.parameters() if p.ndim >= 2]
  others = [p for p in model.parameters() if p.ndim < 2]
  groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
  forward, tokens = torch.compile(model), torch.tensor(tokens_of(rows).astype(np.int64), device='cuda')
  inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

  def run(steps):
    for _ in range(steps):
      with torch.autocast('cuda', torch.bfloat16):
        logits = forward(inputs)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
    return loss.item()

  return run


def rate(run, tokens, seconds):
  """(tokens a second, seconds of compiling)."""
  began = time.perf_counter()
  run(2)
  compiled = time.perf_counter() - began
  began = time.perf_counter()
  run(2)
  steps = max(4, round(2 * seconds / (time.perf_counter() - began)))
  began = time.perf_counter()
  run(steps)
  return tokens * steps / (time.perf_counter() - began), compiled


def training(batches, seconds):
  most = peak()
  parameters = 12 * LAYERS * WIDTH**2 + VOCABULARY * WIDTH
  of_token = 6 * parameters + 12 * LAYERS * WIDTH * CONTEXT
  print(f'a product of matrices reaches {most / 1e12:.0f} TFLOP/s; a token needs {of_token / 1e9:.2f} GFLOP')
  for rows in batches:
    ways = {
      'ours, cudnn': lambda: ours(rows, 'cudnn'),
      'ours, cudnn, logits in chunks': lambda: ours(rows, 'cudnn', 256),
    }
    ways |= {'ours, xla': lambda: ours(rows, 'xla'), 'torch compiled': lambda: theirs(rows)}
    for name, make in ways.items():
      try:
        run = make()
        found, compiled = rate(run, rows * CONTEXT, seconds)
        print(
          f'training, {rows} x {CONTEXT}, {name}: {found:,.0f} tokens/s, {found * of_token / most:.1%} of the peak, '
          f'compiled in {compiled:.0f} s',
          flush=True,
        )
      except Exception as error:
        print(f'training, {rows} x {CONTEXT}, {name}: {type(error).__name__}: {str(error)[:200]}', flush=True)
      run = None
      jax.clear_caches()


def generation(batches=(1, 64)):
  import torch

  from aigc_jax.generation import Sampling, decode
  from tests import peers

  shape = {'layers': 12, 'heads': 12, 'width': 768, 'vocabulary_size': 50257, 'context_length': 1024}
  config, params, model = peers.gpt2(**shape, deviation=0.1)
  model = model.to('cuda')
  model.generation_config.eos_token_id = None
  for precision in ('float32', 'bfloat16'):
    kind = getattr(torch, precision)
    model = model.to(kind)
    decoder = models.decoder(models.build(config, jnp.dtype(precision)))
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.dtype(precision)), params)
    for rows in batches:
      ids = np.random.default_rng(0).integers(4, 512, (rows, 16)).astype(np.int32)
      tensor = torch.tensor(ids, device='cuda')
      options = dict(do_sample=False, use_cache=True, max_new_tokens=NEW_TOKENS)

      def ours_now():
        made = decode.generate(
          decoder,
          weights,
          list(ids),
          jax.random.key(0),
          Sampling(greedy=True),
          NEW_TOKENS,
          vocabulary_size=50257,
        )
        return made.tokens

      def theirs_now():
        with torch.inference_mode():
          made = model.generate(tensor, attention_mask=torch.ones_like(tensor), **options)
        return made[:, 16:].cpu().numpy()

      line = [f'greedy, {precision}, batch {rows}:']
      tokens = {}
      for name, function in (('ours', ours_now), ('transformers', theirs_now)):
        tokens[name] = function()
        times = []
        for _ in range(3):
          began = time.perf_counter()
          function()
          times.append(time.perf_counter() - began)
        line.append(f'{name} {rows * NEW_TOKENS / min(times):,.0f} tokens/s')
      same = (tokens['ours'] == tokens['transformers']).mean()
      print(*line, f'{same:.1%} of the tokens the same', flush=True)


def acting(seconds):
  import acting as benchmark

  for worlds, steps in ((256, 1), (4096, 1), (4096, 8), (65536, 1)):
    found = benchmark.ours(worlds, steps, seconds)
    print(f'acting, {worlds} worlds, {steps} steps an update: {found:,.0f} steps/s', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--parts', default='attention,training,generation,acting')
  parser.add_argument('--batches', default='8,32')
  parser.add_argument('--seconds', type=float, default=4)
  options = parser.parse_args()
  print(jax.devices()[0].device_kind, 'jax', jax.__version__, flush=True)
  parts = {
    'attention': check_attention,
    'training': lambda: training([int(n) for n in options.batches.split(',')], options.seconds),
    'generation': generation,
    'acting': lambda: acting(options.seconds),
  }
  for name in options.parts.split(','):
    parts[name]()


if __name__ == '__main__':
  main()
