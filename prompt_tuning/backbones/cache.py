"""Keys and values kept while decoding, in slots that are written once and never moved.

K beams or samples of an example are K queries side by side, [B, K, D], over one memory: the context (the source of a
decoder-only model, and the start token) is kept once an example, the token that query k makes at time t lies in slot
(t, k), and which slots a beam descends from is a mask. So nothing is copied per beam or when beams change places.

A cache is {'self', 'cross'?, 'visible', 'position', 'cross_mask'?}:
  self      {'k', 'v'} [L, B, N, H, C + T K]: context of C tokens, then the slots; or, `Apart`, L times without L
  cross     {'k', 'v'} [L, B, N, H, S], of encoder-decoders; or `Apart`
  visible   [B, C], False where the context is padding
  position  [B], of the start token, the last of the context

Heads come first, as in T5X's cache: on a CPU, XLA copies keys [B, S, N, H] whole for a product with few queries.
"""

import jax
import jax.numpy as jnp

from prompt_tuning.backbones import layers, sites
from prompt_tuning.types import Array, PyTree


def new(context: PyTree, slots: int) -> PyTree:
  """A cache of a prefill's context, keys and values [L, B, C, N, H] and [L, B, S, N, H], and `slots` = T K tokens."""
  first = {name: jax.tree.map(sites.heads_first, context[name]) for name in ('self', 'cross') if name in context}
  pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, slots)])
  spread = lambda x: layers.constrain(x, 'layers', 'batch', 'heads', 'kv', None)
  return {**context, **jax.tree.map(spread, {**first, 'self': jax.tree.map(pad, first['self'])})}


def write(cache: PyTree, new: PyTree, time: Array) -> PyTree:
  """Puts the keys and values {'k', 'v'} [L, B, K, N, H] of one step into the slots of `time`."""
  context = cache['visible'].shape[1]
  put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(
      x, sites.heads_first(y.astype(x.dtype)), context + time * y.shape[-3], axis=x.ndim - 1)
  return {**cache, 'self': jax.tree.map(put, cache['self'], new)}


def mask(cache: PyTree, visible: Array) -> Array:
  """What the queries of a step see: context, slots as `visible` [B, K, T K], themselves: [B, 1, K, C + T K + K]."""
  batch, width, _ = visible.shape
  context = jnp.broadcast_to(cache['visible'][:, None], (batch, width, cache['visible'].shape[1]))
  itself = jnp.broadcast_to(jnp.eye(width, dtype=bool), (batch, width, width))
  return jnp.concatenate([context, visible, itself], axis=-1)[:, None]
