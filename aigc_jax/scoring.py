"""Scores of a trained run: what it writes beside references, and how probable it finds text."""

from aigc_jax import data, tasks
from aigc_jax.errors import UsageError
from aigc_jax.evaluation import perplexity, report, scores

PERPLEXITY = 'perplexity'


def score(run, names, source=None, beam_size=None):
  """The scores `names` on the validation split, or on all of another source: ([Score], path of the predictions).

  Those of `evaluation.scores` are of what the run writes from each source, greedily or by a beam search; predictions
  lie in RUN/predictions/, with the scores beside them. 'perplexity' is of the text itself, per token, word, character
  and byte, and has no predictions: the path is None where nothing else is asked for. Raises UsageError and DataError.
  """
  if not names:
    raise UsageError(f'metrics: none is named; there are {", ".join((*scores.SCORES, PERPLEXITY))}')
  written = [name for name in names if name != PERPLEXITY]
  scores.check(written)
  if written and not run.task.answers:
    raise UsageError(
      f'metrics: {written[0]} needs references, and the task {run.config["task"]["name"]} has none; it has perplexity'
    )
  found, path = [], None
  if PERPLEXITY in names:
    found += perplexities(run, source)
  if written:
    of_text, path = of_predictions(run, written, source, beam_size)
    found += of_text
  return found, path


def dataset_of(run, source):
  config, form = run.config['data'], tasks.form_of(run.config)
  if source is None:
    return data.load(config, run.tokenizer, form)
  kept = {name: value for name, value in config.items() if name != 'validation_source'}
  return data.load_validation(kept | {'source': source}, run.tokenizer, form=form)


def of_predictions(run, names, source, beam_size):
  pairs = dataset_of(run, source).pairs
  way = {'strategy': 'greedy'} if beam_size is None else {'strategy': 'beam', 'beam_size': beam_size}
  completions = run.generate([pair[0] for pair in pairs], **way)
  references = [pair[1] for pair in pairs]
  found = scores.score(names, [completion.text for completion in completions], references)
  rows = [
    {'source': pair[0], 'prediction': completion.text, 'reference': pair[1]}
    for pair, completion in zip(pairs, completions, strict=True)
  ]
  settings = {'checkpoint': run.step, 'data': source or 'the validation split', **way}
  return found, report.write(run.path / 'predictions', rows, found, settings)


def perplexities(run, source):
  """Perplexities of the text whose tokens are predicted: targets, ends included."""
  if run.task.prompts is None:
    raise UsageError(
      f'metrics: the task {run.config["task"]["name"]} predicts no text, so it has no perplexity'
    )
  loss = run.evaluate(source)['loss']
  tokens, texts = 0, []
  tokenizer = run.tokenizer.target
  for batch in dataset_of(run, source).validation_batches():
    for targets, mask in zip(batch['targets'], batch['mask'], strict=True):
      kept = targets[mask > 0]
      tokens += len(kept)
      texts.append(tokenizer.decode_bytes(kept[kept != tokenizer.end_of_text]))
  return perplexity.perplexities(loss * tokens, tokens, b''.join(texts).decode('utf-8', 'replace'))
