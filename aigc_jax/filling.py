"""What `aigc generate` prints for a run that fills in masks: the text, then the candidates of each mask."""

import json

from aigc_jax import files
from aigc_jax.errors import UsageError

CHOICES = (
  'max_new_tokens',
  'strategy',
  'temperature',
  'top_k',
  'top_p',
  'min_p',
  'repetition_penalty',
  'stop',
)
MASK = '[MASK]'  # as `data.tokenizers` has it, which is not imported before it is needed


def refuse_masks(run, options):
  """Raises UsageError where a run that continues text is asked to fill in masks."""
  if any(MASK in prompt for prompt in options.prompt or ()):
    raise UsageError(f'--prompt: {run.path} fills in no {MASK}; runs of the task masked_language do')


def write(run, options):
  """Prints prompts filled in, and a line for each candidate: mask, rank, probability, token. `--num` of each mask."""
  for name in CHOICES:
    if getattr(options, name) is not None:
      raise UsageError(f'--{name}: {run.path} fills in masks and draws nothing, so it means nothing here')
  prompts = list(options.prompt or [])
  if options.prompt_file:
    prompts += files.read_lines(options.prompt_file)
  if not prompts:
    raise UsageError(f'--prompt: {run.path} fills in masks; give a text with {MASK} in it')
  for filled in run.fill(prompts, candidates=5 if options.num is None else options.num):
    print(as_json(filled) if options.json else as_lines(filled))


def as_json(filled):
  masks = [[candidate._asdict() for candidate in mask] for mask in filled.masks]
  return json.dumps(filled._asdict() | {'masks': masks}, ensure_ascii=False)


def as_lines(filled):
  """Tokens are quoted, since many are white space or begin with it."""
  lines = [filled.text]
  for number, mask in enumerate(filled.masks, 1):
    for rank, found in enumerate(mask, 1):
      token = json.dumps(found.text, ensure_ascii=False)
      lines.append(f'mask {number}  {rank:>3}  {found.probability:.4f}  {token}')
  return '\n'.join(lines)
