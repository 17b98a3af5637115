"""Attention masks from tokens: True where a query may see a key, broadcastable to [B, N, T, S]."""

import jax.numpy as jnp

from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.types import Array


def padding(key_tokens: Array, pad_id: int = 0) -> Array:
  """Hides padding keys: [B, S] -> [B, 1, 1, S]."""
  return (key_tokens != pad_id)[:, None, None, :]


def positions(visible: Array, segments: Array | None = None) -> Array:
  """Counts what is no padding: [B, S] bool -> [B, S] int32, 0 at the first token, of a segment where rows are packed.

  Tokens of a segment [B, S] need not stand together: a decoder-only model has its source in front of all targets.
  """
  if segments is None:
    count = jnp.cumsum(visible, axis=-1, dtype=jnp.int32)
  else:
    earlier = (segments[:, :, None] == segments[:, None, :]) & visible[:, None, :] & causal(visible.shape[1])[0]
    count = jnp.sum(earlier, axis=-1, dtype=jnp.int32)
  return jnp.maximum(count - 1, 0)


def check_positions(config: BackboneConfig, prefix: int, source: int, target: int) -> None:
  """Raises ValueError if a model has no learned position for so many tokens."""
  if (wanted := prefix + source + target) > config.max_positions:
    parts = {'prefix': prefix, 'source': source, 'target': target}
    raise ValueError(
        f'The model has {config.max_positions} positions, but {wanted} tokens are asked for: '
        + ' + '.join(f'{n} of the {name}' for name, n in parts.items() if n)
        + ' (virtual and start tokens included). Lower TASK_FEATURE_LENGTHS or the length of the prefix.')


def causal(length: int) -> Array:
  """Hides later keys: [1, 1, T, T]."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]


def segments(query_segments: Array | None, key_segments: Array | None) -> Array | bool:
  """Keeps packed examples apart: [B, T], [B, S] -> [B, 1, T, S]; True where rows are not packed."""
  if query_segments is None or key_segments is None:
    return True
  return (query_segments[:, None, :, None] == key_segments[:, None, None, :])
