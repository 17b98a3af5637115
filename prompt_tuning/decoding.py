"""Decoding over an explicit cache. Greedy here; a step is a function, so any backbone serves."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prompt_tuning.types import Array, PyTree

Step = Callable[[Array, PyTree, Array], tuple[Array, PyTree]]
"""(ids [B, 1], cache, position) -> (logits [B, 1, V], cache)."""


class Decoded(NamedTuple):
  """Sequences and what the model thinks of them."""

  tokens: Array  # [B, T] int32, padded with pad_id behind the first end of sequence
  log_probs: Array  # [B] float32, sum over the tokens up to and including the end of sequence


def grow_cache(cache: PyTree, length: int) -> PyTree:
  """Pads self-attention keys and values [L, B, T, N, H] with zeros to `length` positions."""
  pad = lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, length - x.shape[2]), (0, 0), (0, 0)])
  return {**cache, 'self': jax.tree.map(pad, cache['self'])}


def greedy(first_logits: Array, cache: PyTree, step: Step, *, length: int, eos_id: int, pad_id: int) -> Decoded:
  """The most probable token at each position, until every row has ended or `length` tokens are there.

  Args:
    first_logits: [B, V] of the first token, as prefilling the start token leaves them.
    cache: with room for `length` positions, the first of them filled by the start token.
    step: one decoding step.
    length: T, tokens to produce at most.
  """

  def pick(logits, ended):
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    gain = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    return jnp.where(ended, pad_id, token), jnp.where(ended, 0.0, gain)

  def advance(state):
    position, tokens, total, ended, cache = state
    last = jax.lax.dynamic_slice_in_dim(tokens, position - 1, 1, axis=1)
    logits, cache = step(last, cache, position)
    token, gain = pick(logits[:, 0], ended)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], position, axis=1)
    return position + 1, tokens, total + gain, ended | (token == eos_id), cache

  token, total = pick(first_logits, False)
  tokens = jnp.full((first_logits.shape[0], length), pad_id, jnp.int32).at[:, 0].set(token)
  state = (jnp.int32(1), tokens, total, token == eos_id, cache)
  _, tokens, total, _, _ = jax.lax.while_loop(lambda s: (s[0] < length) & ~jnp.all(s[3]), advance, state)
  return Decoded(tokens, total)
