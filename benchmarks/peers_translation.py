"""The encoder-decoder of configs/translation.py in PyTorch: rotary, RMSNorm before each part, no biases, tied."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

  def forward(self, x, memory, mask, causal, turn, dropout):
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    query, key, value = split(self.query(x)), split(self.key(memory)), split(self.value(memory))
    if turn is not None:
      query, key = rotate(query, turn), rotate(key, turn)
    rate = dropout if self.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, mask, rate, is_causal=causal)
    return self.output(mixed.transpose(1, 2).flatten(2))


def rotation(time, width, base=10000.0):
  frequencies = base ** (-torch.arange(0, width, 2) / width)
  angles = torch.arange(time)[:, None] * frequencies
  return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotate(x, turn):
  cosine, sine = (part[: x.shape[2]] for part in turn)
  a, b = x.chunk(2, -1)
  return x * cosine + torch.cat([-b, a], -1) * sine


class Block(nn.Module):
  def __init__(self, width, heads, crosses, dropout):
    super().__init__()
    norm = lambda: nn.RMSNorm(width, eps=1e-5)
    self.attention, self.attention_norm = Attention(width, heads), norm()
    if crosses:
      self.cross_attention, self.cross_attention_norm = Attention(width, heads), norm()
    self.up, self.down, self.mlp_norm = (
      nn.Linear(width, 4 * width, False),
      nn.Linear(4 * width, width, False),
      norm(),
    )
    self.drop, self.rate, self.crosses = nn.Dropout(dropout), dropout, crosses

  def forward(self, x, mask, turn, memory=None, memory_mask=None):
    y = self.attention_norm(x)
    x = x + self.drop(self.attention(y, y, mask, mask is None, turn, self.rate))
    if self.crosses:
      y = self.cross_attention_norm(x)
      x = x + self.drop(self.cross_attention(y, memory, memory_mask, False, None, self.rate))
    return x + self.drop(self.down(F.gelu(self.up(self.mlp_norm(x)))))


class EncoderDecoder(nn.Module):
  """Sources and targets -> logits; the initial weights are normal, of `deviation`."""

  def __init__(self, vocabulary_size, deviation, width=128, heads=4, layers=3, dropout=0.1):
    super().__init__()
    self.embed, self.drop = nn.Embedding(vocabulary_size, width), nn.Dropout(dropout)
    self.encoder = nn.ModuleList(Block(width, heads, False, dropout) for _ in range(layers))
    self.decoder = nn.ModuleList(Block(width, heads, True, dropout) for _ in range(layers))
    self.encoder_norm, self.decoder_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
    self.turn = rotation(512, width // heads)
    for name, parameter in self.named_parameters():
      if parameter.ndim == 2:
        parts = layers * (2 if name.startswith('encoder') else 3)
        scaled = name.endswith(('output.weight', 'down.weight'))
        nn.init.normal_(parameter, 0, deviation / math.sqrt(parts) if scaled else deviation)

  def encode(self, sources, lengths):
    mask = (torch.arange(sources.shape[1]) < lengths[:, None])[:, None, None]
    x = self.drop(self.embed(sources))
    for block in self.encoder:
      x = block(x, mask, self.turn)
    return self.encoder_norm(x), mask

  def forward(self, sources, lengths, inputs):
    memory, mask = self.encode(sources, lengths)
    return self.decode(inputs, memory, mask)

  def decode(self, inputs, memory, mask):
    x = self.drop(self.embed(inputs))
    for block in self.decoder:
      x = block(x, None, self.turn, memory, mask)
    return F.linear(self.decoder_norm(x), self.embed.weight)

  @torch.no_grad()
  def greedy(self, sources, lengths, begin, longest):
    """[batch, longest] tokens, whole passes over what is there: slow and plain."""
    memory, mask = self.encode(sources, lengths)
    tokens = torch.full((len(sources), 1), begin)
    for _ in range(longest):
      following = self.decode(tokens, memory, mask)[:, -1].argmax(-1)
      tokens = torch.cat([tokens, following[:, None]], 1)
      if (tokens[:, 1:] == begin).any(1).all():
        break
    return tokens[:, 1:]


def load_ours(model, params):
  """Our parameters in the peer, to see that the two are one function."""
  state = {'embed.weight': params['embed']['token']}
  for side in ('encoder', 'decoder'):
    state[f'{side}_norm.weight'] = params[f'{side}_norm']['scale']
    for i in range(len(model.encoder)):
      for name, part in params[f'{side}_block_{i}'].items():
        at = f'{side}.{i}.{name}'
        if name.endswith('norm'):
          state[f'{at}.weight'] = part['scale']
        elif name == 'mlp':
          state |= {f'{side}.{i}.{way}.weight': part[way]['kernel'].T for way in ('up', 'down')}
        else:
          width = len(part['query']['kernel'])
          kernels = {way: part[way]['kernel'].reshape(width, width).T for way in part}
          state |= {f'{at}.{way}.weight': kernel for way, kernel in kernels.items()}
  model.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in state.items()})
