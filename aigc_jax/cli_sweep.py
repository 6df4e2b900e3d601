"""The verbs of the command line about sweeps: `aigc sweep` and `aigc report`."""

from aigc_jax.errors import UsageError


def add_options(add):
  """add: (name, text) -> the parser of a verb."""
  sweep = add('sweep', 'train the trials of a sweep; the same command again finishes the rest')
  sweep.add_argument(
    '--config', required=True, metavar='FILE.py[:VARIANT]', help='fields: --config.a.b=VALUE'
  )
  sweep.add_argument(
    '--sweep',
    required=True,
    metavar='NAME|KEY=VALUES;...',
    help="a function sweep_NAME() of the config file, or values: 'optimizer.learning_rate=1e-4,3e-4;seed=0..4'",
  )
  sweep.add_argument(
    '--workdir', metavar='FOLDER', help='of the sweep; default: one under runs/ named by its trials'
  )
  sweep.add_argument('--dry_run', action='store_true', help='print the trials, their groups and their cost')
  sweep.add_argument('--jobs', type=int, default=1, help='worker processes at a time (default 1)')
  sweep.add_argument(
    '--lanes', type=int, help='trials in one program at most; default: as many as the memory holds'
  )
  sweep.add_argument(
    '--timeout', type=float, metavar='SECONDS', help='without a sign of life that end a worker'
  )

  sweep.add_argument('--executor', choices=('local', 'slurm'), default='local', help='where the groups run')
  sweep.add_argument(
    '--slurm',
    default='',
    metavar='KEY=VALUE,...',
    help='with --executor=slurm, such as partition=gpu,timeout_min=240,gpus_per_node=1',
  )
  sweep.add_argument(
    '--search', choices=('optuna',), help='let Optuna propose the trials, from ranges in --sweep'
  )
  sweep.add_argument('--trials', type=int, help='with --search: how many')
  sweep.add_argument('--metric', help='what trials are compared by (config.training.best_metric)')

  report = add('report', 'the answer of a sweep: table.csv, table.md and report.html in its folder')
  report.add_argument('folder')
  report.add_argument('--metric', help='what trials are compared by (what they were trained for)')


def check(options):
  """Raises UsageError for numbers out of range and options that do not go together."""
  if (options.search is None) != (options.trials is None):
    raise UsageError('--search=optuna and --trials=N go together')
  if options.search and options.dry_run:
    raise UsageError('--dry_run: the trials of a search are not known before it runs; leave out one of them')
  if options.slurm and options.executor != 'slurm':
    raise UsageError('--slurm: goes with --executor=slurm')
  for name, least in (('jobs', 1), ('lanes', 1), ('timeout', 0)):
    value = getattr(options, name)
    if value is not None and value < least:
      raise UsageError(f'--{name}={value}: it takes {least} or more')


def parameters_of(text):
  """'partition=gpu,timeout_min=240' -> {'partition': 'gpu', 'timeout_min': 240}. Raises UsageError."""
  found = {}
  for part in filter(None, text.split(',')):
    key, equals, value = part.partition('=')
    if not equals or not key.isidentifier() or not value:
      raise UsageError(f'--slurm={text}: {part!r} is no KEY=VALUE; such as partition=gpu,timeout_min=240')
    found[key] = int(value) if value.isdecimal() else value
  return found


def sweep(options, overrides):
  from aigc_jax import sweeping

  check(options)
  choices = {name: getattr(options, name) for name in ('workdir', 'jobs', 'lanes', 'timeout', 'trust')}
  if options.executor == 'slurm':
    choices['slurm'] = parameters_of(options.slurm)
  if options.metric:
    overrides = [*overrides, ('training.best_metric', options.metric)]
  if options.dry_run:
    sweeping.dry_run_sweep(options.config, options.sweep, overrides, options.lanes, options.trust)
    return
  if options.search:
    sweeping.search(options.config, options.sweep, options.trials, overrides=overrides, **choices)
  else:
    sweeping.sweep(options.config, options.sweep, overrides=overrides, **choices)


def report(options):
  from aigc_jax.sweeps import report

  for path in report.report(options.folder, options.metric):
    print(path)
