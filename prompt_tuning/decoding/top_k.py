"""The k largest of a vocabulary, row by row.

`jax.lax.top_k` is not split over a sharded batch: XLA gathers all rows on every device first (and XLA:CPU's sort takes
14 ms for 50257 numbers). This one is made of maxima, and as fast: on 5 rows of 50257, 0.6 ms for 10 as against 0.7.
"""

import jax
import jax.numpy as jnp

from prompt_tuning.types import Array

BLOCK, SMALL = 16, 256


def top_k(x: Array, k: int) -> tuple[Array, Array]:
  """Values and places [..., k] of the k largest of x [..., V], largest first, of equals the lowest place first.

  Where fewer than k are above -inf, the other values are -inf and their places mean nothing; k may exceed V.

  The k largest lie in the k blocks with the largest maxima, which are found in the same way.
  """
  size = x.shape[-1]
  if size <= max(SMALL, 2 * k * BLOCK):
    return _one_by_one(x, k)
  blocks = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % BLOCK)], constant_values=-jnp.inf)
  blocks = blocks.reshape(*x.shape[:-1], -1, BLOCK)
  _, best = top_k(jnp.max(blocks, axis=-1), k)
  best = jnp.sort(best, axis=-1)  # so that equals stay in order
  places = (best[..., None] * BLOCK + jnp.arange(BLOCK)).reshape(*x.shape[:-1], -1)
  candidates = jnp.take_along_axis(x, jnp.minimum(places, size - 1), axis=-1)
  values, chosen = top_k(jnp.where(places < size, candidates, -jnp.inf), k)
  return values, jnp.take_along_axis(places, chosen, axis=-1)


def _one_by_one(x: Array, k: int) -> tuple[Array, Array]:
  def take(x, _):
    place = jnp.argmax(x, axis=-1)
    return jnp.where(jnp.arange(x.shape[-1]) == place[..., None], -jnp.inf, x), (jnp.max(x, axis=-1), place)

  _, found = jax.lax.scan(take, x, length=k)
  return jax.tree.map(lambda y: jnp.moveaxis(y, 0, -1), found)
