"""Several processes of one run, each with devices of its own: who leads, and what all of them agree on.

The first process writes the run folder and speaks; all of them compute, read their rows, and write their parts of
checkpoints. With one process, everything here does nothing. Every process has to make the same calls in the same order.
"""

import json
import time

import jax
import numpy as np

from aigc_jax import errors

HEARTBEAT_SECONDS = 30  # without a sign of life after which a process counts as dead


def several():
  """Whether there is more than one."""
  return jax.process_count() > 1


def leads():
  """Whether this is the first one."""
  return jax.process_index() == 0


def agree(make):
  """What `make()` gives in the first process, a JSON value, in all of them; an AigcError of its is raised in all."""
  if not several():
    return make()
  said, failure = None, None
  if leads():
    try:
      said = {'value': make()}
    except errors.AigcError as error:
      said, failure = {'error': type(error).__name__, 'text': str(error)}, error
  said = broadcast(said)
  if failure is not None:
    raise failure
  if 'error' in said:
    raise getattr(errors, said['error'])(said['text'])
  return said['value']


def broadcast(value):
  """A JSON value of the first process, in all of them."""
  from jax.experimental import multihost_utils

  octets = np.frombuffer(json.dumps(value).encode('utf-8'), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(octets))))
  sent = octets if leads() else np.zeros(size, np.uint8)
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())


def wait_for_all(where):
  """Returns when every process has come to the place of this name."""
  from jax.experimental import multihost_utils

  if several():
    multihost_utils.sync_global_devices(where)


def wait_for_verdict():
  """Returns where all processes are alive: if one has died, which makes exchanges fail, JAX ends this one meanwhile."""
  if several():
    time.sleep(HEARTBEAT_SECONDS + 5)


def stop_together(step):
  """Whether the processes, one of which has been asked to end, have agreed to do so after this step."""
  from jax.experimental import multihost_utils

  return multihost_utils.reached_preemption_sync_point(step)
