"""Which devices a run takes: every size by brute force, and what is refused, in one line."""

import itertools
import math

import jax
import pytest

from aigc_jax import api
from aigc_jax.errors import UsageError
from aigc_jax.training import mesh, prepare
from tests import tiny

SIZES = (-1, 1, 2, 3, 4, 8)
ROWS = ((1, 1), (4, 1), (6, 1), (6, 2), (8, 1), (8, 2), (12, 3), (16, 2))  # (batch_size, microbatches)


def config(data=1, fsdp=1, tensor=1, mode='mesh', batch_size=8, microbatches=1):
  return {
    'parallel': {'mode': mode, 'data': data, 'fsdp': fsdp, 'tensor': tensor},
    'data': {'batch_size': batch_size},
    'training': {'microbatches': microbatches},
  }


def refusal(given, count=8, fewer=False):
  with pytest.raises(UsageError) as error:
    mesh.axis_sizes(given, count, fewer)
  text = str(error.value)
  assert '\n' not in text
  return text


def settled(wanted):
  """(data, fsdp, tensor) as they are meant: `data`, which is -1 unless it is given, leaves the rest to another axis."""
  return (1, *wanted[1:]) if wanted[0] == -1 and -1 in wanted[1:] else wanted


def fitting(wanted, count, rows):
  """Every (data, fsdp, tensor) that is allowed: by the definition, over all there could be."""
  choices = [[size] if size > 0 else range(1, count + 1) for size in wanted]
  return [
    sizes
    for sizes in itertools.product(*choices)
    if math.prod(sizes) <= count and rows % (sizes[0] * sizes[1]) == 0
  ]


@pytest.mark.parametrize('count', range(1, 9))
def test_sizes_are_those_that_fit_and_the_rest_is_as_large_as_can_be(count):
  accepted = 0
  for wanted, (batch_size, microbatches) in itertools.product(itertools.product(SIZES, repeat=3), ROWS):
    given = config(*wanted, batch_size=batch_size, microbatches=microbatches)
    wanted = settled(wanted)
    allowed = fitting(wanted, count, batch_size // microbatches)
    if wanted.count(-1) > 1 or not allowed:
      refusal(given, count)
      continue
    accepted += 1
    assert mesh.axis_sizes(given, count) == max(allowed), (
      'one axis alone varies, so the largest is the largest'
    )
  assert accepted >= 15 * count


@pytest.mark.parametrize('count', range(1, 9))
def test_what_was_made_on_more_devices_goes_on_where_there_are_fewer(count):
  for wanted, (batch_size, microbatches) in itertools.product(itertools.product(SIZES, repeat=3), ROWS):
    given, rows = (
      config(*wanted, batch_size=batch_size, microbatches=microbatches),
      batch_size // microbatches,
    )
    wanted = settled(wanted)
    if wanted.count(-1) > 1 or not fitting(wanted, 192, rows):
      continue  # it was never made
    sizes = mesh.axis_sizes(given, count, fewer=True)
    assert math.prod(sizes) <= count
    assert rows % (sizes[0] * sizes[1]) == 0
    if fitting(wanted, count, rows):
      assert sizes == mesh.axis_sizes(given, count), 'what fits stays as it is'
    elif wanted[1] != 1 and abs(wanted[1]) * abs(wanted[2]) > count:
      assert sizes == (1, max(n for n in range(1, count + 1) if rows % n == 0), 1), 'the state stays in parts'
    elif wanted[2] > count:
      assert wanted[2] % sizes[2] == 0, 'what the larger number divides, this one divides'
      assert not [n for n in range(sizes[2] + 1, count + 1) if wanted[2] % n == 0]
    elif -1 not in wanted:
      assert sizes[1:] == wanted[1:], 'rows go first'


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    (config(data=16), ('config.parallel.data: 16 devices', '8 are here', '-1')),
    (config(data=2, fsdp=4, tensor=3), ('config.parallel: 24 devices', 'data 2 x fsdp 4 x tensor 3', '8 are here')),
    (config(data=3), ('config.parallel.data: 3 devices', 'the 8 rows of a batch', 'data among 1, 2, 4, 8')),
    (config(fsdp=3, tensor=2), ('config.parallel.fsdp: 3 devices', 'the 8 rows of a batch', 'fsdp among 1, 2, 4')),
    (config(fsdp=-1, data=3), ('config.parallel.data: 3 devices', '8 rows')),
    (
      config(data=2, fsdp=2, batch_size=12, microbatches=2),
      ('config.parallel: 4 devices', 'data 2 x fsdp 2', 'the 6 rows of a microbatch', 'data x fsdp among 1, 2, 3, 6'),
    ),
    (config(data=0), ('config.parallel.data: 0', '-1', '1 or more')),
    (config(tensor=-2), ('config.parallel.tensor: -2', '-1', '1 or more')),
    (config(tensor=-1, fsdp=-1), ('fsdp and tensor are both -1', '--config.parallel.fsdp=1')),
    (config(fsdp=2, mode='pmap'), ('config.parallel.fsdp: 2', 'config.parallel.mode=pmap', '=mesh')),
    (config(tensor=4, mode='pmap'), ('config.parallel.tensor: 4', 'config.parallel.mode=pmap', '=mesh')),
  ],
)  # fmt: skip
def test_a_refusal_names_the_key_the_product_and_what_is_right(given, words):
  text = refusal(given)
  for word in words:
    assert word in text


def test_what_is_wrong_with_any_number_of_devices_is_wrong_with_fewer():
  refusal(config(fsdp=2, mode='pmap'), 1, fewer=True)
  refusal(config(data=3, batch_size=8), 1, fewer=False)


def test_a_mesh_has_the_devices_and_axes_that_were_chosen():
  for wanted, sizes in (((-1, 1, 1), (4, 1, 1)), ((1, -1, 2), (1, 4, 2)), ((2, 2, 2), (2, 2, 2))):
    given = config(*wanted, batch_size=4)
    devices = mesh.choose_devices(given)
    made = mesh.make_mesh(given, devices)
    assert tuple(made.shape.items()) == tuple(zip(mesh.AXES, sizes, strict=True))
    assert devices == jax.devices()[: math.prod(sizes)]
    assert list(made.devices.flat) == devices


def test_microbatches_are_wrong_before_devices_are(source):
  """4 rows in 8 microbatches are none for each, which any number of devices divides."""
  for microbatches in (3, 8):
    given = tiny.config(source, training={'microbatches': microbatches}, parallel={'data': 2})
    with pytest.raises(UsageError, match=f'4 rows do not divide into .*microbatches = {microbatches}'):
      prepare.prepare(api.read_config(given))


def test_people_read_a_product():
  assert mesh.product_of({'data': 2, 'fsdp': 1, 'tensor': 4}) == 'data 2 x tensor 4'
  assert mesh.product_of({'data': 1, 'fsdp': 1, 'tensor': 1}) == 'data 1'
