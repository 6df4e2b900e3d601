"""The verbs of the command line about pretrained models: `aigc import` and `aigc export`."""


def add_options(add, add_checkpoint):
  """add: (name, text) -> the parser of a verb; add_checkpoint(verb): gives it --checkpoint."""
  reading = add('import', 'make a run folder of a pretrained model in Hugging Face files; no torch needed')
  reading.add_argument('source', help='a folder with config.json and safetensors, or a name on the hub')
  reading.add_argument('run', nargs='?', help='the run folder; default: a new one under runs/')
  writing = add('export', 'write the model of a run as files of Hugging Face')
  writing.add_argument('run')
  writing.add_argument('folder', help='new or empty')
  writing.add_argument('--format', choices=['huggingface'], default='huggingface')
  add_checkpoint(writing)


def import_folder(options):
  from aigc_jax import importing

  importing.import_folder(options.source, options.run)


def export(options):
  from aigc_jax import api

  names = api.export(api.load_run(options.run, options.checkpoint), options.folder)
  print(f'{options.folder}: {", ".join(names)}')
