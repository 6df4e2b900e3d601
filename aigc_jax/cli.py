"""The command line: `aigc VERB ...`. Parsing only; what a verb does is in `api`. JAX starts only where it is used."""

import argparse
import json
import os
import signal
import sys
import time

from aigc_jax import (
  cli_card,
  cli_config,
  cli_distributed,
  cli_generate,
  cli_pretrained,
  cli_probe,
  cli_study,
  cli_sweep,
  files,
)
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
  aigc sweep --config=FILE.py --sweep="optimizer.learning_rate=1e-4,3e-4;seed=0..2"
  aigc report runs/rates                                      its table and its page of charts
  aigc import FOLDER runs/gpt2                                a pretrained model in Hugging Face's files
  aigc export runs/mine FOLDER --format=huggingface           any run that they have an architecture for
  aigc probe runs/mine attention --text="Call me"             look inside: pictures, a page, arrays
  aigc card runs/mine                                         a README of it, and what it has memorized
  aigc reproduce experiments/char_lm.py [--quick]             a study: one table, held against published numbers
  aigc config optimizer; aigc config configs/rnn_lm.py         what the fields mean; what a file has
  aigc list; aigc diff runs/a runs/b                          what was run, and how two runs differ

exit status: 0 done, 64 usage or config, 65 data or a number not finite, 74 storage, 75 interrupted and resumable;
1 where a line of a study fails"""


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
  trust = argparse.ArgumentParser(add_help=False)
  trust.add_argument(
    '--trust', action='store_true', help="import models and tasks of the user's own, MODULE:NAME in a config"
  )
  settings = {'allow_abbrev': False, 'parents': [trust]}
  add = lambda name, text: verbs.add_parser(name, help=text, description=text, **settings)

  train = add('train', 'train the experiment of a config file; the same run folder again resumes it')
  train.add_argument(
    '--config', required=True, metavar='FILE.py[:VARIANT]', help='fields: --config.a.b=VALUE'
  )
  train.add_argument('--workdir', metavar='FOLDER', help='run folder; default: a new one under runs/')
  train.add_argument(
    '--dry_run', action='store_true', help='check, print parameters, memory, FLOPs and exchanges; no step'
  )
  add_profile(train)
  cli_distributed.add_options(train)

  resume = add('resume', 'go on from the last good checkpoint of a run')
  resume.add_argument('run')
  resume.add_argument('--steps', type=int, help='train to this many steps in all')
  add_profile(resume)
  cli_distributed.add_options(resume)

  add_evaluate(add)

  generate = add('generate', 'write with a run: raw text on standard output, or a picture as PNG')
  generate.add_argument('run')
  add_checkpoint(generate)
  cli_generate.add_options(generate)

  add_detect(add)
  cli_sweep.add_options(add)
  cli_study.add_options(add)

  cli_pretrained.add_options(add, add_checkpoint)
  cli_probe.add_options(add, add_checkpoint)
  cli_card.add_options(add, add_checkpoint)
  cli_config.add_options(add)

  listing = add('list', 'the runs under a folder')
  listing.add_argument('root', nargs='?', default='runs')

  diff = add('diff', 'how the configs of two runs differ')
  diff.add_argument('first')
  diff.add_argument('second')
  return root


def add_evaluate(add):
  evaluate = add('eval', 'evaluate a checkpoint of a run')
  evaluate.add_argument('run', help='with other fields of its task: --config.task.a=VALUE')
  add_checkpoint(evaluate)
  evaluate.add_argument('--data', metavar='KIND:PLACE', help='other data, whole, such as text:PATH')
  evaluate.add_argument('--json', action='store_true', help='one JSON object')
  evaluate.add_argument(
    '--metrics',
    metavar='NAMES',
    help='scores of what it writes: bleu,chrf,rouge,exact_match,distinct,perplexity',
  )
  evaluate.add_argument('--beam_size', type=int, help='with --metrics: search, where it is greedy otherwise')


def add_detect(add):
  detect = add('detect', 'look for the watermark of a key in a text, with the tokenizer of a run')
  detect.add_argument('run')
  detect.add_argument('--text_file', required=True, metavar='FILE', help='UTF-8, without the prompt')
  detect.add_argument('--watermark', type=int, required=True, metavar='KEY')
  detect.add_argument('--watermark_fraction', type=float, default=0.25)


def add_checkpoint(verb):
  verb.add_argument('--checkpoint', default='best', metavar='best|latest|STEP')


def add_profile(verb):
  verb.add_argument(
    '--profile', metavar='FIRST:LAST', help='write a trace of these steps into the run folder, such as 10:15'
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
    if options.profile:
      raise UsageError('--profile: --dry_run takes no step, so there is none to trace; leave out one of them')
    api.dry_run(options.config, options.workdir, overrides, options.trust)
  else:
    given = {'began': BEGAN, 'profile': options.profile, 'trust': options.trust}
    api.train(options.config, options.workdir, overrides, **given)


def resume(options):
  from aigc_jax import api

  api.resume(options.run, options.steps, began=BEGAN, profile=options.profile)


def evaluate(options, overrides):
  from aigc_jax import api

  run = api.load_run(options.run, options.checkpoint)
  if options.metrics is not None:
    return score(run, options, overrides)
  metrics = run.evaluate(options.data, overrides)
  cli_generate.say_which(run)
  if options.json:
    print(json.dumps(metrics))
  else:
    for name, value in sorted(metrics.items(), key=lambda item: item[0] != 'loss'):
      print(f'{name.replace("_", " "):<24}{value:.6g}')


def score(run, options, overrides):
  """Scores of what the run writes, with their protocols."""
  from aigc_jax import scoring

  if overrides:
    raise UsageError(f'--config.{overrides[0][0]}: means nothing with --metrics')
  names = [name for name in options.metrics.split(',') if name]
  scores, path = scoring.score(run, names, options.data, options.beam_size)
  cli_generate.say_which(run)
  if options.json:
    print(json.dumps({found.name: {'value': found.value, 'protocol': found.protocol} for found in scores}))
  else:
    for found in scores:
      print(f'{found.name.replace("_", " "):<26}{found.value:<12.6g}{found.protocol}')
  if path is not None:
    print(f'predictions: {path}', file=sys.stderr)


def detect(options):
  from aigc_jax import api
  from aigc_jax.generation import watermark

  known = api.load_run(options.run).tokenizer
  if known is None:
    raise UsageError(f'{options.run}: has no tokenizer, so it writes no text')
  tokens = known.target.encode('\n'.join(files.read_lines(options.text_file)))
  found = watermark.detect(tokens, known.vocabulary_size, options.watermark, options.watermark_fraction)
  print(
    f'z-score {found.z_score:.2f}, p-value {found.p_value:.3g}: {found.green} of {found.counted} tokens are green, '
    f'and chance gives {options.watermark_fraction:.0%}'
  )


def listing(options):
  from aigc_jax import overview

  print(overview.list_runs(options.root))


def diff(options):
  from aigc_jax import overview

  print(overview.diff(options.first, options.second))


def trust(options):
  """Imports the user's own code that the run of a command, or its draft, names; what reads a config is told."""
  from aigc_jax import own_code, run

  paths = [getattr(options, name, None) for name in ('run', 'draft')]
  own_code.trust(own_code.modules_of(*(run.open_run(path).config for path in paths if path)))


def dispatch(arguments):
  """Does what was typed. Returns the exit status."""
  overrides, others = split_overrides(arguments)
  options = parser().parse_args(others)
  if overrides and options.verb not in ('train', 'eval', 'sweep'):
    raise UsageError(f'--config.{overrides[0][0]}: fields of a config are set with `aigc train`')
  if options.trust:
    trust(options)
  if options.verb == 'train':
    return cli_distributed.run(options, arguments, lambda: train(options, overrides))
  if options.verb == 'resume':
    return cli_distributed.run(options, arguments, lambda: resume(options))
  if options.verb == 'reproduce':
    return cli_study.reproduce(options)
  if options.verb in ('eval', 'sweep'):
    {'eval': evaluate, 'sweep': cli_sweep.sweep}[options.verb](options, overrides)
  else:
    verbs = {
      'config': cli_config.config,
      'generate': cli_generate.generate,
      'import': cli_pretrained.import_folder,
      'export': cli_pretrained.export,
      'probe': cli_probe.probe,
      'card': cli_card.card,
      'list': listing,
      'diff': diff,
      'detect': detect,
      'report': cli_sweep.report,
    }
    verbs[options.verb](options)
  return 0


def main(arguments=None):
  """Returns the exit status; errors for people are one line on standard error."""
  try:
    status = dispatch(sys.argv[1:] if arguments is None else arguments)
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
  return status


if __name__ == '__main__':
  sys.exit(main())
