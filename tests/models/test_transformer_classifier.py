"""The Transformer that classifies: it looks both ways, and never at padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.errors import UsageError

TINY = {
  'name': 'transformer_classifier',
  'vocabulary_size': 11,
  'classes': 3,
  'context_length': 10,
  'width': 16,
  'init_scale': 0.4,  # weights this large make every part matter
}


@pytest.fixture(scope='module', params=['learned', 'rotary', 'none'])
def made(request):
  """(module, params, tokens [3, 7], jitted tokens, lengths -> logits)."""
  module = models.build({**TINY, 'positions': request.param, 'bias': request.param == 'learned'})
  tokens = np.random.default_rng(0).integers(0, 11, (3, 7))
  params = jax.jit(module.init)(jax.random.key(0), tokens)['params']
  return module, params, tokens, jax.jit(lambda t, n: module.apply({'params': params}, t, lengths=n))


def test_padding_changes_no_class(made):
  module, params, tokens, apply = made
  lengths = np.array([7, 2, 5])
  logits = np.asarray(apply(tokens, lengths))
  assert logits.shape == (3, 3)
  assert logits.dtype == np.float32
  close = lambda ours: np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-5)
  other = np.where(np.arange(7) < lengths[:, None], tokens, 9)
  close(apply(other, lengths))
  close(apply(np.pad(other, ((0, 0), (0, 3))), lengths))
  alone = jax.jit(module.apply)({'params': params}, tokens[1:2, :2])
  np.testing.assert_allclose(alone, logits[1:2], rtol=1e-5, atol=1e-5)


def test_the_blocks_see_what_comes_later_and_the_order_if_they_have_positions(made):
  module, params, tokens, apply = made
  inner = lambda tokens: module.apply({'params': params}, tokens, capture_intermediates=True)[1][
    'intermediates'
  ]
  first = lambda tokens: np.asarray(inner(tokens)['block_0']['__call__'][0][0])[:, 0]  # of the first token
  assert (
    abs(first(tokens) - first(np.where(np.arange(7) == 6, (tokens + 1) % 11, tokens))).max(axis=1).min()
    > 1e-4
  )
  whole = np.full(3, 7)
  moved = abs(np.asarray(apply(tokens, whole)) - apply(tokens[:, ::-1], whole)).max()
  assert (moved < 1e-5) if module.positions == 'none' else (moved > 1e-3)


def test_dropout_takes_a_traced_rate_and_acts_in_training_only(made):
  module, params, tokens, apply = made

  @jax.jit
  def run(rate):
    keys = {'dropout': jax.random.key(0)}
    apply = lambda train: module.clone(dropout=rate).apply({'params': params}, tokens, train=train, rngs=keys)
    return apply(False), apply(True)

  whole = np.asarray(apply(tokens, np.full(3, 7)))
  for rate in 0.0, 0.5:
    still, noisy = run(jnp.float32(rate))
    np.testing.assert_allclose(still, whole, rtol=1e-5, atol=1e-5)
    assert (abs(np.asarray(noisy) - whole).max() < 1e-5) == (rate == 0)


@pytest.mark.parametrize(
  ('fields', 'said'), [({'heads': 3}, '3 heads do not divide .* 8, 16$'), ({'width': 12}, 'odd')]
)
def test_fields_that_do_not_fit_together_are_refused(fields, said):
  fine = TINY | {'width': 16, 'heads': 4, 'positions': 'rotary', 'key_value_heads': None, 'head_width': None}
  models.check(fine)
  with pytest.raises(UsageError, match=said) as raised:
    models.check({**fine, **fields})
  assert '\n' not in str(raised.value)
