"""The run folder: everything that resuming, evaluating or generating needs, in files that people can read.

  config.json    the resolved config and the folder's format
  env.json       how each start found the machine
  status.json    how far it is
  metrics.jsonl  one object a line, "step" first; tensorboard/ has the same
  checkpoints/STEP/  samples/  plots/  log.txt  tokenizer.json

One process writes (it holds a lock that ends with the process, however it ends); anyone may read.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
from typing import Any, NamedTuple

from aigc_jax import tensorboard
from aigc_jax.environment import now
from aigc_jax.errors import DataError, StorageError, UsageError
from aigc_jax.files import read_json, storage_errors, write_atomically, write_json

FORMAT = 2  # 1 called training.best_metric patience_metric
CONFIG, ENVIRONMENT, STATUS = 'config.json', 'env.json', 'status.json'
METRICS, LOCK = 'metrics.jsonl', '.lock'


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's folder. `create` gives the one that may write, `open_run` one for reading."""

  path: pathlib.Path

  @property
  def config(self):
    """The resolved config. Raises UsageError for a folder that is none, or of a newer format."""
    config = read_json(self.path / CONFIG)
    written = config.pop('format', None) if isinstance(config, dict) else None
    if not isinstance(written, int):
      raise UsageError(f'{self.path / CONFIG}: names no format, so {self.path} is not a run folder')
    if written > FORMAT:
      raise UsageError(
        f'{self.path}: written by a newer aigc_jax (format {written}, this one reads up to {FORMAT}); '
        'upgrade aigc_jax'
      )
    if written < 2 and 'patience_metric' in config.get('training', {}):
      config['training']['best_metric'] = config['training'].pop('patience_metric')
    return config

  def write_status(self, state, step, *, checkpoint=None, message=''):
    """state: running, done, interrupted, failed or non-finite; checkpoint: the newest saved step or None."""
    status = {'state': state, 'step': step, 'checkpoint': checkpoint, 'message': message, 'updated': now()}
    write_json(self.path / STATUS, status)

  def read_status(self):
    """The last `write_status`; a run whose process is gone is 'interrupted', whatever it wrote last."""
    status = {'state': 'running', 'step': 0, 'checkpoint': None, 'message': '', 'updated': None}
    if (self.path / STATUS).exists():
      status |= read_json(self.path / STATUS)
    if status['state'] == 'running' and not is_locked(self.path):
      status['state'] = 'interrupted'
    return status

  def record_environment(self, found):
    """Appends to env.json how a start finds the machine, see `environment`."""
    file = self.path / ENVIRONMENT
    write_json(file, [*(read_json(file) if file.exists() else []), found])


@dataclasses.dataclass(frozen=True)
class Follower:
  """A run's folder as the other processes of the run have it: the first one writes it."""

  path: pathlib.Path

  def read_status(self):
    return Run(self.path).read_status()

  def write_status(self, state, step, *, checkpoint=None, message=''):
    pass

  def record_environment(self, found):
    pass


class NoMetricsWriter:
  """A MetricsWriter that writes nothing."""

  def write(self, step, metrics):
    pass

  def write_image(self, step, name, png, height, width):
    pass

  def flush(self):
    pass

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass


def open_run(path):
  """The Run of an existing folder, for reading. Raises UsageError."""
  run = Run(pathlib.Path(path))
  if not run.path.is_dir():
    raise UsageError(f'{path}: no such run folder; `aigc list` shows those there are')
  _ = run.config
  return run


def of_checkpoint(path):
  """(run folder, 'best' or a step) of a path to a run or to one of its checkpoints."""
  path = str(path).rstrip('/')
  if os.path.basename(os.path.dirname(path)) == 'checkpoints':
    return os.path.dirname(os.path.dirname(path)), os.path.basename(path)
  return path, 'best'


@contextlib.contextmanager
def create(path, config, *, may_differ=(), label='run', root='runs', upgrade=lambda config: config):
  """Makes a run folder, or goes on in one of the same config, and holds its lock: `with create(...) as run:`.

  Args:
    path: the folder; None for a readable new one, e.g. 'runs/transformer_lm-small-20261122-0423-a1b2'.
    config: the resolved config, nested plain dicts.
    may_differ: dotted keys that may have another value in the folder; it is replaced (a run made longer).
    label: what a new name starts with; '--config' as typed will do.
    root: where new names are made.
    upgrade: a config that an older version wrote -> the same with the fields that are new.

  Raises:
    UsageError: a folder of another config, in use, or that is no run.
    StorageError: it cannot be written. A folder made here is then taken away again.
  """
  config = json.loads(json.dumps(config))  # tuples become lists, as they do in the file
  folder = new_folder(label, root) if path is None else pathlib.Path(path)
  check_folder(folder, config, may_differ, upgrade)
  fresh = path is None or not os.path.exists(folder)
  with contextlib.ExitStack() as stack:
    try:
      with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
      stack.enter_context(hold_lock(folder))
      check_folder(folder, config, may_differ, upgrade)  # again: another process may just have begun here
      if not (folder / CONFIG).exists() or Run(folder).config != config:
        write_json(folder / CONFIG, {'format': FORMAT, **config})
    except StorageError:
      if fresh:
        shutil.rmtree(folder, ignore_errors=True)
      raise
    yield Run(folder)


def new_folder(label, root):
  """Makes an empty folder with a new readable name: label, local time, four random digits."""
  label = re.sub(r'\.py\b', '', os.path.basename(label))
  label = re.sub(r'[^\w.]+', '-', label).strip('-.') or 'run'
  while True:
    folder = pathlib.Path(root) / f'{label}-{time.strftime("%Y%m%d-%H%M")}-{secrets.token_hex(2)}'
    with storage_errors(folder), contextlib.suppress(FileExistsError):
      folder.mkdir(parents=True)
      return folder


def check_folder(folder, config, may_differ, upgrade):
  """Raises UsageError unless `config` can start or go on in `folder`; changes nothing."""
  if not os.path.exists(folder):  # (a Path raises where a name is too long or a folder closed)
    return
  if not folder.is_dir():
    raise UsageError(f'{folder}: is a file, not a run folder; choose another --workdir')
  if not (folder / CONFIG).exists():
    with storage_errors(folder):
      strangers = sorted(name for name in os.listdir(folder) if name not in (LOCK, f'.{CONFIG}.tmp'))
    if strangers:
      raise UsageError(
        f'{folder}: is not empty and not a run (it has {strangers[0]} and no {CONFIG}); '
        'choose another --workdir'
      )
    return
  differing = [d for d in diff_configs(upgrade(Run(folder).config), config) if d.key not in may_differ]
  if differing:
    shown = ', '.join(
      f'{d.key} is {shown_value(d.a)} there and {shown_value(d.b)} here' for d in differing[:3]
    )
    more = f' (and {len(differing) - 3} more)' if len(differing) > 3 else ''
    raise UsageError(
      f'{folder}: holds a run of another config: {shown}{more}; choose another --workdir, '
      f'or go on with that run by `aigc resume {folder}`'
    )


@contextlib.contextmanager
def hold_lock(folder):
  """Holds the folder's lock. The system releases it when the process ends, by `kill -9` too."""
  with storage_errors(folder):
    file = open(folder / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115 (open as long as the lock is held)
  with file:
    for attempt in reversed(range(5)):  # `is_locked` elsewhere takes it for an instant
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if not attempt:
          raise UsageError(
            f'{folder}: {lock_holder(file)}; wait for it or choose another --workdir'
          ) from None
        time.sleep(0.05)
      except OSError:
        break  # some network and cloud drives have no locks: better unlocked than no run at all
    with storage_errors(folder):
      file.truncate(0)
      file.write(json.dumps({'pid': os.getpid(), 'host': socket.gethostname(), 'since': now()}))
      file.flush()
    yield


def lock_holder(file):
  try:
    file.seek(0)
    holder = json.loads(file.read())
    return f'in use by process {holder["pid"]} on {holder["host"]} since {holder["since"]}'
  except (ValueError, KeyError, TypeError):
    return 'in use by another process'


def is_locked(folder):
  """Whether a process holds the folder's lock now."""
  try:
    with open(folder / LOCK, encoding='utf-8') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    pass
  return False


class MetricsWriter:
  """Writes metrics.jsonl, and TensorBoard's files if asked to. Each line is in the system's hands at once."""

  def __init__(self, folder, *, tensorboard_files=True, resumed_from=None):
    """`resumed_from`: the restored step, which the file is cut back to; None for a new run."""
    folder, last = pathlib.Path(folder), -1 if resumed_from is None else resumed_from
    cut_back(folder / METRICS, last)
    with storage_errors(folder):
      self._file = open(folder / METRICS, 'ab', buffering=0)  # noqa: SIM115 (closed by close)
      self._events = tensorboard.EventWriter(folder / 'tensorboard', last) if tensorboard_files else None

  def write(self, step, metrics):
    """Appends one line. metrics: {name: number}; what is not finite becomes a text: nan, inf or -inf."""
    numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
    line = {'step': int(step)} | {n: v if math.isfinite(v) else str(v) for n, v in numbers.items()}
    with storage_errors(self._file.name):
      data = json.dumps(line, ensure_ascii=False).encode('utf-8') + b'\n'
      if self._file.write(data) < len(data):  # the disk took a part of it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      if self._events:
        self._events.write(int(step), numbers)

  def write_image(self, step, name, png, height, width):
    """Shows a picture, the bytes of a PNG file, in TensorBoard."""
    if self._events:
      with storage_errors(self._file.name):
        self._events.write_image(int(step), name, png, height, width)

  def flush(self):
    """Waits until all lines are on the disk itself; call it before a checkpoint commits."""
    with storage_errors(self._file.name):
      os.fsync(self._file.fileno())

  def close(self):
    with storage_errors(self._file.name):
      if self._events:
        self._events.close()
      self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    first = () if kind is None else (StorageError,)  # what went wrong first is what people must see
    with contextlib.suppress(*first):
      self.close()


def cut_back(file, step):
  """Drops the lines of later steps and torn ones; the others stay byte for byte. `step` -1 drops all."""
  try:
    lines = pathlib.Path(file).read_bytes().splitlines(keepends=True)
  except FileNotFoundError:
    return
  kept = [line for line in lines if line.endswith(b'\n') and step_of(line) <= step]
  if kept != lines:
    write_atomically(file, b''.join(kept).decode('utf-8'))


def step_of(line):
  try:
    return json.loads(line)['step']
  except (ValueError, KeyError, TypeError):
    return math.inf


def read_metrics(folder):
  """All lines of metrics.jsonl as dicts, numbers that are not finite included. A torn last line is left out.

  Raises DataError for a line that is not JSON.
  """
  file = pathlib.Path(folder) / METRICS
  lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
  rows = []
  for number, line in enumerate(lines, 1):
    if not line.endswith(b'\n'):
      break
    try:
      rows.append(
        {name: float(v) if v in ('nan', 'inf', '-inf') else v for name, v in json.loads(line).items()}
      )
    except (ValueError, AttributeError) as error:
      raise DataError(f'{file}:{number}: is not a line of JSON: {error}') from error
  return rows


class Difference(NamedTuple):
  key: str  # dotted
  a: Any
  b: Any


ABSENT = object()  # the value of a key that one config lacks


def shown_value(value):
  return 'absent' if value is ABSENT else 'none' if value is None else repr(value)


def flattened(config, prefix=''):
  rows = {}
  for key, value in config.items():
    rows |= flattened(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
  return rows


def diff_configs(a, b):
  """[Difference] of two configs, in a's order and then b's; a key that one lacks is ABSENT there."""
  a, b = flattened(a), flattened(b)
  rows = (Difference(key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in a | b)
  return [row for row in rows if row.a != row.b]


class Row(NamedTuple):
  """One run as `aigc list` shows it."""

  name: str
  state: str
  step: int
  steps: int | None  # how many it is to take
  validation_loss: float | None  # the last one
  started: str | None  # UTC


def list_runs(root):
  """[Row] of the run folders right under `root`, the oldest first; unreadable ones are left out."""
  rows = []
  for config in pathlib.Path(root).glob(f'*/{CONFIG}'):
    run = Run(config.parent)
    with contextlib.suppress(UsageError, StorageError, DataError):
      status, file = run.read_status(), run.path / ENVIRONMENT
      metrics = read_metrics(run.path)
      losses = [row['validation/loss'] for row in metrics if 'validation/loss' in row]
      step = metrics[-1]['step'] if metrics else 0  # the status is older while a run goes on
      started = read_json(file)[0]['started'] if file.exists() else None
      steps = run.config.get('training', {}).get('steps')
      last = losses[-1] if losses else None
      rows.append(Row(run.path.name, status['state'], max(step, status['step']), steps, last, started))
  return sorted(rows, key=lambda row: (row.started or '', row.name))
