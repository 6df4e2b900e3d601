"""One probe with a panel of each kind, whose tokens are hard to show."""

import numpy as np

from aigc_jax.probes.panels import Axis, Bars, Heat, Pictures, Text, numbered
from aigc_jax.probes.result import Probe

EVIL = '</script><script>alert(1)</script>'
TOKENS = ['Call', ' me', '\n', '\t', '', ' ', '$x$', '明', '<b>&amp;', '<!--SCRIPT-->', EVIL]
COUNT = len(TOKENS)


def probe():
  generator = np.random.default_rng(0)
  weights = generator.dirichlet(np.ones(COUNT), (2, 3, COUNT)).astype(np.float32)
  weights[0, 0, 0, 1:] = 0
  bits = generator.gamma(1.0, 3.0, COUNT)
  bits[2] = np.nan
  tokens, choices = Axis('token', TOKENS), (numbered('layer', 2), numbered('head', 3))
  details = [[f'{row} {column}\n{EVIL}' for column in range(COUNT)] for row in range(4)]
  cells = [[TOKENS[(row + column) % COUNT] for column in range(COUNT)] for row in range(4)]
  images = generator.integers(0, 256, (2, 3, 5, 4, 3), np.uint8)
  panels = [
    Text('attention', TOKENS, weights, choices, others=list(TOKENS), pairwise=True, unit='attention'),
    Heat('attention', weights, (*choices, tokens, tokens)),
    Heat('lens', generator.random((4, COUNT)), (numbered('after', 4), tokens), details=details, cells=cells),
    Heat(
      'change',
      generator.normal(size=(5, 6, 7)),
      (numbered('a', 5), numbered('b', 6), numbered('c', 7)),
      'diverging',
    ),
    Text('bits', TOKENS, bits, (), details=[EVIL] * COUNT, unit='bits'),
    Text('for', ['yes 0.9', 'no 0.1'], generator.normal(size=(2, COUNT)), (), TOKENS, True, 'diverging'),
    Pictures('walk', images, numbered('dimension', 2), Axis('', ['-1', '0', '1'])),
    Pictures('grey', generator.random((1, 1, 6, 6, 1)), Axis('', ['']), Axis('', [''])),
    Bars('ablation', [-1.0, 2.5, np.nan, np.inf], Axis('head', ['0.0', '0.1', '1.0', EVIL]), unit='nats'),
  ]
  return Probe('attention', f'attention {EVIL}', panels, {'weights': weights, 'bits': bits}, f'Notes {EVIL}.')
