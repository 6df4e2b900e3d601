"""The groups of a sweep as jobs of Slurm, by submitit: what waits is one array, and the jobs outlive the driver.

A job that is preempted, or reaches its time limit, is queued again and goes on bit for bit from its last checkpoint.
"""

import contextlib
import pathlib
import shutil

from aigc_jax import files, own_code
from aigc_jax.errors import AigcError, UsageError
from aigc_jax.sweeps.workers import KILLED, Slot

JOBS = 'jobs.json'  # {job id: [trial names]}
PLAIN = (
  'timeout_min',
  'gpus_per_node',
  'cpus_per_task',
  'mem_gb',
  'nodes',
  'tasks_per_node',
)  # submitit's own names


def submitit_module():
  try:
    import submitit
  except ImportError as error:
    raise UsageError("--executor=slurm: needs submitit; pip install 'aigc-jax[sweeps]'") from error
  return submitit


class GroupJob:
  """What a job of Slurm runs: a group of trials of a sweep's folder."""

  def __init__(self, folder, names, prunes, modules=()):
    self.folder, self.names, self.prunes, self.modules = str(folder), list(names), prunes, list(modules)

  def __call__(self):
    """(exit status, its one line)."""
    import time

    from aigc_jax.sweeps import worker

    try:
      worker.work(self.folder, self.names, 1, self.prunes, time.perf_counter(), self.modules)
    except AigcError as error:
      return error.status, str(error)
    return 0, ''

  def checkpoint(self):
    """What submitit queues when the job is preempted or its time is up."""
    return submitit_module().helpers.DelayedSubmission(self)


class Slurm:
  """Starts the groups of a sweep as jobs, see `workers.Here`."""

  seconds = 2.0  # Slurm is asked no more often
  outlives = True

  def __init__(self, folder, options, parameters, cluster='slurm'):
    """parameters: {'partition': 'gpu', 'timeout_min': 240, ...}. Raises UsageError where they are not known, or no
    Slurm is here."""
    if cluster == 'slurm' and shutil.which('sbatch') is None:
      raise UsageError('--executor=slurm: no sbatch on this machine; type it where jobs are submitted')
    submitit = submitit_module()
    self.place, self.prunes = pathlib.Path(folder).absolute() / 'slurm', options.prunes
    self.executor = submitit.AutoExecutor(folder=self.place, cluster=cluster)
    named = {name if name in PLAIN else f'slurm_{name}': value for name, value in parameters.items()}
    at_once = {'slurm_array_parallelism': options.jobs} if options.jobs > 1 else {}
    try:
      self.executor.update_parameters(name='aigc-sweep', **at_once, **named)
    except (NameError, TypeError, ValueError, AssertionError) as error:
      with contextlib.suppress(OSError):  # of submitit's own making
        self.place.rmdir()
        self.place.parent.rmdir()
      raise UsageError(f'--slurm: {str(error).strip().splitlines()[0]}') from error

  def slots(self, count):
    return [Slot((), ())] * count

  def found(self, folder):
    """[(names, worker)] of the jobs that a driver before this one submitted, and that have not ended."""
    del folder
    known = files.read_json(self.place / JOBS) if (self.place / JOBS).exists() else {}
    kind = self.executor._executor.job_class
    workers = [(names, Remote(kind(folder=self.place, job_id=number))) for number, names in known.items()]
    return [(names, worker) for names, worker in workers if worker.poll() is None]

  def start(self, folder, pairs):
    jobs = []
    with self.executor.batch():
      for trials, _ in pairs:
        names = [trial.name for trial in trials]
        modules = own_code.modules_of(*(trial.config for trial in trials))
        jobs.append(self.executor.submit(GroupJob(folder.absolute(), names, self.prunes, modules)))
    known = files.read_json(self.place / JOBS) if (self.place / JOBS).exists() else {}
    new = {job.job_id: [t.name for t in trials] for job, (trials, _) in zip(jobs, pairs, strict=True)}
    files.write_json(self.place / JOBS, known | new)
    return [Remote(job) for job in jobs]


class Remote:
  """A job of Slurm as a worker, see `workers.Process`."""

  def __init__(self, job):
    self.job, self.log, self.why = job, pathlib.Path(job.paths.stdout), ''

  def poll(self):
    if not self.job.done():
      return None
    try:
      status, self.why = self.job.result()
    except Exception as error:  # submitit raises what the job raised, or that it left no result
      lines = [line for line in str(error).splitlines() if line.strip()]
      self.why = f'its job {self.job.job_id} ended as {self.job.state}: {lines[-1] if lines else repr(error)}'
      return KILLED
    return status

  def stop(self):
    self.job.cancel()

  def kill(self):
    self.job.cancel()

  def reason(self):
    return self.why
