"""Texts by class through the whole path: files, training, evaluation of other files, the confusion table."""

import json

import numpy as np
import pytest

import aigc_jax
from aigc_jax import api, typography
from aigc_jax.tasks import confusion

CLASSES = {'问': '吗？', '答': '是的。', '叹': '啊！'}  # a text's class is told by its last characters
MODELS = {
  'rnn_classifier': {'cell': 'gru', 'width': 16},
  'transformer_classifier': {'layers': 1, 'heads': 2, 'width': 16, 'init_scale': 0.2},
}


def texts(seed, count=90):
  """[(class, text)] of 2 to 9 characters."""
  draw = np.random.default_rng(seed)
  labels = draw.permutation(np.resize(list(CLASSES), count))
  return [
    (label, ''.join(draw.choice(list('天地人'), draw.integers(1, 8))) + CLASSES[label]) for label in labels
  ]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """(TSV to train on, JSON lines to evaluate)."""
  folder = tmp_path_factory.mktemp('texts')
  rows = ['class\ttext', *(f'{label}\t{text}' for label, text in texts(0))]
  (folder / 'train.tsv').write_text('\n'.join(rows), encoding='utf-8')
  records = [json.dumps({'class': label, 'text': text}, ensure_ascii=False) for label, text in texts(1, 41)]
  (folder / 'other.jsonl').write_text('\n'.join(records), encoding='utf-8')
  return f'tsv:{folder}/train.tsv', f'jsonl:{folder}/other.jsonl'


@pytest.mark.parametrize('name', MODELS)
def test_a_classifier_learns_a_file_and_is_evaluated_on_another(files, tmp_path, name):
  source, other = files
  config = {
    'task': {'name': 'classification'},
    'model': {'name': name} | MODELS[name],
    'data': {'source': source, 'label_field': 'class', 'sequence_length': 12, 'batch_size': 16},
    'optimizer': {'name': 'adam', 'learning_rate': 1e-2},
    'training': {'steps': 80, 'evaluate_every': 40, 'checkpoint_every': 80, 'tensorboard': False},
  }
  aigc_jax.train(config, tmp_path / 'run', quiet=True)
  run = api.load_run(tmp_path / 'run')
  assert run.facts['class_names'] == sorted(CLASSES)
  found = run.evaluate(other)
  assert found['accuracy'] == 1
  assert {found[f'accuracy_{i}'] for i in range(3)} == {1}
  shown = next((tmp_path / 'run' / 'samples').glob('*confusion.txt')).read_text(encoding='utf-8')
  lines = shown.splitlines()
  assert [line.split()[0] for line in lines[1:-1]] == sorted(CLASSES)
  assert len({typography.columns(line) for line in lines}) == 1, 'Chinese names do not shift the columns'


def test_names_that_no_font_can_draw_become_numbers(monkeypatch):
  monkeypatch.setattr(typography, 'CHINESE', ())
  assert confusion.legible(['coat', '大衣']) == (['0', '1'], ['DejaVu Sans'])
  assert confusion.legible(['coat', 'été']) == (['coat', 'été'], ['DejaVu Sans'])
  drawn = [confusion.picture(np.eye(2, dtype=int), names) for names in (['大', '衣'], ['0', '1'])]
  np.testing.assert_array_equal(*drawn)
