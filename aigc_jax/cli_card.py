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
  verb.add_argument('--samples', type=int, default=16, help='texts that are drawn and compared, default 16')
  verb.add_argument('--tokens', type=int, default=256, help='of each of them at most, default 256')
  add_checkpoint(verb)


def card(options):
  from aigc_jax import api, cli_generate

  run = api.load_run(options.run, options.checkpoint)
  print(run.card(options.output, samples=options.samples, tokens=options.tokens, source=options.data))
  cli_generate.say_which(run)
