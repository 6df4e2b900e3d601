"""Adapters: nothing at first, a sum of thin products then; they alone learn and are saved; added in on export."""

import jax
import numpy as np
import pytest
import torch
import transformers

import aigc_jax
from aigc_jax.errors import UsageError
from aigc_jax.schemas import read_config
from aigc_jax.sweeps.trials import groups_of, trials_of
from aigc_jax.tasks import lora
from aigc_jax.training import checkpoint
from tests import tiny

RANK, ALPHA = 2, 6.0
TARGETS = '(query|output|up)/kernel$'
SAVED = {'evaluate_every': None, 'checkpoint_every': 1, 'keep_checkpoints': 9, 'steps': 2}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus') / 'words.txt')


@pytest.fixture(scope='module')
def base(source, tmp_path_factory):
  config = tiny.config(
    source, model={'activation': 'gelu_tanh'}, training={'steps': 2, 'evaluate_every': None}
  )
  return aigc_jax.train(config, tmp_path_factory.mktemp('base') / 'run', quiet=True)


def tuned_config(base, source, **fields):
  config = tiny.config(
    source, init_from=str(base.path), lora={'rank': RANK, 'alpha': ALPHA, 'targets': TARGETS}
  )
  config['model'], config['training'] = {}, config['training'] | SAVED
  config['optimizer'] |= {'learning_rate': 0.05, 'schedule': 'constant'}
  for section, values in fields.items():
    config[section] = config.get(section, {}) | values if isinstance(values, dict) else values
  return config


@pytest.fixture(scope='module')
def tuned(base, source, tmp_path_factory):
  return aigc_jax.train(tuned_config(base, source), tmp_path_factory.mktemp('tuned') / 'run', quiet=True)


def saved_in(run, step=2):
  """The fields of a checkpoint, flat."""
  _, fields = checkpoint.restore_fields(run.path / 'checkpoints', ('params', 'frozen'), step)
  return {name: checkpoint.flat(fields[name]) for name in fields}


def test_they_begin_as_nothing(base, source, tmp_path):
  """The first loss is that of a run that starts from the same parameters without them."""
  losses = []
  for name, rank in (('with', RANK), ('without', None)):
    config = tuned_config(base, source, lora={'rank': rank}, training={'steps': 1})
    losses.append(aigc_jax.train(config, tmp_path / name, quiet=True).metrics[0]['train/loss'])
  assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # a sum with zeros


def test_they_alone_learn_and_are_saved(base, tuned):
  fields = saved_in(tuned)
  assert fields['params']
  assert all(path.startswith('adapters/') for path in fields['params'])
  targets = {path.rpartition('/')[0] for path in fields['params']}
  assert targets == {
    f'adapters/block_0/{part}/kernel' for part in ('attention/query', 'attention/output', 'mlp/up')
  }
  for path, leaf in checkpoint.flat(base.params).items():
    np.testing.assert_array_equal(fields['frozen'][path], leaf, err_msg=path)
  before = saved_in(tuned, 1)['params']
  assert all((before[path] != leaf).any() for path, leaf in fields['params'].items() if path.endswith('b'))


def test_a_kernel_is_its_own_and_the_product(base, tuned):
  fields, scale = saved_in(tuned)['params'], ALPHA / RANK
  ours, theirs = checkpoint.flat(tuned.params), checkpoint.flat(base.params)
  assert ours.keys() == theirs.keys()
  for path, leaf in ours.items():
    kernel = np.asarray(theirs[path])
    if f'adapters/{path}/a' in fields:
      a, b = (np.asarray(fields[f'adapters/{path}/{part}'], np.float64) for part in 'ab')
      assert a.shape[1] == b.shape[0] == RANK
      kernel = kernel + scale * (a @ b).reshape(kernel.shape)
    np.testing.assert_allclose(leaf, kernel, rtol=1e-6, atol=1e-6, err_msg=path)


def with_torch_adapters(model, fields, add):
  """Adds to each Linear or Conv1D of a GPT-2 what its adapter says; add(name, A [rank, inputs], B [outputs, rank])."""
  names = {'mlp/up': 'mlp.c_fc', 'attention/output': 'attn.c_proj'}
  for ours, theirs in names.items():
    a, b = (np.array(fields[f'adapters/block_0/{ours}/kernel/{part}']).T for part in 'ab')
    add(f'transformer.h.0.{theirs}', torch.tensor(a), torch.tensor(b))


def test_an_export_has_them_added_in(base, source, tmp_path):
  """The logits of transformers with the base, and W + alpha / rank (B A) in torch's own layout."""
  run = aigc_jax.train(
    tuned_config(base, source, lora={'targets': '(output|up)/kernel$'}), tmp_path / 'run', quiet=True
  )
  aigc_jax.export(run, tmp_path / 'out')
  aigc_jax.export(base, tmp_path / 'base')
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base').eval()
  modules, state = dict(peer.named_modules()), saved_in(run)['params']

  def add(name, a, b):
    modules[name].weight.data += ALPHA / RANK * (b @ a).T  # Conv1D has [inputs, outputs]

  with torch.no_grad():
    with_torch_adapters(peer, state, add)
    tokens = torch.arange(12)[None]
    theirs = peer(tokens).logits.numpy()
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
    np.testing.assert_allclose(exported(tokens).logits.numpy(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_logits_are_those_of_peft(base, source, tmp_path):
  """`uv run --with peft pytest ... -m slow`."""
  peft = pytest.importorskip('peft')
  run = aigc_jax.train(
    tuned_config(base, source, lora={'targets': '(output|up)/kernel$'}), tmp_path / 'run', quiet=True
  )
  aigc_jax.export(base, tmp_path / 'base')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base').eval()
  targets = ['attn.c_proj', 'mlp.c_fc']
  config = peft.LoraConfig(
    r=RANK, lora_alpha=ALPHA, target_modules=targets, fan_in_fan_out=True, lora_dropout=0.0
  )
  peer = peft.get_peft_model(model, config).eval()
  modules = dict(peer.named_modules())

  def add(name, a, b):
    layer = modules[f'base_model.model.{name}']
    layer.lora_A['default'].weight.data, layer.lora_B['default'].weight.data = a, b

  with_torch_adapters(peer, saved_in(run)['params'], add)
  tokens = np.arange(12)[None]
  with torch.no_grad():
    theirs = peer(torch.tensor(tokens)).logits.numpy()
  ours = run.model.apply({'params': run.params}, tokens)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # float32 sums of other orders


def test_another_run_starts_with_them_added_in(tuned, source, tmp_path):
  config = tuned_config(
    tuned, source, lora={'rank': None}, optimizer={'learning_rate': 0.0}, training={'steps': 1}
  )
  run = aigc_jax.train(config, tmp_path / 'run', quiet=True)
  ours, theirs = checkpoint.flat(run.params), checkpoint.flat(tuned.params)
  for path, leaf in theirs.items():
    np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


def test_a_run_made_longer_goes_on_bit_for_bit(base, source, tmp_path):
  """Of three steps taken at once, and of two and then one."""
  whole = aigc_jax.train(tuned_config(base, source, training={'steps': 3}), tmp_path / 'whole', quiet=True)
  parts = aigc_jax.train(tuned_config(base, source), tmp_path / 'parts', quiet=True)
  parts = aigc_jax.resume(parts.path, 3, quiet=True)
  ours, theirs = saved_in(parts, 3)['params'], saved_in(whole, 3)['params']
  for path in theirs:
    np.testing.assert_array_equal(ours[path], theirs[path])


def test_an_evaluation_has_them_added_in(base, source, tmp_path):
  """Of the finished run, as while it trained."""
  config = tuned_config(base, source, training={'evaluate_every': 2}, optimizer={'learning_rate': 1.0})
  run = aigc_jax.train(config, tmp_path / 'run', quiet=True)
  (trained,) = (row['validation/loss'] for row in run.metrics if 'validation/loss' in row)
  assert run.evaluate()['loss'] == pytest.approx(trained, rel=1e-5)
  assert trained != pytest.approx(base.evaluate()['loss'], rel=1e-3)  # they did learn something


def test_other_parameters_learn_besides_where_they_are_named(base, source, tmp_path):
  config = tuned_config(base, source, lora={'trained': '_norm/'}, training={'steps': 1})
  fields = saved_in(aigc_jax.train(config, tmp_path / 'run', quiet=True), 1)
  tops = {path.split('/')[-2] for path in fields['params'] if not path.startswith('adapters/')}
  assert tops == {'attention_norm', 'mlp_norm', 'final_norm'}


def test_trials_of_several_alphas_are_lanes(base, source):
  config = read_config(tuned_config(base, source))
  trials = trials_of(config, [{'lora.alpha': alpha} for alpha in (1.0, 2.0, 4.0)])
  assert len(groups_of(trials)) == 1


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    (
      {'lora': {'targets': 'nothing'}},
      r"config\.lora\.targets: 'nothing' matches no kernel; there are block_0/",
    ),
    ({'lora': {'targets': '('}}, r"config\.lora\.targets: '\(' is no regular expression"),
    ({'lora': {'rank': 0}}, r'config\.lora\.rank: 0 is out of range'),
    (
      {'training': {'freeze': 'embed'}},
      r"config\.training\.freeze: 'embed' means nothing with config\.lora\.rank",
    ),
  ],
)
def test_what_makes_no_sense_is_refused(fields, said, base, source, tmp_path):
  with pytest.raises(UsageError, match=said):
    aigc_jax.train(tuned_config(base, source, **fields), tmp_path / 'run', quiet=True)
  assert not (tmp_path / 'run').exists()


def test_gradients_of_both_are_those_of_the_sum():
  """By hand: with y = x (W + s A B), the slope of A is x^T g (s B)^T and that of B (s A)^T x^T g."""
  keys = jax.random.split(jax.random.key(0), 5)
  draw = lambda i, *shape: jax.random.normal(keys[i], shape)
  params = {
    'up': {'kernel': draw(0, 3, 4)},
    'adapters': {'up': {'kernel': {'a': draw(1, 3, 2), 'b': draw(2, 2, 4)}}},
  }
  x, g, scale = draw(3, 5, 3), draw(4, 5, 4), ALPHA / RANK
  total = lambda params: ((x @ lora.whole(params, {'alpha': ALPHA, 'rank': RANK})['up']['kernel']) * g).sum()
  found = jax.grad(total)(params)['adapters']['up']['kernel']
  a, b = (params['adapters']['up']['kernel'][part] for part in 'ab')
  np.testing.assert_allclose(found['a'], scale * x.T @ g @ b.T, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found['b'], scale * a.T @ x.T @ g, rtol=1e-5, atol=1e-5)
