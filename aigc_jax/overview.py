"""Runs at a glance, without starting JAX: which there are, and how two differ."""

import os

from aigc_jax import run
from aigc_jax.errors import UsageError


def list_runs(root='runs'):
  """A table of the runs right under a folder, oldest first."""
  if not os.path.isdir(root):
    raise UsageError(f'{root}: no such folder; runs are under runs/ unless --workdir said otherwise')
  rows = [('run', 'state', 'step', 'validation loss', 'started')]
  for row in run.list_runs(root):
    loss = '' if row.validation_loss is None else f'{row.validation_loss:.4f}'
    rows.append((row.name, row.state, f'{row.step}/{row.steps}', loss, row.started or ''))
  return table(rows)


def diff(first, second):
  """A table of the config fields in which two runs differ."""
  configs = [run.open_run(path).config for path in (first, second)]
  differences = run.diff_configs(*configs)
  if not differences:
    return 'the configs are equal'
  rows = [('field', str(first), str(second))]
  return table(rows + [(d.key, run.shown_value(d.a), run.shown_value(d.b)) for d in differences])


def table(rows):
  widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join(
    '  '.join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
  )
