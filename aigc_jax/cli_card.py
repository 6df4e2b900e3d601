"""The verb of the command line that writes about a run: `aigc card`."""


def add_options(add, add_checkpoint):
  """add: (name, text) -> the parser of a verb; add_checkpoint(verb): gives it --checkpoint."""
  verb = add('card', "write a README for a run in Hugging Face's model-card form, with a memorization check")
  verb.add_argument('run')
  verb.add_argument(
    '--output',
    metavar='FILE.md',
    help='default RUN/README.md; the pictures that it shows are copied beside it',
  )
  verb.add_argument(
    '--data', metavar='text:PATH', help='compare samples with this text; default: what the run was trained on'
  )
  add_checkpoint(verb)


def card(options):
  from aigc_jax import api, cli_generate

  run = api.load_run(options.run, options.checkpoint)
  print(run.card(options.output, source=options.data))
  cli_generate.say_which(run)
