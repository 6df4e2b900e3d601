"""Q-learning: its targets by hand, its episodes by a plain loop, tables against planning, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from PIL import Image

from aigc_jax import api, cli, environments, tasks
from aigc_jax.config import floats_of
from aigc_jax.environments import worlds
from aigc_jax.errors import UsageError
from aigc_jax.task import Context
from aigc_jax.training import prepare
from aigc_jax.training.step import make_program

FROZEN = {'epsilon_start': 1.0, 'epsilon_end': 1.0}


def config_of(source='cartpole', model=None, data=None, training=None, parallel=None, **task):
  rows = {'environments': 4, 'batch_size': 8, 'validation_episodes': 3} | (data or {})
  return {
    'task': {'name': 'q_learning', 'replay_size': 64, 'learning_starts': 0, **task},
    'model': {'name': 'q_network', 'widths': (16,)} if model is None else model,
    'data': {'source': f'environment:{source}', **rows},
    'optimizer': {'name': 'adam', 'learning_rate': 1e-2},
    'parallel': parallel or {},
    'training': {'steps': 10, 'tensorboard': False, 'sample_every': None} | (training or {}),
  }


def made(**fields):
  """(Experiment, jitted Program, floats, first State)."""
  found = prepare.prepare(api.read_config(config_of(**fields)))
  program = make_program(found.config, tasks.build)
  floats = {name: jnp.float32(value) for name, value in floats_of(found.config).items()}
  state = jax.jit(program.init)(floats, jax.random.key(0), found.dataset.train_batch(0))
  return (
    found,
    program._replace(step=jax.jit(program.step), evaluate=jax.jit(program.evaluate)),
    floats,
    state,
  )


def context(step=0, train=True):
  return Context(jax.random.key(3), jnp.int32(step), train)


@pytest.mark.parametrize(
  'fields',
  [
    {'double': False},
    {'double': True, 'huber': 1.0},
    {'double': True, 'n_step': 3},
    {'double': True, 'target_every': None},
    {'priority_exponent': 0.6, 'model': {'name': 'q_network', 'widths': (16,), 'dueling': True}},
  ],
)
def test_the_loss_is_that_of_targets_by_hand(fields):
  found, program, floats, state = made(**fields)
  for i in range(6):
    state, _ = program.step(floats, state, found.dataset.train_batch(i))
  task, config = found.task, found.config['task']
  extra, rows = task.collect(state.params, state.extra, found.dataset.train_batch(6), context(6))
  total, (weight, _, metrics) = task.loss(state.params, extra, rows, context(6))
  model = tasks.q_learning.models.build(found.config['model'])
  ask = lambda params, x: np.asarray(model.apply({'params': params}, x), np.float64)
  target = extra.get('target', state.params)
  following = ask(target, rows['next_observation'])
  chooser = ask(state.params, rows['next_observation']) if config['double'] else following
  nats = values = 0.0
  for i in range(8):
    best = following[i, chooser[i].argmax()]
    value = ask(state.params, rows['observation'][i : i + 1])[0, int(rows['action'][i])]
    error = abs(float(value - rows['reward'][i] - rows['bootstrap'][i] * best))
    delta = config['huber'] or np.inf
    nats += float(rows['importance'][i]) * (0.5 * error**2 if error <= delta else delta * (error - delta / 2))
    values += value
  assert float(weight) == 8
  assert float(total) == pytest.approx(nats, rel=1e-4)
  assert float(metrics['value'][0]) == pytest.approx(values, rel=1e-4)
  assert float(rows['importance'].max()) == pytest.approx(1)


def test_the_target_network_is_the_network_of_some_steps_ago():
  found, program, floats, state = made(target_every=3)
  kept = []
  for i in range(8):
    kept.append(jax.device_get(state.params))
    state, _ = program.step(floats, state, found.dataset.train_batch(i))
    copied = i // 3 * 3
    jax.tree.map(np.testing.assert_array_equal, state.extra['target'], kept[copied])
  found, program, floats, state = made(target_every=None, target_rate=0.25)
  before = jax.device_get((state.params, state.extra['target']))
  state, _ = program.step(floats, state, found.dataset.train_batch(0))
  expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, *before)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state.extra['target'], expected)


def test_nothing_is_learned_before_there_is_enough():
  found, program, floats, state = made(learning_starts=17)
  first = jax.device_get(state.params)
  for i in range(6):
    state, metrics = program.step(floats, state, found.dataset.train_batch(i))
    same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), state.params, first)))
    assert same == ((i + 1) * 4 < 17)
    assert float(metrics['weight']) == (0 if same else 8)


@pytest.mark.parametrize(('step', 'epsilon'), [(0, 0.9), (5, 0.5), (10, 0.1), (50, 0.1)])
def test_exploration_ends_by_and_by(step, epsilon):
  found, _, _, state = made(
    data={'environments': 1024, 'batch_size': 1024},
    replay_size=1024,
    epsilon_start=0.9,
    epsilon_end=0.1,
    exploration_steps=10,
  )
  task = found.task
  extra, rows = task.collect(state.params, state.extra, {'mask': jnp.ones(1024)}, context(step))
  model = tasks.q_learning.models.build(found.config['model'])
  greedy = model.apply({'params': state.params}, rows['observation']).argmax(-1)
  assert float((rows['action'] != greedy).mean()) == pytest.approx(
    epsilon / 2, abs=0.06
  )  # half of chance is right
  _, (weight, _, metrics) = task.loss(state.params, extra, rows, context(step))
  assert float(metrics['epsilon'][0] / weight) == pytest.approx(epsilon, abs=1e-6)


def test_evaluations_play_what_a_plain_loop_plays():
  found, program, floats, state = made()
  (batch,) = found.dataset.validation_batches()
  metrics, _ = program.evaluate(floats, state, batch)
  world = environments.make('environment:cartpole')
  model = tasks.q_learning.models.build(found.config['model'])
  step, ask = jax.jit(world.step), jax.jit(lambda x: model.apply({'params': state.params}, x[None])[0])
  lengths = []
  for number in range(3):
    place = world.reset(jax.random.fold_in(jax.random.key(0), number))
    lengths.append(0)
    terminal = False
    while not terminal and lengths[-1] < world.time_limit:
      place, _, terminal = step(place, ask(place).argmax(), jax.random.key(0))
      lengths[-1] += 1
  assert float(metrics['return'][0]) == sum(lengths)
  assert float(metrics['return'][1]) == 3
  assert len(set(lengths)) > 1


# of chance nothing is left in the first, so that its table is exact; slips are chance, and 3,000 steps are few
@pytest.mark.parametrize(
  ('world', 'rate', 'schedule', 'close'),
  [('cliff_walking', 1.0, 'constant', 1e-3), ('frozen_lake', 0.1, 'linear', 0.1)],
)
def test_a_table_learns_what_planning_finds(world, rate, schedule, close):
  """By random play alone."""
  fields = {'target_every': None, 'double': False, 'replay_size': 128, 'discount': 0.99, **FROZEN}
  config = config_of(world, {'name': 'q_table'}, {'environments': 128, 'batch_size': 128}, **fields)
  config['optimizer'] = {'name': 'sgd', 'learning_rate': rate, 'schedule': schedule}
  config['training'] |= {'steps': 3000}
  found = prepare.prepare(api.read_config(config))
  program = make_program(found.config, tasks.build)
  floats = {name: jnp.float32(value) for name, value in floats_of(found.config).items()}
  batch = found.dataset.train_batch(0)
  state = program.init(floats, jax.random.key(0), batch)
  learn = lambda s: jax.lax.fori_loop(0, 3000, lambda i, s: program.step(floats, s, batch)[0], s)
  state = jax.jit(learn)(state)
  tables = environments.make(f'environment:{world}').tables
  best = worlds.optimal_values(tables, 0.99)
  apart = np.abs(state.params['values'] - best)[worlds.reachable(tables) > 0].max()
  assert apart < close < np.abs(best).max()
  (rows,) = found.dataset.validation_batches()
  metrics, _ = jax.jit(program.evaluate)(floats, state, rows)
  assert float(metrics['table_error'][0]) == pytest.approx(apart, rel=1e-5)


def test_a_step_of_a_table_is_the_mean_of_its_errors():
  """Of entries that a batch has several times, on several devices, each moves by its mean error."""
  states, actions = np.array([3, 3, 1, 3, 1, 0, 2, 3]), np.array([0, 0, 1, 0, 1, 1, 0, 1])
  mask, errors = np.array([1, 1, 1, 0, 1, 1, 0, 1], np.float32), np.arange(1, 9, dtype=np.float32)
  environment = environments.make('environment:frozen_lake')
  parts = tasks.q_learning.Parts(environment, None, {'priority_exponent': None}, 8, 1, 1, states=4)
  rows = {'observation': states, 'action': actions, 'mask': mask}
  mesh = Mesh(np.array(jax.devices()[:2]), ('data',))
  of_device = lambda rows: tasks.q_learning.shared_evenly(parts, rows, context()._replace(axis='data'))
  found = jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=P('data'), out_specs=P('data')))(rows)
  np.testing.assert_array_equal(found, tasks.q_learning.shared_evenly(parts, rows, context()))
  step = found * mask * errors / mask.sum()
  for entry in ((3, 0), (1, 1), (0, 1), (3, 1)):
    chosen = (states == entry[0]) & (actions == entry[1])
    assert step[chosen].sum() == pytest.approx(errors[chosen & (mask > 0)].mean())


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'source': 'cartpool'}, "is no environment; did you mean 'cartpole'"),
    ({'replay_size': 4}, 'config.task.replay_size: 4 transitions are fewer than a batch.* use 8 or more'),
    ({'data': {'batch_size': 6}}, 'config.data.batch_size: 6 transitions .* use 8'),
    ({'target_rate': 0.1}, 'config.task.target_rate: .* set one of them to none'),
    (
      {'model': {'name': 'q_table'}},
      "config.model.name: a table needs a world of few states, and what 'cartpole'",
    ),
    ({'model': {'name': 'mlp'}}, "'mlp' is no model for the task 'q_learning'"),
    ({'model': {'name': 'q_network', 'actions': 3}}, "config.model.actions: 3, but 'cartpole' has 2"),
    (
      {'parallel': {'data': 8}},
      'config.parallel.data: 8 devices do not divide the 4 environments and the 8 rows',
    ),
    ({'training': {'microbatches': 4}}, 'config.training.microbatches: 4 do not divide the 2 transitions'),
  ],
)
def test_what_does_not_fit_is_one_line(fields, message):
  with pytest.raises(UsageError, match=message) as raised:
    made(**fields)
  assert '\n' not in str(raised.value)


def test_a_run_shows_how_it_plays(tmp_path, capsys):
  training = {'steps': 6, 'evaluate_every': 6, 'checkpoint_every': None, 'sample_every': 6}
  training['best_metric'] = 'validation/return'
  run = api.train(config_of(training=training), tmp_path / 'run', quiet=True)
  with Image.open(tmp_path / 'run/samples/00000006-rollout.gif') as film:
    frames = film.n_frames  # one of each step and the first, less those that look like the one before
  text = (tmp_path / 'run/samples/00000006-rollout.txt').read_text(encoding='utf-8')
  steps = int(text.split()[-2])
  assert text == f'episode 1: return {steps} in {steps} steps'
  assert steps / 2 < frames <= steps + 1
  with Image.open(tmp_path / 'run/samples/00000006-rollout.png') as strip:
    assert strip.width > 10 * strip.height
  with Image.open(tmp_path / 'run/plots/loss.png') as curves:
    assert curves.width > 3 * curves.height, 'the loss, and the return beside it'
  found = run.evaluate()
  assert found['return'] == pytest.approx(run.metrics[-1]['validation/return'])
  assert cli.main(['generate', str(tmp_path / 'run'), '--num=2', f'--output={tmp_path}/played.png']) == 0
  with Image.open(tmp_path / 'played.png') as picture:
    assert picture.height > 2 * (strip.height - 4)
  assert cli.main(['generate', str(tmp_path / 'run'), '--interpolate']) == 64
  assert 'mean nothing for episodes' in capsys.readouterr().err
