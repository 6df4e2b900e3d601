"""Plain and vector-quantized autoencoders in eager PyTorch, each with its loss as `peers_families` has them."""

import torch
from peers_families import SIDE
from torch import nn
from torch.nn import functional as F


class PlainAutoencoder(nn.Module):
  """Images [batch, 1, 28, 28] -> means of pixels [batch, 784], through a latent without a prior."""

  def __init__(self, hidden=400, latent_width=20):
    super().__init__()
    pixels = SIDE * SIDE
    up = nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, latent_width)
    self.layers = nn.Sequential(*up, nn.Linear(latent_width, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

  def forward(self, images):
    return self.layers(images)


def squared_error_loss(model, batch, train):
  errors = (model(batch['images']) - batch['images'].flatten(1)).square().sum(1)
  total = (errors * batch['mask']).sum()
  return total, batch['mask'].sum(), {'reconstruction': total}


class Residual(nn.Module):
  def __init__(self, width, hidden):
    super().__init__()
    self.first, self.second = nn.Conv2d(width, hidden, 3, 1, 1), nn.Conv2d(hidden, width, 1)

  def forward(self, x):
    return x + self.second(self.first(x.relu()).relu())


class QuantizedAutoencoder(nn.Module):
  """A convolutional autoencoder with a codebook by moving averages (van den Oord et al. 2017, appendix A.1).

  Codes begin as vectors of the first batch; one that fewer than a hundredth of the even share use starts anew.
  """

  def __init__(self, widths=(32, 64), hidden=32, code_width=32, codes=128, decay=0.99, revive_below=0.01):
    super().__init__()
    (first, second), self.decay, self.revive_below = widths, decay, revive_below
    down = nn.Conv2d(1, first, 3, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 3, 2, 1)
    self.encoder = nn.Sequential(*down, Residual(second, hidden), nn.ReLU(), nn.Conv2d(second, code_width, 1))
    up = (
      nn.ReLU(),
      nn.ConvTranspose2d(second, first, 4, 2, 1),
      nn.ReLU(),
      nn.ConvTranspose2d(first, 1, 4, 2, 1),
    )
    self.decoder = nn.Sequential(nn.Conv2d(code_width, second, 3, 1, 1), Residual(second, hidden), *up)
    self.codes, self.counts = torch.zeros(0, code_width), torch.zeros(codes)

  def forward(self, images):
    """-> (images, vectors [batch, code_width, h, w] and the codes in their places)."""
    vectors = self.encoder(images)
    rows = vectors.detach().movedim(1, -1).flatten(0, 2)  # [places, code_width]
    if not len(self.codes):
      self.codes = chosen(rows, len(self.counts))
      self.counts = torch.full_like(self.counts, len(rows) / len(self.counts))
    nearest = torch.cdist(rows, self.codes).argmin(1)
    quantized = self.codes[nearest].view_as(vectors.movedim(1, -1)).movedim(-1, 1)
    if self.training:
      self.move(rows, F.one_hot(nearest, len(self.codes)).float())
    return self.decoder(vectors + (quantized - vectors).detach()), vectors, quantized

  def move(self, rows, members):
    found, kept = members.sum(0), self.decay
    counts = kept * self.counts + (1 - kept) * found
    sums = kept * self.counts[:, None] * self.codes + (1 - kept) * members.T @ rows
    codes = torch.where(found[:, None] > 0, sums / counts.clamp(min=1e-30)[:, None], self.codes)
    share = counts.sum() / len(counts)
    dead = counts < self.revive_below * share
    self.codes = torch.where(dead[:, None], chosen(rows, len(codes)), codes)
    self.counts = torch.where(dead, share, counts)


def chosen(rows, number):
  return rows[torch.randperm(len(rows))[:number]]


def quantized_loss(model, batch, train, commitment=0.25):
  made, vectors, codes = model(batch['images'])
  sums = lambda errors: (errors.square().flatten(1).sum(1) * batch['mask']).sum()
  error = sums(made - batch['images'])
  return error + commitment * sums(vectors - codes), batch['mask'].sum(), {'reconstruction': error}
