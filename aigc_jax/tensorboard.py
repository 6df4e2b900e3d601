"""TensorBoard event files of scalars and images, so that neither TensorFlow nor protobuf is needed to write them.

A file is a row of TFRecords (length, its checksum, bytes, their checksum), each one `Event` protocol buffer:
https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
(tensorboardX would do, but it imports torch where that is installed, which takes seconds.)
"""

import os
import socket
import struct
import time


def crc32c_table():
  """CRC-32C (Castagnoli) of every byte; 0x82F63B78 is the reflected polynomial."""
  table = []
  for byte in range(256):
    for _ in range(8):
      byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    table.append(byte)
  return tuple(table)


CRC32C = crc32c_table()


def masked_crc32c(data):
  """The TFRecord checksum: CRC-32C, rotated and shifted so that a checksum of a checksum is not trivial."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data):
  length = struct.pack('<Q', len(data))
  return length + struct.pack('<I', masked_crc32c(length)) + data + struct.pack('<I', masked_crc32c(data))


def varint(number):
  groups = bytearray()
  while number > 0x7F:
    groups.append(number & 0x7F | 0x80)
    number >>= 7
  return bytes([*groups, number])


def nested(field, data):
  """A length-delimited field: text or a message."""
  return varint(field << 3 | 2) + varint(len(data)) + data


def event(step, payload):
  """Event{wall_time = 1, step = 2} and one more field, already encoded."""
  return b'\x09' + struct.pack('<d', time.time()) + b'\x10' + varint(step) + payload


def scalars(metrics):
  """Event.summary = 5, a list of Summary.value = 1 {tag = 1, simple_value = 2}."""
  values = (
    nested(1, nested(1, name.encode('utf-8')) + b'\x15' + struct.pack('<f', value))
    for name, value in metrics.items()
  )
  return nested(5, b''.join(values))


def image(name, png, height, width):
  """Event.summary = 5 of one Summary.value = 1 {tag = 1, image = 4 {height, width, colorspace, png bytes}}."""
  sizes = b'\x08' + varint(height) + b'\x10' + varint(width) + b'\x18\x04'  # 4: RGBA, as matplotlib writes
  return nested(5, nested(1, nested(1, name.encode('utf-8')) + nested(4, sizes + nested(4, png))))


class EventWriter:
  """Writes one event file. A new start of the same run writes a new file beside the old ones."""

  def __init__(self, folder, last=-1):
    """`last`: the step the run goes on after; TensorBoard forgets what earlier files say of later ones."""
    os.makedirs(folder, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}'
    name = f'{name}.{time.monotonic_ns()}'  # two starts in one second are two files
    self._file = open(os.path.join(folder, name), 'xb')  # noqa: SIM115 (closed by close)
    self._write(event(0, nested(3, b'brain.Event:2')))
    self._write(event(last + 1, nested(7, b'\x08\x01')))  # session_log = 7 {status = START}

  def write(self, step, metrics):
    """metrics: {name: float}."""
    self._write(event(step, scalars(metrics)))

  def write_image(self, step, name, png, height, width):
    """png: the bytes of a PNG file of that many pixels."""
    self._write(event(step, image(name, png, height, width)))

  def _write(self, data):
    self._file.write(record(data))
    self._file.flush()

  def close(self):
    self._file.close()
