"""Greedy search and sampling: K independent sequences an example.

Samples stay in the order of drawing, so that the first is a fair draw and does not depend on how many there are. Each
example has a key of its own, folded with the number of the sample and the time: neighbours and places in the batch do
not matter. No step sorts the vocabulary.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prompt_tuning.decoding.base import Decoded, Decoder, Step, TokenIds, check_length, put
from prompt_tuning.decoding.top_k import top_k
from prompt_tuning.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Greedy(Decoder):
  """The most probable token each time; of equals the lowest id."""

  def __call__(
      self, first_logits: Array, cache: PyTree, step: Step, *, length: int, ids: TokenIds,
      keys: Array | None = None) -> Decoded:
    del keys
    choose = lambda log_probs, time: jnp.argmax(log_probs, axis=-1)
    return _decode(self, choose, first_logits, cache, step, length, ids)


@dataclasses.dataclass(frozen=True)
class Sampling(Decoder):
  """Random tokens: first the temperature is applied, then `top_k`, then `top_p` of what is left (as Hugging Face).

  Attributes:
    temperature: divides the log-probabilities.
    top_k: only so many of the most probable tokens, of equals the lowest ids; 0: all.
    top_p: only the most probable tokens whose probabilities together reach it, at least one; tokens exactly as probable
      as the last of them stay too.
    samples: R = K, how many an example.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  samples: int = 1

  def __post_init__(self):
    super().__post_init__()
    self.expect(self.temperature >= 1e-6, 'temperature', 'a number above 0 (at least 1e-6; or use Greedy)')
    self.expect(self.top_k >= 0, 'top_k', 'at least 1, or 0 for all tokens')
    self.expect(0 < self.top_p <= 1, 'top_p', 'a number above 0 and up to 1')
    self.expect(self.samples >= 1, 'samples', 'at least 1')

  @property
  def width(self) -> int:
    return self.samples

  def __call__(
      self, first_logits: Array, cache: PyTree, step: Step, *, length: int, ids: TokenIds,
      keys: Array | None = None) -> Decoded:
    batch = first_logits.shape[0]
    if keys is None or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != (batch,):
      found = 'None' if keys is None else f'{keys.dtype}{list(keys.shape)}'
      raise ValueError(f'Sampling: keys is {found}; expected a typed random key an example, such as '
                       f'jax.random.split(jax.random.key(0), {batch}).')
    keys = _fold(keys[:, None], jnp.arange(self.samples)[None])  # [B, K]

    def choose(log_probs, time):
      values = (log_probs - jnp.max(log_probs, axis=-1, keepdims=True)) / self.temperature
      candidates = None
      if 0 < self.top_k < values.shape[-1]:
        values, candidates = top_k(values, self.top_k)
      if self.top_p < 1:
        values = nucleus(values, self.top_p)
      drawn = jax.vmap(jax.vmap(draw))(_fold(keys, time), values)
      return drawn if candidates is None else _take(candidates, drawn)

    return _decode(self, choose, first_logits, cache, step, length, ids)


def example_keys(numbers: ArrayLike, seed: int = 0) -> Array:
  """A key for each example [B] by its number, wherever it lies in a batch."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.asarray(numbers))


def nucleus(logits: Array, mass: float) -> Array:
  """`logits` [..., V], -inf but for the most probable whose probabilities reach `mass` together (and their equals).

  Finds the least probable that stays by bisection over the bits of a float32, which are ordered as its values are.
  """
  probs = jax.nn.softmax(logits)
  bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

  def halve(_, bounds):
    low, high = bounds  # tokens from `low` up have the mass; tokens from `high` up have not
    middle = (low + high) // 2
    reached = jnp.sum(jnp.where(bits >= middle, probs, 0.0), axis=-1, keepdims=True) >= mass
    return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

  low = jnp.zeros_like(bits[..., :1])
  low, _ = jax.lax.fori_loop(0, 30, halve, (low, low + (1 << 30)))  # 1 << 30 are the bits of 2.0
  return jnp.where(bits >= low, logits, -jnp.inf)


def draw(key: Array, logits: Array, block: int = 256) -> Array:
  """An index drawn from `logits` [V]: first a block, then a token in it, for V / 256 + 256 random numbers, not V."""
  blocks = jnp.pad(logits, (0, -logits.shape[0] % block), constant_values=-jnp.inf).reshape(-1, block)
  block_key, token_key = jax.random.split(key)
  chosen = jax.random.categorical(block_key, jax.nn.logsumexp(blocks, axis=-1))
  return chosen * block + jax.random.categorical(token_key, blocks[chosen])


_fold = functools.partial(jnp.vectorize, signature='(),()->()')(jax.random.fold_in)


def _take(x: Array, index: Array) -> Array:
  """x[..., V] at index [...]."""
  return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]


def _decode(
    decoder: Decoder, choose: Callable[[Array, Array | int], Array], first_logits: Array, cache: PyTree, step: Step,
    length: int, ids: TokenIds) -> Decoded:
  """Decodes what `choose` picks from log-probabilities [B, K, V] at a time."""
  check_length(length)
  batch, width = first_logits.shape[0], decoder.width
  itself = jnp.eye(width, dtype=bool)[:, None]  # [K, T, K]

  def pick(logits, time, ended):
    log_probs = decoder.log_probs(logits, time, length, ids)
    token = choose(log_probs, time)
    return jnp.where(ended, ids.pad, token), jnp.where(ended, 0.0, _take(log_probs, token))

  def advance(state):
    time, tokens, total, ended, cache = state
    visible = itself & (jnp.arange(length) < time - 1)[:, None]
    visible = jnp.broadcast_to(visible, (batch, *visible.shape))
    logits, cache = step(jax.lax.dynamic_index_in_dim(tokens, time - 1, 2, False), cache, time - 1, visible)
    token, gain = pick(logits, time, ended)
    return time + 1, put(tokens, time, token), total + gain, ended | (token == ids.eos), cache

  token, total = pick(jnp.repeat(first_logits[:, None], width, axis=1), 0, False)
  tokens = put(jnp.full((batch, width, length), ids.pad, jnp.int32), 0, token)
  state = (jnp.int32(1), tokens, total, token == ids.eos, cache)
  _, tokens, total, _, _ = jax.lax.while_loop(lambda s: (s[0] < length) & ~jnp.all(s[3]), advance, state)
  return Decoded(tokens, total, total)
