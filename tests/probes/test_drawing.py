"""The picture of a probe: what is drawn for each panel, which of it, and with which characters."""

import math

import matplotlib.figure
import numpy as np
import pytest

from aigc_jax import figures, typography
from aigc_jax.probes import drawing, lettering, matrices
from aigc_jax.probes import panels as p
from tests.probes import panels as made


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are drawn while a test runs."""
  found, rendered = [], figures.rendered
  monkeypatch.setattr(figures, 'rendered', lambda figure: found.append(figure) or rendered(figure))
  return found


def images(figure):
  """The images of a figure without those of its scale of colours."""
  return [axes for axes in figure.axes if axes.images and axes.get_label() != '<colorbar>']


def texts(figure):
  return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def cube(*shape, **options):
  axes = tuple(p.numbered(name, count) for name, count in zip('abcde', shape, strict=False))
  return p.Heat('map', np.random.default_rng(0).random(shape), axes, **options)


def test_a_picture_has_all_panels():
  probe = made.probe()
  probe = probe._replace(panels=probe.panels[4:])
  picture = probe.picture()
  assert picture.dtype == np.uint8
  assert picture.ndim == 3
  parts = [drawing.heading(probe), *(drawing.DRAWN[type(panel)](panel) for panel in probe.panels)]
  assert picture.shape[0] == sum(part.shape[0] + drawing.GAP for part in parts)
  assert picture.shape[1] == max(part.shape[1] for part in parts)
  np.testing.assert_array_equal(picture[: parts[0].shape[0], : parts[0].shape[1]], parts[0])


@pytest.mark.parametrize(
  ('shape', 'count', 'said'),
  [
    ((4, 5), 1, ''),
    ((3, 4, 5), 3, ''),
    ((2, 3, 4, 5), 6, ''),
    ((20, 20, 2, 2), 144, 'drawn: 12 of 20 (a), 12 of 20 (b); the page has all'),
    ((2, 80, 70, 2, 2), 144, 'drawn: 1 of 2 (a), 12 of 80 (b), 12 of 70 (c); the page has all'),
  ],
)
def test_small_matrices_over_choices(drawn, shape, count, said):
  panel = cube(*shape)
  matrices.draw_heat(panel)
  (figure,) = drawn
  found = images(figure)
  assert abs(len(found) - count) <= 4
  assert len(found) <= matrices.MATRICES
  assert (said in figure.get_suptitle()) if said else figure.get_suptitle() == 'map'
  limits = {axes.images[0].get_clim() for axes in found}
  assert limits == {(0, panel.values.max())}, 'they share a scale'
  whole = panel.values.reshape(-1, *shape[-2:])
  np.testing.assert_array_equal(found[0].images[0].get_array(), whole[0])
  np.testing.assert_array_equal(
    found[-1].images[0].get_array(), whole[-1] if len(shape) < 5 else panel.values[0, -1, -1]
  )
  assert len(figure.axes) == math.ceil(len(found) / 12) * 12 + 1 or len(figure.axes) == len(found) + 1


def test_diverging_colours_have_zero_in_their_middle(drawn):
  matrices.draw_heat(cube(2, 3, colours='diverging')._replace(values=np.array([[-1.0, 0, 4], [2, 1, 3]])))
  assert images(drawn[0])[0].images[0].get_clim() == (-4, 4)


def test_tokens_are_labels_where_they_can_be_read(drawn):
  few, many = (p.Axis('token', [' a\n', *'b' * (count - 1)]) for count in (10, 200))
  matrices.draw_heat(p.Heat('', np.ones((10, 200)), (few, many)))
  (axes,) = images(drawn[0])
  assert [label.get_text() for label in axes.get_yticklabels()][:2] == ['␣a⏎', 'b']
  assert axes.get_xticklabels() == []
  assert axes.get_xlabel() == 'token'


def test_cells_have_their_words_and_are_folded(drawn):
  words = [[f'{row}.{column}' for column in range(40)] for row in range(3)]
  values = np.random.default_rng(0).random((3, 40))
  values[0, 0] = np.nan
  matrices.draw_heat(cube(3, 40, cells=words)._replace(values=values))
  (figure,) = drawn
  assert [axes.images[0].get_array().shape for axes in images(figure)] == [(3, 14), (3, 14), (3, 12)]
  assert {word for row in words for word in row} <= set(texts(figure))


def test_a_text_has_a_cell_for_each_character(drawn):
  *_, bits, answers, _, _, _ = made.probe().panels
  drawing.draw_text(bits)
  (figure,) = drawn
  shown = ''.join(text.get_text() for text in figure.axes[0].texts)
  plain = ''.join(typography.visible(token) for token in made.TOKENS)
  assert len(shown) == len(plain)
  assert shown.startswith('Call␣me⏎⇥∅␣$x$')
  assert len(figure.axes) == 2, 'the text and its scale'
  drawing.draw_text(answers)
  assert [axes.get_title('left') for axes in drawn[1].axes[:2]] == ['yes 0.9 →', 'no 0.1 →']


def test_of_pairs_and_of_long_texts_a_part_is_drawn_and_said(drawn, monkeypatch):
  monkeypatch.setattr(drawing, 'DRAWN_COLUMNS', 450)
  count = 500
  tokens = ['a'] * count
  drawing.draw_text(p.Text('pairs', tokens[:9], np.ones((2, 9, 9)), (p.numbered('layer', 2),), pairwise=True))
  assert len(drawn[0].axes) == drawing.TEXTS + 1
  assert drawn[0].get_suptitle() == 'pairs\ndrawn: 4 of 9 tokens, layer 0; the page has all'
  drawing.draw_text(p.Text('long', tokens, np.ones(count), ()))
  assert len(drawn[1].axes[0].texts) == 450
  assert 'the first 450 of 500 tokens' in drawn[1].get_suptitle()


def test_pictures_and_bars(drawn):
  *_, walk, grey, bars = made.probe().panels
  drawing.draw_pictures(walk)
  drawing.draw_pictures(grey)
  drawing.draw_bars(bars)
  drawing.draw_bars(p.Bars('many', np.ones(300), p.numbered('unit', 300)))
  assert [len(images(figure)) for figure in drawn] == [6, 1, 0, 0]
  np.testing.assert_array_equal(drawn[0].axes[4].images[0].get_array(), walk.images[1, 1])
  assert {'-1', '0', '1', 'dimension down'} <= {part for text in texts(drawn[0]) for part in text.split('\n')}
  (plot,) = drawn[2].axes
  assert [bar.get_width() for bar in plot.patches] == [-1, 2.5, 0, 0]
  assert {' -1 ', ' 2.5 ', ' none ', ' inf '} <= set(texts(drawn[2]))
  assert len(drawn[3].axes[0].patches) == 300


@pytest.mark.parametrize('filled', [np.nan, np.inf, 0.0, 3.0, -2.0])
@pytest.mark.parametrize('colours', p.COLOURS)
def test_numbers_that_are_all_equal_or_none(filled, colours):
  axes = p.numbered('row', 2), p.numbered('column', 3)
  matrices.draw_heat(p.Heat('', np.full((2, 3), filled), axes, colours))
  low, high = p.limits(np.full(3, filled), colours)
  assert low <= 0 <= high
  assert low < high


def test_text_and_bars_of_equal_numbers():
  for filled in (np.nan, 0.0):
    drawing.draw_text(p.Text('', ['a', 'b'], np.full(2, filled), ()))
    drawing.draw_bars(p.Bars('', np.full(2, filled), p.numbered('head', 2)))


def test_characters_that_no_font_has_are_said(monkeypatch, drawn):
  monkeypatch.setattr(typography, 'CHINESE', ())
  tokens = ['明', 'a']
  drawing.draw_text(p.Text('月', tokens, np.ones(2), ()))
  matrices.draw_heat(p.Heat('', np.ones((2, 2)), (p.Axis('时', tokens), p.Axis('token', tokens))))
  for figure in drawn:
    assert '明' not in ''.join(texts(figure))
    assert '□' in texts(figure)
    assert 'no installed font has all characters' in figure.get_suptitle()


def test_ticks_are_in_round_steps():
  assert list(lettering.ticks_of(96, 10)) == list(range(0, 96, 10))
  assert [lettering.ticks_of(count, 10).step for count in (1, 10, 11, 21, 51, 101, 5000)] == [
    1,
    1,
    2,
    5,
    10,
    20,
    500,
  ]


def test_lines_of_chinese_have_no_more_columns_than_there_is_room():
  assert lettering.wrapped('明月几时有 abc', 6) == ['明月几', '时有', 'abc']


def test_white_space_is_visible():
  assert [typography.visible(text) for text in ('', ' ', '\n', '\t\n ', ' the', 'layer 0', 'a\nb ')] == [
    '∅', '␣', '⏎', '⇥⏎␣', '␣the', 'layer 0', 'a⏎b␣'
  ]  # fmt: skip


def test_text_is_white_on_dark_colours():
  assert figures.ink((0, 0, 0.3, 1)) == 'white'
  assert figures.ink((0, 0, 0.3, 0.2)) == figures.ink((1, 1, 0, 1)) == 'black'
