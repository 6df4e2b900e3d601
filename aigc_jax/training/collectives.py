"""What devices exchange in one run of a compiled program: read from the text of the program that XLA made."""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

KINDS = (
  'all-reduce',
  'reduce-scatter',
  'all-gather',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
)
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16}
BYTES |= {'f16': 2, 'bf16': 2, 's4': 0.5, 'u4': 0.5}  # others: 4, but 8 bits of those that begin with f8
HEAD = re.compile(r'^(?:ENTRY )?%?([\w.-]+) .*\{$')
INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$')
ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
CALLED = re.compile(r'(?:calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)')


class Collective(NamedTuple):
  """One exchange of a program."""

  kind: str  # one of KINDS
  shapes: tuple  # of the whole arrays: summed, scattered or gathered
  bytes: float  # of these together
  devices: int  # that take part in each group
  times: int  # how often it runs, where it lies in a loop of known length
  source: str  # the operation that it was made for

  @property
  def sent(self):
    """Bytes that each device sends in all, by the algorithms on a ring (Patarasuk & Yuan 2009)."""
    share = (self.devices - 1) / self.devices
    parts = {'all-reduce': 2 * share, 'collective-permute': 1.0, 'collective-broadcast': 1.0}
    return self.bytes * self.times * parts.get(self.kind, share)


class Instruction(NamedTuple):
  name: str
  result: str  # type, as text
  operation: str
  rest: str  # operands and attributes


def find(compiled):
  """[Collective] of a compiled program (`jax.stages.Compiled`), or of its text.

  In a program for CPUs a sum of which each device then takes its own part is counted as a reduce-scatter: XLA has a
  pass that makes it one for GPUs and TPUs, and none for CPUs. Exchanges over a single device are left out.
  """
  text = compiled if isinstance(compiled, str) else compiled.as_text()
  found = []
  programs, entry = computations(text)
  counts = re.findall(r'num_(?:partitions|replicas)=(\d+)', text.split('\n', 1)[0])
  for name, times in runs_of(programs, entry).items():
    for instruction in programs[name]:
      devices = group_size(instruction.rest, math.prod(map(int, counts)))
      if instruction.operation.removesuffix('-start') not in KINDS or devices == 1:
        continue
      parts = defaultdict(list)  # kind -> [(dtype, shape)], since XLA joins many sums into one exchange
      for i, array in enumerate(arrays_of(instruction)):
        parts[kind_of(instruction, i, devices, name, programs)].append(array)
      found += [describe(kind, instruction, arrays, devices, times) for kind, arrays in parts.items()]
  return found


def kind_of(instruction, index, devices, name, programs):
  """The kind of one array's exchange."""
  kind = instruction.operation.removesuffix('-start')
  # for GPUs every exchange starts and is done; there, what is still a sum runs as one
  summed = instruction.operation == 'all-reduce' and scattered(
    instruction, index, devices, programs[name], programs
  )
  return 'reduce-scatter' if summed or (kind == 'all-reduce' and 'all-reduce-scatter' in name) else kind


def computations(text):
  """({name: [Instruction]}, name of the one that is run)."""
  programs, entry, current = {}, None, None
  for line in text.splitlines():
    if head := HEAD.match(line):
      current = programs.setdefault(head[1], [])
      entry = head[1] if line.startswith('ENTRY') else entry
    elif current is not None and (made := INSTRUCTION.match(line)):
      current.append(Instruction(*made.groups()[1:]))
  return programs, entry


def runs_of(programs, entry):
  """{computation: how often a run of the program runs it}; a loop of unknown length counts once."""
  times = Counter()

  def visit(name, count):
    times[name] += count
    for instruction in programs.get(name, ()):
      trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
      inner = count * int(trips[1]) if instruction.operation == 'while' and trips else count
      for group in CALLED.findall(instruction.rest):
        for called in re.findall(r'[\w.-]+', group):
          if called in programs:
            visit(called, inner)

  visit(entry, 1)
  return {name: count for name, count in times.items() if name in programs}


def scattered(instruction, index, devices, program, programs):
  """Whether all that comes of a sum's result of that number is cut at once, into as many parts as devices added it."""
  uses = defaultdict(list)
  for other in program:
    for operand in re.findall(r'%([\w.-]+)', other.rest.split('), ')[0]):
      uses[operand].append(other)
  part = math.prod(arrays_of(instruction)[index][1]) // devices
  ends, waiting = [], [instruction.name]
  while waiting:
    for user in uses[waiting.pop()]:
      if user.operation == 'get-tuple-element' and f'index={index},' not in f'{user.rest},':
        continue
      if user.operation in ('get-tuple-element', 'bitcast', 'copy'):
        waiting.append(user.name)
      else:
        ends.append(user)
  return bool(ends) and all(part in cuts(user, programs) for user in ends)


def cuts(instruction, programs):
  """How many elements each part has that an instruction cuts out of an array."""
  called = re.search(r'calls=%?([\w.-]+)', instruction.rest)
  inside = programs.get(called[1], ()) if instruction.operation == 'fusion' and called else (instruction,)
  return [
    math.prod(shape)
    for inner in inside
    if inner.operation == 'dynamic-slice'
    for _, shape in arrays_of(inner)
  ]


def arrays_of(instruction):
  """[(dtype, shape)] of what an exchange gives."""
  found = ARRAY.findall(instruction.result)
  if instruction.operation.endswith('-start') and not instruction.operation.startswith('all-reduce'):
    found = found[len(found) // 2 :]  # operands, then results
  return [(kind, tuple(map(int, filter(None, sizes.split(','))))) for kind, sizes in found]


def describe(kind, instruction, arrays, devices, times):
  if instruction.operation.startswith('reduce-scatter'):  # what is left of it
    axis = int(re.search(r'dimensions=\{(\d+)\}', instruction.rest)[1])
    whole = lambda shape: (*shape[:axis], shape[axis] * devices, *shape[axis + 1 :])
    arrays = [(dtype, whole(shape)) for dtype, shape in arrays]
  total = sum(width(dtype) * math.prod(shape) for dtype, shape in arrays)
  source = re.search(r'op_name="([^"]*)"', instruction.rest)
  shapes = tuple(shape for _, shape in arrays)
  return Collective(kind, shapes, total, devices, times, source[1] if source else '')


def width(dtype):
  return BYTES.get(dtype, 1 if dtype.startswith('f8') else 4)


def group_size(rest, everyone):
  """How many devices exchange with each other; `everyone` where no groups are named."""
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return listed[1].count(',') + 1
  if shaped := re.search(r'replica_groups=\[(\d+),(\d+)\]', rest):
    return int(shaped[2])
  if meshed := re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', rest):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", meshed[1]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", meshed[2])  # whole, or of a part of it its size
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if pairs := re.search(r'source_target_pairs=\{(.*?)\}\}', rest):
    return 2 if pairs[1] else 1
  return everyone


def table(collectives, size=lambda number: f'{number:,.0f}'):
  """Lines for people: each kind, how many, the bytes of their arrays, the bytes each device sends."""
  lines = []
  for kind in KINDS:
    chosen = [c for c in collectives if c.kind == kind]
    if chosen:
      count, arrays = sum(c.times for c in chosen), sum(c.bytes * c.times for c in chosen)
      lines.append(
        f'{kind:<22}{count:>5} of {size(arrays)}, {size(sum(c.sent for c in chosen))} sent by each device'
      )
  return lines
