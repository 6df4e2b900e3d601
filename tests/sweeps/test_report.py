"""The answer of a sweep: numbers against those counted by hand, and a page that a browser opens."""

import csv
import json
import math
import re
import shutil
import statistics

import pytest

from aigc_jax import load_sweep
from aigc_jax.errors import StorageError, UsageError
from aigc_jax.sweeps import frame, report
from tests.sweeps import sweep_folder

LOSSES = {(1e-3, 0): [3.0, 2.0, 2.5], (1e-3, 1): [3.0, 2.2], (1e-2, 0): [1.0, 1.5], (1e-2, 1): [1.2, 1.1]}
EVIL = '</script><script>alert(1)</script>'
PNG = (
  b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU\x00\x00\x00\nIDATx'
  b'\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82'
)


@pytest.fixture
def folder(tmp_path):
  """Two rates of two seeds, one that is not finite, one that failed outside, and one that waits."""
  trials = [
    (f't{i}', {'optimizer.learning_rate': rate, 'seed': seed}, {'rows': sweep_folder.rows_of(losses)})
    for i, ((rate, seed), losses) in enumerate(LOSSES.items())
  ]
  trials[0][2]['samples'] = [('00000010-old.txt', b'old'), ('00000030-text.txt', f'白鲸 {EVIL}'.encode())]
  trials[2][2]['samples'] = [('00000020-picture.png', PNG)]
  bad = {
    'rows': sweep_folder.rows_of([2.0, math.nan]),
    'state': 'non-finite',
    'message': f'step 20: loss is nan {EVIL}',
  }
  trials += [
    ('bad', {'optimizer.learning_rate': 1e-1, 'seed': 0}, bad),
    ('dead', {'optimizer.learning_rate': 1e-1, 'seed': 1}, {'rows': None}),
    ('wait', {'optimizer.learning_rate': 1e-1, 'seed': 2}, {'rows': None}),
  ]
  made = sweep_folder.write(tmp_path / 'sweep', trials)
  (made / 'failures.json').write_text(json.dumps({'dead': {'message': 'killed by SIGKILL', 'attempts': 2}}))
  return made


def test_leader_board_is_what_is_counted_by_hand(folder):
  found = frame.configurations(frame.read_sweep(folder))
  assert [c.values['optimizer.learning_rate'] for c in found] == [1e-2, 1e-3, 1e-1]
  assert (found[0].mean, found[0].n) == (pytest.approx(1.05), 2)
  assert found[0].spread == pytest.approx(statistics.stdev([1.0, 1.1]))
  assert found[1].mean == pytest.approx(2.1)
  assert (found[2].mean, found[2].spread, found[2].n) == (None, None, 0)
  assert [trial.name for trial in found[2].failed] == ['bad', 'dead']


def test_more_may_be_better(folder):
  facts = json.loads((folder / 'sweep.json').read_text()) | {'higher_is_better': ['validation/loss']}
  (folder / 'sweep.json').write_text(json.dumps(facts))
  found = frame.configurations(frame.read_sweep(folder))
  assert found[0].values['optimizer.learning_rate'] == 1e-3
  assert found[0].mean == 3.0


def test_trials_may_be_compared_by_another_metric(folder):
  for trial, accuracies in (('t0', [0.1, 0.9, 0.2]), ('t2', [0.5])):
    with open(folder / trial / 'metrics.jsonl', 'a', encoding='utf-8') as file:
      file.writelines(
        f'{{"step": {i}, "validation/accuracy": {value}}}\n' for i, value in enumerate(accuracies)
      )
  found = frame.read_sweep(folder, 'validation/accuracy')
  assert {trial.name: trial.best for trial in found.trials if trial.best} == {'t0': 0.9, 't2': 0.5}
  assert [c.mean for c in frame.configurations(found) if c.n] == [0.9, 0.5]
  assert 'validation/accuracy (mean)' in report.report(folder, 'validation/accuracy')[1].read_text()
  with pytest.raises(UsageError, match=r"no metric 'validation/elbo'; they have .*validation/accuracy"):
    frame.read_sweep(folder, 'validation/elbo')


def test_tables_have_all_trials_and_why_they_failed(folder):
  paths = report.report(folder)
  assert [path.name for path in paths] == ['table.csv', 'table.md', 'report.html']
  with open(paths[0], encoding='utf-8', newline='') as file:
    rows = {row['trial']: row for row in csv.DictReader(file)}
  assert list(rows) == ['t0', 't1', 't2', 't3', 'bad', 'dead', 'wait']
  assert (rows['t0']['validation/loss'], rows['t0']['best_step'], rows['t0']['train/loss']) == (
    '2.0',
    '20',
    '2.5',
  )
  assert (rows['dead']['state'], rows['dead']['message']) == ('failed', 'killed by SIGKILL')
  assert (rows['wait']['state'], rows['wait']['validation/loss']) == ('waiting', '')
  text = paths[1].read_text(encoding='utf-8')
  assert 'dead: killed by SIGKILL' in text
  assert '| 1 | 0.01 | 1.05 |' in text
  before = [path.read_bytes() for path in paths]
  assert [path.read_bytes() for path in report.report(folder)] == before


def test_data_frame(folder):
  found = load_sweep(folder)
  assert found['optimizer.learning_rate'].nunique() == 3
  best = found.groupby('optimizer.learning_rate')['validation/loss'].mean()
  assert best[0.01] == pytest.approx(1.05)
  assert found.loc[found.trial == 't1', 'cost_seconds'].item() == 2.0


def test_lanes_divide_what_they_cost():
  """Two starts: 3 s of two lanes, then 5 s alone."""
  rows = [{'time/seconds': s} for s in (1.0, 3.0, 2.0, 5.0)]
  assert frame.seconds_of(rows, [2, 1]) == 6.5
  assert frame.seconds_of([], [1]) == 0


def test_a_sweep_can_be_read_while_it_runs(folder):
  with open(folder / 't1' / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 30, "valid')
  (folder / 't2' / 'status.json').write_text('{"sta')
  (folder / 't3' / 'env.json').write_text('')
  (folder / 'dead').mkdir()
  rows = {trial.name: trial for trial in frame.read_sweep(folder).trials}
  assert rows['t1'].best == 2.2
  assert rows['t2'].best == 1.0
  report.report(folder)


def test_page_needs_no_network_and_escapes(folder):
  text = report.report(folder)[-1].read_text(encoding='utf-8')
  assert not re.search(r'(src|href|url\()\s*=?\s*["\']?https?:', text)
  assert 'http' not in text.replace("'http:' + '//www.w3.org/2000/svg'", '')
  assert EVIL not in text
  assert text.count('</script>') == 2
  found = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
  assert [sample['shown'][0]['name'] for sample in found['samples']] == [
    '00000020-picture.png',
    '00000030-text.txt',
  ]
  assert found['states'] == {'done': 4, 'non-finite': 1, 'failed': 1, 'waiting': 1}


def test_thinned_curves_keep_ends_and_extremes():
  points = [(i, float(i), math.sin(i / 50)) for i in range(5000)]
  points[1234] = (1234, 1234.0, 9.0)
  kept = report.thinned(points, 100)
  assert len(kept) <= 100
  assert kept[0] == points[0]
  assert kept[-1] == points[-1]
  assert points[1234] in kept


@pytest.mark.parametrize('trials', [0, 1])
def test_small_and_empty_sweeps(tmp_path, trials):
  made = [('a', {'seed': 0}, {'rows': []})][:trials]
  paths = report.report(sweep_folder.write(tmp_path / 's', made))
  assert len(load_sweep(tmp_path / 's')) == trials
  assert paths[-1].stat().st_size > 1000


def test_what_is_no_sweep(tmp_path):
  with pytest.raises(
    UsageError, match=r'no such sweep folder \(it has no sweep.json\); `aigc sweep` makes one'
  ):
    report.report(tmp_path)
  (tmp_path / 'sweep.json').write_text('{')
  with pytest.raises(StorageError, match='cannot be read'):
    report.report(tmp_path)
  (tmp_path / 'sweep.json').write_text('{"format": 99, "trials": []}')
  with pytest.raises(UsageError, match='newer'):
    report.report(tmp_path)


@pytest.mark.slow
def test_page_in_a_browser(folder):
  """It draws, sorts, shows what the pointer is at, zooms and goes back; nothing is asked for and nothing fails."""
  playwright = pytest.importorskip('playwright.sync_api')
  browser_path = shutil.which('chromium') or pytest.skip('needs chromium')
  page_path = report.report(folder)[-1]
  with playwright.sync_playwright() as started:
    browser = started.chromium.launch(executable_path=browser_path, args=['--no-sandbox'])
    page, problems, asked = browser.new_page(), [], []
    page.on('console', lambda message: problems.append(message.text))
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('dialog', lambda dialog: problems.append(dialog.message))
    page.on('request', lambda request: asked.append(request.url))
    page.goto(f'file://{page_path}')
    first = lambda: page.locator('#board tbody tr').first.inner_text()
    assert '0.01' in first()
    page.get_by_role('button', name='learning_rate').first.click()
    assert '0.001' in first()
    assert page.locator('#board .why').count() == 2
    canvas = page.locator('#curves canvas')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    drawn = lambda: canvas.evaluate('c => c.toDataURL()')
    whole, at = drawn(), lambda x, y: (box['x'] + x * box['width'], box['y'] + y * box['height'])
    page.mouse.move(*at(0.2, 0.2))
    page.mouse.down()
    page.mouse.move(*at(0.7, 0.7))
    page.mouse.up()
    zoomed = drawn()
    assert zoomed != whole
    page.mouse.dblclick(*at(0.5, 0.05))
    page.mouse.move(5, 5)
    assert drawn() == whole
    page.locator('#curves select').first.select_option('train/loss')
    page.get_by_label('mean over seeds').check()
    page.get_by_label('log y').check()
    assert drawn() != whole
    page.locator('#parameters circle').first.hover()
    assert 'validation/loss' in page.locator('#tip').inner_text()
    assert [url for url in asked if not url.startswith(('file:', 'data:'))] == []
    assert problems == []
    browser.close()
