"""What the dry run says of memory, against the arrays themselves and XLA's account, and what is refused."""

import functools
import re

import jax
import numpy as np
import pytest

from aigc_jax import api, run
from aigc_jax.errors import UsageError
from aigc_jax.training import checkpoint, console, experiment, memory_use, placement, prepare
from tests import bad_input, equality, tiny
from tests.compilations import count_compilations

HUGE = {'width': 16384, 'heads': 128}


@pytest.fixture
def small_machine(monkeypatch, tmp_path):
  """A function that limits what this process may use, as a container does."""
  monkeypatch.setattr(memory_use, 'CGROUPS', tmp_path / 'cgroups')
  monkeypatch.setattr(memory_use, 'OWN_CGROUPS', tmp_path / 'own')
  (tmp_path / 'own').write_text('0::/\n')
  (tmp_path / 'cgroups').mkdir()
  return lambda octets: (tmp_path / 'cgroups/memory.max').write_text(f'{octets}\n')


def config_of(source, layout, devices, layers=1, **sections):
  given = tiny.config(
    source, model={'layers': layers, 'heads': 8, 'width': 32, 'vocabulary_size': 32}, **sections
  )
  return given | {
    'parallel': equality.parallel_of(layout, devices),
    'data': given['data'] | {'batch_size': 16},
  }


# The table of arrays


@pytest.mark.parametrize(('layout', 'devices'), [('fsdp', 4), ('mixed', 8)])
def test_bytes_are_those_of_the_real_arrays(source, layout, devices):
  config = config_of(source, layout, devices, 2, optimizer={'average': 0.9}, training={'freeze': 'position'})
  made = prepare.prepare(api.read_config(config))
  placed = placement.place(made)
  state = placed.program.init(placed.floats, placed.key, placed.example)
  wanted = checkpoint.flat(placed.target)
  held = dict.fromkeys(made.devices, 0)
  for path, leaf in checkpoint.flat(state).items():
    leaf = jax.random.key_data(leaf) if checkpoint.is_key(leaf) else leaf
    for shard in leaf.addressable_shards:
      assert shard.data.nbytes == memory_use.bytes_on_device(wanted[path]), path
      held[shard.device] += shard.data.nbytes
  assert set(held.values()) == {memory_use.bytes_of(placed.target)}, 'each device holds as much'
  rows = [re.split(r' {2,}', line) for line in memory_use.array_table(placed.target)]
  assert rows[-1] == ['all', str(len(wanted)), console.size(held[made.devices[0]])]
  for path, shape, axes, count, octets in rows[1:-2]:
    alike = [leaf for p, leaf in wanted.items() if re.fullmatch(path.replace('*', r'\d+'), p)]
    real = [leaf for p, leaf in checkpoint.flat(state).items() if re.fullmatch(path.replace('*', r'\d+'), p)]
    assert len(alike) == int(count)
    assert {str(list(leaf.shape)) for leaf in alike} == {shape}
    assert octets == console.size(sum(leaf.addressable_shards[0].data.nbytes for leaf in real))
    part = real[0].addressable_shards[0].data.shape
    assert [axis != '-' for axis in axes.split(', ')] == (
      [True] if part == real[0].shape else [n > m for n, m in zip(real[0].shape, part, strict=True)]
    ), (path, axes)


def test_alike_are_those_that_differ_in_the_numbers_of_layers_alone(source):
  _, placed = equality.prepared(equality.FAMILIES['resnet'](source), 'data', 1)
  leaves = checkpoint.flat(placed.target)
  groups = memory_use.alike(leaves)
  assert sorted(id(leaf) for _, several in groups for leaf in several) == sorted(map(id, leaves.values()))
  for path, several in groups:
    assert len({leaf.shape for leaf in several}) == 1
    assert ('*' in path) == (len(several) > 1)


def test_what_lies_how():
  made = jax.make_mesh((2, 2, 1), ('data', 'fsdp', 'tensor'), devices=jax.devices()[:4])
  text = lambda shape, *axes: memory_use.spec_text(
    jax.ShapeDtypeStruct(shape, np.float32, sharding=jax.NamedSharding(made, jax.P(*axes)))
  )
  assert text((8, 4), None, 'fsdp') == '-, fsdp'
  assert text((8, 4, 2), ('data', 'fsdp')) == 'data+fsdp, -, -'
  assert text((8, 4)) == text((), *()) == text((8, 4), 'tensor') == 'whole', (
    'an axis of one device splits nothing'
  )


# A program's memory


def test_a_programs_memory_is_xlas_own_account(source, capsys):
  config = config_of(source, 'fsdp', 2)
  made = prepare.prepare(api.read_config(config))
  placed = placement.place(made)
  compiled = placement.lower_step(placed).compile()
  use, account = memory_use.of_program(compiled), compiled.memory_analysis()
  assert use.peak == (
    account.argument_size_in_bytes
    + account.temp_size_in_bytes
    + account.output_size_in_bytes
    - account.alias_size_in_bytes
  )
  batch = sum(rows.nbytes // 2 for rows in made.dataset.train_batch(0).values())
  floats = 4 * len(placed.floats)
  # XLA may leave out an argument that the step does not use, and rounds nothing up here.
  assert use.arguments == pytest.approx(memory_use.bytes_of(placed.target) + batch + floats, abs=floats)
  assert use.aliased >= 0.99 * memory_use.bytes_of(placed.target), 'the state is donated'
  api.dry_run(config)
  line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith('memory on a device'))
  figures = re.findall(r'[\d.]+ [kMGT]?B', line)
  assert [figures[0], *figures[2:4]] == [console.size(n) for n in (use.peak, use.arguments, use.temporaries)]
  assert figures[1] == console.size(memory_use.capacity(made.devices))


def test_devices_in_use_share_what_the_process_may_use(small_machine):
  small_machine(10**9)
  assert memory_use.capacity(jax.devices()[:1]) == 10**9
  assert memory_use.capacity(jax.devices()) == 10**9 // 8
  small_machine('max')
  assert memory_use.capacity(jax.devices()[:1]) > 10**9


def test_limits_of_control_groups_count_from_a_process_to_the_top(monkeypatch, tmp_path):
  monkeypatch.setattr(memory_use, 'CGROUPS', tmp_path)
  monkeypatch.setattr(memory_use, 'OWN_CGROUPS', tmp_path / 'own')
  job = tmp_path / 'system.slice/job_7/step_0'
  job.mkdir(parents=True)
  (tmp_path / 'memory/docker/a1').mkdir(parents=True)
  assert memory_use.cgroup_limits() == [], 'no control groups at all'
  (tmp_path / 'own').write_text('4:memory:/docker/a1\n2:cpuset,cpu:/\n0::/system.slice/job_7/step_0\n')
  assert memory_use.cgroup_limits() == []
  (job / 'memory.max').write_text('max\n')
  (job.parent / 'memory.max').write_text('5000\n')
  (tmp_path / 'memory.max').write_text('7000\n')
  (tmp_path / 'memory/memory.limit_in_bytes').write_text('9000\n')
  (tmp_path / 'memory/docker/a1/memory.limit_in_bytes').write_text('6000\n')
  assert sorted(memory_use.cgroup_limits()) == [5000, 6000, 7000, 9000]
  assert memory_use.capacity(jax.devices()[:2]) == 2500


def test_a_device_that_tells_its_memory_has_that():
  class Device:
    platform, device_kind, process_index = 'gpu', 'H100', 0
    memory_stats = lambda self: {'bytes_limit': 80 * 10**9}

  class Silent(Device):
    memory_stats = lambda self: None

  assert memory_use.capacity([Device(), Device()]) == 80 * 10**9
  assert memory_use.capacity([Silent()]) is None
  fits = memory_use.MemoryUse(50 * 10**9, 29 * 10**9, 40 * 10**9, 40 * 10**9)
  memory_use.check(fits, [Device()])
  memory_use.check(fits._replace(temporaries=10**13), [Silent()])  # nothing is known
  with pytest.raises(
    UsageError, match=r'needs 90\.0 GB .*50\.0 GB arguments, 40\.0 GB temporaries, .*H100 has 80\.0 GB'
  ):
    memory_use.check(fits._replace(temporaries=40 * 10**9), [Device()])


# What is refused


@pytest.mark.parametrize(
  ('arguments', 'layers'),
  [('train --dry_run', 8), ('train', 8), ('train --workdir=a/b/new', 8)]
  + [pytest.param(arguments, 100, marks=pytest.mark.slow) for arguments in ('train --dry_run', 'train')],
)
def test_a_model_too_large_is_refused_by_its_shapes(source, tmp_path, monkeypatch, arguments, layers):
  monkeypatch.chdir(tmp_path)
  tiny.write_config(tmp_path / 'huge.py', source, model=HUGE | {'layers': layers})
  with count_compilations() as names:
    status, out, err = bad_input.run(f'{arguments} --config=huge.py')
  assert status == 64
  assert err.count('\n') == 1, err
  params = layers * 12 * 16384**2  # of biases, norms and symbols there are less than a thousandth
  figures = [float(n) * {'G': 1e9, 'T': 1e12}[unit] for n, unit in re.findall(r'([\d.]+) ([GT])B', err)]
  assert figures[:3] == pytest.approx([12 * params, 4 * params, 8 * params], rel=0.02), 'Adam has two moments'
  assert figures[3] == pytest.approx(memory_use.capacity(jax.devices()[:1]), rel=0.02)
  assert '--config.parallel.fsdp' in err
  assert not {'jit(init)', 'jit(step)'} & set(names)
  assert [path.name for path in tmp_path.iterdir()] == ['huge.py']
  assert ('block_*/mlp/up/kernel' in out) == ('--dry_run' in arguments), 'by a dry run with all that is known'


def test_parts_make_it_fit(source, small_machine):
  """The same state on a machine of fifteen times its parameters: too large whole on each, not in parts."""
  config = config_of(source, 'data', 8)
  target = placement.place(prepare.prepare(api.read_config(config))).target
  small_machine(5 * memory_use.bytes_of(target))
  with pytest.raises(UsageError, match='the state takes'):
    memory_use.check_state(target, jax.devices())
  parts = equality.prepared(config, 'fsdp', 8)[1].target
  memory_use.check_state(parts, jax.devices())


@pytest.mark.parametrize('verb', ['dry run', 'train'])
def test_temporaries_alone_can_be_too_large(source, tmp_path, small_machine, capsys, verb):
  config = config_of(source, 'data', 1, training={'steps': 2})
  made = prepare.prepare(api.read_config(config))
  state = memory_use.bytes_of(placement.place(made).target)
  small_machine(state + 10_000)
  start = api.dry_run if verb == 'dry run' else functools.partial(tiny.train, folder=tmp_path / 'run')
  with (
    count_compilations() as names,
    pytest.raises(UsageError, match=r'a step needs .* temporaries, ') as error,
  ):
    start(config)
  assert '\n' not in str(error.value)
  assert 'training.microbatches' in str(error.value)
  assert 'jit(init)' not in names, 'nothing is made'
  assert not (tmp_path / 'run').exists()
  assert ('memory on a device' in capsys.readouterr().out) == (verb == 'dry run')


@pytest.mark.parametrize(
  ('before', 'made', 'after'),
  [
    ((), (), ()),  # not even the folders above it
    (('a/other/config.json',), ('env.json',), ('a', 'a/other', 'a/other/config.json')),
    (('a/new/',), (), ('a', 'a/new')),  # one that was there stays, as it was
    (('a/new/config.json',), (), ('a', 'a/new', 'a/new/config.json')),  # a run that had begun
    ((), ('metrics.jsonl',), ('a', 'a/new', 'a/new/config.json', 'a/new/metrics.jsonl')),  # or taken a step
  ],
)
def test_only_a_folder_that_is_new_and_of_no_use_is_taken_away(tmp_path, before, made, after):
  def write(name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith('/') else path.write_text('{"step": 1}\n')

  for name in before:
    write(name)

  def fail():
    with experiment.nothing_left(tmp_path / 'a/new') as begin:
      for name in ('config.json', *made):
        write(f'a/new/{name}')
      begin(run.Run(tmp_path / 'a/new'))
      raise UsageError('it does not fit')

  with pytest.raises(UsageError):
    fail()
  assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')) == list(after)


# Notes


def test_devices_left_idle_are_said_aloud(source):
  notes = []
  for places, rows in (({'data': -1}, 6), ({'data': -1}, 8), ({'data': 4}, 4)):
    made = prepare.prepare(api.read_config(tiny.config(source, parallel=places, data={'batch_size': rows})))
    notes.append(placement.notes_on(placement.place(made), made.config))
  assert notes[1:] == [[], []], 'all are used, or no more were asked for'
  assert len(notes[0]) == 1
  assert '6 of 8 devices are used' in notes[0][0]
  assert 'the 6 rows of a batch' in notes[0][0]


def test_a_model_that_tensor_does_not_split_is_said_aloud(source):
  notes = {}
  for family in ('mlp', 'transformer'):
    made, placed = equality.prepared(equality.FAMILIES[family](source), 'tensor', 2)
    notes[family] = placement.notes_on(placed, made.config)
  assert notes == {'mlp': ['note: config.parallel.tensor = 2 splits no layer of mlp'], 'transformer': []}
