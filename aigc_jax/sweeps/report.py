"""The answer of a sweep: table.csv, table.md, and report.html, one page that needs no network."""

import base64
import csv
import html
import io
import json
import math
from importlib import resources

import numpy as np

from aigc_jax import files, run
from aigc_jax.sweeps import frame
from aigc_jax.training.console import clock

POINTS, FEWEST = 240, 80  # of a learning curve at most, and at least what it may have in a sweep of any size
ALL_POINTS = 60_000  # of all curves of a metric, so that the page stays small
SHOWN = 24  # configurations whose samples are shown
SAMPLE_BYTES = 150_000  # of a picture, above which it is left out
SCRIPTS = ('draw.js', 'curves.js', 'charts.js', 'panels.js')


def report(path, metric=None):
  """Writes the three into a sweep's folder, at any time of the sweep. Returns their paths.

  metric: what trials are compared by; None: `config.training.best_metric`.

  Raises UsageError where it is no such folder or metric; StorageError.
  """
  sweep = frame.read_sweep(path, metric)
  ranked = frame.configurations(sweep)
  written = {
    'table.csv': as_csv(sweep),
    'table.md': as_markdown(sweep, ranked),
    'report.html': as_html(sweep, ranked),
  }
  for name, text in written.items():
    files.write_atomically(sweep.path / name, text)
  return [sweep.path / name for name in written]


def as_csv(sweep):
  columns, rows = frame.table(sweep)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(['' if value is None else value for value in row] for row in rows)
  return text.getvalue()


def as_markdown(sweep, ranked):
  """The leader board."""
  keys = [key for key in sweep.keys if key not in frame.SEEDS]
  head = ['rank', *keys, f'{sweep.metric} (mean)', 'spread', 'n', 'failed']
  lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
  for rank, found in enumerate(ranked, 1):
    why = '; '.join(f'{trial.name}: {trial.message}' for trial in found.failed)
    number = lambda value: '' if value is None else f'{value:.6g}'
    cells = [str(rank), *(str(found.values[key]) for key in keys), number(found.mean), number(found.spread)]
    cells += [str(found.n), f'{len(found.failed)}: {why}' if found.failed else '0']
    lines.append('| ' + ' | '.join(cell.replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |')
  return '\n'.join(lines) + '\n'


def as_html(sweep, ranked):
  page = resources.files('aigc_jax.sweeps') / 'page'
  read = lambda name: (page / name).read_text(encoding='utf-8')
  # what stands in a script may not end it
  data = json.dumps(page_data(sweep, ranked), ensure_ascii=False, allow_nan=False).replace('<', '\\u003c')
  parts = {
    'TITLE': html.escape(f'{sweep.path.absolute().name}: {sweep.metric}'),
    'STYLE': read('report.css'),
    'DATA': data,
    'SCRIPT': '\n'.join(read(name) for name in SCRIPTS),
  }
  text = read('report.html')
  for name, value in parts.items():
    before, _, after = text.partition(f'<!--{name}-->')
    text = before + value + after
  return text


def page_data(sweep, ranked):
  """All that the page shows, as JSON."""
  place = {trial.name: i for i, trial in enumerate(sweep.trials)}
  states = [trial.state for trial in sweep.trials]
  points = min(POINTS, max(FEWEST, ALL_POINTS // max(1, len(sweep.trials))))
  curves = sorted({n for t in sweep.trials for n in t.last if not n.startswith('time/')})
  return {
    'name': sweep.path.absolute().name,
    'config': sweep.config,
    'metric': sweep.metric,
    'higher': sweep.higher_is_better,
    'keys': sweep.keys,
    'seeds': [key for key in sweep.keys if key in frame.SEEDS],
    'states': {state: states.count(state) for state in dict.fromkeys(states)},
    'cost': clock(sum(trial.seconds for trial in sweep.trials)),
    'metrics': sorted(curves, key=lambda name: (name != sweep.metric, name != 'train/loss')),
    'trials': [of_trial(trial, curves, points) for trial in sweep.trials],
    'ranked': [
      {
        'values': [found.values[key] for key in found.values],
        'keys': list(found.values),
        'mean': found.mean,
        'spread': found.spread,
        'n': found.n,
        'trials': [place[trial.name] for trial in found.trials],
        'failed': [[trial.name, trial.state, trial.message] for trial in found.failed],
      }
      for found in ranked
    ],
    'samples': samples(ranked, place),
    'more': max(0, len(ranked) - SHOWN),
    'differences': differences(sweep),
  }


def of_trial(trial, curves, points):
  rates = [row['time/step_seconds'] for row in trial.rows if 'time/step_seconds' in row]
  return {
    'name': trial.name,
    'values': trial.values,
    'state': trial.state,
    'message': trial.message,
    'step': trial.step,
    'steps': trial.steps,
    'best': trial.best,
    'best_step': trial.best_step,
    'seconds': round(trial.seconds, 2),
    'rate': round(1 / float(np.median(rates)), 3) if rates and np.median(rates) > 0 else None,
    'curves': {name: found for name in curves if (found := curve(trial.rows, name, points))},
  }


def curve(rows, name, most):
  """[[steps], [seconds], [values]], thinned; seconds go on over starts."""
  points, passed, before = [], 0.0, 0.0
  for row in rows:
    if 'time/seconds' in row:
      passed += before if row['time/seconds'] < before else 0.0
      before = row['time/seconds']
    if name in row and math.isfinite(row[name]):
      points.append((row['step'], round(passed + before, 2), float(f'{row[name]:.6g}')))
  return [list(column) for column in zip(*thinned(points, most), strict=True)]


def thinned(points, most):
  """At most so many of (step, seconds, value): the ends, and of each stretch between the lowest and the highest."""
  if len(points) <= most:
    return points
  values = np.array([value for _, _, value in points])
  kept = {0, len(points) - 1}
  for part in np.array_split(np.arange(len(points)), most // 2 - 1):
    kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
  return [points[i] for i in sorted(kept)]


def samples(ranked, place):
  """What the first trial of each of the best configurations has made last."""
  found = []
  for configuration in ranked[:SHOWN]:
    good = [trial for trial in configuration.trials if trial.state not in frame.ENDED_BADLY]
    for trial in good[:1]:
      shown = [sample(file) for file in newest(trial.path / 'samples')]
      if any(shown):
        found.append({'trial': place[trial.name], 'shown': [one for one in shown if one]})
  return found


def newest(folder):
  """The files of samples/ of the last step."""
  names = sorted(file for file in folder.glob('[0-9]*-*') if file.is_file()) if folder.is_dir() else []
  return [file for file in names if file.name.partition('-')[0] == names[-1].name.partition('-')[0]]


def sample(file):
  """{name, text} or {name, image}; None for what is too large or is neither."""
  if file.suffix == '.png' and file.stat().st_size <= SAMPLE_BYTES:
    return {'name': file.name, 'image': base64.b64encode(file.read_bytes()).decode()}
  if file.suffix == '.txt':
    return {'name': file.name, 'text': file.read_text(encoding='utf-8', errors='replace')[:4000]}
  return None


def differences(sweep):
  """{'differ': {key: [value of each trial]}, 'same': {key: value}} of the resolved configs."""
  flat = [run.flattened(sweep.configs.get(trial.name, {})) for trial in sweep.trials]
  keys = list(dict.fromkeys(key for config in flat for key in config))
  differ, same = {}, {}
  for key in keys:
    values = [config.get(key) for config in flat]
    if all(value == values[0] for value in values):
      same[key] = values[0]
    else:
      differ[key] = values
  return {'differ': differ, 'same': same}
