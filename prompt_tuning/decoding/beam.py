"""Beam search as T5X and as Hugging Face (transformers 5) do it.

Both extend the K live beams to 2K candidates, move those that end to the K best finished ones, and go on with the K
best that do not. They differ in what `length_penalty` selects:

  't5x'  divides by ((5 + length) / 6) ** alpha; every candidate may finish; at the length limit live beams are no
         results unless there are too few finished ones
  'hf'   divides by length ** alpha; only the K best candidates may finish; at the length limit all of them do

`length` counts new tokens with the end of sequence. `Beam(4)` is T5X's default, and
`Beam(5, length_penalty='hf', alpha=1.0, early_stopping=False)` is Hugging Face's.

Different here, on purpose:
- A beam of 1 is greedy search for both; T5X's may go on behind a finished sequence.
- Where fewer than `returned` have ended, live beams follow the finished ones, scored as if they had ended there. T5X
  gives empty sequences with a score of -1e7, or all live beams with raw log-probabilities if none has ended.
- A row that has stopped stays as it is whatever its neighbours do.
Of equal candidates the first beam and the lowest id win.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prompt_tuning.decoding.base import Decoded, Decoder, Step, TokenIds, check_length, put
from prompt_tuning.decoding.sampling import Greedy
from prompt_tuning.decoding.top_k import top_k
from prompt_tuning.types import Array, PyTree

PENALTIES = {
    't5x': lambda length, alpha: ((5.0 + length) / 6.0) ** alpha,
    'hf': lambda length, alpha: length ** alpha}


class _Live(NamedTuple):
  """Beams that have not ended, best first."""

  log_probs: Array  # [B, K], -inf: no beam
  tokens: Array  # [B, K, T]
  lineage: Array  # [B, K, T], the slot at each time that a beam descends from


@dataclasses.dataclass(frozen=True)
class Beam(Decoder):
  """Beam search.

  Attributes:
    beams: K.
    length_penalty: 't5x' or 'hf', see above.
    alpha: its exponent; 0 for none. Above 0 it favours long sequences.
    early_stopping: when a row with K finished sequences stops. True: at once. False: as soon as the best live beam,
      were it to end at its present length, is no better than the worst finished one. 'never': as False, but for
      alpha > 0 were it to end at the most favourable length, the limit, so that nothing better is missed (T5X's rule).
    returned: R, how many of the K.
  """

  beams: int = 4
  length_penalty: str = 't5x'
  alpha: float = 0.6
  early_stopping: bool | str = 'never'
  returned: int = 1

  def __post_init__(self):
    super().__post_init__()
    self.expect(self.beams >= 1, 'beams', 'at least 1')
    self.expect(self.length_penalty in PENALTIES, 'length_penalty', f'one of {", ".join(map(repr, PENALTIES))}')
    self.expect(math.isfinite(self.alpha), 'alpha', 'a finite number')
    self.expect(isinstance(self.early_stopping, bool) or self.early_stopping == 'never', 'early_stopping',
                "True, False or 'never'")
    self.expect(1 <= self.returned <= self.beams, 'returned', f'1 to {self.beams}, the number of beams')

  @property
  def width(self) -> int:
    return self.beams

  def __call__(
      self, first_logits: Array, cache: PyTree, step: Step, *, length: int, ids: TokenIds,
      keys: Array | None = None) -> Decoded:
    check_length(length)
    if self.beams == 1:
      greedy = Greedy(min_length=self.min_length, banned=self.banned)
      decoded = greedy(first_logits, cache, step, length=length, ids=ids)
      ended = decoded.tokens == ids.eos
      size = jnp.where(jnp.any(ended, axis=-1), jnp.argmax(ended, axis=-1) + 1, length)
      return decoded._replace(scores=decoded.log_probs / self._penalty(size))

    batch = first_logits.shape[0]
    blank = jnp.full((batch, self.beams, length), ids.pad, jnp.int32)
    none = jnp.full((batch, self.beams), -jnp.inf)
    live = _Live(jnp.zeros((batch, 1)), blank, jnp.zeros_like(blank))
    finished = Decoded(blank, none, none)

    def advance(state):
      time, live, finished, searching, cache = state
      visible = (live.lineage[..., None] == jnp.arange(self.beams)) & (jnp.arange(length) < time - 1)[:, None]
      logits, cache = step(
          jax.lax.dynamic_index_in_dim(live.tokens, time - 1, 2, False), cache, time - 1, visible)
      return time + 1, *self._choose(logits, time, live, finished, searching, length, ids), cache

    state = self._choose(first_logits[:, None], jnp.int32(0), live, finished, jnp.ones(batch, bool), length, ids)
    _, live, finished, _, _ = jax.lax.while_loop(
        lambda s: (s[0] < length) & jnp.any(s[3]), advance, (jnp.int32(1), *state, cache))
    return self._results(live, finished, length)

  def _penalty(self, length: Array) -> Array:
    return PENALTIES[self.length_penalty](jnp.asarray(length, jnp.float32), self.alpha)

  def _choose(self, logits, time, live, finished, searching, length, ids):
    """One time: from logits [B, 1 or K, V] to the next `live`, `finished` and `searching` [B]."""
    batch = len(logits)
    count = 2 * self.beams
    gains, token = top_k(self.log_probs(logits, time, length, ids), count)  # [B, 1 or K, 2K]
    totals, index = top_k((live.log_probs[..., None] + gains).reshape(batch, -1), count)  # [B, 2K]
    token, parent = _gather(token.reshape(batch, -1), index), index // count
    tokens = put(_gather(live.tokens, parent), time, token)

    ends = token == ids.eos
    finishes = ends & searching[:, None]
    if self.length_penalty == 'hf':
      ends |= time == length - 1
      finishes = ends & searching[:, None] & (jnp.arange(count) < self.beams)
    candidates = Decoded(tokens, totals, jnp.where(finishes, totals / self._penalty(time + 1), -jnp.inf))
    merged = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), finished, candidates)
    scores, best = top_k(merged.scores, self.beams)
    finished = jax.tree.map(lambda x: _gather(x, best), merged)._replace(scores=scores)

    log_probs, best = top_k(jnp.where(ends, -jnp.inf, totals), self.beams)
    lineage = put(_gather(live.lineage, _gather(parent, best)), time,
                  jnp.broadcast_to(jnp.arange(self.beams), (batch, self.beams)))
    live = _Live(log_probs, _gather(tokens, best), lineage)

    worst = scores[:, -1]  # -inf: fewer than K
    if self.early_stopping is True:
      improves = (worst == -jnp.inf) & (log_probs[:, 0] > -jnp.inf)
    else:
      reach = length if self.early_stopping == 'never' and self.alpha > 0 else time + 1
      improves = log_probs[:, 0] / self._penalty(reach) > worst
    return live, finished, searching & improves

  def _results(self, live: _Live, finished: Decoded, length: int) -> Decoded:
    """The best finished sequences; where they are too few, live ones behind them."""
    live = Decoded(live.tokens, live.log_probs, live.log_probs / self._penalty(length))
    count = jnp.sum(finished.scores > -jnp.inf, axis=-1, keepdims=True)
    rank = jnp.arange(self.returned)
    index = jnp.where(rank < count, rank, self.beams + rank - count)
    return jax.tree.map(lambda x, y: _gather(jnp.concatenate([x, y], axis=1), index), finished, live)


def _gather(x: Array, index: Array) -> Array:
  """Rows [B, J] of x [B, I, ...]."""
  return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
