"""The command line: `aigc VERB ...`. Parsing only; what a verb does is in `api`. JAX starts only where it is used."""

import argparse
import json
import os
import signal
import sys
import time

from aigc_jax.errors import AigcError, UsageError

BEGAN = time.perf_counter()  # when the command was typed, but for Python's own start

DESCRIPTION = """Train, resume, evaluate and sample generative models in JAX.

  aigc train --config=configs/quickstart.py                   train on bundled text, sample, save
  aigc train --config=FILE.py:VARIANT --config.section.name=VALUE --workdir=runs/mine
  aigc resume runs/mine --steps=4000                          go on from the last checkpoint, or further
  aigc generate runs/mine --prompt="Call me" --num=4          text from a trained model
  aigc generate runs/masked --prompt="Call [MASK]e"           what is likely behind each mask
  aigc generate runs/vae --num=64 --label=Sneaker             a picture from one that draws
  aigc eval runs/mine --data=text:FILE                        loss, perplexity, bits per character
  aigc eval runs/vae --config.task.importance_samples=5000    fields of the task may differ
  aigc list; aigc diff runs/a runs/b                          what was run, and how two runs differ

exit status: 0 done, 64 usage or config, 65 data or a number not finite, 74 storage, 75 interrupted and resumable"""


class Parser(argparse.ArgumentParser):
  """An ArgumentParser whose errors are ours: one line, status 64."""

  def error(self, message):
    raise UsageError(f'{message}; see `{self.prog} --help`')


def parser():
  root = Parser(
    prog='aigc',
    description=DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = root.add_subparsers(dest='verb', metavar='VERB', required=True)
  add = lambda name, text: verbs.add_parser(name, help=text, description=text, allow_abbrev=False)

  train = add('train', 'train the experiment of a config file; the same run folder again resumes it')
  train.add_argument(
    '--config', required=True, metavar='FILE.py[:VARIANT]', help='fields: --config.a.b=VALUE'
  )
  train.add_argument('--workdir', metavar='FOLDER', help='run folder; default: a new one under runs/')
  train.add_argument(
    '--dry_run', action='store_true', help='check, print parameters, memory and FLOPs; no step'
  )

  resume = add('resume', 'go on from the last good checkpoint of a run')
  resume.add_argument('run')
  resume.add_argument('--steps', type=int, help='train to this many steps in all')

  evaluate = add('eval', 'evaluate a checkpoint of a run')
  evaluate.add_argument('run', help='with other fields of its task: --config.task.a=VALUE')
  add_checkpoint(evaluate)
  evaluate.add_argument('--data', metavar='KIND:PLACE', help='other data, whole, such as text:PATH')
  evaluate.add_argument('--json', action='store_true', help='one JSON object')

  generate = add('generate', 'write with a run: raw text on standard output, or a picture as PNG')
  generate.add_argument('run')
  add_checkpoint(generate)
  add_generation(generate)

  listing = add('list', 'the runs under a folder')
  listing.add_argument('root', nargs='?', default='runs')

  diff = add('diff', 'how the configs of two runs differ')
  diff.add_argument('first')
  diff.add_argument('second')
  return root


def add_checkpoint(verb):
  verb.add_argument('--checkpoint', default='best', metavar='best|latest|STEP')


def add_generation(verb):
  verb.add_argument(
    '--prompt', action='append', help='may be given several times; default: the start of a document'
  )
  verb.add_argument('--prompt_file', metavar='FILE', help='one prompt a line, UTF-8')
  verb.add_argument(
    '--num',
    type=int,
    help='samples of each prompt, default 1; tokens for each mask, default 5; in a picture, default 16',
  )
  verb.add_argument('--max_new_tokens', type=int, help='default 300')
  verb.add_argument(
    '--strategy', choices=('greedy', 'sample', 'top_k', 'top_p', 'min_p'), help='default sample'
  )
  verb.add_argument('--temperature', type=float, help='default 0.8')
  verb.add_argument('--top_k', type=int, help='default with --strategy=top_k: 40')
  verb.add_argument('--top_p', type=float, help='default with --strategy=top_p: 0.9')
  verb.add_argument('--min_p', type=float, help='default with --strategy=min_p: 0.05')
  verb.add_argument('--repetition_penalty', type=float)
  verb.add_argument('--stop', action='append', help='a text that ends a sample; may be given several times')
  verb.add_argument('--seed', type=int, default=0)
  verb.add_argument('--json', action='store_true', help='one JSON object a line for each sample')
  verb.add_argument('--label', metavar='CLASS', help='of pictures: only this class, by its name or number')
  verb.add_argument(
    '--interpolate', action='store_true', help='of pictures: from one sample to another, row by row'
  )
  verb.add_argument(
    '--output', metavar='FILE.png', help='of pictures: default RUN/samples/generated-SEED.png'
  )


def split_overrides(arguments):
  """Takes `--config.a.b=VALUE` and `--config.a.b VALUE` out -> (overrides, the other arguments)."""
  overrides, others, waiting = [], [], None
  for argument in arguments:
    if waiting:
      overrides.append((waiting, argument))
      waiting = None
    elif argument.startswith('--config.'):
      key, equals, value = argument.removeprefix('--config.').partition('=')
      if equals:
        overrides.append((key, value))
      else:
        waiting = key
    else:
      others.append(argument)
  if waiting:
    raise UsageError(f'--config.{waiting}: a value is missing; write --config.{waiting}=VALUE')
  return overrides, others


def train(options, overrides):
  from aigc_jax import api

  if options.dry_run:
    api.dry_run(options.config, options.workdir, overrides)
  else:
    api.train(options.config, options.workdir, overrides, began=BEGAN)


def resume(options):
  from aigc_jax import api

  api.resume(options.run, options.steps, began=BEGAN)


def evaluate(options, overrides):
  from aigc_jax import api

  run = api.load_run(options.run, options.checkpoint)
  metrics = run.evaluate(options.data, overrides)
  say_which(run)
  if options.json:
    print(json.dumps(metrics))
  else:
    for name, value in sorted(metrics.items(), key=lambda item: item[0] != 'loss'):
      print(f'{name.replace("_", " "):<24}{value:.6g}')


def say_which(run):
  """Tells which checkpoint was used: on standard error, since the text goes to standard output raw."""
  print(f'{run.path}: checkpoint {run.step} ({run.which})', file=sys.stderr)


TEXT_CHOICES = (
  'prompt',
  'prompt_file',
  'max_new_tokens',
  'strategy',
  'temperature',
  'top_k',
  'top_p',
  'min_p',
)
TEXT_CHOICES += ('repetition_penalty', 'stop', 'json')
PICTURE_CHOICES = ('label', 'interpolate', 'output')


def generate(options):
  from aigc_jax import api, filling

  run = api.load_run(options.run, options.checkpoint)
  draws = run.task.draw is not None
  if run.task.writes_text:
    filling.refuse_masks(run, options)
  for name in TEXT_CHOICES if draws else PICTURE_CHOICES:
    if getattr(options, name):
      made = 'draws pictures' if draws else 'draws none'
      raise UsageError(f'--{name}: {options.run} {made}, so it means nothing here')
  (draw if draws else filling.write if run.task.fills_masks else write)(run, options)
  say_which(run)


def draw(run, options):
  from aigc_jax import files

  picture = run.draw(
    16 if options.num is None else options.num,
    label=options.label,
    interpolate=options.interpolate,
    seed=options.seed,
  )
  path = options.output or run.path / 'samples' / f'generated-{options.seed}.png'
  files.write_image(path, picture)
  print(path)


def write(run, options):
  from aigc_jax import api

  prompts = list(options.prompt or [])
  if options.prompt_file:
    prompts += api.read_prompts(options.prompt_file)
  names = 'num max_new_tokens strategy temperature top_k top_p min_p repetition_penalty stop seed'
  given = {name: getattr(options, name) for name in names.split()}
  settings = {name: value for name, value in given.items() if value is not None}
  prompts = prompts or ['']
  writer = None if options.json else TextWriter(prompts[0])
  completions = run.generate(prompts, **settings, on_text=writer)
  if writer:
    writer.finish(completions)
  else:
    for completion in completions:
      print(json.dumps(completion._asdict(), ensure_ascii=False))


class TextWriter:
  """Streams the first sample as it comes; the others follow whole, one after another, `---` between them."""

  def __init__(self, prompt):
    self.waiting = prompt  # written with the first piece: nothing is, where the command fails before

  def __call__(self, row, piece):
    if row == 0:
      sys.stdout.write(self.waiting + piece)
      sys.stdout.flush()
      self.waiting = ''

  def finish(self, completions):
    sys.stdout.write(self.waiting + '\n')
    for completion in completions[1:]:
      sys.stdout.write(f'---\n{completion.prompt}{completion.text}\n')


def listing(options):
  from aigc_jax import overview

  print(overview.list_runs(options.root))


def diff(options):
  from aigc_jax import overview

  print(overview.diff(options.first, options.second))


def dispatch(arguments):
  overrides, arguments = split_overrides(arguments)
  options = parser().parse_args(arguments)
  if overrides and options.verb not in ('train', 'eval'):
    raise UsageError(f'--config.{overrides[0][0]}: fields of a config are set with `aigc train`')
  if options.verb == 'train':
    train(options, overrides)
  elif options.verb == 'eval':
    evaluate(options, overrides)
  else:
    verbs = {'resume': resume, 'generate': generate, 'list': listing, 'diff': diff}
    verbs[options.verb](options)


def main(arguments=None):
  """Returns the exit status; errors for people are one line on standard error."""
  try:
    dispatch(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.flush()
  except AigcError as error:
    print(f'aigc: {error}', file=sys.stderr)
    return error.status
  except KeyboardInterrupt:
    print('aigc: interrupted', file=sys.stderr)
    return 75
  except BrokenPipeError:  # the reader of our output has gone, as in `aigc generate ... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  return 0


if __name__ == '__main__':
  sys.exit(main())
