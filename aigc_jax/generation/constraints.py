"""Words that a text must have or must not have, and texts that must be one of a list: as processors of logits."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UsageError

_NONE = -1  # before a row's first token, and where a sequence is shorter than others
_IMPOSSIBLE = -2  # is no token


def spell(tokenizer, text, name):
  """The tokens of a text. Raises UsageError that names it where the vocabulary cannot spell it."""
  try:
    return tokenizer.encode(text)
  except UsageError as error:
    raise UsageError(f'{name}: {text!r} cannot be spelled: {error}') from None


def _power(n):
  """The next power of two, so that few shapes are compiled."""
  return 1 << max(0, int(n - 1).bit_length())


def _ban(logits, rows_and_tokens):
  """-inf at tokens [rows, n]; those out of range are none."""
  rows = jnp.arange(len(logits))[:, None]
  tokens = jnp.where(rows_and_tokens < 0, logits.shape[1], rows_and_tokens)
  return logits.at[rows, tokens].set(-jnp.inf, mode='drop')


@partial(jax.tree_util.register_dataclass, data_fields=['sequences'], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ForbiddenWords:
  """Rules out the token that would complete one of some sequences of tokens, those of the prompt included."""

  sequences: Any  # [words, longest] int32, each at the right, _NONE before it

  @classmethod
  def of(cls, sequences):
    """From sequences of tokens, such as `spellings` gives."""
    longest = _power(max(map(len, sequences)))
    table = np.full((_power(len(sequences)), longest), _NONE, np.int32)
    table[len(sequences) :, -1] = _IMPOSSIBLE
    for row, sequence in enumerate(sequences):
      table[row, longest - len(sequence) :] = sequence
    return cls(table)

  def validate(self):
    pass

  def start(self, texts, size, room):
    return _recent(texts, self.sequences.shape[1] - 1)

  def apply(self, state, logits, when):
    before = self.sequences[None, :, :-1]  # [1, words, longest - 1]
    matches = ((before == _NONE) | (before == state[:, None])).all(-1)  # [rows, words]
    return _ban(logits, jnp.where(matches, self.sequences[:, -1], _IMPOSSIBLE))

  def advance(self, state, tokens):
    return jnp.concatenate([state, tokens[:, None]], axis=1)[:, 1:]


def _recent(texts, count):
  """[rows, count] int32: the last tokens of each row, _NONE before its first."""
  held = np.full((len(texts), count), _NONE, np.int32)
  for row, text in enumerate(texts):
    kept = text[max(len(text) - count, 0) :] if count else text[:0]
    held[row, count - len(kept) :] = kept
  return held


@partial(jax.tree_util.register_dataclass, data_fields=['following'], meta_fields=['pieces'])
@dataclasses.dataclass(frozen=True)
class ForbiddenText:
  """Rules out each token whose text would complete a word, however tokens part it; the prompt's end counts as begun.

  An automaton over bytes (Aho & Corasick 1975), with its steps put together to those of whole tokens.
  """

  following: Any  # [states, vocabulary] int32: the state after a token; _IMPOSSIBLE: a word is complete
  pieces: Any  # the tokenizer's, to read prompts; not looked at in compiled code

  @classmethod
  def of(cls, words, tokenizer):
    """Raises UsageError for a word without characters."""
    if not all(words):
      raise UsageError('forbid: a word must have at least one character')
    steps, ends = byte_steps([word.encode('utf-8') for word in words])
    table = np.full((_power(len(steps)), tokenizer.vocabulary_size), 0, np.int32)
    for token, piece in enumerate(tokenizer.pieces):
      if token != tokenizer.end_of_text:
        table[: len(steps), token] = walk(steps, ends, piece)
    return cls(table, Pieces(tokenizer.pieces, steps, tokenizer.end_of_text))

  def validate(self):
    pass

  def start(self, texts, size, room):
    return np.array([self.pieces.state_behind(text) for text in texts], np.int32)

  def apply(self, state, logits, when):
    return jnp.where(self.following[state][:, : logits.shape[1]] == _IMPOSSIBLE, -jnp.inf, logits)

  def advance(self, state, tokens):
    return jnp.maximum(self.following[state, tokens], 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
  """The bytes of tokens and the automaton's steps; compared by identity, for it is part of a program's structure."""

  pieces: Any
  steps: Any
  end_of_text: int | None

  def __eq__(self, other):
    return isinstance(other, Pieces)  # no compiled code depends on it

  def __hash__(self):
    return hash(Pieces)

  def state_behind(self, text):
    """The state that a prompt leaves."""
    state = 0
    for token in text.tolist():
      for byte in b'' if token == self.end_of_text else self.pieces[token]:
        state = int(self.steps[state, byte])
      state = 0 if token == self.end_of_text else state
    return state


def byte_steps(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """([states, 256] int32, [states] bool): an automaton that begins in state 0, and where it has just read a word."""
  children, ends = [{}], set()
  for word in words:
    state = 0
    for byte in word:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
      state = children[state][byte]
    ends.add(state)
  steps, fallback = np.zeros((len(children), 256), np.int32), [0] * len(children)
  queue = [0]
  for state in queue:  # breadth first: a fallback is shorter, so it is done before
    if state and fallback[state] in ends:
      ends.add(state)
    steps[state] = steps[fallback[state]] if state else 0
    for byte, child in children[state].items():
      fallback[child] = int(steps[state, byte])
      steps[state, byte] = child
      queue.append(child)
  return steps, np.isin(np.arange(len(steps)), list(ends))


def walk(steps, ends, piece: bytes):
  """From each state the one after some bytes, [states] int32; _IMPOSSIBLE where a word was read on the way."""
  states, found = np.arange(len(steps)), np.zeros(len(steps), bool)
  for byte in piece:
    states = steps[states, byte]
    found |= ends[states]
  return np.where(found, _IMPOSSIBLE, states)


@partial(jax.tree_util.register_dataclass, data_fields=['sequences', 'lengths'], meta_fields=['end_token'])
@dataclasses.dataclass(frozen=True)
class ForcedWords:
  """Every one of some words occurs in the drawn tokens, if there are enough of them.

  The text cannot end before. Once the tokens that remain are just enough for the words still missing (and for the end),
  these are written out, one after another in their order; until then the model may write them where it likes.
  """

  sequences: Any  # [words, longest] int32, _IMPOSSIBLE behind each
  lengths: Any  # [words] int32
  end_token: int | None

  @classmethod
  def of(cls, sequences, end_token):
    table = np.full((len(sequences), max(map(len, sequences))), _IMPOSSIBLE, np.int32)
    for row, sequence in enumerate(sequences):
      table[row, : len(sequence)] = sequence
    return cls(table, np.array([len(sequence) for sequence in sequences], np.int32), end_token)

  def validate(self):
    pass

  def start(self, texts, size, room):
    words, longest = self.sequences.shape
    needed = int(np.sum(self.lengths)) + (self.end_token is not None)
    if needed > room:
      raise UsageError(
        f'force: the words and the end take {needed} tokens; use a max_new_tokens of {needed} or more'
      )
    return np.full((len(texts), longest), _NONE, np.int32), np.zeros((len(texts), words), bool)

  def apply(self, state, logits, when):
    recent, done = state
    open_ = ~done.all(1)  # [rows]
    word = jnp.argmin(done, axis=1)  # the first that is missing
    begun = self.begun(recent, word)
    # what is begun is not taken off: the model may leave it, and then there must be room for all of it
    needed = jnp.where(done, 0, self.lengths).sum(1) + (self.end_token is not None)
    forced = open_ & (when.remaining <= needed)
    wanted = jnp.take_along_axis(self.sequences[word], begun[:, None], axis=1)  # [rows, 1]
    slots = jnp.arange(logits.shape[1])
    if self.end_token is not None:
      logits = jnp.where(open_[:, None] & (slots == self.end_token), -jnp.inf, logits)
    return jnp.where(forced[:, None], jnp.where(slots == wanted, 0.0, -jnp.inf), logits)

  def begun(self, recent, word):
    """[rows]: how many tokens of its missing word each row ends in."""
    sequence, longest = self.sequences[word], recent.shape[1]  # [rows, longest]
    best = jnp.zeros(len(recent), jnp.int32)
    for n in range(1, longest):
      fits = (recent[:, longest - n :] == sequence[:, :n]).all(1) & (n < self.lengths[word])
      best = jnp.where(fits, n, best)
    return best

  def advance(self, state, tokens):
    recent, done = state
    recent = jnp.concatenate([recent, tokens[:, None]], axis=1)[:, 1:]
    longest = recent.shape[1]
    shifted = lambda n: recent[:, longest - n :]
    for n in range(1, longest + 1):
      done |= (shifted(n)[:, None] == self.sequences[None, :, :n]).all(-1) & (self.lengths == n)
    return recent, done


@partial(jax.tree_util.register_dataclass, data_fields=['tokens', 'nodes'], meta_fields=['longest'])
@dataclasses.dataclass(frozen=True)
class AllowedStrings:
  """The whole text is one of a list: a trie, whose node a row is at, says which tokens may follow.

  Where a string is complete the end may follow, and nothing but the end behind the longest.
  """

  tokens: Any  # [nodes, children] int32: the tokens that may follow, _NONE where there are fewer
  nodes: Any  # [nodes, children] int32: where each leads
  longest: int  # tokens of the longest string and its end

  @classmethod
  def of(cls, sequences, end_token):
    """From the tokens of each string, each as its vocabulary spells it."""
    children = [{end_token: 0}]  # node 0: a text that has ended
    root = {}
    children.append(root)
    for sequence in sequences:
      node = 1
      for token in sequence:
        if token not in children[node]:
          children[node][token] = len(children)
          children.append({})
        node = children[node][token]
      children[node][end_token] = 0
    most = _power(max(map(len, children)))
    tables = np.full((2, _power(len(children)), most), _NONE, np.int32)
    for node, found in enumerate(children):
      tables[0, node, : len(found)] = list(found)
      tables[1, node, : len(found)] = list(found.values())
    return cls(*tables, 1 + max(map(len, sequences)))

  def validate(self):
    pass

  def start(self, texts, size, room):
    if self.longest > room:
      raise UsageError(
        f'allow: the longest text takes {self.longest} tokens, its end included; use a max_new_tokens of as many'
      )
    return np.ones(len(texts), np.int32)

  def apply(self, state, logits, when):
    allowed = jnp.zeros(logits.shape, bool)
    tokens = jnp.where(self.tokens[state] < 0, logits.shape[1], self.tokens[state])  # [rows, children]
    allowed = allowed.at[jnp.arange(len(logits))[:, None], tokens].set(True, mode='drop')
    return jnp.where(allowed, logits, -jnp.inf)

  def advance(self, state, tokens):
    taken = self.tokens[state] == tokens[:, None]  # [rows, children]
    return jnp.where(taken, self.nodes[state], 0).sum(1)
