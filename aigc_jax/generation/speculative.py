"""Speculative decoding: a small model drafts tokens, the target judges them all in one pass (Leviathan et al. 2023).

What is written has exactly the distribution of the target alone, under the same `Sampling`: a drafted token x is kept
with probability min(1, p(x) / q(x)), and the first that is not is replaced by one drawn from max(p - q, 0), normalized
(their algorithm 1). The rows of a batch go on together, by as many tokens as the row with the fewest kept; what others
have beyond is forgotten. Whether a token is looked at depends only on tokens before it and on other rows, so each row
keeps its distribution.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UsageError
from aigc_jax.generation import decode, processors, strategies
from aigc_jax.generation.decode import Generated
from aigc_jax.generation.processors import When, round_up
from aigc_jax.generation.strategies import Sampling
from aigc_jax.generation.text import Completion, Prompts, completed


class Speculated(NamedTuple):
  """What was drawn, and what the draft was good for."""

  generated: Generated
  acceptance_rate: float  # drafted tokens that the target kept, as a part of all that it judged
  passes: int  # of the target; plain decoding takes one a token


class _State(NamedTuple):
  drawn: Any  # () int32
  tokens: Any  # [batch, room] int32, the new ones
  nats: Any  # [batch, room] float32, the target's log-probabilities
  last: Any  # [batch] int32, fed to neither model yet
  ended: Any  # [batch] bool
  caches: Any  # of the target and of the draft: all tokens but the last
  chain: Any  # states of the processors
  counts: Any  # [3] int32: passes, drafted tokens judged, those kept


def generate(
  target,
  params,
  draft,
  draft_params,
  prompts,
  key,
  sampling: Sampling,
  max_new_tokens: int,
  *,
  draft_tokens: int = 4,
  sources=None,
  vocabulary_size: int | None = None,
  end_token: int | None = None,
  longest: tuple = (1, 1),
) -> Speculated:
  """Continues rows of tokens, as `decode.generate`, with a draft of `draft_tokens` tokens for each pass of the target.

  Both models have one vocabulary. Raises UsageError, before compiling, for values out of range, for a draft of another
  vocabulary, and for texts that do not fit into a model's context.
  """
  prompts = [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]
  decode.check(sampling, max_new_tokens=max_new_tokens, draft_tokens=draft_tokens)
  if not prompts or not all(map(len, prompts)):
    raise UsageError('each prompt must have at least one token')
  size = target.vocabulary_size if vocabulary_size is None else vocabulary_size
  if draft.vocabulary_size < size or (vocabulary_size is None and draft.vocabulary_size != size):
    raise UsageError(
      f'draft: its vocabulary has {draft.vocabulary_size} tokens and the target {size}; use a draft of the same tokens'
    )
  models = (target, draft), (params, draft_params)
  for model in models[0]:
    decode.check_room(model.context_length, max(map(len, prompts)), max_new_tokens)
  room = round_up(max_new_tokens + draft_tokens + 1)
  width = decode.width_for(max(map(len, prompts)), longest[0])
  given = decode.all_but_last(prompts, width)
  feed = lambda model, weights: decode.fill(
    model,
    round_up(width - 1 + room),
    weights,
    *given,
    decode.padded(model, sources, len(prompts), longest[1]),
  )
  caches, memories = zip(*map(feed, *models), strict=True)
  structure, floats, chain = decode.split(sampling)
  states = processors.start(chain, prompts, size, max_new_tokens)
  last = np.array([prompt[-1] for prompt in prompts], np.int32)
  empty = np.zeros((len(prompts), room), np.int32), np.zeros((len(prompts), room), np.float32)
  state = _State(
    np.int32(0), *empty, last, np.zeros(len(prompts), bool), caches, states, np.zeros(3, np.int32)
  )
  end = np.int32(-1 if end_token is None else end_token)
  fixed = models[0], structure, size, int(draft_tokens)
  state = _speculate(*fixed, models[1], state, memories, floats, chain, key, end, np.int32(max_new_tokens))
  return _result(jax.device_get(state), max_new_tokens, end_token)


def _result(state, max_new_tokens, end_token):
  drawn = min(int(state.drawn), max_new_tokens)
  tokens, nats = state.tokens[:, :drawn], state.nats[:, :drawn]
  lengths = np.full(len(tokens), drawn, np.int32)
  if end_token is not None:
    ends = tokens == end_token
    lengths = np.where(ends.any(1), ends.argmax(1) + 1, lengths).astype(np.int32)
  inside = np.arange(drawn) < lengths[:, None]
  passes, judged, kept = state.counts.tolist()
  return Speculated(
    Generated(np.where(inside, tokens, 0), np.where(inside, nats, 0), lengths), kept / max(judged, 1), passes
  )


def _shares(logits, sampling):
  """Probabilities [batch, vocabulary] that a token is drawn with."""
  if sampling.greedy:
    return jax.nn.one_hot(strategies.greedy(logits), logits.shape[-1])
  return jax.nn.softmax(strategies.process(logits, sampling), axis=-1)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _speculate(models, structure, size, count, params, state, memories, floats, chain, key, end, limit):
  """The whole loop: `count` tokens are drafted for each pass of the target."""
  sampling, rows = structure._replace(**floats), state.last.shape[0]

  def goes_on(state):
    return (state.drawn < limit) & ~state.ended.all()

  def judge(logits, states, drawn):
    logits = processors.apply(chain, states, logits[:, :size], When(drawn, limit - drawn))
    return _shares(logits, sampling)

  def drafted(state, uniform):
    """Tokens [count] of [batch], their q, the states of the chain before each and behind all, and the draft's cache."""
    cache, token, states = state.caches[1], state.last, [state.chain]
    tokens, shares = [], []
    for i in range(count + 1):  # the last one is fed, too, in case that all are kept
      logits, cache = models[1].step(params[1], cache, token[:, None], None, memories[1])
      if i < count:
        shares.append(judge(logits[:, -1].astype(jnp.float32), states[-1], state.drawn + i))
        token = strategies.draw(jnp.log(shares[-1]), uniform[:, i])
        states.append(processors.advance(chain, states[-1], token))
        tokens.append(token)
    return tokens, shares, states, cache

  def step(state):
    uniform = jax.random.uniform(jax.random.fold_in(key, state.counts[0]), (rows, 2 * count + 1, 2))
    tokens, q, states, draft_cache = drafted(state, uniform)
    fed = jnp.stack([state.last, *tokens], axis=1)  # [batch, count + 1]
    logits, cache = models[0].step(params[0], state.caches[0], fed, None, memories[0])
    logits = logits.astype(jnp.float32)
    p = [judge(logits[:, i], states[i], state.drawn + i) for i in range(count + 1)]
    chances = jnp.stack([_ratio(p[i], q[i], tokens[i]) for i in range(count)], axis=1)  # [batch, count]
    accepted = jnp.cumprod(uniform[:, count : 2 * count, 0] < chances, axis=1).sum(1)  # [batch]
    kept = jnp.where(state.ended, count, accepted).min()
    p, q = jnp.stack(p), jnp.stack([*q, jnp.zeros_like(q[0])])  # behind all of the draft there is no q
    own = strategies.draw(jnp.log(_rest(p[kept], q[kept])), uniform[:, -1])
    following = jnp.stack([*tokens, tokens[-1]])[kept]
    new = jnp.where(accepted > kept, following, own)
    written = jnp.where(jnp.arange(count + 1) == kept, new[:, None], jnp.stack([*tokens, new], axis=1))
    nats = jnp.take_along_axis(jax.nn.log_softmax(logits), written[:, :, None], axis=2)[:, :, 0]
    put = lambda held, found: lax.dynamic_update_slice(held, found, (0, state.drawn))
    counted = (jnp.arange(count + 1) <= kept) & (state.drawn + jnp.arange(count + 1) < limit)
    seen = jnp.where(state.ended, 0, jnp.minimum(accepted + 1, count)).sum()
    advanced = jax.tree.map(lambda *leaves: jnp.stack(leaves)[kept], *states)
    return _State(
      state.drawn + kept + 1,
      put(state.tokens, written),
      put(state.nats, nats),
      new,
      state.ended | ((written == end) & counted).any(1),
      tuple(
        _rewound(*each, fed, kept + 1)
        for each in zip(models, params, state.caches, (cache, draft_cache), memories, strict=True)
      ),
      processors.advance(chain, advanced, new),
      state.counts + jnp.stack([1, seen, jnp.where(state.ended, 0, accepted).sum()]),
    )

  return lax.while_loop(goes_on, step, jax.tree.map(jnp.asarray, state))._replace(caches=None, chain=None)


def _ratio(p, q, tokens):
  """p / q [batch] at tokens [batch]."""
  at = lambda shares: jnp.take_along_axis(shares, tokens[:, None], axis=1)[:, 0]
  return at(p) / jnp.maximum(at(q), jnp.finfo(jnp.float32).tiny)


def _rest(p, q):
  """max(p - q, 0), to be normalized; p where rounding leaves nothing."""
  rest = jnp.maximum(p - q, 0)
  return jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p)


def _rewound(model, params, before, after, memory, fed, count):
  """The cache that has seen only the first `count` of the tokens `fed` [batch, n]."""
  if model.rewind is not None:
    return model.rewind(after, fed.shape[1] - count)
  mask = jnp.broadcast_to(jnp.arange(fed.shape[1]) < count, fed.shape)
  return model.step(params, before, fed, mask, memory)[1]


class Drafted(NamedTuple):
  """Completions, and what the draft was good for."""

  completions: list[Completion]
  acceptance_rate: float  # as in Speculated
  tokens_per_pass: float  # of the target


def speculative_text(
  target,
  params,
  draft,
  draft_params,
  tokenizer,
  prompts: Prompts,
  *,
  num: int = 1,
  max_new_tokens: int = 200,
  sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
  seed: int = 0,
  draft_tokens: int = 4,
) -> Drafted:
  """Writes from each of `prompts` `num` times, as `text.generate_text`, with the help of a draft.

  One row after another: rows that go on together hold each other up. Raises UsageError, as `generate`.
  """
  decode.check(sampling, num=num)
  texts = [i for i in range(len(prompts.texts)) for _ in range(num)]
  completions, kept, tokens, passes = [], 0.0, 0, 0
  for row, i in enumerate(texts):
    found = generate(
      target,
      params,
      draft,
      draft_params,
      [prompts.tokens[i]],
      jax.random.fold_in(jax.random.key(seed), row),
      sampling,
      max_new_tokens,
      draft_tokens=draft_tokens,
      sources=None if prompts.sources is None else [prompts.sources[i]],
      vocabulary_size=tokenizer.vocabulary_size,
      end_token=tokenizer.end_of_text,
      longest=prompts.longest,
    )
    dropped = 0 if prompts.dropped is None else prompts.dropped[i]
    made = found.generated
    completions.append(
      completed(
        prompts.texts[i], tokenizer, made.tokens[0], made.log_probabilities[0], made.lengths[0], dropped
      )
    )
    kept, passes = kept + found.acceptance_rate * found.passes, passes + found.passes
    tokens += int(made.lengths[0])
  return Drafted(completions, kept / max(passes, 1), tokens / max(passes, 1))
