"""The YAML before a card, as Hugging Face's hub reads it: what a search finds, and the metrics as a model index."""

import yaml

from aigc_jax.cards import descriptions, training_data
from aigc_jax.cards.about import base_model
from aigc_jax.cards.markdown import shortened

PIPELINES = {
  'language': 'text-generation',
  'masked_language': 'fill-mask',
  'translation': 'text-generation',
  'classification': 'image-classification',
  'contrastive': 'image-feature-extraction',
  'masked_images': 'image-feature-extraction',
  'q_learning': 'reinforcement-learning',
  'autoencoding': 'image-feature-extraction',
}


def pipeline(about):
  """The hub's name of what the model is for."""
  if about.form == 'labelled_text':
    return 'text-classification'
  if about.source == 'bundled:en_zh':
    return 'translation'
  if about.run.task.draw is not None and about.form in ('images', 'image_tokens'):
    return 'unconditional-image-generation'
  return PIPELINES.get(about.task, 'other')  # of a task of the user's own


def fields(about, library):
  """The front matter as a dict, in the order of the file. `library`: that reads the files beside the card."""
  found = {
    'library_name': library,
    'pipeline_tag': pipeline(about),
    'tags': list(dict.fromkeys(['jax', 'flax', 'aigc_jax', about.task, about.config['model']['name']])),
    'license': 'unknown',  # of the weights: whoever publishes them says it
  }
  if codes := training_data.languages('' if about.imported else about.source):
    found['language'] = codes
  if (base := base_model(about)) is not None:
    found['base_model'] = base
  kind, _, place = about.source.partition(':')
  if not about.imported and kind in ('bundled', 'tfds'):
    found['datasets'] = [place]
  metrics = index(about)
  if metrics:
    found['metrics'] = list(dict.fromkeys(metric['type'] for metric in metrics))
    found['model-index'] = [{'name': about.name, 'results': [result(about, metrics)]}]
  return found


def index(about):
  """The metrics of a model index, those of single classes left out."""
  own = {name: value for name, value in about.metrics.items() if not descriptions.OF_CLASS.fullmatch(name)}
  rows = [(name, spoken(name), own[name]) for name in sorted(own, key=lambda name: name != 'loss')]
  rows += [
    (name, f'{spoken(name)} of what it writes', score['value']) for name, score in about.scores.items()
  ]
  return [{'type': name, 'name': text, 'value': float(f'{value:.6g}')} for name, text, value in rows]


def spoken(name):
  return name.replace('_', ' ')


def result(about, metrics):
  source = shortened(about.facts.get('validation_source') or about.facts['source'])
  kind, _, place = source.partition(':')
  dataset = {'name': place or source, 'type': place if kind in ('bundled', 'tfds') else kind}
  return {
    'task': {'type': pipeline(about), 'name': about.task.replace('_', ' ')},
    'dataset': dataset | {'split': 'validation'},
    'metrics': metrics,
  }


def lines(about, library):
  text = yaml.safe_dump(fields(about, library), sort_keys=False, allow_unicode=True, width=110)
  return ['---', *text.rstrip('\n').split('\n'), '---']
