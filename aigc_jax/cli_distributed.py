"""Several processes of one run, on one machine or many: `aigc train --distributed`.

The process that was typed only watches: it starts the one that trains, hands signals on to it, and says in one line how
it ended. For where one process of a run dies, JAX ends the others in the middle of whatever they do.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

from aigc_jax.errors import AigcError, UsageError, listed

# What Slurm tells each process of a job step, all of which JAX needs.
SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
WATCHED = 'AIGC_WATCHED'  # set for the process that trains
JOIN_SECONDS = 300  # in which all processes have to come
LATER_SECONDS = 3  # that the first process stays after an error, so that the others end by their own
PR_SET_PDEATHSIG = 1  # Linux: which signal a process gets when its parent has died


def add_options(verb):
  group = verb.add_argument_group(
    'several processes', 'one for each GPU or host; Slurm tells the other three'
  )
  group.add_argument('--distributed', action='store_true', help='this is one of several processes of the run')
  group.add_argument('--coordinator', metavar='HOST:PORT', help='of the first process, a free port there')
  group.add_argument('--process_id', type=int, help='from 0')
  group.add_argument('--num_processes', type=int)


def run(options, arguments, work):
  """Does `work`, as one of several processes where the options say so. Returns the exit status.

  arguments: all that was typed. Raises AigcError, as `work` does.
  """
  joined = check(options, os.environ)
  if not options.distributed:
    work()
    return 0
  if WATCHED not in os.environ:
    number = options.process_id if options.process_id is not None else os.environ[SLURM[3]]
    return watch(arguments, os.environ, f'process {number} of the run')
  start(*joined)
  run_watched(work)
  return 0


def check(options, environment):
  """(coordinator, number of processes, this one's number) as they are given; Nones where Slurm tells them.

  Raises UsageError where something is missing or impossible.
  """
  given = {name: getattr(options, name) for name in ('coordinator', 'process_id', 'num_processes')}
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if not options.distributed:
    if len(missing) < len(given):
      raise UsageError('--coordinator, --process_id and --num_processes go with --distributed')
    return None, None, None
  if len(missing) == len(given):
    absent = [name for name in SLURM if name not in environment]
    if absent:
      raise UsageError(
        f'--distributed: {listed(missing)} are missing, or, in a job step of Slurm, {listed(absent)} in the environment'
      )
    return None, None, None
  if missing:
    raise UsageError(f'--distributed: {listed(missing)} {"is" if len(missing) == 1 else "are"} missing')
  host, _, port = given['coordinator'].rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UsageError(f'--coordinator={given["coordinator"]}: it takes HOST:PORT, such as 10.0.0.1:8476')
  count, number = given['num_processes'], given['process_id']
  if count < 1 or not 0 <= number < count:
    raise UsageError(
      f'--process_id={number}: of --num_processes={count} it takes a number from 0 to {count - 1}'
    )
  return given['coordinator'], count, number


def start(coordinator, count, number):
  """Joins the other processes of the run. Raises UsageError where that fails.

  Afterwards SIGTERM is JAX's: the run ends, saved, after the same step in all processes.
  """
  import jax

  from aigc_jax.training.processes import HEARTBEAT_SECONDS

  die_with_parent()
  if number == 0:
    print(f'aigc: waiting for {count} processes at {coordinator}', file=sys.stderr, flush=True)
  elif coordinator is not None:
    reach(coordinator)
  detection = {} if coordinator is None else {'cluster_detection_method': 'deactivate'}
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      number,
      initialization_timeout=JOIN_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      **detection,
    )
  except (RuntimeError, ValueError) as error:
    where = coordinator or 'the coordinator that Slurm names'
    raise UsageError(
      f'--distributed: cannot join the other processes at {where}: {first_line(error)}'
    ) from error


def reach(coordinator, seconds=JOIN_SECONDS):
  """Returns when the first process listens; UsageError where it does not, for which JAX would end this process."""
  host, _, port = coordinator.rpartition(':')
  end = time.monotonic() + seconds
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
      return
    except OSError as error:
      if time.monotonic() > end:
        raise UsageError(
          f'--coordinator={coordinator}: no process listened there for {seconds:.0f} s ({error.strerror or error}); is '
          'the one with --process_id=0 running on that host, and the port open?'
        ) from error
    time.sleep(0.2)


def die_with_parent():
  """A process that trains and is watched by nobody would go on by itself."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def first_line(error):
  return (str(error).strip().splitlines() or [repr(error)])[0]


def run_watched(work):
  """What the process that trains does, `work()`; returns only where it went well.

  Where it did not, the process ends at once, with a status: Python's own way out waits for the other processes.
  """
  import jax

  from aigc_jax.training import processes

  try:
    work()
    return
  except AigcError as error:
    print(f'aigc: {error}', file=sys.stderr, flush=True)
    status, wait = error.status, LATER_SECONDS if processes.leads() else 0
  except Exception as error:
    name = f'process {jax.process_index()} of {jax.process_count()}'
    print(f'aigc: {name}: {type(error).__name__}: {first_line(error)}', file=sys.stderr, flush=True)
    processes.wait_for_verdict()
    sys.excepthook(type(error), error, error.__traceback__)
    status, wait = 1, 0
  time.sleep(wait)
  sys.stderr.flush()
  os._exit(status)


def watch(arguments, environment, name):
  """Runs `aigc ARGUMENTS` in a process of its own to its end. Returns its exit status, 75 where a signal ended it.

  SIGINT or SIGTERM ends all processes of the run after the same step, saved; a second SIGINT ends this one at once.
  """
  command = [sys.executable, '-m', 'aigc_jax.cli', *arguments]
  # in a session of its own, or a terminal's Ctrl-C would reach it besides
  process = subprocess.Popen(command, env={**environment, WATCHED: '1'}, start_new_session=True)
  came = []

  def hand_on(number, frame):
    process.send_signal(
      signal.SIGKILL if signal.SIGINT in came and number == signal.SIGINT else signal.SIGTERM
    )
    came.append(number)

  before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    status = process.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if status >= 0:
    return status
  cause = ', as when another process has died or does not come' if -status == signal.SIGABRT else ''
  print(
    f'aigc: {name} was ended by {signal.Signals(-status).name}{cause}; what is saved is good: the same command goes on '
    'from the last checkpoint, with as many processes or with others',
    file=sys.stderr,
  )
  return 75
