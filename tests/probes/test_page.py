"""The page of a probe: it has the numbers, needs nothing else, and no token breaks out of it."""

import base64
import html
import io
import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from matplotlib import image as images_of

from aigc_jax.errors import StorageError, UsageError
from aigc_jax.probes import page
from aigc_jax.probes import panels as p
from aigc_jax.probes.result import Probe
from tests.probes import panels as made


def data_of(text):
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def array_of(data, panel):
  found = data['arrays'][panel['array']]
  values = [np.nan if value is None else float(value) for value in found['values']]
  return np.array(values).reshape(found['shape'])


def same_to_4_digits(found, expected):
  np.testing.assert_allclose(found, expected, rtol=5.1e-4)  # half of the last of 4 digits, at most


def test_the_page_has_all_numbers_and_words():
  probe = made.probe()
  data = data_of(page.as_html(probe))
  assert (data['name'], data['title'], data['notes']) == (probe.name, probe.title, probe.notes)
  assert [panel['kind'] for panel in data['panels']] == [
    type(panel).__name__.lower() for panel in probe.panels
  ]
  for panel, shown in zip(probe.panels, data['panels'], strict=True):
    assert shown['title'] == panel.title
    assert shown['note'] == ''
    if not isinstance(panel, p.Pictures):
      same_to_4_digits(array_of(data, shown), panel.values)
  attention, heat, lens, _, bits, answers, *_ = data['panels']
  assert attention['tokens'] == made.TOKENS
  assert attention['others'] is None, 'the same tokens are shown once'
  assert (
    [axis['name'] for axis in attention['choices']]
    == [axis['name'] for axis in heat['choices']]
    == ['layer', 'head']
  )
  assert heat['axes'][-1] == {'name': 'token', 'labels': made.TOKENS}
  assert (lens['details'], lens['cells']) == (probe.panels[2].details, probe.panels[2].cells)
  assert bits['details'] == [made.EVIL] * made.COUNT
  assert answers['others'] == made.TOKENS
  assert attention['array'] == heat['array'], 'an array of two panels is there once'
  assert len(data['arrays']) == 6


def test_pictures_come_back_pixel_by_pixel():
  *_, walk, grey, _ = made.probe().panels
  *_, shown_walk, shown_grey, _ = data_of(page.as_html(made.probe()))['panels']
  for panel, shown in ((walk, shown_walk), (grey, shown_grey)):
    for row, line in enumerate(shown['images']):
      for column, source in enumerate(line):
        png = base64.b64decode(source.removeprefix('data:image/png;base64,'))
        pixels = images_of.imread(io.BytesIO(png), format='png')[..., :3] * 255
        expected = np.asarray(panel.images[row][column])
        expected = expected if expected.dtype == np.uint8 else expected * 255
        np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=0.51)  # rounded


def test_the_page_needs_no_network_and_escapes():
  text = page.as_html(made.probe())
  assert 'http:' not in text
  assert 'https:' not in text
  assert not re.search(r'<(link|img|iframe|object|embed)\b|@import|url\(', text)
  assert "default-src 'none'" in text
  assert made.EVIL not in text
  assert len(re.findall(r'<script\b', text)) == text.count('</script>') == 2
  assert html.escape(made.probe().title) in re.search('<title>(.*)</title>', text)[1]
  assert not re.search(r'<!--[A-Z]+-->', text.replace('\\u003c', '')), 'each part is filled'


def test_a_frame_holds_the_page():
  frame = made.probe()._repr_html_()
  source = re.fullmatch(r'<iframe sandbox="allow-scripts" style="[^"]*" srcdoc="([^"]*)"></iframe>', frame)[1]
  assert html.unescape(source) == page.as_html(made.probe())


def test_saves_three_files(tmp_path):
  probe = made.probe()
  probe = probe._replace(panels=probe.panels[-2:])
  probe.arrays['half'] = np.arange(3).astype(ml_dtypes.bfloat16)
  paths = probe.save(tmp_path / 'a' / 'probes')
  assert [path.name for path in paths] == ['attention.png', 'attention.html', 'attention.npz']
  assert sorted(path.name for path in paths) == sorted(path.name for path in paths[0].parent.iterdir())
  np.testing.assert_array_equal(np.round(images_of.imread(paths[0])[..., :3] * 255), probe.picture())
  assert paths[1].read_text(encoding='utf-8') == page.as_html(probe)
  with np.load(paths[2], allow_pickle=False) as arrays:
    assert sorted(arrays) == ['bits', 'half', 'weights']
    for name in ('weights', 'bits'):
      np.testing.assert_array_equal(arrays[name], probe.arrays[name])
      assert arrays[name].dtype == probe.arrays[name].dtype
    np.testing.assert_array_equal(arrays['half'], np.arange(3, dtype=np.float32))
  before = [path.stat().st_mtime_ns for path in paths]
  assert probe.save(paths[0].parent) == paths
  assert [path.stat().st_mtime_ns for path in paths] != before
  (tmp_path / 'file').write_text('')
  with pytest.raises(StorageError, match='cannot be written'):
    probe.save(tmp_path / 'file')


def test_what_is_no_number_and_numbers_that_are_all_equal():
  axes = p.numbered('row', 2), p.numbered('column', 3)
  values = np.array([[np.nan, np.inf, -np.inf], [0.000123456, -123456.0, 0.0]])
  found = data_of(page.as_html(Probe('x', '', [p.Heat('', values, axes)], {})))
  assert found['arrays'][0]['values'] == [None, 'inf', '-inf', 0.0001235, -123500.0, 0]
  for filled in (np.nan, 0.0, 3.0, -2.0):
    panel = p.Heat('', np.full((2, 3), filled), axes)
    np.testing.assert_array_equal(
      array_of(data_of(page.as_html(Probe('x', '', [panel], {}))), {'array': 0}), panel.values
    )


def test_a_page_stays_small(monkeypatch):
  monkeypatch.setattr(page, 'NUMBERS', 4 * 64 * 64)
  generator, shape = np.random.default_rng(0), (3, 4, 64, 64)
  axes = tuple(p.numbered(name, count) for name, count in zip('abcd', shape, strict=True))
  details = [[[['x'] * 64] * 64] * 4] * 3
  for i in range(3):
    details[i] = [[[f'{i} {j}'] * 64] * 64 for j in range(4)]
  panel = p.Heat('', generator.random(shape), axes, details=details)
  data = data_of(page.as_html(Probe('x', '', [panel], {})))
  (shown,) = data['panels']
  assert [axis['labels'] for axis in shown['axes'][:2]] == [['0', '2'], ['0', '3']]
  assert shown['note'] == 'Too large for a page: here are 2 of 3 (a), 2 of 4 (b); the arrays have all.'
  same_to_4_digits(array_of(data, shown), panel.values[::2, ::3])
  assert shown['details'][1][1][0][0] == '2 3'
  text = p.Text('', ['x'] * 64, panel.values, axes[:2], pairwise=True)
  data = data_of(page.as_html(Probe('x', '', [panel, text], {})))
  assert data['panels'][1]['array'] == 0, 'what is left of it is there once, too'
  assert [axis['labels'] for axis in data['panels'][1]['choices']] == [['0', '2'], ['0', '3']]
  wide = p.Heat(
    '',
    generator.random((1, 300, 400)),
    (axes[0]._replace(labels=['0']), p.numbered('r', 300), p.numbered('c', 400)),
  )
  data = data_of(page.as_html(Probe('x', '', [wide], {})))
  rows, columns = ([int(label) for label in axis['labels']] for axis in data['panels'][0]['axes'][1:])
  assert len(rows) * len(columns) <= page.NUMBERS
  same_to_4_digits(array_of(data, data['panels'][0])[0], wide.values[0][np.ix_(rows, columns)])
  assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, 299, 0, 399)


AXES = p.numbered('row', 2), p.numbered('column', 3)
BAD = {
  'no panels': ([], 'found nothing to show'),
  'no rows': (
    [p.Heat('a map', np.zeros((0, 3)), (p.numbered('row', 0), AXES[1]))],
    r"panel 'a map': is empty, of shape \[0, 3\]",
  ),
  'no tokens': ([p.Text('a text', [], np.zeros(0), ())], "panel 'a text': is empty"),
  'no images': ([p.Pictures('', np.zeros((0, 3, 2, 2, 1)), p.numbered('row', 0), AXES[1])], 'is empty'),
  'no bars': ([p.Bars('', [], p.numbered('head', 0))], 'is empty'),
  'labels': ([p.Heat('', np.zeros((2, 2)), AXES)], r'values are of shape \[2, 2\], and its axes of \[2, 3\]'),
  'pairs': (
    [p.Text('', ['a', 'b'], np.zeros(2), (), pairwise=True)],
    r'of shape \[2\], and its axes of \[2, 2\]',
  ),
  'others': ([p.Text('', ['a', 'b'], np.zeros(2), (), others=['c'])], 'only where it is pairwise'),
  'channels': ([p.Pictures('', np.zeros((2, 3, 4, 4, 2)), *AXES)], 'images of 2 channels'),
  'colours': ([p.Heat('', np.zeros((2, 3)), AXES, 'divergent')], "colours 'divergent'"),
  'details': ([p.Heat('', np.zeros((2, 3)), AXES, details=[['a']])], r'details are of shape \[1, 1\]'),
  'cells': ([p.Heat('', np.zeros((2, 3)), AXES, cells=[['a', 'b', 'c']])], r'cells are of shape \[1, 3\]'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_shown_is_refused_in_one_line(case, tmp_path):
  panels, message = BAD[case]
  probe = Probe('x', '', panels, {})
  for use in (probe.picture, probe._repr_html_, lambda: probe.save(tmp_path / 'new')):
    with pytest.raises(UsageError, match=message) as raised:
      use()
    assert '\n' not in str(raised.value)
  assert not (tmp_path / 'new').exists()


def test_a_name_stays_in_the_folder_and_arrays_are_no_objects(tmp_path):
  panel = p.Bars('', [1.0], p.numbered('head', 1))
  with pytest.raises(UsageError, match='no name of a file'):
    Probe('../x', '', [panel], {}).save(tmp_path)
  with pytest.raises(UsageError, match='array words holds objects'):
    Probe('x', '', [panel], {'words': np.array(['a', None], object)}).save(tmp_path)


def opened(browser, path):
  """(a page, what it complained of, what it asked for)."""
  page, problems, asked = browser.new_page(), [], []
  page.on('console', lambda message: problems.append(message.text))
  page.on('pageerror', lambda error: problems.append(str(error)))
  page.on('dialog', lambda dialog: problems.append(dialog.message))
  page.on('request', lambda request: asked.append(request.url))
  page.goto(f'file://{path}')
  return page, problems, [url for url in asked if not url.startswith(('file:', 'data:'))]


@pytest.fixture(scope='module')
def browser():
  playwright = pytest.importorskip('playwright.sync_api')
  path = shutil.which('chromium') or pytest.skip('needs chromium')
  with playwright.sync_playwright() as started:
    browser = started.chromium.launch(executable_path=path, args=['--no-sandbox'])
    yield browser
    browser.close()


@pytest.mark.slow
def test_the_page_in_a_browser(browser, tmp_path):
  """It draws, tells what the pointer is at, keeps what is clicked, and arrows move the choice of all panels."""
  probe = made.probe()
  (tmp_path / 'page.html').write_text(page.as_html(probe), encoding='utf-8')
  shown, problems, asked = opened(browser, tmp_path / 'page.html')
  panel = lambda i: shown.locator('section').nth(i)
  tip = lambda: shown.locator('#tip').inner_text().split('\n')
  chosen = lambda i: panel(i).locator('select').evaluate_all('all => all.map((one) => one.value)')
  weights = probe.arrays['weights']
  three = lambda value: pytest.approx(float(value), rel=6e-3)  # 3 digits

  panel(0).locator('.text span').nth(7).click()
  panel(0).locator('.text span').nth(1).hover()
  assert tip()[0] == '明 → ␣me'
  assert float(tip()[1].replace('−', '-')) == three(weights[0, 0, 7, 1])
  panel(0).locator('.thumbs canvas').nth(4).click()
  assert chosen(0) == chosen(1) == ['1', '1']
  shown.keyboard.press('ArrowRight')
  shown.keyboard.press('ArrowUp')
  assert chosen(0) == chosen(1) == ['0', '2']
  panel(0).locator('.text span').nth(1).hover()
  assert float(tip()[1].replace('−', '-')) == three(weights[0, 2, 7, 1])

  matrix = panel(2).locator('.matrix canvas')
  matrix.scroll_into_view_if_needed()
  box = matrix.bounding_box()
  shown.mouse.click(box['x'] + 140, box['y'] + box['height'] - 12)
  pinned = panel(2).locator('.pinned-text').inner_text().split('\n')
  assert pinned[0].startswith('after 3 · token ')
  column = made.TOKENS.index(pinned[0].removeprefix('after 3 · token ').replace('␣', ' '))
  assert float(pinned[1]) == three(probe.panels[2].values[3, column])
  assert pinned[2:] == [f'3 {column}', made.EVIL]
  panel(4).locator('.text span').nth(2).hover()
  assert tip() == ['⏎', 'none', made.EVIL]
  panel(6).locator('img').nth(4).click()
  shown.keyboard.press('ArrowRight')
  assert panel(6).locator('.large').inner_text() == 'dimension 1, 1'
  panel(8).get_by_label('largest first').check()
  assert panel(8).locator('.name').all_inner_texts()[:3] == [made.EVIL, '0.1', '0.0']
  drawn = lambda: panel(1).locator('.matrix canvas').evaluate('c => c.toDataURL()')
  before = drawn()
  shown.emulate_media(color_scheme='dark')
  shown.wait_for_timeout(100)
  assert drawn() != before
  assert (problems, asked) == ([], [])


@pytest.mark.slow
def test_the_frame_and_small_panels_in_a_browser(browser, tmp_path):
  one, row = p.numbered('row', 1), p.numbered('row', 2)
  panels = [
    p.Heat('one', [[1.0]], (one, one)),
    p.Heat('equal', np.full((2, 2, 2), -3.0), (row, row, row), details=[['a', 'b'], ['c', 'd']]),
    p.Heat('none', np.full((2, 2), np.nan), (row, row), cells=[['a', 'b'], ['c', 'd']]),
    p.Text('one', ['a'], [[1.0]], (), pairwise=True),
    p.Text('none', ['a', 'b'], [[np.nan, np.inf], [np.nan, np.nan]], (row,)),
    p.Bars('none', [np.nan], one),
  ]
  frame = Probe('small', 'small', panels, {})._repr_html_()
  (tmp_path / 'page.html').write_text(f'<!doctype html><meta charset="utf-8">{frame}', encoding='utf-8')
  shown, problems, asked = opened(browser, tmp_path / 'page.html')
  inside = shown.frame_locator('iframe')
  inside.locator('section').last.wait_for()
  assert inside.locator('section').count() == 6
  inside.locator('section').nth(4).locator('.text span').nth(1).hover()
  assert inside.locator('#tip').inner_text().split('\n') == ['b', '∞']
  assert (problems, asked) == ([], [])
