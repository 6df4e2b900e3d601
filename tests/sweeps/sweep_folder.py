"""Makes the folders that a sweep leaves, without training: for tests of what reads them."""

import json


def write(folder, trials, metric='validation/loss', **facts):
  """A sweep's folder. trials: [(name, overrides, {state, message, rows, lanes, samples})]; rows None: not begun."""
  folder.mkdir(parents=True, exist_ok=True)
  entries = [{'name': name, 'overrides': overrides} for name, overrides, _ in trials]
  facts = {
    'format': 1,
    'config': 'configs/some.py',
    'metric': metric,
    'higher_is_better': ['validation/accuracy'],
  } | facts
  (folder / 'sweep.json').write_text(json.dumps(facts | {'trials': entries}))
  (folder / 'configs.json').write_text(
    json.dumps({name: config_of(overrides) for name, overrides, _ in trials})
  )
  for name, overrides, what in trials:
    if what.get('rows') is not None:
      write_trial(folder / name, overrides, **what)
  return folder


def config_of(overrides):
  config = {'training': {'steps': 100}, 'seed': 0}
  for key, value in overrides.items():
    section, _, name = key.rpartition('.')
    if section:
      config.setdefault(section, {})[name] = value
    else:
      config[name] = value
  return config


def write_trial(path, overrides, rows, state='done', message='', lanes=1, samples=()):
  (path / 'samples').mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps({'format': 2, **config_of(overrides)}))
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  status = {'state': state, 'step': rows[-1]['step'] if rows else 0, 'checkpoint': None, 'message': message}
  (path / 'status.json').write_text(json.dumps(status))
  (path / 'env.json').write_text(json.dumps([{'lanes': lanes}]))
  for name, content in samples:
    (path / 'samples' / name).write_bytes(content)


def rows_of(losses, seconds=1.0):
  """Lines of metrics.jsonl: each loss at a step ten further, as training and validation loss."""
  return [
    {
      'step': 10 * i,
      'train/loss': loss,
      'validation/loss': loss,
      'time/seconds': seconds * i,
      'time/step_seconds': 0.1,
    }
    for i, loss in enumerate(losses, 1)
  ]
