"""The run folder: nothing half made, one writer, and files that say after any stop what they said before."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from aigc_jax import environment, files, run
from aigc_jax.errors import StorageError, UsageError

CONFIG = {'seed': 0, 'training': {'steps': 10}, 'optimizer': {'learning_rate': 0.1, 'beta1': None}}


def changed(**steps_and_rate):
  training = {'steps': steps_and_rate.get('steps', 10)}
  return CONFIG | {'training': training, 'optimizer': {'learning_rate': steps_and_rate.get('rate', 0.1)}}


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_new_names_are_readable_and_never_collide(tmp_path, monkeypatch):
  draws = iter(['a1b2', 'a1b2', 'c3d4'])
  monkeypatch.setattr(run.secrets, 'token_hex', lambda n: next(draws))
  monkeypatch.setattr(run.time, 'strftime', lambda pattern: '20261122-0423')
  for ending in ('a1b2', 'c3d4'):
    with run.create(None, CONFIG, label='configs/transformer_lm.py:small', root=tmp_path / 'runs') as here:
      assert here.path == tmp_path / 'runs' / f'transformer_lm-small-20261122-0423-{ending}'
      assert here.config == CONFIG


def test_the_same_config_goes_on_and_another_is_refused_untouched(tmp_path):
  with run.create(tmp_path / 'a', {**CONFIG, 'shape': (1, 2)}):
    pass
  with run.create(tmp_path / 'a', {**CONFIG, 'shape': [1, 2]}) as here:
    assert here.config == {**CONFIG, 'shape': [1, 2]}
  before = contents(tmp_path)
  with pytest.raises(UsageError) as error, run.create(tmp_path / 'a', changed(steps=20, rate=0.2)):
    pass
  text = str(error.value)
  assert 'training.steps is 10 there and 20 here' in text
  assert 'optimizer.learning_rate is 0.1 there and 0.2 here' in text
  assert '(and 1 more)' in text
  assert 'aigc resume' in text
  assert '\n' not in text
  assert contents(tmp_path) == before


def test_a_run_is_made_longer(tmp_path):
  with run.create(tmp_path, CONFIG):
    pass
  longer = {**CONFIG, 'training': {'steps': 20}}
  with run.create(tmp_path, longer, may_differ=('training.steps',)):
    assert run.open_run(tmp_path).config == longer


def test_folders_that_are_no_runs_are_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis').mkdir()
  (tmp_path / 'thesis/chapter.tex').write_text('words')
  (tmp_path / 'file').write_text('words')
  (tmp_path / 'empty').mkdir()
  before = contents(tmp_path)
  for name, message in (('thesis', 'chapter.tex'), ('file', 'is a file')):
    with pytest.raises(UsageError, match=message), run.create(tmp_path / name, CONFIG):
      pass
  for name, message in (('thesis', 'config.json: no such file'), ('none', 'no such run folder')):
    with pytest.raises(UsageError, match=message):
      run.open_run(tmp_path / name)
  assert contents(tmp_path) == before
  assert not (tmp_path / 'none').exists()
  with run.create(tmp_path / 'empty', CONFIG):
    pass


def test_a_folder_that_cannot_be_written_is_not_left_half_made(tmp_path, monkeypatch):
  def full(source, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(run.os, 'replace', full)
  message = r'config.json: cannot be written: No space left'
  with pytest.raises(StorageError, match=message), run.create(tmp_path / 'a', CONFIG):
    pass
  assert os.listdir(tmp_path) == []


def test_a_newer_format_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'format': run.FORMAT + 1, **CONFIG}))
  with pytest.raises(UsageError, match='newer aigc_jax'):
    run.open_run(tmp_path)


HOLDER = """
import sys, json, time
from aigc_jax import run
with run.create(sys.argv[1], json.loads(sys.argv[2])) as here:
  here.write_status('running', 3)
  print('held', flush=True)
  time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
  command = [sys.executable, '-c', HOLDER, str(tmp_path / 'a'), json.dumps(CONFIG)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
    try:
      assert holder.stdout.readline() == b'held\n'
      message = f'in use by process {holder.pid} on .* since 20'
      with pytest.raises(UsageError, match=message) as error, run.create(tmp_path / 'a', CONFIG):
        pass
      assert '\n' not in str(error.value)
      assert run.open_run(tmp_path / 'a').read_status()['state'] == 'running'
      assert [row.state for row in run.list_runs(tmp_path)] == ['running']
    finally:
      holder.send_signal(signal.SIGKILL)
  assert run.open_run(tmp_path / 'a').read_status()['state'] == 'interrupted'
  assert [(row.state, row.step, row.steps) for row in run.list_runs(tmp_path)] == [('interrupted', 3, 10)]
  with run.create(tmp_path / 'a', CONFIG) as here:
    assert here.read_status()['state'] == 'running'


def test_looking_at_a_lock_never_keeps_a_run_from_starting(tmp_path):
  with run.create(tmp_path, CONFIG):
    pass
  stop = threading.Event()

  def look():
    while not stop.is_set():
      run.is_locked(tmp_path)

  thread = threading.Thread(target=look)
  thread.start()
  try:
    for _ in range(50):
      with run.create(tmp_path, CONFIG):
        pass
  finally:
    stop.set()
    thread.join()


def write_some(folder, steps, resumed_from=None):
  with run.MetricsWriter(folder, resumed_from=resumed_from) as writer:
    for step in steps:
      writer.write(step, {'train/loss': 1 / (step + 3), 'count': step})
      if step % 2 == 0:
        writer.write(step, {'validation/loss': 1e-7 / (step + 1), '中': float('nan')})


def test_metrics_after_a_stop_are_byte_for_byte_those_without(tmp_path):
  for name in ('whole', 'broken'):
    (tmp_path / name).mkdir()
  write_some(tmp_path / 'whole', range(8))
  write_some(tmp_path / 'broken', range(6))
  file = tmp_path / 'broken' / 'metrics.jsonl'
  with open(file, 'ab') as lines:
    lines.write(b'{"step": 3, "train/lo')  # torn by a kill, and of a step that would be kept
  write_some(tmp_path / 'broken', range(4, 8), resumed_from=3)
  assert file.read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
  write_some(tmp_path / 'broken', range(8))  # no checkpoint yet: all over again
  assert file.read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()


def test_metrics_are_json_and_come_back(tmp_path):
  odd = {'nan': float('nan'), 'inf': float('inf'), 'minus': float('-inf'), 'tiny': 5e-324, 'count': 3}
  with run.MetricsWriter(tmp_path, tensorboard_files=False) as writer:
    writer.write(0, odd)
    text = (tmp_path / 'metrics.jsonl').read_text(encoding='utf-8')  # on disk before close
  assert text.startswith('{"step": 0, ')
  json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  assert repr(run.read_metrics(tmp_path)) == repr([{'step': 0, **odd}])
  assert not (tmp_path / 'tensorboard').exists()
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(b'{"step": 1')
  assert len(run.read_metrics(tmp_path)) == 1


def records_of(file):
  """The payloads of a TFRecord file whose checksums hold, checksums by another's code."""
  from tensorboardX.crc32c import crc32c

  masked = lambda data: (((c := crc32c(data)) >> 15 | c << 17) + 0xA282EAD8) & 0xFFFFFFFF
  data = file.read_bytes()
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    assert struct.unpack('<I', data[8:12])[0] == masked(data[:8])
    assert struct.unpack('<I', data[12 + length : 16 + length])[0] == masked(data[12 : 12 + length])
    yield data[12 : 12 + length]
    data = data[16 + length :]


def test_tensorboard_files_hold_the_metrics_and_the_restart(tmp_path, monkeypatch):
  monkeypatch.setitem(
    sys.modules, 'torch', None
  )  # tensorboardX, the oracle, would spend seconds importing it
  pytest.importorskip('tensorboardX')
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  write_some(tmp_path, range(2))
  write_some(tmp_path, range(300, 301), resumed_from=299)
  first, second = sorted((tmp_path / 'tensorboard').iterdir(), key=lambda path: path.stat().st_mtime_ns)
  events = [Event.FromString(record) for record in records_of(first)]
  assert events[0].file_version == 'brain.Event:2'
  found = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
  assert [row[:2] for row in found] == [
    *[(0, 'train/loss'), (0, 'count'), (0, 'validation/loss'), (0, '中')],
    *[(1, 'train/loss'), (1, 'count')],
  ]
  assert found[0][2] == pytest.approx(1 / 3)
  assert abs(events[0].wall_time - os.stat(first).st_mtime) < 600
  events = [Event.FromString(record) for record in records_of(second)]
  assert (events[1].session_log.status, events[1].step) == (SessionLog.START, 300)
  assert events[2].step == 300


def test_tensorboard_files_hold_pictures(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  pytest.importorskip('tensorboardX')
  from matplotlib import image
  from tensorboardX.proto.event_pb2 import Event

  pixels = np.random.default_rng(0).integers(0, 256, (5, 200, 3), np.uint8)
  size = files.write_image(tmp_path / 'a.png', pixels)
  with run.MetricsWriter(tmp_path) as writer:
    writer.write_image(300, 'samples', (tmp_path / 'a.png').read_bytes(), *size)
  [file] = (tmp_path / 'tensorboard').iterdir()
  [value] = [v for record in records_of(file) for v in Event.FromString(record).summary.value]
  assert (value.tag, value.image.height, value.image.width) == ('samples', 5, 200)
  shown = image.imread(io.BytesIO(value.image.encoded_image_string))
  assert shown.shape[2] == value.image.colorspace
  np.testing.assert_array_equal(np.round(shown[..., :3] * 255), pixels)


def test_environment_has_one_entry_a_start_with_code_and_machine(tmp_path, monkeypatch):
  def git(*arguments):
    identity = ['-c', 'user.name=n', '-c', 'user.email=e']
    subprocess.run(['git', *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

  git('init')
  (tmp_path / 'code.py').write_text('a = 1\n')
  git('add', 'code.py')
  git('commit', '-m', 'one')
  (tmp_path / 'code.py').write_text('a = 2\n')
  (tmp_path / 'new.py').write_text('')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XLA_FLAGS', '--xla_some_flag')
  for start in range(2):
    with run.create('runs/a', CONFIG) as here:
      here.record_environment(environment.environment(['TFRT_CPU_0']))
    entries = json.loads((tmp_path / 'runs/a/env.json').read_text())
    assert len(entries) == start + 1
  entry, checkout = entries[-1], entries[-1]['git'][-1]
  assert '-a = 1\n+a = 2' in checkout['diff']
  assert len(checkout['commit']) == 40
  assert 'new.py' in checkout['untracked']
  assert entry['packages']['jax']
  assert (entry['devices'], entry['settings']['XLA_FLAGS']) == (['TFRT_CPU_0'], '--xla_some_flag')
  assert entry['usable_cores'] >= 1
  monkeypatch.setattr(environment, 'DIFF_LIMIT', 10)
  assert 'cut here: the whole diff has' in environment.git_state(tmp_path)['diff']
  assert environment.git_state('/') is None


def test_list_and_diff(tmp_path):
  for name, rate in (('a', 0.1), ('b', 0.3)):
    with run.create(tmp_path / name, changed(rate=rate)) as here:
      here.record_environment(environment.environment(()))
      write_some(here.path, range(4))
      here.write_status('done', 4, checkpoint=4)
  (tmp_path / 'other').mkdir()
  (tmp_path / 'damaged').mkdir()
  (tmp_path / 'damaged/config.json').write_text('{')
  rows = run.list_runs(tmp_path)
  assert [row[:5] for row in rows] == [(name, 'done', 4, 10, 1e-7 / 3) for name in 'ab']
  a, b = (run.open_run(tmp_path / name).config for name in 'ab')
  assert run.diff_configs(a, b) == [('optimizer.learning_rate', 0.1, 0.3)]
  assert run.diff_configs({'x': {'y': None}}, {}) == [('x.y', None, run.ABSENT)]
  assert run.diff_configs(a, a) == run.list_runs(tmp_path / 'none') == []


def test_a_disk_that_is_full_while_metrics_are_written_is_one_line(tmp_path):
  def full_writer():
    writer = run.MetricsWriter(tmp_path, tensorboard_files=False)
    writer._file.close()
    writer._file = open('/dev/full', 'ab', buffering=0)  # noqa: SIM115 (takes no byte, like a full disk)
    return writer

  with pytest.raises(StorageError, match='cannot be written: No space left on device') as error:
    full_writer().write(1, {'train/loss': 1.0})
  assert '\n' not in str(error.value)

  writer = run.MetricsWriter(tmp_path, tensorboard_files=False)
  writer._file = SimpleNamespace(name='metrics.jsonl', write=lambda data: len(data) // 2)
  with pytest.raises(StorageError, match='No space left on device'):  # a part of a line was taken
    writer.write(1, {'train/loss': 1.0})

  def fail():
    with full_writer() as writer:
      writer._file = open('/dev/full', 'ab')  # noqa: SIM115
      writer._file.write(b'x')  # cannot be flushed when it is closed
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):  # what went wrong first is what people see
    fail()
