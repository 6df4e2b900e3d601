"""Runs a study: each arm's seeds as a sweep, then its measures. The same call again does what is left."""

import math
import pathlib
import statistics
import sys
import traceback
from typing import Any, NamedTuple

import jax

from aigc_jax import api, files, run, sweeping, tasks
from aigc_jax.config import floats_of
from aigc_jax.errors import AigcError, DataError, UsageError, listed, nearest
from aigc_jax.studies import judging, page, state
from aigc_jax.studies import study as studies
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import frame
from aigc_jax.training import prepare
from aigc_jax.training.console import Console
from aigc_jax.training.experiment import set_up
from aigc_jax.training.step import make_program


class Plan(NamedTuple):
  """An arm of the study, ready to begin."""

  arm: Any  # study.Arm
  folder: pathlib.Path  # of its sweep
  space: list  # [{field: seed}] of each trial
  trials: list  # [sweeps.trials.Trial], by seed; empty where the arm is passed over
  missing: str = ''  # what it needs and is not here


def reproduce(path, quick=False, workdir=None, output=None, jobs=1, quiet=False, trust=False):
  """Runs the study of a file to its end and judges it; the same call again does what is left.

  Args:
    path: of the study file, see `studies.study`.
    quick: a few steps of the first seed of each arm; nothing is judged.
    workdir: the study's folder; None: runs/NAME, and runs/NAME-quick.
    output: a Markdown file that gets the page besides WORKDIR/table.md.
    jobs: worker processes at a time, of an arm.
    trust: whether to import models and tasks of the user's own, 'module:name' in a config.

  Returns:
    (the page as Markdown, [judging.Line]).

  Raises:
    UsageError: before anything is compiled. Interrupted: by a signal, after saving; the same call goes on.
  """
  set_up()
  study = studies.load(path)
  study = studies.shortened(study) if quick else study
  folder = pathlib.Path(workdir or f'runs/{pathlib.Path(path).stem}{"-quick" if quick else ""}')
  check_output(output)
  state.check(folder)
  plans = [planned(arm, folder, trust) for arm in study.arms]
  for plan in plans:
    check_metrics(plan)
  with state.opened(folder) as kept, Console(folder / 'log.txt', quiet) as console:
    console.say(f'study: {study.title}; {told(study, plans, quick)}; folder: {folder}')
    for number, plan in enumerate(plans, 1):
      train(plan, f'arm {number} of {len(plans)}: {plan.arm.name}', kept, console, jobs)
      measure(plan, path, kept, console)
    lines = judged(plans, kept, quick)
    made = [kept.made[plan.arm.name] for plan in plans if plan.trials] or [page.facts()]
    text = page.page(study, lines, page.command(path, quick, workdir, output), quick, made)
    for file in (folder / state.PAGE, output):
      if file is not None:
        files.write_atomically(file, text)
        console.say(f'page: {file}')
  return text, lines


def check_output(output):
  if output is not None and not pathlib.Path(output).absolute().parent.is_dir():
    raise UsageError(f'--output={output}: no such folder; make it, or give another file')


def told(study, plans, quick):
  count = sum(len(plan.trials) for plan in plans)
  if quick:
    return f'quick, short runs: {count}'
  long = f'; about {study.minutes:g} min on 2 CPU cores' if study.minutes else ''
  return f'arms: {len(plans)}, runs: {count}{long}'


def planned(arm, folder, trust=False):
  """The Plan of an arm. Raises UsageError where its config, its overrides or its folder do not fit."""
  folder = folder / studies.folder_of(arm)
  needed, _, where = arm.needs.partition(': ')
  if needed and not pathlib.Path(needed).exists():
    return Plan(arm, folder, [], [], f'{needed} is not here' + (f'; {where}' if where else ''))
  space = [dict.fromkeys(arm.seeded, seed) for seed in arm.seeds]
  try:
    trials = sweeping.find_trials(arm.config, space, arm.overrides, trust)
  except UsageError as error:
    raise UsageError(f'arm {arm.name!r}: {error}') from None
  sweep_folder.check(folder, trials)
  return Plan(arm, folder, space, trials)


def ended(plan):
  return all(sweep_folder.has_ended(plan.folder / trial.name) for trial in plan.trials)


def check_metrics(plan):
  """Raises UsageError for a metric that an evaluation of the arm does not give; by shapes, so nothing is compiled."""
  wanted = [each for each in plan.arm.measures if not callable(each.of)]
  if not wanted or ended(plan):
    return
  try:
    config, dataset, task, _ = prepare.prepare(plan.trials[0].config)
  except AigcError as error:
    raise type(error)(f'arm {plan.arm.name!r}: {error}') from None
  program, floats = make_program(config, tasks.build), floats_of(config)
  first = jax.eval_shape(program.init, floats, jax.eval_shape(jax.random.key, 0), dataset.example())
  names = prepare.metric_names(program, floats, first, dataset, task)
  for each in wanted:
    if each.of not in names:
      where = f'measure {each.name!r} of arm {plan.arm.name!r}'
      raise UsageError(
        f'{where}: {each.of!r} is not known; {nearest(each.of, names)}there are {listed(names)}'
      )


def train(plan, title, kept, console, jobs):
  """Trains what is left of an arm. What fails is left to the table, which says so."""
  if plan.missing:
    console.say(f'{title}: passed over: {plan.missing}')
    return
  if ended(plan):
    kept.made.setdefault(plan.arm.name, page.facts())
    console.say(f'{title}: is trained')
    return
  kept.made[plan.arm.name] = page.facts()
  console.say(f'{title}: {plan.arm.config}, seeds {listed(plan.arm.seeds)}')
  with kept.clock(plan.arm.name):
    try:
      sweeping.sweep(
        plan.arm.config, plan.space, plan.folder, plan.arm.overrides, jobs=jobs, quiet=console.quiet
      )
    except DataError as error:  # no trial came to its end
      console.say(f'{title}: {error}')


def measure(plan, path, kept, console):
  """Computes the measures that are functions of a run, of the trials that are done; those that are kept stay."""
  asked = [each for each in plan.arm.measures if callable(each.of)]
  for trial in plan.trials if asked else ():
    if sweep_folder.state_of(plan.folder / trial.name)['state'] != 'done':
      continue
    open_run = {}  # {checkpoint: TrainedRun}, once for the measures of it
    for each in asked:
      which = studies.CHECKPOINTS[each.when]

      def compute():
        if which not in open_run:
          open_run[which] = api.load_run(plan.folder / trial.name, which)
        return number(each, plan.arm, open_run[which], path)

      value = kept.value(plan.arm.name, trial.name, each.name, compute)
      console.say(f'{plan.arm.name}, {shown_seed(trial)}: {each.name} {value:.{each.digits}f}')


def shown_seed(trial):
  return f'seed {next(iter(trial.overrides.values()))}'


def number(each, arm, trained, path):
  """What the function of a measure gives, a float. Raises UsageError for what goes wrong in it."""
  where = f'measure {each.name!r} of arm {arm.name!r}'
  try:
    return float(each.of(trained))
  except AigcError:
    raise
  except Exception as error:
    places = [frame for frame in traceback.extract_tb(sys.exc_info()[2]) if frame.filename == str(path)]
    line = f':{places[-1].lineno}' if places else ''
    raise UsageError(f'{path}{line}: {where}: {type(error).__name__}: {error}') from error


def values_of(plan, each, kept):
  """([value of each run that came to its end], [why each of the others did not])."""
  values, failed, broken = [], [], sweep_folder.failures(plan.folder)
  for trial in plan.trials:
    status = sweep_folder.state_of(plan.folder / trial.name)
    if status['state'] != 'done':
      why = broken[trial.name]['message'] if trial.name in broken else status['message'] or status['state']
      failed.append(f'{shown_seed(trial)}: {why}')
    elif callable(each.of):
      values.append(kept.measured[plan.arm.name][trial.name][each.name]['value'])
    else:
      values.append(of_metrics(plan.folder / trial.name, trial.config, each))
  return values, failed


def of_metrics(folder, config, each):
  """The last or best value of a metric of a run; not a number where it has none."""
  found = [row[each.of] for row in run.read_metrics(folder) if each.of in row]
  if not found:
    return math.nan
  higher = sweep_folder.is_higher_better(each.of, tasks.higher_is_better(config))
  return found[-1] if each.when == 'last' else (max if higher else min)(found)


def judged(plans, kept, quick):
  """[judging.Line] of all arms, a line for each measure and reference."""
  found = {(p.arm.name, each.name): values_of(p, each, kept) for p in plans for each in p.arm.measures}
  means = {line: statistics.fmean(values) for line, (values, _) in found.items() if values}
  lines = []
  for plan in plans:
    seconds = seconds_of(plan, kept)
    for each in plan.arm.measures:
      values, failed = found[plan.arm.name, each.name]
      for reference in each.references or (None,):
        held = reference and (
          means.get(tuple(reference.value)) if isinstance(reference.value, studies.Mean) else reference.value
        )
        verdict = judging.verdict_of(values, failed, reference, held, quick)
        verdict = judging.SKIPPED if plan.missing else verdict
        failed = [plan.missing] if plan.missing else failed
        lines.append(judging.Line(plan.arm, each, values, failed, reference, held, verdict, seconds))
  return lines


def seconds_of(plan, kept):
  """Of training, by the clock of the study or, where it was killed, by those of its runs; and of measuring."""
  if not plan.trials:
    return 0.0
  of_runs = sum(row.seconds for row in frame.read_sweep(plan.folder).trials)
  return max(kept.seconds.get(plan.arm.name, 0.0), of_runs) + kept.seconds_measuring(plan.arm.name)
