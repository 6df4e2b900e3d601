"""A trained run in use: `run.generate('Call me', num=4)`, `run.evaluate()`, `run.draw()`."""

import functools

import jax
import numpy as np

from aigc_jax import data, embedding, files, models, tasks
from aigc_jax import run as run_folder
from aigc_jax.config import floats_of, override
from aigc_jax.data import tokenizers
from aigc_jax.errors import UsageError, listed, nearest
from aigc_jax.generation import beam, fill, speculative, text
from aigc_jax.generation import choices as writing
from aigc_jax.schemas import config_of, resolved, schemas
from aigc_jax.task import State
from aigc_jax.tasks import classification, lora, representations
from aigc_jax.training import attention, checkpoint, hooks, initials, mesh, parallel, prepare
from aigc_jax.training.experiment import set_up


class TrainedRun:
  """What a run folder holds, read when first needed. Nothing in the folder is executed."""

  def __init__(self, path, which='best', trust=False):
    self.path, self.which = path, which
    self.config = config_of(path, trust)

  def __repr__(self):
    return f'TrainedRun({str(self.path)!r}, {self.which!r})'

  @property
  def metrics(self):
    """The lines of metrics.jsonl, as dicts."""
    return run_folder.read_metrics(self.path)

  @functools.cached_property
  def tokenizer(self):
    path = self.path / prepare.TOKENIZER
    return tokenizers.load(path) if path.exists() else None

  @property
  def imported(self):
    """Whether it came from files of Hugging Face, and so has no data of its own."""
    return run_folder.open_run(self.path).read_status()['message'] == 'imported'

  @functools.cached_property
  def task(self):
    return tasks.build(attention.portable(self.config))

  @property
  def facts(self):
    """What the data was when the run began: its source, its size, the names of its classes."""
    return files.read_json(self.path / prepare.FACTS)

  @functools.cached_property
  def model(self):
    return models.build(attention.portable(self.config)['model'], self.config['training']['precision'])

  @functools.cached_property
  def decoder(self):
    return models.decoder(self.model)  # made once, since generation compiles anew for another one

  @functools.cached_property
  def state(self):
    """State with what use needs: step, key, extra, and whole parameters (their moving average where one was kept)."""
    kept = initials.kept_field(self.config)
    step, params, fields = checkpoint.restore_params(
      self.path / 'checkpoints', self.which, kept, ('extra', 'key')
    )
    key = fields.get('key', jax.random.key(0))  # an import has none
    params = lora.whole(params, self.config['lora'])
    return State(step, params, None, None, None, fields.get('extra', {}), key)

  @property
  def step(self):
    """The step of the checkpoint in use."""
    return self.state.step

  @property
  def params(self):
    return self.state.params

  @property
  def parameter_count(self):
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))

  def generate(
    self,
    prompts='',
    *,
    num=1,
    max_new_tokens=None,
    strategy=None,
    stop=(),
    seed=0,
    alternatives=0,
    on_text=None,
    **choices,
  ):
    """Writes from a prompt or a list of them: goes on with it, or, where it was trained on pairs, answers it.

    Args:
      max_new_tokens: None: 300, or as long as the targets that an answering run was trained on.
      strategy: 'greedy'; 'sample', 'top_k', 'top_p', 'min_p': drawing from what that filter leaves; 'beam'. None:
        'sample', or 'greedy' to answer.
      alternatives: how many of the likeliest tokens are told beside each that is drawn.
      choices: temperature (0.8), top_k (40), top_p (0.9), min_p (0.05), beam_size (4), length_penalty (1.0),
        early_stopping (False), and those of the processors, see `generation.choices`; None is the default in brackets
        for the strategy of that name, and off for the others.

    Returns:
      [Completion], `num` for each prompt; a beam search may find fewer.
    """
    set_up()
    if self.task.prompts is None:
      raise UsageError(
        f'{self.path}: its task, {self.config["task"]["name"]}, writes no text{self.other_use()}'
      )
    if self.tokenizer is None:
      raise UsageError(f'{self.path}: has no tokenizer, since there was none where it was imported from')
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    strategy, max_new_tokens = self.defaults(strategy, max_new_tokens)
    writer = self.tokenizer.target
    way = writing.make(writer, strategy, num, choices)
    inputs = self.decoder, self.params, writer, self.task.prompts(self.tokenizer, prompts)
    if strategy == 'beam':
      if stop or alternatives:
        raise UsageError(f'--{"stop" if stop else "alternatives"}: means nothing with --strategy=beam')
      return beam.beam_text(*inputs, way, max_new_tokens=max_new_tokens)
    return text.generate_text(
      *inputs,
      num=num,
      max_new_tokens=max_new_tokens,
      sampling=way,
      stop=stop,
      seed=seed,
      alternatives=alternatives,
      on_text=on_text,
    )

  def speculate(
    self, draft, prompts='', *, num=1, max_new_tokens=None, strategy=None, seed=0, draft_tokens=4, **choices
  ):
    """As `generate`, with another run as draft, of the same tokenizer: generation.speculative.Drafted. No beams."""
    set_up()
    if strategy == 'beam':
      raise UsageError('--draft: means nothing with --strategy=beam')
    for run in self, draft:
      if run.task.prompts is None:
        raise UsageError(f'{run.path}: its task, {run.config["task"]["name"]}, writes no text')
    if self.tokenizer.sha256 != draft.tokenizer.sha256:
      raise UsageError(
        f'--draft: {draft.path} was trained on other tokens than {self.path}; train it with '
        f'--config.init_from={self.path} or on the same data'
      )
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    strategy, max_new_tokens = self.defaults(strategy, max_new_tokens)
    writer = self.tokenizer.target
    return speculative.speculative_text(
      self.decoder,
      self.params,
      draft.decoder,
      draft.params,
      writer,
      self.task.prompts(self.tokenizer, prompts),
      num=num,
      max_new_tokens=max_new_tokens,
      sampling=writing.make(writer, strategy, num, choices),
      seed=seed,
      draft_tokens=draft_tokens,
    )

  def defaults(self, strategy, max_new_tokens):
    """Both, where they are None, as `generate` has it."""
    strategy = strategy or ('greedy' if self.task.answers else 'sample')
    if max_new_tokens is None:
      max_new_tokens = self.facts['target_length'] if self.task.answers else 300
    return strategy, max_new_tokens

  def fill(self, prompts, *, candidates=5):
    """What is likely behind each '[MASK]' of a prompt or a list of them: [Filled], see `generation.fill`."""
    set_up()
    if not self.task.fills_masks:
      raise UsageError(f'{self.path}: its task, {self.config["task"]["name"]}, fills in no masks')
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    return fill.fill(self.model, self.params, self.tokenizer, prompts, candidates)

  def embed(self, texts, *, pooling='mean', normalize=True):
    """Vectors [texts, width] of a list of texts, by an encoder, see `embedding.embed`."""
    set_up()
    if self.config['model']['name'] != 'transformer_encoder' or self.tokenizer is None:
      raise UsageError(
        f'{self.path}: its model, {self.config["model"]["name"]}, embeds no texts; an encoder does'
      )
    texts = [texts] if isinstance(texts, str) else list(texts)
    return embedding.embed(self.model, self.params, self.tokenizer, texts, pooling, normalize)

  def features(self, images, *, batch_size=256):
    """What an encoder or classifier of images tells classes from, float32 [images, width].

    images: [images, height, width, channels], uint8 or floats in [0, 1]. Raises UsageError for others.
    """
    set_up()
    model = self.config['model']
    if model['name'] not in classification.ENCODERS:
      raise UsageError(
        f'{self.path}: its model, {model["name"]}, is no encoder of images; {listed(classification.ENCODERS)} are'
      )
    shape = model['image_shape']
    if np.ndim(images) != 4 or list(np.shape(images)[1:]) != list(shape):
      raise UsageError(
        f'images of shape {list(np.shape(images))}; {self.path} takes [images, {listed(shape)}]'
      )
    of = jax.jit(functools.partial(representations.features, self.model, self.params, self.state.extra))
    parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    return np.concatenate([np.asarray(of(part)) for part in parts])

  def other_use(self):
    if self.task.fills_masks:
      return '; fill(prompts) fills in their masks'
    return '; draw(num=16) makes pictures' if self.task.draw is not None else ''

  def draw(self, num=16, *, label=None, interpolate=False, seed=0):
    """A picture of `num` samples.

    Args:
      label: a class, by its name or number, for a run that was told of classes; None: all of them in turn.
      interpolate: each row of samples goes from one to another in even steps.

    Returns:
      Image [height, width, channels], uint8 or from 0 to 1.
    """
    set_up()
    if self.task.draw is None:
      raise UsageError(f'{self.path}: its task, {self.config["task"]["name"]}, draws no pictures')
    if isinstance(num, bool) or not isinstance(num, int) or num < 1:
      raise UsageError(f'num must be a whole number of at least 1, not {num!r}')
    known = data.Dataset(self.tokenizer, None, None, 0, self.facts)
    label, key = self.class_number(label), jax.random.key(seed)
    return self.task.draw(self.params, self.state.extra, known, key, num, label, interpolate)

  def class_number(self, label):
    """A class's name or number -> its number. Raises UsageError."""
    if label is None:
      return None
    names = self.facts.get('class_names', [])
    if str(label) in names:
      return names.index(str(label))
    if str(label).isdecimal() and int(label) < len(names):
      return int(label)
    raise UsageError(
      f'label: {label!r} is no class; {nearest(str(label), names)}there are {listed(names) or "none"}'
    )

  def evaluate(self, source=None, overrides=()):
    """{metric: value} of the validation split, or of all of another source such as 'text:PATH'.

    overrides: [(dotted key, text or value)] of the task's fields: [('task.importance_samples', 5000)].
    """
    set_up()
    config, form = self.with_task(overrides), tasks.form_of(self.config)
    if source is None:
      dataset = data.load(config['data'], self.tokenizer, form)
      prepare.check_same_data(run_folder.open_run(self.path), dataset)
    else:
      dataset = self.other_data(source)
    tasks.complete(config, dataset)  # refuses fields that do not fit
    devices, batch = mesh.choose_devices(config, fewer=True), next(dataset.validation_batches(), {})
    config, _ = attention.settled(attention.portable(config), batch, devices)
    program = parallel.make_parallel(config, tasks.build, devices)
    floats = program.put_floats(floats_of(config))
    state = self.state_like(program, floats, dataset)
    state = jax.device_put(state, program.shardings(state))
    return hooks.evaluate(program, floats, state, dataset, tasks.build(config).report)

  def other_data(self, source):
    """All of another source as the validation split of a Dataset, for this run's model."""
    kept = {name: value for name, value in self.config['data'].items() if name != 'validation_source'}
    names, shape = self.facts.get('class_names'), self.facts.get('image_shape')
    return data.load_validation(
      kept | {'source': source}, self.tokenizer, names, tasks.form_of(self.config), shape
    )

  def probe(self, name, **choices):
    """Looks inside: `run.probe('attention', text='Call me Ishmael.')`; the names and what they take: `probes.KINDS`.

    Returns a `probes.result.Probe`: a notebook shows it, `.save(folder)` writes it, its numbers are in `.arrays`.
    """
    from aigc_jax import probes

    set_up()
    return probes.probe(self, name, **choices)

  def card(self, output=None, *, samples=16, tokens=256, source=None):
    """Writes a README in Hugging Face's form, with a memorization check, see `cards.card`. Returns its path."""
    from aigc_jax.cards import card  # what no other use of a run needs

    set_up()
    return card.card(self, output, samples=samples, tokens=tokens, source=source)

  def state_like(self, program, floats, dataset):
    """The state with `extra` in the structure that its task gives it: what was restored is nested dicts."""
    batch = next(dataset.validation_batches(), None)
    if batch is None or not self.state.extra:
      return self.state
    made = jax.eval_shape(program.init, floats, self.state.key, batch).extra
    found = checkpoint.flat(self.state.extra)
    leaves = [found[path] for path in checkpoint.flat(made)]
    return self.state._replace(extra=jax.tree.unflatten(jax.tree.structure(made), leaves))

  def with_task(self, overrides):
    """The config with other values in fields of its task. Raises UsageError for those of other sections."""
    for key, _ in overrides:
      if not key.startswith('task.') or key == 'task.name':
        raise UsageError(
          f'config.{key}: an evaluation takes fields of config.task only; the rest is as it was trained'
        )
    return resolved(override(self.config, list(overrides), schemas())) if overrides else self.config
