"""The same dense variational autoencoder and Adam step in PyTorch: what the throughput benchmark holds ours against."""

import torch
from torch import nn
from torch.nn import functional as F


class VariationalAutoencoder(nn.Module):
  """Images [batch, pixels] -> (logits [batch, pixels], mean, log_variance [batch, latent_width])."""

  def __init__(self, pixels=784, hidden=400, latent_width=20):
    super().__init__()
    self.up, self.moments = nn.Linear(pixels, hidden), nn.Linear(hidden, 2 * latent_width)
    self.down, self.output = nn.Linear(latent_width, hidden), nn.Linear(hidden, pixels)

  def forward(self, images):
    mean, log_variance = self.moments(F.relu(self.up(images))).chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    return self.output(F.relu(self.down(latents))), mean, log_variance


def make_step(compiled=False, binarizes=True, seed=0):
  """A function (images [batch, pixels] in [0, 1]) -> loss that takes one Adam step on the negative bound."""
  torch.manual_seed(seed)
  model = VariationalAutoencoder()
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
  forward = torch.compile(model) if compiled else model

  def step(images):
    if binarizes:
      images = torch.bernoulli(images)
    logits, mean, log_variance = forward(images)
    nats = F.binary_cross_entropy_with_logits(logits, images, reduction='sum')
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    loss = (nats + divergence) / len(images)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step
