"""What every decoder shares: its call, its result, and the rules on which tokens may come when.

K below is a decoder's `width`: the beams or samples of an example, which are decoded side by side as queries over one
memory (`backbones/cache.py`). What query k is fed at time t lies in slot (t, k) for good.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.types import Array, PyTree

Step = Callable[[Array, PyTree, Array, Array], tuple[Array, PyTree]]
"""(tokens [B, K], cache, time, visible [B, K, T, K]) -> (logits [B, K, V] of time + 1, cache).

Feeds the tokens chosen at `time`, 0 for the first, into the slots (time, 0..K-1). Besides the context and itself, query
k sees the slots where `visible`: those of its own past.
"""


class TokenIds(NamedTuple):
  """The ids that decoding must know; None: nothing is forced."""

  eos: int
  pad: int
  forced_bos: int | None = None  # comes first, whatever the logits
  forced_eos: int | None = None  # comes last where the length limit ends a sequence


class Decoded(NamedTuple):
  """R sequences an example and what the model thinks of them.

  Log-probabilities are the model's own, before temperature and before anything is banned. A forced token is no choice
  and counts 0, as in Hugging Face's beam scores.
  """

  tokens: Array  # [B, R, T] int32, padded behind the first end of sequence
  log_probs: Array  # [B, R] float32, sum over the tokens up to and including the end of sequence
  scores: Array  # [B, R] float32, what ranks them: `log_probs`, for beams over the length penalty; -inf: no sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
  """A way to choose tokens, as a static argument of a jitted function.

  Attributes:
    min_length: new tokens before the end of sequence may come (Hugging Face's `min_new_tokens`; its `min_length` counts
      the start token or the source too: subtract 1 for encoder-decoders, the source's length for GPT-2).
    banned: ids that never come, unless forced.
  """

  min_length: int = 0
  banned: tuple[int, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, 'banned', tuple(self.banned))  # hashable, also where gin gives a list
    self.expect(self.min_length >= 0, 'min_length', 'at least 0')

  @property
  def width(self) -> int:
    """K, the queries of an example in each step."""
    return 1

  def __call__(
      self, first_logits: Array, cache: PyTree, step: Step, *, length: int, ids: TokenIds,
      keys: Array | None = None) -> Decoded:
    """Decodes at most `length` tokens, fewer where every row has ended before.

    Everything but the test whether all have ended is row by row, so an example's result depends on nothing but itself.

    Args:
      first_logits: [B, V] of the first token.
      cache: with room for `length` times K slots.
      step: one decoding step; not called for the last token.
      length: T, at least 1.
      ids: the model's special tokens.
      keys: [B] typed random keys, for sampling only.
    """
    raise NotImplementedError

  def expect(self, right: bool, name: str, expected: str):
    """Raises ValueError unless the field `name` is right."""
    if not right:
      raise ValueError(f'{type(self).__name__}: {name} is {getattr(self, name)!r}; expected {expected}.')

  def log_probs(self, logits: Array, time: Array | int, length: int, ids: TokenIds) -> Array:
    """The model's log-probabilities [..., V] in float32, -inf where a token may not come at `time`."""
    vocab = logits.shape[-1]
    self.expect(all(0 <= i < vocab for i in self.banned), 'banned', f'ids from 0 to {vocab - 1}, the last of the model')
    token = np.arange(vocab)
    blocked = np.isin(token, self.banned)
    if self.min_length:
      blocked |= (token == ids.eos) & (time < self.min_length)
    log_probs = jnp.where(blocked, -jnp.inf, jax.nn.log_softmax(logits.astype(jnp.float32)))
    for forced, when in ((ids.forced_bos, 0), (ids.forced_eos, length - 1)):
      if forced is not None:
        log_probs = jnp.where(time != when, log_probs, jnp.where(token == forced, 0.0, -jnp.inf))
    return log_probs


def check_length(length: int):
  """Raises ValueError unless there is something to decode."""
  if length < 1:
    raise ValueError(f'length is {length}; expected at least 1 token to decode.')


def put(tokens: Array, time: Array | int, new: Array) -> Array:
  """`tokens` [B, K, T] with `new` [B, K] at `time`."""
  return jax.lax.dynamic_update_index_in_dim(tokens, new.astype(tokens.dtype), time, axis=2)
