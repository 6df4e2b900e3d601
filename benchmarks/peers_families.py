"""The other families in eager PyTorch, each with its loss: what the benchmarks hold ours against.

A loss takes (model, batch as torch tensors, train) and gives (sum of losses, weight, {metric: sum}); images are
[batch, channels, height, width] from 0 to 1.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

SIDE, CLASSES = 28, 10


class Recurrent(nn.Module):
  """Tokens [batch, time] -> logits [batch, time, vocabulary] through one layer of nn.RNN, nn.GRU or nn.LSTM."""

  def __init__(self, cell, vocabulary_size, width):
    super().__init__()
    layer = {'elman': nn.RNN, 'gru': nn.GRU, 'lstm': nn.LSTM}[cell]
    self.token, self.layer = nn.Embedding(vocabulary_size, width), layer(width, width, batch_first=True)
    self.head = nn.Linear(width, vocabulary_size)

  def forward(self, tokens):
    return self.head(self.layer(self.token(tokens))[0])


def language_loss(model, batch, train):
  nats = F.cross_entropy(model(batch['inputs']).transpose(1, 2), batch['targets'], reduction='none')
  return (nats * batch['mask']).sum(), batch['mask'].sum(), {}


class VariationalAutoencoder(nn.Module):
  """Images [batch, 1, 28, 28] -> (logits [batch, pixels], mean, log_variance [batch, latent_width])."""

  def __init__(self, hidden=400, latent_width=20):
    super().__init__()
    self.up, self.moments = nn.Linear(SIDE * SIDE, hidden), nn.Linear(hidden, 2 * latent_width)
    self.down, self.output = nn.Linear(latent_width, hidden), nn.Linear(hidden, SIDE * SIDE)

  def forward(self, images):
    mean, log_variance = self.moments(F.relu(self.up(images.flatten(1)))).chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    return self.output(F.relu(self.down(latents))), mean, log_variance


def variational_loss(model, batch, train, beta=1.0, samples=None):
  """The negative evidence lower bound; pixels become 0 or 1 anew at each training step.

  beta: weight of the divergence. samples: of the importance-weighted bound, in evaluations; None: none.
  """
  images = torch.bernoulli(batch['images']) if train else batch['images']
  logits, mean, log_variance = model(images)
  nats = F.binary_cross_entropy_with_logits(logits, images.flatten(1), reduction='none').sum(1)
  divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
  summed = lambda values: (values * batch['mask']).sum()
  found = {'elbo': -summed(nats + divergence)}
  if samples is not None and not train:
    found['importance_bound'] = summed(importance_bound(model, images, mean, log_variance, samples))
  return summed(nats + beta * divergence), batch['mask'].sum(), found


def importance_bound(model, images, mean, log_variance, samples, chunk=32):
  """The bound of Burda et al. 2016 (equation 8) on log p(image), [batch]."""
  posterior, found = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance)), []
  prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
  for _ in range(0, samples, chunk):
    latents = posterior.sample((chunk,))  # [chunk, batch, latent_width]
    logits = model.output(F.relu(model.down(latents)))
    pixels = images.flatten(1).expand_as(logits)
    of_image = -F.binary_cross_entropy_with_logits(logits, pixels, reduction='none').sum(-1)
    of_latents = (prior.log_prob(latents) - posterior.log_prob(latents)).sum(-1)
    found.append(of_image + of_latents)
  return torch.cat(found).logsumexp(0) - math.log(samples)


class Block(nn.Module):
  """A pre-activation residual block (He et al. 2016)."""

  def __init__(self, inputs, features, stride):
    super().__init__()
    self.norm_0, self.norm_1 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(features)
    self.convolution_0 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.convolution_1 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    changes = stride > 1 or inputs != features
    self.shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False) if changes else None

  def forward(self, x):
    y = self.norm_0(x).relu()
    x = x if self.shortcut is None else self.shortcut(y)
    return x + self.convolution_1(self.norm_1(self.convolution_0(y)).relu())


def resnet(channels, blocks=1):
  parts, before = [nn.Conv2d(1, channels[0], 3, 1, 1, bias=False)], channels[0]
  for stage, features in enumerate(channels):
    for i in range(blocks):
      parts.append(Block(before, features, 2 if stage and not i else 1))
      before = features
  parts += [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
  return nn.Sequential(*parts, nn.Linear(before, CLASSES))


def cnn(dense_width=128):
  part = lambda inputs, features: (nn.Conv2d(inputs, features, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
  flat = 64 * (SIDE // 4) ** 2
  dense = nn.Linear(flat, dense_width), nn.ReLU(), nn.Linear(dense_width, CLASSES)
  return nn.Sequential(*part(1, 32), *part(32, 64), nn.Flatten(), *dense)


def mlp(widths=(128, 64)):
  sizes = (SIDE * SIDE, *widths)
  hidden = [part for pair in zip(sizes, widths, strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
  return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], CLASSES))


def classification_loss(model, batch, train):
  logits = model(batch['images'])
  nats = F.cross_entropy(logits, batch['labels'], reduction='none')
  hits = (logits.argmax(1) == batch['labels']) * batch['mask']
  return (nats * batch['mask']).sum(), batch['mask'].sum(), {'accuracy': hits.sum()}


def make_step(model, loss):
  """A function batch -> mean loss that takes one Adam step."""
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

  def step(batch):
    total, weight, _ = loss(model, batch, True)
    mean = total / weight
    optimizer.zero_grad(set_to_none=True)
    mean.backward()
    optimizer.step()
    return mean.item()

  return step
