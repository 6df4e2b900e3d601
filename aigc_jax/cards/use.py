"""The sections of a card for who uses a run: commands, limits, cost, and how to make it again."""

import shlex

from aigc_jax import exporting, own_code
from aigc_jax.cards import about as facts_of
from aigc_jax.cards.markdown import fenced, number, public, shortened, table
from aigc_jax.errors import UsageError, listed
from aigc_jax.tasks import classification

LEFT_OUT = ('--workdir', '--profile', '--coordinator', '--process_id')  # what is of one machine or one try
FLOPS_PER_PARAMETER = 6  # of a token that is learned from (Kaplan et al. 2020, section 2.1)


def usage(about, prompt, exported):
  """prompt: a text that the run can read. exported: config.json of Hugging Face beside the card, or None."""
  folder, task = f'runs/{about.name}', about.run.task
  own = own_code.modules_of(about.config)
  load = ['import aigc_jax', '', f'run = aigc_jax.load_run({folder!r}{trusted(about)})']
  commands, calls = [], []
  if task.prompts is not None and about.run.tokenizer is not None:
    strategy = ' --strategy=beam --num=3' if task.answers else ' --num=4 --temperature=0.8'
    commands.append(f'aigc generate {folder} --prompt={shlex.quote(prompt)}{strategy}')
    calls.append(f'print(run.generate({prompt!r})[0].text)')
  elif task.fills_masks and about.run.tokenizer is not None:
    commands.append(f'aigc generate {folder} --prompt={shlex.quote(prompt)}')
    calls.append(f'print(run.fill({prompt!r}))')
  if task.draw is not None:
    label = f' --label={shlex.quote(prompt)}' if prompt else ''
    commands.append(f'aigc generate {folder} --num=16{label}')
    label = f', label={prompt!r}' if prompt else ''
    calls.append(f'picture = run.draw(16{label})  # [height, width, channels]')
  if about.config['model']['name'] in classification.ENCODERS:
    calls.append(
      'features = run.features(images)  # uint8 [images, height, width, channels] -> [images, width]'
    )
  if about.config['model']['name'] == 'transformer_encoder' and about.run.tokenizer is not None:
    calls.append("vectors = run.embed(['a sentence', 'another'])  # [texts, width]")
  if about.imported:
    commands.append(f'aigc eval {folder} --data={other_data(about)}')
    calls.append(f'print(run.evaluate({other_data(about)!r}))')
  else:
    commands.append(f'aigc eval {folder}')
    calls.append('print(run.evaluate())')
  if about.form == 'images' and about.task == 'classification':
    commands.append(f'aigc eval {folder} --data=images:FOLDER  # a folder for each class')
  trusted_folder = folder + own_code.flag(about.config)
  commands = [command.replace(folder, trusted_folder, 1) for command in commands]
  beside = f', {listed(f"`{name}`" for name in own)} where Python finds it,' if own else ''
  lines = [
    '## How to use it',
    '',
    f'With aigc_jax installed{beside} and the run folder at `{folder}`:',
    '',
    *fenced('\n'.join(commands), 'bash'),
    '',
    *fenced('\n'.join([*load, *calls]), 'python'),
  ]
  return lines + in_huggingface(about, prompt, exported)


def trusted(about):
  """What a call says besides where the run is of code of its author's own."""
  return ', trust=True' if own_code.modules_of(about.config) else ''


def other_data(about):
  return {'labelled_text': 'tsv:FILE', 'pairs': 'tsv:FILE', 'images': 'images:FOLDER'}.get(
    about.form, 'text:FILE'
  )


def in_huggingface(about, prompt, exported):
  """How Hugging Face's libraries read it: from the files beside the card, or once it is exported."""
  if exported is not None:
    kind = exported['architectures'][0]
    code = [
      f'from transformers import AutoTokenizer, {kind}',
      '',
      'model = ' + kind + ".from_pretrained('.')  # the folder of this card",
      "tokenizer = AutoTokenizer.from_pretrained('.')",
    ]
    if about.form == 'text':
      code += [
        f"tokens = tokenizer({prompt!r}, return_tensors='pt')",
        'print(tokenizer.decode(model.generate(**tokens, max_new_tokens=40, do_sample=True)[0]))',
      ]
    return [
      '',
      'The files beside this card are read by transformers:',
      '',
      *fenced('\n'.join(code), 'python'),
    ]
  if not exportable(about):
    return []
  commands = [
    f'aigc export runs/{about.name} FOLDER --format=huggingface',
    f'aigc card runs/{about.name} --output=FOLDER/README.md',
  ]
  told = "As files that Hugging Face's libraries read, with this card beside them:"
  return ['', told, '', *fenced('\n'.join(commands), 'bash')]


def exportable(about):
  if exporting.origin_of(about.run.path):
    return True
  try:
    exporting.kind_for(about.run.config['model'])
  except UsageError:
    return False
  return True


def limits(about, memory):
  """What follows from the facts. memory: the sentence of the memorization check, or ''."""
  config, found = about.config, []
  if about.imported:
    found.append(
      'What it was trained on, and how it was evaluated before it was imported, is not known here.'
    )
  elif about.form == 'environment':
    found.append(f'It acts in `{about.source}` alone, and was never tried in another world.')
  else:
    base = facts_of.base_model(about)
    before = f', after what `{base}` had learned' if base else ' and nothing else'
    found.append(f'It learned from {facts_of.seen(about)} of `{about.source}`{before}.')
  if not about.imported:
    found.append(
      f'It is one run of one seed ({config["seed"]}): how much its figures vary with the seed is not known.'
    )
    found.append(chosen_on(about))
  if context := config['model'].get('context_length'):
    found.append(f'It sees {context:,} tokens at most, and nothing of what lies before them.')
  if about.facts.get('tokenizer') == 'characters':
    found.append(
      f'Its vocabulary is the {about.facts["vocabulary_size"]:,} symbols of its data; a text with another character is '
      'refused.'
    )
  if about.facts.get('cut_texts'):
    found.append(f'{about.facts["cut_texts"]:,} texts were longer than it reads, and were cut.')
  if config['training']['evaluate_batches']:
    found.append('Its metrics are of a part of the validation split.')
  if about.status['state'] not in ('done',) and not about.imported:
    status = about.status
    found.append(
      f'Its training ended early or goes on: it is `{status["state"]}` at step {status["step"]:,}.'
    )
  if about.form != 'environment':
    found.append(
      'It was not evaluated for bias, truthfulness, toxicity or safety, and nothing was done about them.'
    )
  if memory:
    found.append(memory)
  return ['## Limits', '', *(f'- {line}' for line in found)]


def chosen_on(about):
  metric = about.config['training']['best_metric']
  text = 'There is no third split: the metrics are of the data by which the run was watched'
  if about.form == 'environment':
    text = 'The metrics are of the episodes by which the run was watched'
  return f'{text}{f" and its checkpoint chosen (`{metric}`)" if about.run.which == "best" else ""}.'


def cost(about):
  if about.imported or not about.starts:
    return []
  rows = [['steps', f'{about.step:,}'], ['learned from', facts_of.seen(about)]]
  if spent := facts_of.seconds(about):
    rows.append(['time', f'{duration(spent)}, evaluations included, compiling left out'])
  shares = sorted(row['time/share_of_peak'] for row in about.rows if 'time/share_of_peak' in row)
  if shares:
    rows.append(["share of the devices' peak FLOPs", f'{shares[len(shares) // 2]:.1%} (median)'])
  if about.form in ('text', 'masked_text') and about.config['model']['name'].startswith('transformer'):
    tokens = about.step * about.config['data']['batch_size'] * about.config['data']['sequence_length']
    flops = f'{FLOPS_PER_PARAMETER * about.parameters * tokens:.1e}'.replace('e+', 'e')
    rows.append(['FLOPs', f'about {flops}: 6 x parameters x tokens (Kaplan et al. 2020), not measured'])
  last = about.starts[-1]
  devices = f'{len(last["devices"])} ({", ".join(last["devices"])})'
  rows.append(
    ['devices', f'{devices}; {last["usable_cores"]} CPU cores, {last["platform"].partition("-")[0]}']
  )
  if len(about.starts) > 1:
    rows.append(['starts', f'{len(about.starts)}: it was resumed'])
  return ['## Cost', '', *table(['', ''], rows)]


def duration(spent):
  if spent < 120:
    return f'{number(round(spent, 1))} s'
  return f'{spent / 60:.1f} min' if spent < 7200 else f'{spent / 3600:.1f} h'


def reproduction(about):
  lines = ['## How to make it again', '']
  if about.imported:
    source = facts_of.base_model(about)
    return [*lines, *fenced(f'aigc import {source} runs/{about.name}', 'bash'), *versions(about)]
  if (command := typed(about)) is not None:
    lines += [*fenced(command, 'bash'), '']
  lines.append('From the config below, saved as config.json:')
  code = [
    'import json',
    '',
    'import aigc_jax',
    '',
    "config = json.load(open('config.json', encoding='utf-8'))",
    f"aigc_jax.train(config, 'runs/again'{trusted(about)})",
  ]
  lines += ['', *fenced('\n'.join(code), 'python')]
  if about.source.partition(':')[0] not in ('bundled', 'tfds', 'synthetic', 'environment', 'gymnax'):
    lines += ['', f'`{about.source}` has to lie where the config says, with the sha256 above.']
  return lines + versions(about)


def typed(about):
  """The command that began the run, its paths shortened; None where it was no `aigc train`."""
  if not about.starts or about.starts[0]['argv'][1:2] != ['train']:
    return None
  rest, skips = [], False
  for part in about.starts[0]['argv'][2:]:
    name, equals, _ = part.partition('=')
    if not skips and name not in LEFT_OUT:
      rest.append(shlex.quote(public(part)))
    skips = not skips and name in LEFT_OUT and not equals
  return ' '.join(['aigc train', *rest, f'--workdir=runs/{about.name}'])


def versions(about):
  if not about.starts:
    return []
  first = about.starts[0]
  packages = ', '.join(f'{name} {version}' for name, version in first['packages'].items() if version)
  lines = ['', f'Python {first["python"]}; {packages}.']
  for checkout in first['git'][:1]:
    changes = len(checkout['diff'].splitlines())
    dirty = f', with changes that were not committed ({changes:,} lines, in env.json)' if changes else ''
    lines += ['', f'Code: git commit `{checkout["commit"]}`{dirty}.']
  if first['settings']:
    words = lambda value: ' '.join(map(shortened, value.split()))
    told = ', '.join(f'`{name}={words(value)}`' for name, value in first['settings'].items())
    lines += ['', f'Settings: {told}.']
  return lines
