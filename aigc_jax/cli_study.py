"""The verb of the command line about studies: `aigc reproduce experiments/char_lm.py`."""

import sys

from aigc_jax.errors import UsageError

FAILED = 1  # the exit status of a study that ran and in which a line fails


def add_options(add):
  """add: (name, text) -> the parser of a verb."""
  reproduce = add(
    'reproduce',
    'run a study, hold it against published numbers and print one table; the same command again does what is '
    'left; status 1 where a line fails',
  )
  reproduce.add_argument('study', metavar='FILE.py', help='with a function get_study()')
  reproduce.add_argument(
    '--quick', action='store_true', help='a few steps of one seed: whether all of it runs; nothing is judged'
  )
  reproduce.add_argument('--workdir', metavar='FOLDER', help='of the study; default: runs/FILE')
  reproduce.add_argument('--output', metavar='FILE.md', help='where the table is written, too')
  reproduce.add_argument('--jobs', type=int, default=1, help='worker processes at a time (default 1)')


def reproduce(options):
  """Prints the page. Returns the exit status: 0, or 1 where a line fails."""
  if options.jobs < 1:
    raise UsageError(f'--jobs={options.jobs}: it takes 1 or more')
  from aigc_jax.studies import judging, page
  from aigc_jax.studies import reproduce as running

  given = {name: getattr(options, name) for name in ('quick', 'workdir', 'output', 'jobs', 'trust')}
  text, lines = running.reproduce(options.study, **given)
  print(text, end='')
  if any(line.verdict == judging.FAIL for line in lines):
    sys.stdout.flush()
    print(f'aigc: {options.study}: {page.summary(lines)}', file=sys.stderr)
    return FAILED
  return 0
