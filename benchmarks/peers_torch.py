"""The same language model in PyTorch, as nanoGPT writes it: what the throughput benchmark holds ours against."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
    self.query_key_value = nn.Linear(width, 3 * width, bias=False)
    self.output = nn.Linear(width, width, bias=False)
    self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

  def forward(self, x):
    batch, time, width = x.shape
    split = self.query_key_value(self.attention_norm(x)).split(width, dim=2)
    query, key, value = (y.view(batch, time, self.heads, -1).transpose(1, 2) for y in split)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + self.output(mixed.transpose(1, 2).reshape(batch, time, width))
    return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Transformer(nn.Module):
  """Tokens [batch, time] -> logits [batch, time, vocabulary]; learned positions, tied embeddings, no biases."""

  def __init__(self, vocabulary_size, context_length, layers, heads, width):
    super().__init__()
    self.token, self.position = nn.Embedding(vocabulary_size, width), nn.Embedding(context_length, width)
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
    self.final_norm = nn.LayerNorm(width, bias=False)
    for parameter in self.parameters():
      if parameter.ndim == 2:
        nn.init.normal_(parameter, 0, 0.02)

  def forward(self, tokens):
    x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
    for block in self.blocks:
      x = block(x)
    return F.linear(self.final_norm(x), self.token.weight)


def make_step(shape, compiled=False, seed=0):
  """A function (inputs, targets) -> loss that takes one AdamW step with clipping at norm 1, as nanoGPT does."""
  torch.manual_seed(seed)
  model = Transformer(**shape)
  decayed = [p for p in model.parameters() if p.ndim >= 2]
  others = [p for p in model.parameters() if p.ndim < 2]
  groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
  forward = torch.compile(model) if compiled else model

  def step(inputs, targets):
    logits = forward(inputs)
    loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return step
