"""What can be learned: one file a task, with its schema, its builder, and what it takes from the data."""

from aigc_jax.tasks import language

SCHEMAS = {'language': language.LanguageConfig}
BUILDERS = {'language': language.build}
COMPLETERS = {'language': language.complete}


def build(config):
  """The Task of a resolved config, whose floats may be traced."""
  return BUILDERS[config['task']['name']](config)


def complete(config, dataset):
  """The resolved config with what the data decides filled in."""
  return COMPLETERS[config['task']['name']](config, dataset)
