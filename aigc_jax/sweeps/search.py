"""A sweep whose trials Optuna proposes, from what the trials before them reached.

Trials come in batches, which run as lanes; poor ones are pruned at their evaluations. What Optuna knows is in the
sweep's folder, in optuna.log: a search that was killed goes on, its trials in flight first.
"""

import json
import pathlib
import warnings
from typing import Any, NamedTuple

from aigc_jax import files, run
from aigc_jax.config_files import load_file
from aigc_jax.errors import UsageError
from aigc_jax.schemas import read_config
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import launch
from aigc_jax.sweeps.trials import Trial, name_of, shown, value_at

JOURNAL, NUMBERS, STUDY = 'optuna.log', 'numbers.json', 'sweep'
BATCH = 8  # trials proposed at once for each worker, unless --lanes says otherwise
STARTUP = 5  # trials that are not pruned, for there is nothing yet to hold them against


class Search(NamedTuple):
  """What is searched."""

  config: Any  # 'FILE.py:VARIANT', a ConfigDict or nested dicts
  overrides: list
  space: dict  # {dotted key: space.Between or [value]}
  count: int  # trials in all
  trust: bool = False  # as in `schemas.read_config`


def optuna_module():
  try:
    import optuna
  except ImportError as error:
    raise UsageError("--search=optuna: needs optuna; pip install 'aigc-jax[sweeps]'") from error
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  warnings.filterwarnings(
    'ignore', category=UserWarning, module='optuna'
  )  # a resumed trial reports a step twice
  return optuna


def open_study(folder, config):
  """The study of a sweep's folder. `config`: resolved; it has the sampler's seed and the metric."""
  optuna = optuna_module()
  backend = optuna.storages.journal.JournalFileBackend(str(pathlib.Path(folder) / JOURNAL))
  judged = sweep_folder.judged_by(config)
  higher = sweep_folder.is_higher_better(judged['metric'], judged['higher_is_better'])
  study = optuna.create_study(
    study_name=STUDY,
    storage=optuna.storages.JournalStorage(backend),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    direction='maximize' if higher else 'minimize',
    load_if_exists=True,
  )
  known = len(
    study.get_trials(deepcopy=False)
  )  # a search that goes on must not draw again what it drew first
  study.sampler = optuna.samplers.TPESampler(seed=(config['seed'] + known) % 2**32, constant_liar=True)
  return study


def distributions(space):
  """{key: optuna distribution}; of lists the places in them are searched, since their values may be anything."""
  optuna, found = optuna_module(), {}
  for key, values in space.items():
    if isinstance(values, list):
      found[key] = optuna.distributions.CategoricalDistribution(tuple(range(len(values))))
    elif values.whole:
      found[key] = optuna.distributions.IntDistribution(values.low, values.high, log=values.logarithmic)
    else:
      found[key] = optuna.distributions.FloatDistribution(values.low, values.high, log=values.logarithmic)
  return found


def trial_of(search, params):
  """The Trial that Optuna's parameters mean."""
  chosen = {
    key: values[params[key]] if isinstance(values, list) else params[key]
    for key, values in search.space.items()
  }
  complete = read_config(search.config, [*search.overrides, *chosen.items()], search.trust)
  return Trial(name_of(complete), {key: value_at(complete, key) for key in chosen}, complete)


def check(search):
  """The resolved config of the base. Raises UsageError where a trial at either end of the space would be refused."""
  if search.count < 1:
    raise UsageError(f'--trials={search.count}: it takes 1 or more')
  if isinstance(search.config, str):
    search = search._replace(config=load_file(search.config))
  for pick in (
    lambda v: 0 if isinstance(v, list) else v.low,
    lambda v: len(v) - 1 if isinstance(v, list) else v.high,
  ):
    trial_of(search, {key: pick(values) for key, values in search.space.items()})
  return read_config(search.config, search.overrides, search.trust)


def run_search(folder, search, options, console, starter=None):
  """Runs a search to its number of trials. Returns {name: {message, attempts}} of those that failed.

  Args:
    folder: held by the caller. options: launch.Options. console: where lines go. starter: see `launch.launch`.
  """
  study, base = open_study(folder, check(search)), distributions(search.space)
  optuna, trials, numbers = optuna_module(), {}, {}
  states = optuna.trial.TrialState
  for known in study.get_trials(deepcopy=False):
    trial = trial_of(search, known.params)
    trials.setdefault(trial.name, trial)
    numbers.setdefault(trial.name, []).append(known.number)
  waiting = [name for name, ns in numbers.items() if any(study.trials[n].state == states.RUNNING for n in ns)]
  failed = {}
  while waiting or len(study.get_trials(deepcopy=False)) < search.count:
    for _ in range(
      min(batch_size(options) - len(waiting), search.count - len(study.get_trials(deepcopy=False)))
    ):
      asked = study.ask(base)
      trial = trial_of(search, asked.params)
      trials.setdefault(trial.name, trial)
      numbers.setdefault(trial.name, []).append(asked.number)
      waiting.append(trial.name)
    waiting = list(dict.fromkeys(waiting))
    sweep_folder.write(folder, label_of(search), list(trials.values()))
    files.write_json(folder / NUMBERS, {name: max(found) for name, found in numbers.items()})
    failed |= launch.launch(folder, [trials[name] for name in waiting], options, console, starter)
    for name in waiting:
      tell(study, folder / name, numbers[name], trials[name])
    waiting = []
  best = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
  finished = [t for t in study.get_trials(deepcopy=False) if t.state == states.COMPLETE]
  if finished:
    winner = best(finished, key=lambda t: t.value)
    console.say(f'best: {shown(trial_of(search, winner.params).overrides)}: {winner.value:.6g}')
  return failed


def label_of(search):
  return search.config if isinstance(search.config, str) else None


def batch_size(options):
  return options.jobs * (options.lanes or BATCH)


def tell(study, path, numbers, trial):
  """Tells Optuna how a trial ended: the best value of its metric, that it was pruned, or that it failed."""
  states = optuna_module().trial.TrialState
  status, metric = sweep_folder.state_of(path), trial.config['training']['best_metric']
  values = [row[metric] for row in run.read_metrics(path) if metric in row]
  higher = study.direction.name == 'MAXIMIZE'
  for number in numbers:
    if study.trials[number].state != states.RUNNING:
      continue
    if status['state'] == 'done' and values:
      study.tell(number, (max if higher else min)(values))
    else:
      pruned = status['message'].startswith('pruned')
      study.tell(number, state=states.PRUNED if pruned else states.FAIL)


def pruner(folder):
  """The `prune` of a worker of a search (see `lanes.run_lanes`): reports each evaluation, and asks whether to go on."""
  folder = pathlib.Path(folder)
  numbers = files.read_json(folder / NUMBERS)
  configs = json.loads((folder / sweep_folder.CONFIGS).read_text(encoding='utf-8'))
  study, optuna = open_study(folder, next(iter(configs.values()))), optuna_module()

  def prune(lane, step, found):
    metric = lane.config['training']['best_metric'].removeprefix('validation/')
    known = study.trials[numbers[lane.name]]
    asked = optuna.trial.Trial(study, known._trial_id)
    if known.state != optuna.trial.TrialState.RUNNING:
      return None
    if step not in known.intermediate_values:
      asked.report(found[metric], step)
    return f'pruned at step {step}' if asked.should_prune() else None

  return prune
