"""Configs: load a file, override by text, fill in and check against schemas, JSON and back, floats out and in.

A config file returns an `ml_collections.ConfigDict` with what differs from the defaults. `resolve` fills in the
rest from *schemas*: dataclasses (a Linen module is one too) whose annotations give each field's type and range. The
floats of `task`, `model`, `optimizer` and `lora` are inputs of the compiled program; everything else is its structure.
"""

import contextlib
import copy
import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from aigc_jax import own_code
from aigc_jax.errors import UsageError, listed, nearest

PLAIN = (int, float, bool, str)  # types of fields
TRACED_SECTIONS = ('task', 'model', 'optimizer', 'lora')


class Range(NamedTuple):
  """Which numbers a field may hold; bounds that are None are open."""

  text: str
  least: float | None = None  # allowed itself
  above: float | None = None  # not allowed itself
  most: float | None = None
  below: float | None = None

  def holds(self, value):
    return (
      (self.least is None or value >= self.least)
      and (self.above is None or value > self.above)
      and (self.most is None or value <= self.most)
      and (self.below is None or value < self.below)
    )


Positive = Range('above 0', above=0)
NonNegative = Range('0 or above', least=0)
Fraction = Range('in [0, 1)', least=0, below=1)
UnitInterval = Range('in [0, 1]', least=0, most=1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """The loop: how long, how exactly, and what is done how often."""

  steps: Annotated[int, Positive] = 2000  # updates of the parameters in all
  # parts of a batch that are worked through one after another, to save memory
  microbatches: Annotated[int, Positive] = 1
  precision: Literal['float32', 'bfloat16'] = 'float32'  # of the computation; parameters stay float32
  # taken by one call of the compiled program, which small steps gain by; intervals are multiples of it. Lanes take one
  steps_per_call: Annotated[int, Positive] = 1
  log_every: Annotated[int, Positive] = 10  # steps between the progress lines, and the rows of metrics
  evaluate_every: Annotated[int, Positive] | None = 500  # steps between evaluations; None: none
  evaluate_batches: Annotated[int, Positive] | None = None  # None: the whole validation split
  checkpoint_every: Annotated[int, Positive] | None = 500  # the last step is saved always
  keep_checkpoints: Annotated[int, Positive] = 3  # the best one is kept besides
  sample_every: Annotated[int, Positive] | None = 500  # steps between samples; None: none
  best_metric: str = 'validation/loss'  # which evaluation is the best one: of checkpoints, and for patience
  patience: Annotated[int, Positive] | None = None  # evaluations without a better value that end the run
  freeze: str | None = None  # parameters whose path matches this regular expression never change
  tensorboard: bool = True  # whether metrics are written for TensorBoard too


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """How a run lies on its devices."""

  # mesh: one program over a mesh; pmap: one for each device, sums added by psum
  mode: Literal['mesh', 'pmap'] = 'mesh'
  # devices that have some rows of the batch each; -1: as many as are left and divide the batch
  data: Annotated[int, Range('-1 or above 0', least=-1)] = -1
  # devices that have some rows each, and a part of every array of the state; -1: all that are left
  fsdp: Annotated[int, Range('-1 or above 0', least=-1)] = 1
  # devices that share attention, feed-forward layers and vocabulary; -1: all that are left
  tensor: Annotated[int, Range('-1 or above 0', least=-1)] = 1


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters (Hu et al. 2021), see tasks/lora.py."""

  rank: Annotated[int, Positive] | None = (
    None  # of the adapters that learn instead of the model; None: there are none
  )
  alpha: Annotated[float, Positive] | None = None  # they count alpha / rank times; None: once
  targets: str = (
    'attention/(query|value)/kernel$'  # kernels that have one: a regular expression of their paths
  )
  # parameters that learn besides, in full: the same, such as '^(head|pool)/'; what init_from does not have must be here
  trained: str | None = None


SECTIONS = {'training': TrainingConfig, 'parallel': ParallelConfig, 'lora': LoraConfig}


@dataclasses.dataclass(frozen=True)
class Root:
  """The fields outside of all sections."""

  # of the first parameters and of all chance in the steps; data.seed is that of the data
  seed: Annotated[int, NonNegative] = 0
  init_from: str = ''  # a run folder or a checkpoint to start from


class Field(NamedTuple):
  kind: Any  # int, float, bool, str, a tuple of literals, or ('sequence', kind)
  optional: bool
  limits: Range | None
  default: Any  # dataclasses.MISSING where the data decides (a vocabulary's size)


def field_of(annotation, default):
  """Reads one dataclass annotation, e.g. `Annotated[float | None, Fraction]`."""
  limits, optional = None, False
  while True:
    if typing.get_origin(annotation) is Annotated:
      found = [m for m in annotation.__metadata__ if isinstance(m, Range)]
      limits, annotation = (found or [limits])[0], annotation.__origin__
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
      members = [a for a in typing.get_args(annotation) if a is not types.NoneType]
      optional, annotation = optional or len(members) < len(typing.get_args(annotation)), members[0]
    else:
      break
  if typing.get_origin(annotation) is Literal:
    annotation = typing.get_args(annotation)
  elif typing.get_origin(annotation) in (tuple, list):
    annotation = ('sequence', typing.get_args(annotation)[0])
  elif annotation is Any:
    annotation, optional = float, True
  return Field(annotation, optional, limits, default)


def fields_of(schema) -> dict[str, Field]:
  """{name: Field} of a dataclass, or of a Linen module without what Linen itself adds.

  Functions that fields of a module have by default (activations, initializers) stay, and are no part of a config.
  Raises UsageError for a field of a type that no config holds.
  """
  found, is_module = {}, hasattr(schema, 'init_with_output')
  try:
    annotations = typing.get_type_hints(schema, include_extras=True)
  except NameError as error:
    raise UsageError(
      f'{schema.__module__}: an annotation of {schema.__name__} is not known: {error}'
    ) from None
  for field in dataclasses.fields(schema):
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if is_module and (field.name in ('parent', 'name', 'dtype') or callable(default)):
      continue
    found[field.name] = field_of(annotations[field.name], default)
    if not is_plain(found[field.name].kind):
      raise UsageError(
        f'{schema.__module__}: {schema.__name__}.{field.name} is annotated {field.type}, and fields of a config are '
        'int, float, bool, str, a Literal, or a tuple such as tuple[int, ...]'
      )
  return found


def is_plain(kind):
  """Whether JSON holds values of such a Field."""
  if isinstance(kind, tuple):
    return kind[0] != 'sequence' or kind[1] in PLAIN
  return kind in PLAIN


class Schemas(NamedTuple):
  """Which fields the sections have: {name: dataclass} for task and model, a dataclass for the optimizer; those of the
  data follow from the task's name and the source."""

  task: Mapping[str, Any]
  model: Mapping[str, Any]
  optimizer: Any
  data: Callable[[str, str | None], Any]  # task name, data.source or None -> dataclass
  own: Mapping[str, Callable] = {}  # section: the user's own 'module:name' -> dataclass

  def sections(self, config):
    """{section: {name: Field}} as `config`'s task and model names ask for; the root's own fields under ''."""
    found = {'': fields_of(Root)}
    for section, choices in (('task', self.task), ('model', self.model)):
      given = config.get(section, {})
      name = given.get('name') if isinstance(given, Mapping) else given
      if name is Required:
        raise UsageError(f'config.{section}.name: must be given, by --config.{section}.name=NAME')
      if section in self.own and own_code.is_own(name):
        found[section] = {'name': Field(str, False, None, name), **fields_of(self.own[section](name))}
        continue
      if not isinstance(name, str) or name not in choices:
        close = nearest(name, choices)
        raise UsageError(
          f'config.{section}.name: {name!r} is not known; {close}the {section}s are {listed(choices)}'
        )
      found[section] = {'name': Field(str, False, None, name), **fields_of(choices[name])}
    found['optimizer'] = fields_of(self.optimizer)
    given = config.get('data', {})
    source = given.get('source') if isinstance(given, Mapping) else None
    source = source if isinstance(source, str) else None  # what is no text is refused with the other values
    found['data'] = fields_of(self.data(found['task']['name'].default, source))
    return found | {section: fields_of(schema) for section, schema in SECTIONS.items()}

  def open_fields(self, config):
    """Dotted keys that `config` leaves open for the data to decide (a vocabulary's size)."""
    return [
      f'{section}.{name}'
      for section, fields in self.sections(config).items()
      for name, field in fields.items()
      if field.default is dataclasses.MISSING and config[section][name] is None
    ]


class Required:
  """The value of a required placeholder that nobody has filled in."""


def as_dict(config):
  """A ConfigDict (placeholders are None, required ones Required) or nested mapping -> nested plain dicts."""
  if hasattr(config, 'to_dict'):
    config = {k: referred(v) for k, v in config.items(preserve_field_references=True)}
  return {k: as_dict(v) if isinstance(v, Mapping) or hasattr(v, 'to_dict') else v for k, v in config.items()}


def referred(value):
  """What a ConfigDict's field reference refers to; other values as they are."""
  from ml_collections.config_dict import FieldReference, RequiredValueError

  try:
    return value.get() if isinstance(value, FieldReference) else value
  except RequiredValueError:
    return Required


def find_field(sections, key):
  """The Field of a dotted key. Raises UsageError naming the nearest key."""
  section, _, name = key.rpartition('.')
  if name not in sections.get(section, {}):
    names = [f'{s}.{n}' if s else n for s, fields in sections.items() for n in fields]
    raise UsageError(f'config.{key}: no such key; {nearest(key, names)}'.rstrip('; '))
  return sections[section][name]


def parse_text(key, text, field):
  """A command line's text as a value of the field's type; 'none' where the field is optional."""
  if field.optional and text.lower() in ('none', 'null'):
    return None
  if field.kind is bool and text.lower() in ('true', 'false', '1', '0', 'yes', 'no'):
    return text.lower() in ('true', '1', 'yes')
  try:
    if field.kind is int:
      number = float(text)
      return int(text) if number != number or number % 1 or abs(number) >= 2**53 else int(number)
    if field.kind is float:
      return float(text)
    if isinstance(field.kind, tuple) and field.kind[0] == 'sequence':
      return tuple(field.kind[1](part) for part in text.strip('[]()').split(',') if part.strip())
  except ValueError:
    pass
  return text


def check_value(key, value, field):
  """The value in the field's type. Raises UsageError that says what would be right."""
  where = f'config.{key}: {value!r}'
  if value is Required:
    raise UsageError(f'config.{key}: must be given, by --config.{key}=VALUE; {expected(field)}')
  if value is None:
    if field.optional or field.default is dataclasses.MISSING:
      return None
    raise UsageError(f'{where} is not allowed; {expected(field)}')
  kind = field.kind
  if isinstance(kind, tuple) and kind[0] == 'sequence':
    if not isinstance(value, list | tuple):
      raise UsageError(f'{where} is not a sequence; {expected(field)}')
    return [check_value(key, v, Field(kind[1], False, field.limits, None)) for v in value]
  if isinstance(kind, tuple):
    if value not in kind:
      raise UsageError(f'{where} is not known; {nearest(value, kind)}{expected(field)}')
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise UsageError(f'{where} is not {article(kind)}; {expected(field)}')
  if kind is float and not math.isfinite(value):
    raise UsageError(f'{where} is not a finite number; {expected(field)}')
  if field.limits and not field.limits.holds(value):
    raise UsageError(f'{where} is out of range; {expected(field)}')
  return value


def article(kind):
  return {int: 'an int', float: 'a float', bool: 'true or false', str: 'a text'}.get(kind, str(kind))


def expected(field):
  kind = field.kind
  if isinstance(kind, tuple):
    text = f'a list of {kind[1].__name__}s' if kind[0] == 'sequence' else 'one of ' + listed(kind)
  else:
    text = article(kind)
  limits = f' {field.limits.text}' if field.limits else ''
  return f'it takes {text}{limits}' + (', or none' if field.optional else '')


def override(config, overrides, schemas, inherit=lambda config: config):
  """Applies [(dotted key, text or value)] in order; names and the source first, since they decide the other fields.

  In a ConfigDict, references to a field that is overridden follow it. Returns nested plain dicts.

  inherit: nested plain dicts -> the same with what they take from elsewhere, to know which fields there are.
  """
  frozen = hasattr(config, 'as_configdict')
  config = config.as_configdict() if frozen else copy.deepcopy(config)
  names = [o for o in overrides if o[0] in ('init_from', 'task.name', 'model.name', 'data.source')]
  others, sections = [o for o in overrides if o not in names], None
  for key, value in names + others:
    section, _, name = key.rpartition('.')
    if (key, value) not in names:
      sections = sections or schemas.sections(inherit(as_dict(config)))
      field = find_field(sections, key)
      value = parse_text(key, value, field) if isinstance(value, str) else value
    with contextlib.ExitStack() as stack:
      if hasattr(config, 'to_dict'):
        stack.enter_context(config.unlocked())
        stack.enter_context(config.ignore_type())  # `resolve` checks types, and says more
      if section and section not in config:
        config[section] = {}
      place = config[section] if section else config
      if not hasattr(place, 'items'):
        raise UsageError(f'config.{section}: {place!r} is not a section of fields')
      place[name] = value
  return as_dict(config)


def resolve(config, schemas):
  """Fills in every default and checks every value.

  Args:
    config: nested mapping or ConfigDict with any part of the fields.
    schemas: Schemas.

  Returns:
    The complete config as nested plain dicts. Fields that the data decides are None until `complete`.

  Raises:
    UsageError: an unknown key (with the nearest one), a wrong type or a value out of range.
  """
  config = as_dict(config)
  sections, complete = schemas.sections(config), {}
  for key, value in config.items():
    if isinstance(value, dict) and key not in sections:
      raise UsageError(f'config.{key}: no such section; {nearest(key, sections)}'.rstrip('; '))
    for name in value if isinstance(value, dict) else ():
      find_field(sections, f'{key}.{name}')
    if not isinstance(value, dict):
      find_field(sections, key)
  for section, fields in sections.items():
    filled = fill_in(fields, config.get(section, {}) if section else config, section)
    complete |= {section: filled} if section else filled
  return complete


def fill_in(fields, given, section):
  """{name: Field} and what is given of them -> {name: value}, every default filled in and every value checked."""
  default = lambda field: None if field.default is dataclasses.MISSING else field.default
  key = lambda name: f'{section}.{name}' if section else name
  return {n: check_value(key(n), given.get(n, default(field)), field) for n, field in fields.items()}


def to_json(config):
  return json.dumps(as_dict(config), indent=2, ensure_ascii=False) + '\n'


def from_json(text):
  return json.loads(text)


def floats_of(config):
  """{dotted key: value} of the floats that are inputs of the program."""
  return {
    f'{section}.{name}': value
    for section in TRACED_SECTIONS
    for name, value in config.get(section, {}).items()
    if isinstance(value, float)
  }


def with_floats(config, floats):
  """The config with `floats` (arrays, traced or not) in the places of its own."""
  filled = dict(config)
  for section in TRACED_SECTIONS:
    filled[section] = {n: floats.get(f'{section}.{n}', v) for n, v in config.get(section, {}).items()}
  return filled
