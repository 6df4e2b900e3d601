"""Study files that are wrong: one line that says what and where, before anything is compiled."""

import pytest

from aigc_jax import cli
from tests import tiny
from tests.compilations import count_compilations

GOOD = """
from aigc_jax.studies.study import Arm, Mean, Measure, Reference, Study

def get_study():
  return Study('title', (Arm('a', 'tiny.py', (Measure('loss', 'validation/loss', {measure}),), {arm}),), {study})
"""
CASES = {
  'no get_study': ('def get_stud():\n  pass', ('study.py: has no function get_study()', 'get_stud')),
  'something else': ('def get_study():\n  return 3', ('get_study() returns 3', 'Study')),
  'error': ('x = 1\ndef get_study():\n  return y', ('study.py:3: NameError',)),
  'unknown config': (
    GOOD.replace('tiny.py', 'tinny.py'),
    ('tinny.py: no such file', "did you mean 'tiny.py'?"),
  ),
  'unknown key': ({'arm': "(('training.step', 3),)"}, ("arm 'a'", 'config.training.step: no such key')),
  'unknown metric': (
    GOOD.replace('validation/loss', 'validation/los'),
    ("measure 'loss' of arm 'a'", "'validation/los' is not known; did you mean 'validation/loss'?"),
  ),
  'no metric': (GOOD.replace('validation/loss', 'loss'), ("'loss' is neither a metric", 'nor a function')),
  'unknown side': (
    {'measure': "references=(Reference(1.0, 'x', 0.1, 'at lest'),)"},
    ("did you mean 'at least'?",),
  ),
  'negative tolerance': ({'measure': "references=(Reference(1.0, 'x', -0.1),)"}, ('tolerance of -0.1',)),
  'one reference, bare': ({'measure': "references=Reference(1.0, 'x')"}, ('takes a tuple of Reference',)),
  'mean of no line': (
    {'measure': "references=(Reference(Mean('b', 'loss'), 'x'),)"},
    ("('b', 'loss'), which is no line; there are ('a', 'loss')",),
  ),
  'unknown time': ({'measure': "when='first'"}, ("'first' is not known", 'last, best')),
  'the same seed twice': ({'arm': 'seeds=(1, 1)'}, ("seeds of arm 'a': 1 is there twice",)),
  'the same arm twice': (
    GOOD.replace('{study}', '').replace('(Arm(', '2 * (Arm('),
    ("arms: 'a' is there twice",),
  ),
  'override, bare': (
    {'arm': "('training.steps', 3)"},
    ("overrides of arm 'a': 'training.steps' is no pair",),
  ),
  'no seeds': ({'arm': 'seeds=()'}, ("seeds of arm 'a': there is none",)),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  tiny.write_config(tmp_path / 'tiny.py', tiny.write_corpus(tmp_path / 'words.txt'))
  return tmp_path


def failed(capsys, *arguments):
  """The one line of a command that ends with status 64 before anything is compiled."""
  with count_compilations() as names:
    assert cli.main(['reproduce', *arguments]) == 64
  assert not [name for name in names if name in ('jit(init)', 'jit(step)', 'jit(evaluate)')]
  out, err = capsys.readouterr()
  assert out == ''
  assert len(err.splitlines()) == 1, err
  return err


@pytest.mark.parametrize('case', CASES)
def test_bad_files_are_one_line(case, folder, capsys):
  text, words = CASES[case]
  changes = text if isinstance(text, dict) else {}
  text = GOOD if isinstance(text, dict) else text
  for name in ('measure', 'arm', 'study'):
    text = text.replace(f'{{{name}}}', changes.get(name, ''))
  (folder / 'study.py').write_text(text, encoding='utf-8')
  line = failed(capsys, 'study.py', '--workdir=new')
  for each in words:
    assert each in line
  assert not (folder / 'new').exists()


def test_bad_commands_are_one_line(folder, capsys):
  text = GOOD.replace('{measure}', '').replace('{arm}', '').replace('{study}', '')
  (folder / 'study.py').write_text(text, encoding='utf-8')
  assert "studdy.py: no such file; did you mean 'study.py'?" in failed(capsys, 'studdy.py')
  assert '--jobs=0' in failed(capsys, 'study.py', '--jobs=0')
  assert '--output=none/page.md: no such folder' in failed(capsys, 'study.py', '--output=none/page.md')
  assert 'fields of a config' in failed(capsys, 'study.py', '--config.seed=1')
  assert 'not empty and not a study (it has study.py' in failed(capsys, 'study.py', '--workdir=.')
  assert 'is a file, not the folder' in failed(capsys, 'study.py', '--workdir=tiny.py')
  assert not (folder / 'runs').exists()
