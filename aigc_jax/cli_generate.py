"""`aigc generate`: text on standard output, filled masks, or a picture; parsing and printing only."""

import json
import sys

from aigc_jax import files
from aigc_jax.errors import UsageError

STRATEGIES = ('greedy', 'sample', 'top_k', 'top_p', 'min_p', 'beam')
NUMBERS = {
  'temperature': (float, 'default 0.8'),
  'top_k': (int, 'default with --strategy=top_k: 40'),
  'top_p': (float, 'default with --strategy=top_p: 0.9'),
  'min_p': (float, 'default with --strategy=min_p: 0.05'),
  'beam_size': (int, 'with --strategy=beam, default 4'),
  'length_penalty': (float, 'with --strategy=beam, default 1: above 0 favours long texts'),
  'repetition_penalty': (float, 'divides the logits of tokens that the text has'),
  'presence_penalty': (float, 'taken off the logits of tokens that were drawn'),
  'frequency_penalty': (float, 'the same for each time'),
  'no_repeat_ngram_size': (int, 'no so many tokens come twice'),
  'min_new_tokens': (int, 'the end is ruled out before'),
  'watermark': (int, 'a secret key: favours tokens that `aigc detect` finds'),
  'watermark_fraction': (float, 'of the vocabulary that is favoured, default 0.25'),
  'watermark_strength': (float, 'added to the logits of the favoured, default 2'),
  'alternatives': (int, 'with --json: so many of the likeliest tokens beside each'),
}
LISTS = {
  'stop': 'a text that ends a sample',
  'forbid': 'a word that must not occur',
  'force': 'a word that must occur',
  'allow': 'a text; what is written is one of these',
}
EARLY_STOPPING = {'true': True, 'false': False, 'never': 'never'}
TEXT_CHOICES = ('prompt', 'prompt_file', 'max_new_tokens', 'strategy', 'early_stopping', *NUMBERS, *LISTS)
TEXT_CHOICES += ('allow_file', 'json', 'picture', 'draft', 'draft_tokens')
PICTURE_CHOICES = ('label', 'interpolate', 'output')


def add_options(verb):
  verb.add_argument(
    '--prompt', action='append', help='may be given several times; default: the start of a document'
  )
  verb.add_argument('--prompt_file', metavar='FILE', help='one prompt a line, UTF-8')
  verb.add_argument(
    '--num',
    type=int,
    help='samples of each prompt, default 1; tokens for each mask, default 5; in a picture, default 16',
  )
  verb.add_argument('--max_new_tokens', type=int, help='default 300, or the length of targets')
  verb.add_argument('--strategy', choices=STRATEGIES, help='default sample, or greedy to answer')
  for name, (kind, text) in NUMBERS.items():
    verb.add_argument(f'--{name}', type=kind, help=text)
  verb.add_argument('--early_stopping', choices=EARLY_STOPPING, help='with --strategy=beam, default false')
  for name, text in LISTS.items():
    verb.add_argument(f'--{name}', action='append', help=f'{text}; may be given several times')
  verb.add_argument('--allow_file', metavar='FILE', help='one text a line, as --allow')
  verb.add_argument(
    '--draft', metavar='RUN', help='a smaller run that proposes tokens: the same texts, sooner'
  )
  verb.add_argument('--draft_tokens', type=int, help='with --draft, default 4')
  verb.add_argument('--seed', type=int, default=0)
  verb.add_argument('--json', action='store_true', help='one JSON object a line for each sample')
  verb.add_argument('--picture', metavar='FILE.png', help='how probable each token of the first sample was')
  verb.add_argument('--label', metavar='CLASS', help='of pictures: only this class, by its name or number')
  verb.add_argument(
    '--interpolate', action='store_true', help='of pictures: from one sample to another, row by row'
  )
  verb.add_argument(
    '--output', metavar='FILE.png', help='of pictures: default RUN/samples/generated-SEED.png'
  )


def generate(options):
  from aigc_jax import api, filling

  run = api.load_run(options.run, options.checkpoint)
  draws = run.task.draw is not None
  if run.task.prompts is not None:
    filling.refuse_masks(run, options)
  for name in TEXT_CHOICES if draws else PICTURE_CHOICES:
    if getattr(options, name):
      made = 'draws pictures' if draws else 'draws none'
      raise UsageError(f'--{name}: {options.run} {made}, so it means nothing here')
  (draw if draws else filling.write if run.task.fills_masks else write)(run, options)
  say_which(run)


def draw(run, options):
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
  prompts = list(options.prompt or [])
  if options.prompt_file:
    prompts += files.read_lines(options.prompt_file)
  prompts = prompts or ['']
  streams = not (options.json or run.task.answers or options.strategy == 'beam' or options.draft)
  writer = TextWriter(prompts[0]) if streams else None
  if options.draft:
    completions = speculate(run, prompts, options)
  else:
    completions = run.generate(prompts, **settings_of(options), on_text=writer)
  if streams:
    writer.finish(completions)
  elif options.json:
    for completion in completions:
      print(json.dumps(completion._asdict(), ensure_ascii=False))
  else:
    print(together(completions, run.task.answers))
  if options.picture:
    from aigc_jax.generation import picture

    files.write_image(options.picture, picture.draw(completions[0], run.tokenizer.target))
    print(options.picture, file=sys.stderr)


def speculate(run, prompts, options):
  from aigc_jax import api

  settings = settings_of(options)
  for name in ('stop', 'alternatives'):
    if name in settings:
      raise UsageError(f'--{name}: means nothing with --draft')
  given = {} if options.draft_tokens is None else {'draft_tokens': options.draft_tokens}
  found = run.speculate(api.load_run(options.draft), prompts, **settings, **given)
  print(
    f'{options.draft}: {found.acceptance_rate:.1%} of its tokens were kept, {found.tokens_per_pass:.2f} tokens a pass',
    file=sys.stderr,
  )
  return found.completions


def together(completions, answers):
  """Completions as text, a line each, or with `---` between where they have lines of their own; scores before texts."""
  texts = [completion.text if answers else completion.prompt + completion.text for completion in completions]
  scored = len(completions) > 1 and completions[0].score is not None
  shown = [f'{c.score:.4f}\t{text}' if scored else text for c, text in zip(completions, texts, strict=True)]
  return ('\n---\n' if any('\n' in text for text in texts) else '\n').join(shown)


def settings_of(options):
  """{name: value} of what was given, for `generate` of a trained run."""
  names = ('num', 'max_new_tokens', 'strategy', 'seed', *NUMBERS, *LISTS)
  given = {name: getattr(options, name) for name in names}
  given['early_stopping'] = EARLY_STOPPING.get(options.early_stopping)
  if options.allow_file:
    given['allow'] = [*(given['allow'] or []), *files.read_lines(options.allow_file)]
  return {name: value for name, value in given.items() if value is not None}


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


def say_which(run):
  """Tells which checkpoint was used: on standard error, since the text goes to standard output raw."""
  print(f'{run.path}: checkpoint {run.step} ({run.which})', file=sys.stderr)
