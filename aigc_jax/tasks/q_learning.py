"""Q-learning: act in a world, and learn what each action is worth from the rewards (Watkins and Dayan 1992).

With a network, a memory and a target network it is DQN (Mnih et al. 2015); with a table, and neither, the classic. At
each step every world is acted in, what happened is put into the memory, and a batch drawn from it is learned from: all
of that is in `collect`, so it is a part of the one compiled step.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

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


@dataclasses.dataclass(frozen=True)
class QLearningConfig:
  discount: Annotated[float, UnitInterval] = 0.99  # what a reward a step later counts (gamma)
  epsilon_start: Annotated[float, UnitInterval] = 1.0  # the part of actions that is random at first
  epsilon_end: Annotated[float, UnitInterval] = 0.05  # the same at last
  # steps from the one to the other; None: half of all steps
  exploration_steps: Annotated[int, Positive] | None = None
  steps_per_update: Annotated[int, Positive] = 1  # that are taken in each world before each update
  replay_size: Annotated[int, Positive] = 10_000  # transitions, of all worlds together
  learning_starts: Annotated[int, NonNegative] = 1_000  # transitions before the first update
  n_step: Annotated[int, Positive] = 1  # rewards that are summed before a value is asked for
  double: bool = True  # the network chooses the next action, the target network says its worth
  # the target network is the network as it was at every so many steps, or a moving average; neither: the network itself
  target_every: Annotated[int, Positive] | None = 100
  target_rate: Annotated[float, UnitInterval] | None = None  # how far it moves to the network at each step
  # prioritized replay (Schaul et al. 2016): errors to this power are how likely a transition is; None: all alike
  priority_exponent: Annotated[float, NonNegative] | None = None
  importance_exponent: Annotated[float, UnitInterval] = 0.4  # what corrects for that; 1 when exploration ends
  # larger errors count linearly (Mnih et al. 2015: 1, which may pass over rare ends of episodes); None: none do
  huber: Annotated[float, Positive] | None = None
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
  each = task['replay_size'] // config['data']['environments']
  return each - each % task['steps_per_update']


class Parts(NamedTuple):
  """What the functions of the task are made of; `task` and the model may hold traced floats."""

  environment: environments.Environment
  values_of: Callable  # params, observations [rows, ...] -> [rows, actions]
  task: dict  # the fields of QLearningConfig
  worlds: int
  rows_of_each: int  # of a batch
  capacity: int  # of the memory, for each world
  states: int | None  # of a table; None: a network

  @property
  def prioritized(self):
    return self.task['priority_exponent'] is not None

  @property
  def tabular(self):
    """Whether each state has values of its own."""
    return self.states is not None

  @property
  def targets(self):
    """Whether there is a target network."""
    return self.task['target_every'] is not None or self.task['target_rate'] is not None


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of `data.environments`."""
  task, data = config['task'], config['data']
  environment = environments.make(data['source'])
  model = models.build(config['model'], jnp.dtype(config['training']['precision']))
  values_of = lambda params, observations: model.apply({'params': params}, observations)
  worlds = data['environments']
  states = config['model']['features'] if config['model']['name'] == 'q_table' else None
  parts = Parts(environment, values_of, task, worlds, data['batch_size'] // worlds, capacity(config), states)
  watch = rollouts.watcher(environment, values_of)
  return Task(
    functools.partial(init, parts, model),
    functools.partial(loss, parts),
    functools.partial(collect, parts),
    functools.partial(evaluate, parts),
    show=functools.partial(rollouts.show, environment, watch, task['sample_episodes']),
    draw=functools.partial(rollouts.draw, environment, watch),
    layout=layout(parts),
    unit='transitions',
    loss_unit='half a squared error',
    higher_is_better=HIGHER_IS_BETTER,
  )


def layout(parts):
  """How `extra` lies: each device has its own worlds and what they saw."""
  found = {'players': 'rows', 'replay': 'rows', 'finished': 'rows', 'added': 'replicated'}
  if parts.prioritized:
    found['largest'] = 'replicated'
  if parts.targets:
    found['target'] = 'replicated'
  return found


def init(parts, model, key, batch):
  del batch
  params_key, worlds_key = jax.random.split(key)
  keys = jax.random.split(worlds_key, parts.worlds)
  players = begin(parts.environment, keys)
  params = model.init(params_key, jax.vmap(parts.environment.observe)(players.state))['params']
  actions = jnp.zeros(parts.worlds, jnp.int32)
  seen = jax.eval_shape(functools.partial(advance, parts.environment), players, actions, worlds_key)[1]
  memory = replay.empty(seen, parts.capacity, parts.prioritized)
  # of each world's last whole episode: its return, and whether there was one
  finished = {'return': jnp.zeros(parts.worlds), 'any': jnp.zeros(parts.worlds)}
  extra = {'players': players, 'replay': memory, 'finished': finished, 'added': jnp.int32(0)}
  if parts.prioritized:
    extra['largest'] = jnp.float32(1)  # of all priorities so far: what is new has it
  if parts.targets:
    extra['target'] = jax.tree.map(jnp.copy, params)
  return params, extra


def collect(parts, params, extra, batch, context):
  """Acts, remembers, and draws what is learned from; the rows of a world lie together in the batch."""
  task, (act_key, draw_key) = parts.task, jax.random.split(context.key)
  players, finished, seen = act(parts, params, extra, act_key, context.step)
  memory = replay.insert(extra['replay'], seen, extra['added'], extra.get('largest'))
  added = extra['added'] + task['steps_per_update']
  extra = extra | {'players': players, 'finished': finished, 'replay': memory, 'added': added}
  if parts.targets:
    extra['target'] = moved(task, extra['target'], params, context.step)
  done = explored(task, context.step)
  beta = task['importance_exponent'] * (1 - done) + done if parts.prioritized else None
  drawn = replay.draw(memory, draw_key, added, parts.rows_of_each, task['n_step'], beta)
  learned = replay.returns(memory, drawn.places, task['n_step'], task['discount'])
  learned |= {'importance': drawn.weights / context.max(drawn.weights.max()), 'places': drawn.places}
  rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), learned)  # [batch, ...]
  enough = (added >= task['n_step']) & (added * parts.worlds >= task['learning_starts'])
  rows |= {'mask': batch['mask'] * enough}
  if parts.tabular:
    rows['importance'] = rows['importance'] * shared_evenly(parts, rows, context)
  return extra, rows


def shared_evenly(parts, rows, context):
  """[rows]: what makes the mean of a step's errors of one entry of a table its step, times the learning rate.

  So that the learning rate is the step size of the textbooks, however often a batch has the entry.
  """
  shape = parts.states, parts.environment.actions
  counts = jnp.zeros(shape).at[rows['observation'], rows['action']].add(rows['mask'])
  counts, total = context.sum((counts, rows['mask'].sum()))
  return total / jnp.maximum(counts[rows['observation'], rows['action']], 1)


def act(parts, params, extra, key, step):
  """Every world `steps_per_update` times -> (Players, what is finished, Transition [worlds, steps, ...])."""
  environment, epsilon = parts.environment, epsilon_at(parts.task, step)

  def one(carry, key):
    players, finished = carry
    count = len(players.time)
    explore_key, worlds_key = jax.random.split(key)
    greedy = parts.values_of(params, jax.vmap(environment.observe)(players.state)).argmax(-1)
    drawn = jax.random.uniform(explore_key, (count,))
    # one number does for both: below epsilon it is uniform there, and so tells which action
    chance = jnp.minimum(drawn / epsilon * environment.actions, environment.actions - 1).astype(jnp.int32)
    actions = jnp.where(drawn < epsilon, chance, greedy.astype(jnp.int32))
    players, seen, returned = advance(environment, players, actions, worlds_key)
    finished = {
      'return': jnp.where(seen.last > 0, returned, finished['return']),
      'any': jnp.maximum(finished['any'], seen.last),
    }
    return (players, finished), seen

  keys = jax.random.split(key, parts.task['steps_per_update'])
  (players, finished), seen = jax.lax.scan(one, (extra['players'], extra['finished']), keys)
  return players, finished, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), seen)


def errors(parts, params, target, rows):
  """(temporal differences, values of the actions that were taken), both [rows].

  With `double` the network chooses the next action and the target network says its worth (van Hasselt et al. 2016,
  eq. 4).
  """
  values = parts.values_of(params, rows['observation'])
  value = jnp.take_along_axis(values, rows['action'][:, None], 1)[:, 0]
  following = parts.values_of(target, rows['next_observation'])
  chooser = following
  if parts.task['double'] and parts.targets:
    chooser = parts.values_of(params, rows['next_observation'])
  best = jnp.take_along_axis(following, chooser.argmax(-1)[:, None], 1)[:, 0]
  return value - jax.lax.stop_gradient(rows['reward'] + rows['bootstrap'] * best), value


def loss(parts, params, extra, batch, context):
  task, mask, finished = parts.task, batch['mask'], extra['finished']
  difference, value = errors(parts, params, extra.get('target', params), batch)
  total, weight = (penalty(task, difference) * batch['importance'] * mask).sum(), mask.sum()
  metrics = {
    'return': ((finished['return'] * finished['any']).sum(), finished['any'].sum()),
    'value': ((value * mask).sum(), weight),
    'epsilon': (epsilon_at(task, context.step) * weight, weight),
  }
  if parts.prioritized:
    extra = reprioritized(task, extra, batch, difference, context)
  return total, (weight, extra, metrics)


def evaluate(parts, params, extra, batch, context):
  del extra, context
  environment, task, mask = parts.environment, parts.task, batch['mask']
  judge = lambda rows: penalty(task, errors(parts, params, params, rows)[0])
  found = rollouts.play(environment, parts.values_of, params, batch['episodes'], task['discount'], judge)
  count = mask.sum()
  metrics = {
    'loss': ((found.judged * mask).sum(), (found.length * mask).sum()),
    'return': ((found.returned * mask).sum(), count),
    'length': ((found.length * mask).sum(), count),
  }
  if environment.tables is not None:
    best = worlds.optimal_values(environment.tables, task['discount'])
    lives = worlds.reachable(environment.tables)
    apart = jnp.abs(parts.values_of(params, jnp.arange(len(best))) - best) * lives[:, None]
    metrics['table_error'] = apart.max() * mask.max(), mask.max()
  return metrics


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
  if task['huber'] is None:
    return optax.l2_loss(difference)
  return optax.huber_loss(difference, delta=task['huber'])


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
