"""Which attention a program has, what is said of it, and that its programs for CUDA and for meshes are right."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from aigc_jax import api, tasks
from aigc_jax.config import floats_of
from aigc_jax.errors import UsageError
from aigc_jax.training import attention, collectives, placement, prepare
from aigc_jax.training.attention import Facts
from aigc_jax.training.parallel import make_parallel
from tests import cudnn, tiny

HOPPER = Facts('cuda', (9, 0), 'bfloat16', 64, 12)
CHOICES = {  # facts: what of them stands in the way, or None
  'cpu': (HOPPER._replace(platform='cpu', capability=None), 'the devices are CPUs'),
  'tpu': (HOPPER._replace(platform='tpu', capability=None), 'the devices are TPUs'),
  'rocm': (HOPPER._replace(platform='rocm', capability=None), 'the devices are AMD GPUs'),
  'hopper': (HOPPER, None),
  'ampere': (HOPPER._replace(capability=(8, 0)), None),
  'turing': (HOPPER._replace(capability=(7, 5)), 'the devices have compute capability 7.5'),
  'float32': (HOPPER._replace(precision='float32'), 'the computation is float32'),
  'narrow': (HOPPER._replace(head_width=8), None),
  'odd width': (HOPPER._replace(head_width=20), 'heads are 20 wide'),
  'wide on hopper': (HOPPER._replace(head_width=256), None),
  'wide on ampere': (HOPPER._replace(head_width=256, capability=(8, 6)), 'heads are 256 wide'),
  'wide on blackwell': (HOPPER._replace(head_width=256, capability=(10, 0)), 'heads are 256 wide'),
  'too wide': (HOPPER._replace(head_width=264), 'heads are 264 wide'),
  'dropout': (HOPPER._replace(dropout=True), 'config.model.dropout drops attention weights'),
  'packed': (HOPPER._replace(packed=True), 'rows hold several documents'),
  'prefix': (HOPPER._replace(prefix=True), 'config.model.bidirectional_prefix is on'),
  'tensor': (HOPPER._replace(tensor=4), None),
  'groups': (HOPPER._replace(tensor=4, key_value_heads=2), '2 heads of keys and values do not divide'),
  'rows': (HOPPER._replace(rows=8), None),
  'lengths': (HOPPER._replace(lengths=True), None),
  'lengths of rows': (
    HOPPER._replace(lengths=True, rows=8),
    'rows of different lengths are dealt out over 8',
  ),
  'refused': (HOPPER._replace(refusal='cuDNN is not detected'), 'jax refuses it: cuDNN is not detected'),
}


@pytest.mark.parametrize('case', CHOICES)
def test_the_choice_follows_from_the_facts(case):
  facts, why = CHOICES[case]
  assert attention.choose('xla', facts) == ('xla', 'as config.model.attention asks')
  if why is None:
    assert attention.choose('auto', facts) == attention.choose('cudnn', facts) == ('cudnn', '')
    return
  chosen, because = attention.choose('auto', facts)
  assert chosen == 'xla'
  assert because.startswith(f'since {why}')
  with pytest.raises(UsageError) as error:
    attention.choose('cudnn', facts)
  assert str(error.value).startswith(f"config.model.attention: 'cudnn', but {why}")
  assert '\n' not in str(error.value)


def gpu(capability='9.0'):
  platform = SimpleNamespace(platform_version='PJRT C API\ncuda 12090')
  return SimpleNamespace(platform='gpu', client=platform, compute_capability=capability, process_index=0)


def prepared_config(source, precision='bfloat16', **sections):
  model = {'layers': 2, 'heads': 4, 'width': 32} | sections.pop('model', {})
  training = {'precision': precision} | sections.pop('training', {})
  config = tiny.config(source, model=model, training=training, **sections)
  return prepare.prepare(api.resolved(config))


def line_of(experiment, devices, **fields):
  config = experiment.config | {'model': experiment.config['model'] | fields}
  return attention.settled(config, experiment.dataset.train_batch(0), devices)[1].line


def test_the_line_says_which_runs_and_why(source):
  experiment = prepared_config(source, parallel={'data': 1})
  with cudnn.pretended():
    assert line_of(experiment, [gpu()]) == 'cuDNN flash, bfloat16, causal, 8 wide heads'
    assert line_of(experiment, [gpu()], window=5).endswith('causal within 5 tokens, 8 wide heads')
    assert line_of(experiment, [gpu()], heads=8).startswith('XLA, since heads are 4 wide (cuDNN takes')
    assert line_of(experiment, [gpu()], dropout=0.0).startswith('XLA, since config.model.dropout')
    assert line_of(experiment, [gpu()], attention='xla') == 'XLA, as config.model.attention asks'
    packed = experiment.dataset.train_batch(0) | {'segments': np.ones(1)}
    assert 'several documents' in attention.settled(experiment.config, packed, [gpu()])[1].line
  assert line_of(experiment, [gpu()]) == 'XLA, since jax refuses it: cuDNN is not detected'  # on this machine
  assert line_of(experiment, jax.devices()) == 'XLA, since the devices are CPUs'


def lowered_for_cuda(experiment):
  """The train step of one GPU, as text."""
  batch = experiment.dataset.train_batch(0)
  config, _ = attention.settled(experiment.config, batch, [gpu()])
  program = make_parallel(config, tasks.build, jax.devices()[:1])
  floats = program.put_floats(floats_of(config))
  state = jax.eval_shape(program.init, floats, jax.random.key(0), batch)
  return program.step.trace(floats, state, batch).lower(lowering_platforms=('cuda',)).as_text()


def calls_in(text):
  """[(name, its backend's config as a dict)] of the calls of cuDNN."""
  found = re.findall(r'custom_call @(__cudnn\S+?)\(.*?backend_config = "((?:[^"\\]|\\.)*)"', text)
  return [
    (name, json.loads(re.sub(r'\\22', '"', config))['cudnn_fmha_backend_config']) for name, config in found
  ]


@pytest.mark.parametrize(
  ('fields', 'forward', 'window'),
  [({}, 2, 0), ({'window': 5, 'key_value_heads': 2, 'positions': 'rotary'}, 2, 5), ({'remat': 'full'}, 4, 0)],
)
def test_the_program_for_cuda_calls_cudnn_once_a_layer_and_holds_no_mask(source, fields, forward, window):
  # 24 tokens, a length that no other axis has
  data = {'source': source, 'sequence_length': 24, 'batch_size': 4}
  experiment = prepared_config(source, model=fields, data=data, parallel={'data': 1})
  with cudnn.pretended():
    text = lowered_for_cuda(experiment)
    plain = lowered_for_cuda(experiment._replace(config=attention.attending(experiment.config, 'xla')))
  calls = calls_in(text)
  names = [name for name, _ in calls]
  assert [names.count(kernel) for kernel in cudnn.KERNELS] == [forward, 2]
  assert len(names) == forward + 2
  for _, settings in calls:
    assert settings['mask_type'] == 'CAUSAL'
    assert settings['is_flash_attention']
    assert settings['sliding_window_length'] == window
    assert settings['fmha_scale'] == pytest.approx(8**-0.5)
    assert settings['intermediate_tensor_shape']['dimensions'] == ['4', '4', '24', '24']
  square = re.compile(r'tensor<[^>]*24x24x')
  assert not square.search(text)
  assert square.search(plain)  # so that it would be seen
  assert not calls_in(plain)


WAYS = {
  'rows and heads': dict(parallel={'data': 2, 'tensor': 2}),
  'all at once': dict(
    parallel={'data': 2, 'fsdp': 2, 'tensor': 2}, training={'microbatches': 2}, model={'remat': 'dots'}
  ),
  'pmap': dict(parallel={'mode': 'pmap', 'data': 2}),
}


@pytest.mark.parametrize(
  'way',
  [
    'rows and heads',
    pytest.param('all at once', marks=pytest.mark.slow),
    pytest.param('pmap', marks=pytest.mark.slow),
  ],
)
def test_many_devices_attend_each_to_their_own_rows_and_heads(source, way):
  sections = dict(WAYS[way])
  model = {'layers': 1, 'key_value_heads': 2, 'positions': 'rotary', 'window': 5} | sections.pop('model', {})
  optimizer = {'name': 'sgd', 'learning_rate': 1.0, 'schedule': 'constant'}  # a step shows the gradient
  data = {'source': source, 'sequence_length': 24, 'batch_size': 8}
  experiment = prepared_config(source, model=model, optimizer=optimizer, data=data, **sections)
  found = {}
  with cudnn.pretended():
    for how in ('xla', 'cudnn'):
      config = attention.attending(experiment.config, how)
      program = make_parallel(config, tasks.build, experiment.devices)
      floats, batch = (
        program.put_floats(floats_of(config)),
        program.put_batch(experiment.dataset.train_batch(0)),
      )
      state = program.init(floats, jax.random.key(0), batch)
      step = program.step.lower(floats, state, batch).compile()
      before = jax.device_get(state.params)
      state, metrics = step(floats, state, batch)
      slopes = jax.tree.map(np.subtract, before, jax.device_get(state.params))
      found[how] = float(metrics['loss']), slopes, collectives.table(collectives.find(step), str)
  (loss, slopes, exchanged), (other_loss, other_slopes, other_exchanged) = found['xla'], found['cudnn']
  assert other_loss == pytest.approx(loss, rel=1e-3)  # bfloat16 rounds to 2^-9; the mean over tokens less
  largest = max(np.abs(x).max() for x in jax.tree.leaves(slopes))
  for one, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(other_slopes), strict=True):
    np.testing.assert_allclose(other, one, atol=2e-2 * largest)
  assert other_exchanged == exchanged


def test_a_model_that_attends_to_nothing_has_no_choice(source):
  config = api.resolved(tiny.config(source) | {'model': {'name': 'rnn'}})
  assert attention.settled(config, {}, jax.devices()) == (config, None)


def test_cudnn_on_a_cpu_is_refused_before_there_is_a_run(source, tmp_path):
  config = tiny.config(source, model={'attention': 'cudnn'})
  with pytest.raises(UsageError, match=r"config.model.attention: 'cudnn', but the devices are CPUs; "):
    tiny.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_work_is_counted_as_if_xla_did_it(source, monkeypatch):
  experiment = prepared_config(source, model={'layers': 1}, parallel={'data': 1})
  alone = placement.place(experiment)
  flops = placement.flops_of(placement.lower_step(alone), experiment, alone)
  monkeypatch.setattr(attention, 'obstacle', lambda facts: None)
  with cudnn.pretended():
    prepared = placement.place(experiment)
    assert prepared.attention.implementation == 'cudnn'
    lowered = placement.lower_step(prepared)
  assert placement.flops_of(lowered, experiment, prepared) == flops
