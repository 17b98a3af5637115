"""Attention masks from tokens: True where a query may see a key, broadcastable to [B, N, T, S]."""

import jax.numpy as jnp

from prompt_tuning.types import Array


def padding(key_tokens: Array, pad_id: int = 0) -> Array:
  """Hides padding keys: [B, S] -> [B, 1, 1, S]."""
  return (key_tokens != pad_id)[:, None, None, :]


def causal(length: int) -> Array:
  """Hides later keys: [1, 1, T, T]."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def segments(query_segments: Array | None, key_segments: Array | None) -> Array | bool:
  """Keeps packed examples apart: [B, T], [B, S] -> [B, 1, T, S]; True where rows are not packed."""
  if query_segments is None or key_segments is None:
    return True
  return (query_segments[:, None, :, None] == key_segments[:, None, None, :])
