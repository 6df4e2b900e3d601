"""A folder of Hugging Face -> an ordinary run folder, without torch or transformers at any time."""

import math
import os
import pathlib

from aigc_jax import files
from aigc_jax import run as run_folder
from aigc_jax.environment import environment
from aigc_jax.errors import UsageError
from aigc_jax.interop import checkpoints, settings
from aigc_jax.interop.tokenizer_files import tokenizer_of
from aigc_jax.schemas import resolved
from aigc_jax.tasks import KINDS
from aigc_jax.training import checkpoint, experiment, prepare, streamed

ORIGIN = 'huggingface.json'  # in the run folder: config.json as it was, and the types of the weights
LONGEST = 1024  # tokens of a row of data, unless it is set otherwise


def import_folder(source, workdir=None, say=print):
  """Makes a run folder of a folder of Hugging Face, or of a name on its hub. Returns the folder's path.

  Args:
    source: a folder with config.json, safetensors and tokenizer files; or a name such as 'openai-community/gpt2', where
      there is a network and `huggingface_hub` is installed.
    workdir: the run folder; None: a readable new one under runs/.
    say: called with lines for people.

  Raises UsageError, DataError, StorageError: one line, before anything large is read, and no folder is left.
  """
  found = checkpoints.open_folder(local(source))
  tokenizer = tokenizer_of(found)
  config = resolved(config_of(found, tokenizer))
  with (
    experiment.nothing_left(workdir) as made,
    run_folder.create(workdir, config, label=os.path.basename(os.path.abspath(source))) as folder,
  ):
    made(folder)
    if checkpoint.steps(folder.path / 'checkpoints'):  # an import that was killed left none
      raise UsageError(f'{folder.path}: holds a run already; choose another folder')
    say(f'reading {found.folder}')
    streamed.save(folder.path / 'checkpoints' / '0', found.shapes, checkpoints.read(found))
    if tokenizer is not None:
      tokenizer.save(folder.path / prepare.TOKENIZER)
    files.write_json(folder.path / prepare.FACTS, facts_of(found, tokenizer, config))
    origin = {
      'config': found.config,
      'dtypes': {row.name: found.tensors[row.name].dtype for row in found.rows},
    }
    files.write_json(folder.path / ORIGIN, origin)
    folder.record_environment(environment([]) | {'imported': str(found.folder.absolute())})
    folder.write_status('done', 0, checkpoint=0, message='imported')
    tell(found, folder, tokenizer, say)
  return folder.path


def local(source):
  """The folder of `source`, from the hub where it is none here. Raises UsageError."""
  source = str(source)
  if os.path.exists(source) or source.count('/') != 1 or source.startswith(('.', '~')):
    return os.path.expanduser(source)
  try:
    import huggingface_hub
  except ImportError:
    raise UsageError(
      f'{source}: no such folder; to fetch a model of that name from the Hugging Face hub, install '
      '`aigc-jax[hub]`'
    ) from None
  wanted = ['*.json', '*.safetensors', '*.jinja', 'vocab.txt', 'merges.txt']
  try:
    return huggingface_hub.snapshot_download(source, allow_patterns=wanted)
  except Exception as error:  # of the network, of names, of rights: each its own
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UsageError(f'{source}: no such folder, and the hub did not give it: {reason}') from None


def config_of(found, tokenizer):
  """The config of the run, without defaults."""
  model = found.model
  task = next(name for name, kind in KINDS.items() if model['name'] in kind.models)
  config = {'task': {'name': task}, 'model': model, 'training': {'steps': 1}}
  data = {'batch_size': 8, 'sequence_length': min(model['context_length'], LONGEST)}
  if task == 'classification':
    data['source'] = 'tsv:texts.tsv'  # as it would lie here; it has no data of its own
  if tokenizer is not None:
    data['tokenizer'] = tokenizer.name
    if task == 'masked_language':
      config['task'] |= {
        'mask_token': tokenizer.mask_token,
        'end_of_text': tokenizer.end_of_text,
        'special_tokens': tokenizer.special,
        'vocabulary_size': tokenizer.vocabulary_size,
      }
  return config | {'data': data}


def facts_of(found, tokenizer, config):
  facts = {'source': config['data']['source'], 'imported': str(found.folder.absolute())}
  if tokenizer is not None:
    facts |= {'tokenizer': tokenizer.name, 'vocabulary_size': tokenizer.vocabulary_size}
  if 'classes' in found.model:
    labels = settings.labels_of(found.config)
    names = [str(labels.get(str(i), f'LABEL_{i}')) for i in range(found.model['classes'])]
    facts |= {'classes': found.model['classes'], 'class_names': names}
  return facts


def tell(found, folder, tokenizer, say):
  """What was made of it, and what to type next."""
  count = sum(math.prod(shape.shape) for shape in found.shapes.values())
  say(f'{found.config["model_type"]}: {found.model["name"]}, {count:,} parameters; run folder: {folder.path}')
  if found.unread:
    more = f' and {len(found.unread) - 1} more' if len(found.unread) > 1 else ''
    say(f'not read: {found.unread[0]}{more}, which the logits do not depend on')
  if tokenizer is None:
    say('note: there is no tokenizer, so it reads and writes token numbers alone')
  name, path = found.model['name'], pathlib.Path(folder.path)
  if name == 'transformer_encoder' and not found.model['head_transform']:
    say('note: it has no head that finds masked tokens; it embeds texts, and is a start for fine-tuning')
  elif name != 'transformer_classifier' and tokenizer is not None:
    prompt = '...' if name == 'transformer' else '... [MASK] ...'
    say(f'next: aigc generate {path} --prompt="{prompt}"')
  say(f'train on from it: aigc train --config=... --config.init_from={path}')
