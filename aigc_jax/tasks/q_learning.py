"""Q-learning: act in a world, and learn what each action is worth from the rewards (Watkins and Dayan 1992).

With a network, a memory and a target network it is DQN (Mnih et al. 2015); with a table, and neither, the classic. At
each step every world is acted in, what happened is put into the memory, and a batch drawn from it is learned from: all
of that is in `collect`, so it is a part of the one compiled step.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from aigc_jax import environments, models
from aigc_jax.config import NonNegative, Positive, UnitInterval
from aigc_jax.environments import worlds
from aigc_jax.environments.environment import advance, begin
from aigc_jax.errors import UsageError
from aigc_jax.task import Task
from aigc_jax.tasks import replay, rollouts

HIGHER_IS_BETTER = ('return', 'length')  # metrics
MODELS = ('q_network', 'q_table')
EVALUATION_SEED = (
  0  # of the episodes that evaluations play: the same in every run, so that figures can be compared
)


@dataclasses.dataclass(frozen=True)
class QLearningConfig:
  discount: Annotated[float, UnitInterval] = 0.99
  epsilon_start: Annotated[float, UnitInterval] = 1.0  # how many actions are random
  epsilon_end: Annotated[float, UnitInterval] = 0.05
  exploration_steps: Annotated[int, Positive] | None = (
    None  # from the one to the other; None: half of all steps
  )
  steps_per_update: Annotated[int, Positive] = 1  # that are taken in each world before each update
  replay_size: Annotated[int, Positive] = 10_000  # transitions, of all worlds together
  learning_starts: Annotated[int, NonNegative] = 1_000  # transitions before the first update
  n_step: Annotated[int, Positive] = 1  # rewards that are summed before a value is asked for
  double: bool = (
    True  # the network chooses the action, the target network says its worth (van Hasselt et al. 2016)
  )
  # the target network is the network as it was at every so many steps, or a moving average; neither: the network itself
  target_every: Annotated[int, Positive] | None = 100
  target_rate: Annotated[float, UnitInterval] | None = None  # how far it moves to the network at each step
  # prioritized replay (Schaul et al. 2016): errors to this power are how likely a transition is; None: all alike
  priority_exponent: Annotated[float, NonNegative] | None = None
  importance_exponent: Annotated[float, UnitInterval] = 0.4  # what corrects for that; 1 when exploration ends
  huber: Annotated[float, Positive] | None = 1.0  # larger errors count linearly; None: all are squared
  sample_episodes: Annotated[int, Positive] = 1  # shown while training


def complete(config, dataset):
  """Fills in what the world decides. Raises UsageError where sizes do not fit."""
  del dataset
  config = config | {'task': dict(config['task'])}
  task, environment = config['task'], environments.make(config['data']['source'])
  if task['target_every'] is not None and task['target_rate'] is not None:
    raise UsageError(
      'config.task.target_rate: the target network is copied at every config.task.target_every steps already; set '
      'one of them to none'
    )
  task['exploration_steps'] = task['exploration_steps'] or -(-config['training']['steps'] // 2)
  check_replay(config)
  observation = jax.eval_shape(lambda key: environment.observe(environment.reset(key)), jax.random.key(0))
  return config | {'model': fitted(config['model'], environment, observation)}


def fitted(model, environment, observation):
  """`config.model` with the shapes of the world. Raises UsageError where it has others, or a table has no states."""
  discrete = jnp.issubdtype(observation.dtype, jnp.integer)
  if model['name'] == 'q_table' and not discrete:
    raise UsageError(
      f'config.model.name: a table needs a world of few states, and what {environment.name!r} shows are numbers; '
      'use --config.model.name=q_network'
    )
  if not discrete and len(observation.shape) != 1:
    raise UsageError(
      f'config.data.source: {environment.name!r} shows arrays of shape {list(observation.shape)}, and the models here '
      'read lists of numbers'
    )
  features = len(environment.tables.next_states) if discrete else observation.shape[0]
  found = dict(model)
  for name, value in (('features', features), ('actions', environment.actions)):
    found[name] = model[name] or value
    if found[name] != value:
      raise UsageError(
        f'config.model.{name}: {found[name]}, but {environment.name!r} has {value}; leave it unset'
      )
  return found


def check_replay(config):
  """Raises UsageError where the memory is too small, or its parts do not come out even."""
  task, data, microbatches = config['task'], config['data'], config['training']['microbatches']
  each, rows = capacity(config), data['batch_size'] // data['environments']
  least = max(data['batch_size'], data['environments'] * max(task['n_step'], task['steps_per_update']))
  if task['replay_size'] < least:
    raise UsageError(
      f'config.task.replay_size: {task["replay_size"]} transitions are fewer than a batch, or than the rows of '
      f'config.task.n_step, take; use {least} or more'
    )
  if each < task['n_step']:
    raise UsageError(
      f'config.task.replay_size: {task["replay_size"]} leaves each world {each} transitions, and config.task.n_step is '
      f'{task["n_step"]}'
    )
  if rows % microbatches:
    raise UsageError(
      f'config.training.microbatches: {microbatches} do not divide the {rows} transitions of each world in a batch'
    )


def capacity(config):
  """Transitions of each world that are kept: a multiple of what it adds at a step."""
  task = config['task']
  return (
    task['replay_size']
    // config['data']['environments']
    // task['steps_per_update']
    * task['steps_per_update']
  )


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of `data.environments`."""
  task, data = config['task'], config['data']
  environment = environments.make(data['source'])
  model = models.build(config['model'], jnp.dtype(config['training']['precision']))
  values_of = lambda params, observations: model.apply({'params': params}, observations)  # [rows, actions]
  rows_of_each = data['batch_size'] // data['environments']
  prioritized, targets = task['priority_exponent'] is not None, has_target(task)

  def init(key, batch):
    del batch
    params_key, worlds_key = jax.random.split(key)
    players = begin(environment, jax.random.split(worlds_key, data['environments']))
    observations = jax.vmap(environment.observe)(players.state)
    params = model.init(params_key, observations)['params']
    keys = jax.random.split(worlds_key, data['environments'])
    actions = jnp.zeros(data['environments'], jnp.int32)
    seen = jax.eval_shape(functools.partial(advance, environment), players, actions, keys)[1]
    memory = replay.empty(seen, capacity(config), prioritized)
    extra = {'players': players, 'replay': memory, 'added': jnp.int32(0)}
    extra['finished'] = {
      'return': jnp.zeros(len(keys)),
      'any': jnp.zeros(len(keys)),
    }  # the last episode of each
    if prioritized:
      extra['largest'] = jnp.float32(1)  # of all priorities so far: what is new has it
    if targets:
      extra['target'] = jax.tree.map(jnp.copy, params)
    return params, extra

  def collect(params, extra, batch, context):
    act_key, draw_key = jax.random.split(context.key)
    extra, transitions = act(params, extra, act_key, context.step)
    memory = replay.insert(extra['replay'], transitions, extra['added'], extra.get('largest'))
    added = extra['added'] + task['steps_per_update']
    extra = extra | {'replay': memory, 'added': added}
    if targets:
      extra['target'] = moved(task, extra['target'], params, context.step)
    done = explored(task, context.step)
    beta = task['importance_exponent'] * (1 - done) + done if prioritized else None
    drawn = replay.draw(memory, draw_key, added, rows_of_each, task['n_step'], beta)
    weights = drawn.weights / context.max(drawn.weights.max())
    learned = replay.returns(memory, drawn.places, task['n_step'], task['discount'])
    learned |= {'importance': weights, 'places': drawn.places}
    rows = jax.tree.map(
      lambda x: x.reshape(-1, *x.shape[2:]), learned
    )  # [batch, ...], the rows of a world together
    enough = (added >= task['n_step']) & (added * data['environments'] >= task['learning_starts'])
    return extra, rows | {'mask': batch['mask'] * enough}

  def act(params, extra, key, step):
    """Every world `steps_per_update` times -> (extra, Transition [worlds, steps, ...])."""
    epsilon = epsilon_at(task, step)

    def one(carry, key):
      players, finished = carry
      count = len(players.time)
      explore_key, action_key, worlds_key = jax.random.split(key, 3)
      greedy = values_of(params, jax.vmap(environment.observe)(players.state)).argmax(-1)
      explore = jax.random.uniform(explore_key, (count,)) < epsilon
      actions = jnp.where(explore, jax.random.randint(action_key, (count,), 0, environment.actions), greedy)
      players, seen, returned = advance(
        environment, players, actions.astype(jnp.int32), jax.random.split(worlds_key, count)
      )
      finished = {
        'return': jnp.where(seen.last > 0, returned, finished['return']),
        'any': jnp.maximum(finished['any'], seen.last),
      }
      return (players, finished), seen

    keys = jax.random.split(key, task['steps_per_update'])
    (players, finished), seen = jax.lax.scan(one, (extra['players'], extra['finished']), keys)
    return extra | {'players': players, 'finished': finished}, jax.tree.map(
      lambda x: jnp.moveaxis(x, 0, 1), seen
    )

  def errors(params, target, rows):
    """(temporal differences, values of the actions that were taken), both [rows]."""
    values = values_of(params, rows['observation'])
    value = jnp.take_along_axis(values, rows['action'][:, None], 1)[:, 0]
    following = values_of(target, rows['next_observation'])
    chooser = values_of(params, rows['next_observation']) if task['double'] and targets else following
    best = jnp.take_along_axis(following, chooser.argmax(-1)[:, None], 1)[:, 0]
    return value - jax.lax.stop_gradient(rows['reward'] + rows['bootstrap'] * best), value

  def loss(params, extra, batch, context):
    difference, value = errors(params, extra.get('target', jax.lax.stop_gradient(params)), batch)
    mask = batch['mask']
    total, weight = (penalty(task, difference) * batch['importance'] * mask).sum(), mask.sum()
    finished = extra['finished']
    metrics = {
      'return': ((finished['return'] * finished['any']).sum(), finished['any'].sum()),
      'value': ((value * mask).sum(), weight),
      'epsilon': (epsilon_at(task, context.step) * weight, weight),
    }
    if prioritized:
      extra = reprioritized(task, extra, batch, difference, context)
    return total, (weight, extra, metrics)

  def evaluate(params, extra, batch, context):
    del extra, context
    judge = lambda rows: penalty(task, errors(params, params, rows)[0])
    found = rollouts.play(environment, values_of, params, batch['episodes'], task['discount'], judge)
    mask = batch['mask']
    count = mask.sum()
    metrics = {
      'loss': ((found.judged * mask).sum(), (found.length * mask).sum()),
      'return': ((found.returned * mask).sum(), count),
      'length': ((found.length * mask).sum(), count),
    }
    if environment.tables is not None:
      best = worlds.optimal_values(environment.tables, task['discount'])
      states = jnp.arange(len(best))
      lives = worlds.reachable(environment.tables)
      apart = (jnp.abs(values_of(params, states) - best) * lives[:, None]).max()
      metrics['table_error'] = apart * mask.max(), mask.max()
    return metrics

  return Task(
    init,
    loss,
    collect,
    evaluate,
    show=functools.partial(rollouts.show, environment, values_of, task['sample_episodes']),
    draw=functools.partial(rollouts.draw, environment, values_of),
    layout=layout(prioritized, targets),
    unit='transitions',
    higher_is_better=HIGHER_IS_BETTER,
  )


def has_target(task):
  return task['target_every'] is not None or task['target_rate'] is not None


def layout(prioritized, targets):
  """How `extra` lies: each device has its own worlds and what they saw."""
  rows = dict.fromkeys(('players', 'replay', 'finished'), 'rows')
  everywhere = ['added'] + ['largest'] * prioritized + ['target'] * targets
  return rows | dict.fromkeys(everywhere, 'replicated')


def explored(task, step):
  """How much of the exploration is over at a step, () from 0 to 1."""
  return jnp.minimum(1.0, step / task['exploration_steps'])


def epsilon_at(task, step):
  return task['epsilon_start'] + explored(task, step) * (task['epsilon_end'] - task['epsilon_start'])


def moved(task, target, params, step):
  """The target network at a step, from what it was."""
  if task['target_rate'] is not None:
    return optax.incremental_update(params, target, task['target_rate'])
  copies = step % task['target_every'] == 0
  return jax.tree.map(lambda new, old: jnp.where(copies, new, old), params, target)


def penalty(task, difference):
  """Half the squares of temporal differences, linear beyond `huber` (Mnih et al. 2015, methods)."""
  return (
    optax.l2_loss(difference) if task['huber'] is None else optax.huber_loss(difference, delta=task['huber'])
  )


def reprioritized(task, extra, rows, difference, context):
  """`extra` with the priorities of the rows that were learned from: their errors, to the exponent."""
  memory = extra['replay']
  count = len(memory.priority)
  size = (jnp.abs(jax.lax.stop_gradient(difference)) + 1e-6) ** task['priority_exponent']
  learned = rows['mask'].max() > 0
  size = jnp.where(learned, size, extra['largest'])
  memory = replay.reweighed(memory, rows['places'].reshape(count, -1), size.reshape(count, -1))
  largest = jnp.maximum(extra['largest'], context.max(size.max()))
  return extra | {'replay': memory, 'largest': largest}
