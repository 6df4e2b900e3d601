"""GPT-2 and Llama are settings of the one definition: the logits of `transformers` with random weights mapped over."""

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
