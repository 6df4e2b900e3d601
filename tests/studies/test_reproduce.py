"""A study as its users type it: trained, measured, cut off, gone on with, judged, printed."""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

import pytest
from scipy import stats

from aigc_jax import cli, files, sweeping
from aigc_jax.run import read_metrics
from aigc_jax.studies import reproduce
from aigc_jax.sweeps import group
from tests import tiny, tiny_images

STUDY = """
import os
from aigc_jax.studies.study import Arm, Mean, Measure, Reference, Study

def steps(run):
  '''The step of the run; each call leaves a line, and the second ends the process as Ctrl-C does, if asked for.'''
  with open('calls.txt', 'a') as file:
    file.write(f'{run.path.name} {run.step}\\n')
  if len(open('calls.txt').readlines()) == 2 and os.path.exists('interrupt'):
    raise KeyboardInterrupt
  return run.step

def get_study():
  references = (Reference(0.0, 'a bound | of all losses', side='at least'), Reference(100.0, 'too far', 0.5))
  measures = (Measure('loss', 'validation/loss', references=references), Measure('steps', steps, 'best', digits=1))
  other = Reference(Mean('lanes', 'loss'), 'twice the steps', 0.5, 'at most')
  more = Measure('loss', 'validation/loss', 'best', (other,))
  gone = Arm('gone', 'tiny.py', (more,), needs='nowhere: buy it')
  lanes = Arm('lanes', 'tiny.py', measures, (('training.steps', 2), ('training.evaluate_every', 1)), (0, 1))
  return Study('Two lanes', (lanes, gone)ARMS, 'About it.', (('training.steps', 1),), 0.5)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp('study')
  tiny_images.write_config(made / 'tiny.py', tiny_images.write_images(made / 'images.npz'), 'mlp')
  (made / 'study.py').write_text(STUDY.replace('ARMS', ''), encoding='utf-8')
  return made


@pytest.fixture
def here(folder, monkeypatch):
  """In the folder of the study, with sweeps that train in this process: to start others takes longer."""

  def launch(path, trials, options, console, starter):
    group.run_group(path, [trial.name for trial in trials], console)
    return {}

  monkeypatch.setattr(sweeping.launch, 'launch', launch)
  monkeypatch.chdir(folder)
  return folder


def cells_of(page):
  """The lines of the one table, without its head, as cells."""
  rows = [line for line in page.splitlines() if line.startswith('|')]
  assert rows[1] == '|---' * 9 + '|'
  return [[cell.strip() for cell in row.replace('\\|', '/').strip('|').split('|')] for row in rows[2:]]


def test_a_study_goes_on_where_it_was_cut_off(here, capsys):
  """Two seeds as lanes; cut off while the second is measured; neither trained nor measured again."""
  (here / 'interrupt').touch()
  command = ['reproduce', 'study.py', '--workdir=s', '--output=page.md']
  assert cli.main(command) == 75
  assert capsys.readouterr().out == ''
  assert not (here / 'page.md').exists()
  trained = {file: file.read_bytes() for file in pathlib.Path('s').glob('lanes/*/metrics.jsonl')}
  times = {file: file.stat().st_mtime_ns for file in trained}
  assert len(trained) == 2

  assert cli.main(command) == cli.cli_study.FAILED
  page, said = capsys.readouterr()
  assert 'lanes: is trained' in said
  assert said.splitlines()[-1] == 'aigc: study.py: 1 of 2 lines pass, 1 skipped'
  assert {file: file.stat().st_mtime_ns for file in trained} == times
  calls = (here / 'calls.txt').read_text().splitlines()
  assert len(calls) == 3  # the first seed once; the second, which was cut off, twice
  assert calls[1] == calls[2] != calls[0]
  assert page == (here / 'page.md').read_text(encoding='utf-8') == (here / 's/table.md').read_text('utf-8')
  check_page(page, trained)

  assert cli.main(command) == cli.cli_study.FAILED
  assert len((here / 'calls.txt').read_text().splitlines()) == 3
  again = capsys.readouterr().out
  assert cells_of(again) == cells_of(page)


def check_page(page, trained):
  losses = [
    [row['validation/loss'] for row in read_metrics(file.parent) if 'validation/loss' in row]
    for file in trained
  ]
  assert [len(each) for each in losses] == [2, 2]
  last = [each[-1] for each in losses]
  low, high = stats.t.interval(0.95, 1, statistics.mean(last), stats.sem(last))
  shown = f'{statistics.mean(last):.3f} ± {(high - low) / 2:.3f}'
  first, second, third, gone = cells_of(page)
  assert first[:-1] == ['lanes', 'loss', '2', shown, '0.000', 'a bound / of all losses', 'at least', 'pass']
  assert second == ['lanes', 'loss', '2', shown, '100.000', 'too far', 'within 0.500', 'FAIL', '']
  steps = [run_step(file.parent) for file in trained]
  half = stats.t.ppf(0.975, 1) * statistics.stdev(steps) / 2**0.5
  assert third[:4] == ['lanes', 'steps', '2', f'{statistics.mean(steps):.1f} ± {half:.1f}']
  assert third[4:] == [''] * 5
  assert gone[:4] == ['gone', 'loss', '0 of 3', '']
  assert gone[4:] == [
    f'{statistics.mean(last):.3f}',
    'lanes; twice the steps',
    'at most, plus 0.500',
    'skipped',
    '',
  ]
  assert 'Not run: gone, nowhere is not here; buy it' in page
  assert (
    '# Two lanes\n\nAbout it.\n\n- made by `aigc reproduce study.py --workdir=s --output=page.md`' in page
  )
  assert '1 of 2 lines pass, 1 skipped' in page
  assert 'cores, Linux' in page or sys.platform != 'linux'
  assert 'jax 0.' in page


def run_step(path):
  """The best step of a run, by what it wrote."""
  found = [(row['validation/loss'], row['step']) for row in read_metrics(path) if 'validation/loss' in row]
  return min(found)[1]


def test_quick_judges_nothing(here, capsys):
  (here / 'calls.txt').unlink(missing_ok=True)
  (here / 'interrupt').unlink(missing_ok=True)
  assert cli.main(['reproduce', 'study.py', '--quick']) == 0
  page = capsys.readouterr().out
  assert {row[7] for row in cells_of(page)} == {'not judged', 'skipped', ''}
  assert 'Nothing is judged' in page
  (run,) = pathlib.Path('runs/study-quick/lanes').glob('*/config.json')
  assert json.loads(run.read_text())['training']['steps'] == 1


def test_a_measure_that_fails_is_one_line(here, capsys):
  """What goes wrong in a function of the user's own, and what the runs of a study that is gone on with are."""
  assert (here / 's').exists(), 'the first test makes it'
  text = (
    STUDY.replace('ARMS', '').replace('return run.step', 'return run.stepp').replace("'steps', s", "'st', s")
  )
  (here / 'other.py').write_text(text, encoding='utf-8')
  assert cli.main(['reproduce', 'other.py', '--workdir=s']) == 64
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("aigc: other.py:11: measure 'st' of arm 'lanes': AttributeError:")


def test_another_config_is_refused_in_a_folder_that_has_begun(here, capsys):
  text = STUDY.replace('ARMS', '').replace("('training.steps', 2)", "('training.steps', 3)")
  (here / 'other.py').write_text(text, encoding='utf-8')
  assert cli.main(['reproduce', 'other.py', '--workdir=s']) == 64
  assert 's/lanes: holds another sweep' in capsys.readouterr().err


def test_runs_that_fail_fail_their_line(here):
  """A trial whose loss is not finite: its line fails and says so, whatever the others reached."""
  for status in sorted(pathlib.Path('s').glob('lanes/*/status.json'))[:1]:
    kept = files.read_json(status)
    files.write_json(status, kept | {'state': 'non-finite', 'message': 'step 2: loss is nan'})
  (here / 'interrupt').unlink(missing_ok=True)
  page, lines = reproduce.reproduce('study.py', workdir='s', quiet=True)
  files.write_json(status, kept)
  assert [line.verdict for line in lines] == ['FAIL', 'FAIL', 'FAIL', 'skipped']
  assert cells_of(page)[0][2] == '1 of 2'
  assert 'Failed: lanes, seed ' in page
  assert 'step 2: loss is nan' in page


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on(tmp_path):
  """`kill -9` while the second arm trains: the first one stays as it was, byte for byte and untouched."""
  tiny.write_config(tmp_path / 'tiny.py', tiny.write_corpus(tmp_path / 'words.txt'))
  long = "(Arm('long', 'tiny.py', measures[:1], (('training.steps', 3000), ('training.checkpoint_every', 100)), (0,)),)"
  (tmp_path / 'study.py').write_text(STUDY.replace('ARMS', f' + {long}'), encoding='utf-8')
  command = [sys.executable, '-m', 'aigc_jax.cli', 'reproduce', 'study.py', '--workdir=s']
  places = {'cwd': tmp_path, 'env': os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}}
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **places)
  deadline = time.monotonic() + 120
  while not list(tmp_path.glob('s/long/*/checkpoints/*/manifest.json')) and time.monotonic() < deadline:
    time.sleep(0.1)
  process.send_signal(signal.SIGKILL)
  process.wait()
  first = {
    file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob('s/lanes/*/metrics.jsonl')
  }
  assert len(first) == 2
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, **places)
  assert done.returncode == 1, done.stderr
  assert 'lanes: is trained' in done.stderr
  assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in first} == first
  assert len((tmp_path / 'calls.txt').read_text().splitlines()) == 2
  (run,) = tmp_path.glob('s/long/*/metrics.jsonl')
  steps = [row['step'] for row in read_metrics(run.parent) if 'train/loss' in row]
  assert steps == list(range(1, 3001))
