"""The page of a study as Markdown: how it was made, its table, and how the table is to be read."""

import pathlib
import platform
import shlex
import statistics

import jax

from aigc_jax import environment
from aigc_jax.studies import judging
from aigc_jax.studies.study import Mean
from aigc_jax.training.console import clock

HEAD = (
  'arm',
  'measure',
  'runs',
  'mean ± half width',
  'reference',
  'source',
  'tolerance',
  'result',
  'minutes',
)
SHOWN = ('aigc-jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')
READING = """Mean and half the width of its 95 % interval over the seeds: t · s / √n, with the sample's standard
deviation s and the 0.975 quantile t of Student's distribution with n - 1 degrees of freedom. The mean is judged, not
the interval; a run that fails makes its line fail. Minutes are of training, compiling, evaluating and measuring."""


def page(study, lines, typed, quick, made):
  """The Markdown of a study.

  Args:
    lines: [judging.Line]. typed: the command. quick: whether the runs are short ones. made: [facts()] of the arms.
  """
  parts = [f'# {study.title}']
  if study.about:
    parts.append(study.about.strip())
  parts.append('\n'.join(front(lines, typed, made)))
  if quick:
    parts.append('**Quick: a few steps of one seed, to see that everything runs. Nothing is judged.**')
  parts.append('\n'.join(table(lines)))
  parts += reasons(lines)
  parts += [READING if quick else f'**{summary(lines)}.** {READING}']
  return '\n\n'.join(parts) + '\n'


def summary(lines):
  """'8 of 9 lines pass', for people."""
  judged = [line.verdict for line in lines if line.verdict in (judging.PASS, judging.FAIL)]
  skipped = sum(line.verdict == judging.SKIPPED for line in lines)
  passed = f'{judged.count(judging.PASS)} of {len(judged)} lines pass'
  return f'{passed}, {skipped} skipped' if skipped else passed


def command(path, quick, workdir, output):
  """What is typed to make the page."""
  options = [f'--workdir={workdir}'] if workdir else []
  options += [f'--output={output}'] if output else []
  return shlex.join(['aigc', 'reproduce', str(path), *(['--quick'] if quick else []), *options])


def facts():
  """When, where and with what something is trained: {'date', 'machine', 'versions'}, each a line for people."""
  found = environment.environment(jax.devices())
  versions = ', '.join(f'{name} {found["packages"][name]}' for name in SHOWN)
  return {
    'date': found['started'][:10],
    'machine': machine(found['usable_cores']),
    'versions': f'{versions}, Python {found["python"]}',
  }


def front(lines, typed, made):
  """Lines on how the table was made; arms may have been trained on several days, machines and versions."""
  each = lambda name: '; '.join(dict.fromkeys(found[name] for found in made))
  seconds = sum({line.arm.name: line.seconds for line in lines}.values())
  yield f'- made by `{typed}`'
  yield f'- on {each("date")}, in {clock(seconds)} of training and measuring'
  yield f'- {each("machine")}'
  yield f'- {each("versions")}'


def machine(cores):
  """'AMD EPYC, 2 cores, Linux', and the accelerator where there is one."""
  device = jax.devices()[0]
  there = '' if device.platform == 'cpu' else f', {jax.device_count()} x {device.device_kind}'
  return f'{processor()}, {cores} cores{there}, {platform.system()}'


def processor():
  """The CPU's model, as the system names it."""
  file = pathlib.Path('/proc/cpuinfo')
  if file.exists():
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
      name, _, value = line.partition(':')
      if name.strip() == 'model name' and value.strip():
        return value.strip()
  return platform.processor() or platform.machine()


def table(lines):
  """The lines of the one table."""
  yield '| ' + ' | '.join(HEAD) + ' |'
  yield '|---' * len(HEAD) + '|'
  arm = None
  for line in lines:
    cells = [escaped(cell) for cell in cells_of(line, line.arm.name != arm)]
    yield '| ' + ' | '.join(cells) + ' |'
    arm = line.arm.name


def cells_of(line, first):
  """The cells of a line; what an arm took stands on its first one."""
  digits, reference = line.measure.digits, line.reference
  runs = f'{len(line.values)} of {len(line.arm.seeds)}' if line.failed else str(len(line.values))
  minutes = f'{line.seconds / 60:.1f}' if first and line.verdict != judging.SKIPPED else ''
  against = ['', '', '']
  if reference is not None:
    value = '' if line.held is None else f'{line.held:.{digits}f}'
    against = [value, source_of(line), tolerance_of(reference, digits)]
  cells = [line.arm.name, line.measure.name, runs, mean_of(line.values, digits)]
  return [*cells, *against, line.verdict, minutes]


def mean_of(values, digits):
  if not values:
    return ''
  mean, half = f'{statistics.fmean(values):.{digits}f}', judging.half_width(values)
  return mean if half is None else f'{mean} ± {half:.{digits}f}'


def source_of(line):
  """Where the reference is from: of another line, in what that differs from this one."""
  value, source = line.reference.value, line.reference.source
  if not isinstance(value, Mean):
    return source
  here = Mean(line.arm.name, line.measure.name)
  return '; '.join([*(there for there, own in zip(value, here, strict=True) if there != own), source])


def tolerance_of(reference, digits):
  """'within 0.020', 'at least', 'at least, less 0.005'."""
  size = f'{reference.tolerance:.{digits}f}'
  if reference.side == 'within':
    return f'within {size}'
  way = {'at least': 'less', 'at most': 'plus'}[reference.side]
  return f'{reference.side}, {way} {size}' if reference.tolerance else reference.side


def reasons(lines):
  """Lines on what did not come to its end, and on what was not begun, each once."""
  told = lambda line, why: (
    f'{"Not run" if line.verdict == judging.SKIPPED else "Failed"}: {line.arm.name}, {why}'
  )
  return list(dict.fromkeys(told(line, why) for line in lines for why in line.failed))


def escaped(text):
  return text.replace('|', '\\|').replace('\n', ' ')
