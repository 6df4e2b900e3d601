"""`aigc config`: the meaning of a field is the comment at its source, and what is unknown ends in one line."""

import ast
import dataclasses
from typing import Annotated, Literal

import pytest

from aigc_jax import cli, config, reference
from aigc_jax.config import Positive
from aigc_jax.training.optimizer import OptimizerConfig

SOURCE = """
class Some:
  # about nothing

  # first line
  # and second
  before: int = 0
  after: int = 1  # on its line
  split: float = (
    0.5  # inside of brackets
  )
  both: int = 2  # and after
  silent: int = 3
  text: str = '# no comment'
"""


def test_where_comments_are_found(tmp_path):
  path = tmp_path / 'some.py'
  path.write_text(SOURCE.replace('both', '# before\n  both'))
  tree, comments = reference.comments_of(str(path))
  fields = {node.target.id: node for node in tree.body[0].body if isinstance(node, ast.AnnAssign)}
  assert {name: reference.comment_of(node, comments) for name, node in fields.items()} == {
    'before': 'first line and second',
    'after': 'on its line',
    'split': 'inside of brackets',
    'both': 'before and after',
    'silent': '',
    'text': '',
  }


def test_each_field_and_default_is_there():
  [entry] = reference.entries('optimizer')
  assert [row.field for row in entry.rows] == [field.name for field in dataclasses.fields(OptimizerConfig)]
  rows = {row.field: row for row in entry.rows}
  assert rows['learning_rate'][1:3] == ('float 0 or above', '0.001')
  assert rows['clip_norm'][1:3] == ('float above 0, or none', 'none')
  assert rows['nesterov'][1:3] == ('true or false', 'false')


@pytest.mark.parametrize(
  ('annotation', 'text'),
  [
    (Annotated[int, Positive], 'int above 0'),
    (Annotated[float | None, Positive], 'float above 0, or none'),
    (Literal['a', 'b'], "'a', 'b'"),
    (tuple[int, ...], 'list of ints'),
  ],
)
def test_what_a_field_takes(annotation, text):
  assert reference.takes(config.field_of(annotation, None)) == text


@pytest.mark.parametrize('which', ['optimizer.learning_rate', 'seed', 'model.rnn.cell', 'data.text.packing'])
def test_one_field(which, capsys):
  assert cli.main(['config', which]) == 0
  fields = [row.field for entry in reference.entries(which) for row in entry.rows]
  assert fields == [which.rpartition('.')[2]]
  assert fields[0] in capsys.readouterr().out


@pytest.mark.parametrize(
  ('which', 'close'),
  [('optimiser', 'optimizer'), ('model.transfromer', 'model.transformer'), ('training.stops', 'steps')],
)
def test_unknown_sections_end_in_one_line(which, close, capsys):
  assert cli.main(['config', which]) == 64
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert f'config {which}' in error
  assert close in error


def test_a_bar_does_not_end_a_cell():
  assert reference.markdown_table(['a'], [['x | y']])[-1] == r'| x \| y |'
