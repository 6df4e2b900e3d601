"""The driver of a sweep on this machine: groups of trials in worker processes, which may die of anything.

It knows no JAX. What a trial has reached is in its folder alone, so that the driver, too, may be killed at any time:
started again it looks at the folders and goes on.
"""

import signal
import time
from typing import Any, NamedTuple

from aigc_jax import files, run
from aigc_jax.errors import Interrupted, StorageError, UsageError
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps.trials import can_be_lanes, groups_of, shown
from aigc_jax.sweeps.workers import KILLED, Here, Slot

TRIES = 2  # of a group that makes no progress in between
WAIT_SECONDS = 20  # for the workers of a driver that was killed to be gone


class Job(NamedTuple):
  """A group that waits for a worker."""

  trials: list
  tries: int = 0  # since it last made progress
  reached: int = -1  # how far it was when it was last tried, see `progress_of`


class Running(NamedTuple):
  """A group that has a worker."""

  job: Job
  worker: Any  # see `workers.Process`
  slot: Slot
  began: float


class Options(NamedTuple):
  jobs: int = 1  # workers at a time
  timeout: float | None = None  # seconds without a sign of life after which a worker is killed
  lanes: int | None = None  # most of them in a group; None: as many as there are
  prunes: bool = False  # workers stop the trials that a search finds poor


def plan(folder, trials, options):
  """[Job] of the trials that have not ended: groups that a killed sweep left as they are, the others anew."""
  pending = {t.name: t for t in trials if not sweep_folder.has_ended(folder / t.name)}
  by_name, jobs = {trial.name: trial for trial in trials}, []
  for file in sorted((folder / 'groups').glob('*/group.json')):
    members = files.read_json(file)['trials']
    left = pending.keys() & set(members)
    limit = options.lanes or len(members)
    if left and all(name in by_name for name in members) and len(members) <= limit:
      jobs.append(Job([by_name[name] for name in members]))
      pending = {name: trial for name, trial in pending.items() if name not in left}
  groups = groups_of(list(pending.values()))
  for group in groups:
    most = options.lanes or len(group)
    if not can_be_lanes(group[0].config):
      most = 1
    elif len(jobs) + len(groups) < options.jobs:  # so that no worker is idle
      most = min(most, -(-len(group) * len(groups) // options.jobs))
    jobs += [Job(group[first : first + most]) for first in range(0, len(group), most)]
  return jobs


def progress_of(folder, job):
  """A number that rises as the trials of a job come further: steps saved, and ends."""
  total = 0
  for trial in job.trials:
    ended = sweep_folder.has_ended(folder / trial.name)
    total += (10**9 if ended else 0) + newest_checkpoint(folder / trial.name)
  stacked = [newest_checkpoint(place) for place in groups_with(folder, job)]
  return total + max(stacked, default=0)


def groups_with(folder, job):
  names = {trial.name for trial in job.trials}
  return [
    file.parent
    for file in (folder / 'groups').glob('*/group.json')
    if names & set(files.read_json(file)['trials'])
  ]


def newest_checkpoint(path):
  """The newest whole one under a run's or group's folder, without JAX."""
  found = (path / 'checkpoints').glob('*/manifest.json')
  return max((int(file.parent.name) for file in found if file.parent.name.isdigit()), default=0)


def sign_of_life(folder, running):
  """When a worker last wrote something, in seconds since the epoch."""
  places = [folder / trial.name for trial in running.job.trials]
  watched = [
    place / name for place in places for name in ('metrics.jsonl', 'log.txt', 'status.json', 'samples')
  ]
  watched += [place / 'checkpoints' for place in (*places, *groups_with(folder, running.job))]
  times = [file.stat().st_mtime for file in (*watched, running.worker.log) if file.exists()]
  return max([running.began, *times])


def launch(folder, trials, options, console, starter=None):
  """Runs all trials of a sweep to their ends.

  Args:
    folder: held by the caller. trials: [Trial]. console: where lines go.
    starter: of workers, see `workers.Here`; None: processes of this machine.

  Returns: {name: {message, attempts}} of those that failed.

  Raises:
    Interrupted: by a signal, the workers having saved. StorageError: a worker could not write.
  """
  starter = starter or Here(options.jobs, options.prunes)
  kept = [attached(folder, trials, *found) for found in starter.found(folder)]
  known = {trial.name for running in kept for trial in running.job.trials}
  rest = [trial for trial in trials if trial.name not in known]
  wait_for_orphans(folder, rest)
  names = {trial.name for trial in trials}
  others = {name: found for name, found in sweep_folder.failures(folder).items() if name not in names}
  sweep_folder.write_failures(folder, others)
  driver = Driver(folder, trials, options, console, starter, plan(folder, rest, options), kept)
  driver.run()
  return driver.failures


def attached(folder, trials, names, worker):
  """The Running of a worker that outlived its driver."""
  job = Job([trial for trial in trials if trial.name in names])
  return Running(job._replace(reached=progress_of(folder, job)), worker, Slot((), ()), time.time())


def wait_for_orphans(folder, trials):
  """Waits until no trial is held by a worker of a driver that was killed. Raises UsageError where one goes on."""
  deadline = time.monotonic() + WAIT_SECONDS
  for trial in trials:
    while (folder / trial.name).is_dir() and run.is_locked(folder / trial.name):
      if time.monotonic() > deadline:
        raise UsageError(f'{folder / trial.name}: in use by another process; wait for it, or end it')
      time.sleep(0.1)


class Driver:
  """The jobs of a sweep, those that wait and those that run."""

  def __init__(self, folder, trials, options, console, starter, jobs, running=()):
    self.folder, self.trials, self.options, self.console = folder, trials, options, console
    self.starter = starter
    self.waiting, self.running = jobs, list(running)
    self.free = starter.slots(len(trials))
    self.told = {t.name for t in trials if sweep_folder.has_ended(folder / t.name)}
    self.failures, self.stopping, self.told_last = {}, False, ''

  def run(self):
    before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    self.console.start(len(self.told), len(self.trials))
    try:
      while self.running or (self.waiting and not self.stopping):
        if not self.stopping:
          self.begin()
        time.sleep(self.starter.seconds)
        for running in list(self.running):
          self.look_at(running)
        self.tell()
        if self.stopping and self.starter.outlives:
          break
    finally:
      self.console.stop()
      for number, handler in before.items():
        signal.signal(number, handler)
      if not self.starter.outlives:
        for running in self.running:
          running.worker.kill()
    if self.stopping:
      how = 'its jobs go on' if self.starter.outlives else 'saved'
      raise Interrupted(f'interrupted, {how}; to go on, type the same command again ({self.folder})')

  def stop(self, number, frame):
    """Lets the workers save and end; a second signal ends them at once. Those that outlive the driver go on."""
    for running in self.running if not self.starter.outlives else ():
      running.worker.kill() if self.stopping else running.worker.stop()
    self.stopping = True

  def begin(self):
    """Starts workers on jobs that wait, as far as there is place."""
    pairs = []
    while self.waiting and self.free:
      pairs.append((self.waiting.pop(0), self.free.pop(0)))
    if not pairs:
      return
    pairs = [(job._replace(reached=progress_of(self.folder, job)), slot) for job, slot in pairs]
    started = self.starter.start(self.folder, [(job.trials, slot) for job, slot in pairs])
    for (job, slot), worker in zip(pairs, started, strict=True):
      again = f', try {job.tries + 1}' if job.tries else ''
      self.console.say(f'started: {what_of(job)}{again}')
      self.running.append(Running(job, worker, slot, time.time()))

  def look_at(self, running):
    code, limit = running.worker.poll(), self.options.timeout
    if code is not None:
      self.end(running, code, None if code == 0 else running.worker.reason())
    elif limit is not None and time.time() - sign_of_life(self.folder, running) > limit:
      running.worker.kill()
      self.end(running, KILLED, f'no sign of life for {limit:g} s')

  def end(self, running, code, why):
    """Frees the place of a worker that has gone. `why`: what was wrong, None: nothing."""
    self.running.remove(running)
    self.free.append(running.slot)
    job = running.job
    left = [trial for trial in job.trials if not sweep_folder.has_ended(self.folder / trial.name)]
    if self.stopping or not left:
      return
    if why is None:  # the worker ended well, these trials did not
      for trial in left:
        self.fail(trial, sweep_folder.state_of(self.folder / trial.name)['message'], job.tries + 1)
      return
    if code == StorageError.status:
      self.stopping = True
      self.stop(None, None)
      raise StorageError(why)
    self.retry(job, left, why, code)

  def retry(self, job, left, why, code):
    """Once more as it was; then in two halves, so that a bad trial costs itself alone."""
    tries = job.tries + 1 if progress_of(self.folder, job) <= job.reached else 1
    hopeless = code in (UsageError.status, 65)
    if tries < TRIES and not hopeless:
      self.console.say(f'{what_of(job)}: {why}; tried once more')
      self.waiting.append(job._replace(tries=tries))
    elif len(left) > 1 and not hopeless:
      middle = len(left) // 2
      self.console.say(f'{what_of(job)}: {why}; tried in two halves')
      self.waiting += [Job(left[:middle]), Job(left[middle:])]
    else:
      for trial in left:
        self.fail(trial, why, tries)

  def fail(self, trial, why, tries):
    self.failures[trial.name] = {'message': why, 'attempts': tries}
    sweep_folder.write_failures(self.folder, sweep_folder.failures(self.folder) | self.failures)
    path = self.folder / trial.name
    if (path / run.CONFIG).exists():
      status = run.Run(path).read_status()
      run.Run(path).write_status('failed', status['step'], checkpoint=status['checkpoint'], message=why)
    self.console.say(f'{shown_trial(trial)}: failed: {why}')

  def tell(self):
    """A line for each trial that has ended since, and one of how far all are."""
    for trial in self.trials:
      if trial.name in self.told:
        continue
      if sweep_folder.has_ended(self.folder / trial.name):
        self.told.add(trial.name)
        status = sweep_folder.state_of(self.folder / trial.name)
        how = status['message'] if status['message'] not in ('', 'done') else status['state']
        self.console.say(f'{shown_trial(trial)}: {how}, step {status["step"]}')
    done, total = len(self.told) + len(self.failures), len(self.trials)
    working = sum(trial.name not in self.told for running in self.running for trial in running.job.trials)
    text = f'{done} of {total} trials ended, {len(self.failures)} failed'
    if working:
      text += f', {working} in {len(self.running)} workers'
    if text != self.told_last:
      self.told_last = text
      self.console.progress(done, total, text)


def shown_trial(trial):
  return f'{trial.name} {shown(trial.overrides)}'.rstrip()


def what_of(job):
  return f'{len(job.trials)} trials as lanes' if len(job.trials) > 1 else shown_trial(job.trials[0])
