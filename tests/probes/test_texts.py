"""Probes of models of text, held against transformers and torch on the same weights."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import aigc_jax
from aigc_jax.errors import UsageError
from aigc_jax.models import inspection
from aigc_jax.probes import KINDS, ablation, attention, lens, losses, reading, saliency
from tests import tiny
from tests.interop import peers

DEEP = 2e-5  # float32 through random weights of 0.4 and other orders of sums


class Peer(types.SimpleNamespace):
  """A random model of transformers, imported, before one text."""


@pytest.fixture(scope='module', params=['gpt2', 'llama', 'bert'])
def peer(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  model = peers.make(request.param, 3)
  peers.save(model, folder / 'files')
  run = aigc_jax.from_pretrained(folder / 'files', folder / 'run', quiet=True)
  vocabulary = model.config.vocab_size
  tokens = np.random.default_rng(0).integers(3, vocabulary, (1, 8)).astype(np.int32)
  names = types.SimpleNamespace(
    vocabulary_size=vocabulary,
    end_of_text=None,
    mask_token=2 if request.param == 'bert' else None,
    pieces=[b'%d ' % i for i in range(vocabulary)],
  )
  names.target = names
  run.__dict__['tokenizer'] = names  # these random models come without one
  found = reading.of_text(
    run,
    {'inputs': tokens, 'targets': np.roll(tokens, -1, 1), 'mask': reading.known_but_last(tokens[0])[None]},
  )
  model.set_attn_implementation('eager')
  with torch.no_grad():
    theirs = model(torch.tensor(tokens.astype(np.int64)), output_attentions=True, output_hidden_states=True)
  return Peer(name=request.param, model=model, run=run, reading=found, theirs=theirs)


def test_attention_is_that_of_transformers(peer):
  found = attention.probe(peer.run, peer.reading).arrays['weights']
  theirs = np.stack([layer[0].numpy() for layer in peer.theirs.attentions])
  assert found.shape == theirs.shape
  assert np.abs(found - theirs).max() < DEEP
  assert np.abs(found.sum(-1) - 1).max() < 1e-6  # sums of a few numbers below 1


def test_the_lens_reads_each_layer_as_the_model_reads_the_last(peer):
  found = lens.probe(peer.run, peer.reading).arrays
  states = peer.theirs.hidden_states
  with torch.no_grad():
    if peer.name == 'bert':
      logits = [peer.model.cls(state) for state in states]
    else:  # transformers' last state has been through the last norm already
      norm = peer.model.transformer.ln_f if peer.name == 'gpt2' else peer.model.model.norm
      logits = [peer.model.lm_head(norm(state)) for state in states[:-1]] + [peer.model.lm_head(states[-1])]
  nats = torch.stack(logits)[:, 0].log_softmax(-1).numpy()
  ours = np.take_along_axis(nats, found['tokens'], -1)
  assert np.abs(ours - found['log_probabilities']).max() < 1e-3  # nats, of logits up to a hundred
  assert (nats.argmax(-1) == found['tokens'][..., 0]).mean() > 0.95  # near ties
  assert np.all(found['divergence'][-1] == 0)
  assert np.all(found['divergence'] > -1e-9)


def test_surprise_is_the_cross_entropy_of_torch(peer):
  """Of an encoder, each token hidden in its turn."""
  found = losses.probe(peer.run, peer.reading).arrays['bits']
  logits, counted = peer.theirs.logits[0], peer.reading.counted
  if peer.name == 'bert':
    rows = torch.tensor(np.repeat(np.asarray(peer.reading.inputs[0]), len(counted), 0).astype(np.int64))
    with torch.no_grad():
      logits = peer.model(rows.fill_diagonal_(2)).logits.diagonal().T
  goal = torch.tensor(peer.reading.targets.astype(np.int64))
  bits = torch.nn.functional.cross_entropy(logits, goal, reduction='none').numpy() / np.log(2)
  assert np.isnan(found[~counted]).all()
  assert np.abs(found - bits)[counted].max() < 1e-3  # bits, of logits up to a hundred


def test_saliency_is_gradient_times_vector_of_torch(peer):
  """By a hook on the vectors of tokens: with positions where these are vectors, as ours are."""
  arrays = saliency.probe(peer.run, peer.reading).arrays
  found, sizes = arrays['saliency'], arrays['gradient_norm']
  parts = {'gpt2': 'transformer.drop', 'llama': 'model.embed_tokens', 'bert': 'bert.embeddings.LayerNorm'}
  kept = []

  def keep(module, inputs, output):
    vectors = inputs[0] if peer.name == 'bert' else output  # before BERT's norm of the sum
    vectors.retain_grad()
    kept.append(vectors)

  hook = peer.model.get_submodule(parts[peer.name]).register_forward_hook(keep)
  logits = peer.model(torch.tensor(np.asarray(peer.reading.inputs[0]).astype(np.int64))).logits[0]
  hook.remove()
  nats = logits.log_softmax(-1)
  (vectors,) = kept
  for row, place in enumerate(np.flatnonzero(peer.reading.counted)):
    vectors.grad = None
    nats[place, int(peer.reading.targets[place])].backward(retain_graph=True)
    theirs = (vectors.grad * vectors).sum(-1)[0].detach().numpy()
    assert np.abs(found[row] - theirs).max() < 1e-4 * max(1, np.abs(theirs).max())
    assert np.allclose(sizes[row], vectors.grad.norm(dim=-1)[0].numpy(), rtol=1e-3, atol=1e-4)


def test_looking_changes_nothing(peer):
  at = peer.reading
  plain = at.module.apply(at.variables, *at.inputs)
  seen, arrays = inspection.capture(at.module, at.variables, *at.inputs)
  assert np.array_equal(plain, seen)
  known = {
    '/'.join(str(key.key) for key in path[:-1])
    for path, _ in jax.tree_util.tree_leaves_with_path(at.variables['params'])
  }
  assert {path for path in known if 'attention/' in path} <= set(arrays)


def test_a_head_without_output_weights_is_a_head_that_writes_nothing(peer):
  params, found = peer.run.params, ablation.kernels(peer.run.params)
  path, kernel = next(iter(found.items()))
  silent = ablation.without(params, path, 0)
  at = peer.reading
  ours = at.module.apply({'params': silent}, *at.inputs)

  def cut(module, inputs, give):
    """What a head gives, taken off where it is added up."""
    if '/'.join(module.path) != path.removesuffix('/kernel'):
      return give(*inputs)
    (mixed,) = inputs  # [batch, time, heads, head_width]
    return give(mixed.at[:, :, 0].set(0))

  with inspection.replaced(cut):
    theirs = at.module.apply(at.variables, *at.inputs)
  assert np.abs(ours - theirs).max() < DEEP
  assert np.abs(ours - at.module.apply(at.variables, *at.inputs)).max() > 1e-2
  assert kernel.shape[0] == at.module.heads


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """{name: a trained run} of the models of texts."""
  folder = tmp_path_factory.mktemp('runs')
  source, cache = tiny.write_corpus(folder / 'text.txt'), folder / 'programs'
  changes = {
    'transformer': {'model': {'name': 'transformer', 'layers': 2, 'heads': 2, 'width': 16, 'remat': 'full'}},
    'gru': {'model': {'name': 'rnn', 'cell': 'gru', 'layers': 2, 'width': 12, 'tie_embeddings': True}},
    'lstm': {'model': {'name': 'rnn', 'cell': 'lstm', 'width': 12}},
    'elman': {'model': {'name': 'rnn', 'cell': 'elman', 'width': 12}},
    'masked': {
      'task': {'name': 'masked_language'},
      'model': {'name': 'transformer_encoder', 'layers': 1, 'heads': 2, 'width': 16},
    },
  }
  made = {}
  with tiny.compile_cache(cache):
    for name, sections in changes.items():
      config = tiny.config(source, **{k: v for k, v in sections.items() if k != 'model'})
      config['model'] = sections['model']
      config['task'] = sections.get('task', config['task'])
      made[name] = tiny.train(config, folder / name)
    yield made


def test_recurrent_cells_are_told_as_their_equations_have_them(runs):
  text = 'the whale and the ship'.replace('the ', '').replace('and ', '')
  lstm = runs['lstm'].probe('gates', text=text).arrays
  forget, keep, candidate = lstm['layer_0_forget_gate'], lstm['layer_0_input_gate'], lstm['layer_0_candidate']
  cell, state = lstm['layer_0_cell'], lstm['layer_0_state']
  before = np.concatenate([np.zeros_like(cell[:1]), cell[:-1]])
  assert np.allclose(cell, forget * before + keep * candidate, atol=1e-6)
  assert np.allclose(state, lstm['layer_0_output_gate'] * np.tanh(cell), atol=1e-6)
  gru = runs['gru'].probe('gates', text=text).arrays
  for layer in range(2):
    update, candidate, state = (
      gru[f'layer_{layer}_{name}'] for name in ('update_gate', 'candidate', 'state')
    )
    before = np.concatenate([np.zeros_like(state[:1]), state[:-1]])
    assert np.allclose(state, (1 - update) * candidate + update * before, atol=1e-6)
    assert np.all((update >= 0) & (update <= 1))
  elman = runs['elman'].probe('gates', text=text).arrays
  assert list(elman) == ['layer_0_state']
  assert np.abs(elman['layer_0_state']).max() <= 1


@pytest.mark.parametrize('name', ['gru', 'lstm'])
def test_saliency_of_a_recurrent_network_is_the_slope_along_a_vector(runs, name):
  """Also where the table of vectors is the output weights: only what is read is moved."""
  run, text = runs[name], 'whale sea'
  found = run.probe('saliency', text=text).arrays
  at = reading.read(run, text=text)

  def nats(scale, place):
    shifts = jnp.zeros((len(text), run.model.embedding_width or run.model.width))
    _, (vectors,) = inspection.with_shifts(at.module, at.variables, at.inputs, {}, (shifts,))
    shifts = shifts.at[place].set(scale * vectors[place])
    logits, _ = inspection.with_shifts(at.module, at.variables, at.inputs, {}, (shifts,))
    own = jax.nn.log_softmax(logits[0, :, : run.tokenizer.vocabulary_size])
    return own[jnp.arange(len(text) - 1), at.targets[:-1]]

  for place in (0, 3):
    slope = (nats(1e-2, place) - nats(-1e-2, place)) / 2e-2
    assert np.abs(slope).max() > 0.02
    assert np.allclose(found['saliency'][:, place], slope, atol=2e-3)  # float32 and a step of a hundredth
  assert np.allclose(np.triu(found['saliency'], 1)[:, 1:], 0)  # what comes later has no say


def test_masked_surprise_hides_each_token_in_turn(runs):
  run, text = runs['masked'], 'whale ship'
  found = run.probe('loss', text=text).arrays['bits']
  tokens, model = run.tokenizer.encode(text), run.model
  for place in (0, 4):
    hidden = np.array(tokens)
    hidden[place] = run.tokenizer.mask_token
    logits = model.apply({'params': run.params}, hidden[None])[0, place, : run.tokenizer.vocabulary_size]
    bits = -jax.nn.log_softmax(logits)[tokens[place]] / np.log(2)
    assert found[place] == pytest.approx(float(bits), abs=1e-4)


def test_the_mean_surprise_of_a_row_is_the_loss_of_that_row(runs):
  """Of a model whose blocks are recomputed in training, too: what is inside is shown all the same."""
  run = runs['transformer']
  found = run.probe('loss', row=1)
  dataset = aigc_jax.data.load(run.config['data'], run.tokenizer)
  batch = {name: array[1:2] for name, array in next(dataset.validation_batches()).items()}
  context = aigc_jax.task.Context(jax.random.key(0), jnp.int32(0), False)
  total, (weight, _, _) = run.task.loss(run.params, {}, batch, context)
  assert np.nanmean(found.arrays['bits']) == pytest.approx(float(total / weight) / np.log(2), abs=1e-4)
  assert run.probe('attention', row=1).arrays['weights'].shape == (2, 2, 16, 16)


def test_ablation_measures_what_an_evaluation_measures(runs):
  run = runs['transformer']
  found = run.probe('ablation', batches=10**6)
  assert float(found.arrays['loss']) == pytest.approx(run.evaluate()['loss'], abs=1e-5)
  assert found.arrays['change'].shape == (2, 2)
  assert np.abs(found.arrays['change']).max() > 0


def test_activations_are_by_path_for_any_model(runs):
  gru = runs['gru'].probe('activations', text='whale').arrays
  assert gru['output'].shape == (1, 5, runs['gru'].model.vocabulary_size)
  assert gru['recurrent/layer_1'].shape == (5, 1, 12)
  mlp = runs['transformer'].probe('activations', text='whale', parts=r'mlp/up$').arrays
  assert {name: array.shape for name, array in mlp.items()} == {
    f'block_{i}/mlp/up': (1, 5, 64) for i in range(2)
  }


WRONG = {
  'attention': ('gru', {}, 'has no attention to show'),
  'gates': ('transformer', {}, 'has no recurrent layers'),
  'lens': ('gru', {}, 'does not write tokens from vectors between layers'),
  'latents': ('gru', {}, 'has no latents to walk along'),
  'ablation': ('lstm', {}, 'has no attention heads'),
  'loss': ('gru', {'text': 'Ω'}, 'Ω'),
  'saliency': ('gru', {'text': 'whale', 'row': 2, 'target': 'sea'}, 'target'),
  'activations': ('gru', {'parts': '('}, 'is no regular expression'),
}


@pytest.mark.parametrize('name', KINDS)
def test_what_does_not_fit_is_one_line(runs, name):
  run, choices, words = WRONG[name]
  with pytest.raises(UsageError, match=words) as caught:
    runs[run].probe(name, **choices)
  assert '\n' not in str(caught.value)


def test_more_that_does_not_fit(runs):
  run = runs['transformer']
  for name, choices, words in (
    ('attention', {'text': 'whale ' * 9}, 'reads 16 at most'),
    ('attention', {'row': 10**6}, 'has .* rows'),
    ('attention', {'row': -1}, 'numbered from 0'),
    ('attention', {'image': np.zeros((8, 8, 1))}, 'reads text'),
    ('attension', {}, "did you mean 'attention'"),
    ('ablation', {'text': 'whale'}, 'means nothing to the probe ablation'),
    ('activations', {'parts': 'nothing_has_this'}, 'no path contains'),
  ):
    with pytest.raises(UsageError, match=words):
      run.probe(name, **choices)
