import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.data import images as data
from aigc_jax.tasks import images


def test_gathering_equals_reading():
  dataset = data.load({'batch_size': 16})
  gather = jax.jit(images.gather)
  for step in (0, 250):
    batch = dataset.train_batch(step)
    found = gather(batch | {'resident': dataset.resident})
    assert set(found) == {'images', 'labels', 'mask'}
    for name, array in dataset.resident.items():
      np.testing.assert_array_equal(found[name], array[batch['rows']])
      assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found['mask'], batch['mask'])


def test_a_batch_that_holds_its_images_stays_as_it_is():
  batch = next(data.load({'batch_size': 16}).validation_batches())
  assert images.gather(batch) is batch


def test_bytes_become_fractions():
  levels = np.arange(256, dtype=np.uint8)
  floats = images.as_floats(jnp.asarray(levels))
  assert floats.dtype == jnp.float32
  np.testing.assert_allclose(floats, levels / 255, rtol=1e-6)  # float32 has 24 bits
  assert (floats[0], floats[255]) == (0, 1)
  np.testing.assert_array_equal(images.as_floats(floats), floats)
