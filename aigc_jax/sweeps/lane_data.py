"""The data sets of the lanes of a group, as one."""

from typing import NamedTuple

import jax
import numpy as np

from aigc_jax.data import batches
from aigc_jax.task import RESIDENT


class Data(NamedTuple):
  """The data sets of the lanes as one: the lanes share batches unless their data.seed differs."""

  datasets: list  # of each lane
  rows: int | None  # the axis of lanes of a batch's arrays: 0, or None where they are shared
  resident: int | None  # that of what lies on the devices

  def train_batch(self, at, part=batches.WHOLE):
    return self.joined([each.train_batch(at, part) for each in self.distinct()])

  def validation_batches(self, part=batches.WHOLE):
    yield from map(
      self.joined, zip(*(each.validation_batches(part) for each in self.distinct()), strict=True)
    )

  def distinct(self):
    return list({id(each): each for each in self.datasets}.values())

  def joined(self, found):
    """A batch of each distinct data set -> the batch of the lanes."""
    if self.rows is None:
      return found[0]
    by_dataset = {id(each): batch for each, batch in zip(self.distinct(), found, strict=True)}
    return jax.tree.map(lambda *rows: np.stack(rows), *(by_dataset[id(each)] for each in self.datasets))

  def axes(self, batch):
    """{entry of a batch: its axis of lanes or None}."""
    return {name: self.resident if name == RESIDENT else self.rows for name in batch}

  def resident_arrays(self):
    held = [each.resident for each in self.datasets]
    if self.resident is None:
      return held[0]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *held)

  def shapes(self):
    """A training batch of each shape; batches of several shapes are shared by the lanes."""
    given = self.datasets[0].shapes
    return given() if given else [self.train_batch(0)]


def data_of(datasets):
  """The Data of each lane's Dataset; lanes of the same data.seed have the same object."""
  first = datasets[0]
  if all(each is first for each in datasets):
    return Data(datasets, None, None)
  same = lambda a, b: a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
  shared = all(each is first or same(each.resident or {}, first.resident or {}) for each in datasets)
  return Data(datasets, 0, None if shared else 0)
