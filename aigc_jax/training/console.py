"""What a person sees while a run goes on: lines on standard error and in log.txt, and one progress line.

On a terminal the progress line stays at the bottom; elsewhere it is printed now and then as a plain line. Notebooks
show standard error as if something had gone wrong, and there lines go to standard output.
"""

import contextlib
import sys
import time

from aigc_jax.files import storage_errors

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


def in_notebook():
  """Whether this process is the kernel of a notebook, and not one that merely has its libraries."""
  shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
  return hasattr(shell, 'kernel')


class Console:
  """Open with `with`; `log` is a path that every line is appended to, or None."""

  def __init__(self, log=None, quiet=False):
    with storage_errors(log):
      self.log = log and open(log, 'a', encoding='utf-8')  # noqa: SIM115 (closed by __exit__)
    self.quiet = quiet
    self.bar, self.last = None, time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.stop()
    if self.log:
      with contextlib.suppress(OSError):  # a full disk was told of when the line was written
        self.log.close()

  def say(self, text=''):
    """Prints lines above the progress line."""
    if self.log:
      with storage_errors(self.log.name):
        self.log.write(text + '\n')
        self.log.flush()
    if self.quiet:
      return
    if self.bar:
      self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
      print(text, file=sys.stdout if in_notebook() else sys.stderr, flush=True)

  def start(self, step, total):
    if not self.quiet and sys.stderr.isatty():
      from rich.console import Console as RichConsole
      from rich.progress import BarColumn, Progress, TextColumn

      columns = BarColumn(20), TextColumn('{task.fields[text]}')
      self.bar = Progress(*columns, console=RichConsole(stderr=True), transient=True)
      self.bar.add_task('', total=total, completed=step, text='compiling')
      self.bar.start()

  def progress(self, step, total, text):
    if self.bar:
      self.bar.update(self.bar.task_ids[0], completed=step, text=text)
    elif time.monotonic() - self.last > PLAIN_SECONDS or step == total:
      self.say(text)
      self.last = time.monotonic()

  def stop(self):
    if self.bar:
      self.bar.stop()
      self.bar = None


def clock(seconds):
  """12.3 -> '0:12', 3723 -> '1:02:03'."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def count(number):
  """1234567 -> '1.23M'."""
  for unit, size in (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.3g}{unit}'
  return f'{number:.4g}'


def size(octets):
  """1234567 -> '1.2 MB'."""
  for unit, scale in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
    if octets >= scale:
      return f'{octets / scale:.1f} {unit}'
  return f'{octets:.0f} B'


def table(rows, numbers=()):
  """Lines of rows of texts, in columns; those at the indices `numbers` end together."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  aligned = lambda cells: (
    cell.rjust(n) if i in numbers else cell.ljust(n)
    for i, (cell, n) in enumerate(zip(cells, widths, strict=True))
  )
  return ['  '.join(aligned(row)).rstrip() for row in rows]
