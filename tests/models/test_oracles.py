"""GPT-2, Llama and the original Transformer are settings: logits equal those of transformers with the same weights."""

import jax
import numpy as np
import pytest
import torch

from aigc_jax import models
from tests import peers


@pytest.mark.parametrize('make', [peers.gpt2, peers.llama])
def test_logits_are_those_of_transformers(make):
  config, params, model = make()
  tokens = np.random.default_rng(0).integers(0, config['vocabulary_size'], (2, 10))
  module = models.build(config)
  ours = jax.jit(module.apply)({'params': params}, tokens)
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
  shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)['params']
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max())


def test_logits_of_the_original_transformer_are_those_of_marian():
  """Sources of unequal length, padded on the right."""
  config, params, model = peers.marian()
  random = np.random.default_rng(0)
  sources, tokens, lengths = (
    random.integers(4, 17, (3, 9)),
    random.integers(4, 17, (3, 7)),
    np.array([9, 4, 1]),
  )
  module = models.build(config)
  ours = jax.jit(module.apply)({'params': params}, sources, tokens, lengths=lengths)
  with torch.no_grad():
    inputs = torch.tensor(sources), torch.tensor(np.arange(9) < lengths[:, None]), torch.tensor(tokens)
    theirs = model(*inputs).logits.numpy()
  shapes = jax.eval_shape(module.init, jax.random.key(0), sources, tokens)['params']
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max())
