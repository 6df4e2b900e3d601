"""The notebooks are clean, and run from top to bottom in fresh kernels with small numbers in the place of theirs."""

import ast
import importlib.util
import pathlib
import re
import tomllib

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
BOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
COLAB = 'https://colab.research.google.com/github'
QUICK = {  # in the place of the numbers in the cell `parameters`
  '1_train_and_look_inside': {
    'steps': 2,
    'own_steps': 2,
    'poem_steps': 2,
    'layers': 1,
    'width': 16,
    'sequence_length': 128,
  },
  '2_sweep_as_lanes': {
    'steps': 4,
    'rates': 2,
    'seeds': 2,
    'layers': 1,
    'width': 16,
    'shapes': [(16, 2), (32, 4)],
  },
  '3_latent_space_of_a_vae': {'steps': 4, 'latent_width': 4, 'sample_counts': (1, 5)},
  '4_import_fine_tune_export': {
    'source': '',
    'steps': 4,
    'batch_size': 2,
    'sequence_length': 64,
    'small_steps': 4,
  },
  '5_your_own_model_and_task': {'steps': 4, 'width': 16, 'lane_steps': 4},
}
# how many pictures there are at least, how many pages, and texts that stand in what cells give
SHOWS = {
  '1_train_and_look_inside': (2, 8, [r'bits_per_character', r'Call me Ishmael\.', r'水调歌头']),
  '2_sweep_as_lanes': (1, 4, [r'4 trials as lanes', r'4 of 4 trials ended, 0 failed', r'as a lane \d']),
  '3_latent_space_of_a_vae': (5, 2, [r'nats in all', r'bound of 5 samples -\d']),
  '4_import_fine_tune_export': (1, 2, [r'of a logit: \d\.\de-', r'of a logit after', r'bits a token']),
  '5_your_own_model_and_task': (2, 1, [r'add --trust', r'devices: 8 of 8 cpu', r'8 trials as lanes']),
}
books = pytest.mark.parametrize('book', BOOKS, ids=lambda book: book.stem)


def read(book):
  return nbformat.read(book, as_version=nbformat.NO_CONVERT)


def code_of(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def install_of(notebook):
  (cell,) = (cell for cell in code_of(notebook) if '%pip' in cell.source)
  return cell


def parameters_of(notebook):
  """The place of the one cell that is tagged `parameters`."""
  (place,) = (i for i, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', ()))
  return place


def repository():
  """Where the package is published: pyproject.toml says it, and notebooks repeat it."""
  return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['urls']['Repository']


def test_each_has_quick_parameters():
  assert [book.stem for book in BOOKS] == sorted(QUICK) == sorted(SHOWS)


@books
def test_is_clean(book):
  """Nothing that was run is stored, each part has words in both languages, and the badge opens this very file."""
  notebook = read(book)
  nbformat.validate(notebook)
  for cell in code_of(notebook):
    assert cell.outputs == []
    assert cell.execution_count is None
  assert set(notebook.metadata) == {'kernelspec', 'language_info'}
  first, *words = (cell.source for cell in notebook.cells if cell.cell_type == 'markdown')
  page = repository().removeprefix('https://github.com')
  assert f']({COLAB}{page}/blob/main/notebooks/{book.name})' in first
  for text in [first, *words]:
    *paragraphs, last = text.split('\n\n')
    assert last.startswith('中文：')
    assert '中文：' not in ''.join(paragraphs)
  assert sum(text.startswith('## ') for text in words) >= 4


@books
def test_parameters_are_there(book):
  """So that a parameter that was renamed does not leave a notebook at its full size here."""
  notebook = read(book)
  tree = ast.parse(notebook.cells[parameters_of(notebook)].source)
  names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
  assert set(QUICK[book.stem]) <= names


@pytest.mark.parametrize('clone', [True, False])
def test_install_cell(clone, tmp_path, monkeypatch):
  """Where the package is missing, all notebooks install it by one cell: from a clone around them, or from its page."""
  (source,) = {install_of(read(book)).source for book in BOOKS}
  (tmp_path / 'notebooks').mkdir()
  if clone:
    (tmp_path / 'aigc_jax').mkdir()
  monkeypatch.chdir(tmp_path / 'notebooks')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr('shutil.which', lambda name: None)
  typed = []

  class Shell:
    def run_line_magic(self, name, line):
      typed.append((name, line))

  names = {'get_ipython': Shell}
  exec(TransformerManager().transform_cell(source), names)
  where = tmp_path.as_uri() if clone else f'git+{repository()}'
  ((magic, line),) = typed
  assert (magic, line.format(**names)) == ('pip', f'install --quiet "aigc-jax[hub,sweeps] @ {where}"')


@books
def test_runs(book, tmp_path, monkeypatch):
  """In a fresh kernel and an empty folder, without network; and what people come for is there."""
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # as in this process, see conftest.py
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  notebook = read(book)
  given = '\n'.join(f'{name} = {value!r}' for name, value in QUICK[book.stem].items())
  notebook.cells.insert(parameters_of(notebook) + 1, nbformat.v4.new_code_cell(given))
  NotebookClient(
    notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
  ).execute()
  assert install_of(notebook).outputs == []  # the package is here
  outputs = [output for cell in code_of(notebook) for output in cell.outputs]
  found = [output.get('data', {}) for output in outputs]
  pictures, pages, texts = SHOWS[book.stem]
  assert sum('image/png' in data for data in found) >= pictures
  assert sum('text/html' in data for data in found) >= pages
  said = ''.join(output.get('text') or output.get('data', {}).get('text/plain', '') for output in outputs)
  told = [output.text for output in outputs if output.get('name') == 'stderr']
  assert not re.search(r'^(step|run folder)', ''.join(told), re.M)  # which is shown as an error
  for text in texts:
    assert re.search(text, said), f'{text!r} is not in {said}'
