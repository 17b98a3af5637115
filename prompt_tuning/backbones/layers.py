"""Layers that the backbones share: projections, norms, dropout, attention, feed-forward.

Numerics follow T5X: softmax and norm statistics in float32, masking by adding -1e10, and dropout masks that are
broadcast along the length axis. As such a mask on attention weights is the same for every query, it is applied
to the values instead, which is the same sum and touches [B, S, N, H] instead of [B, N, T, S].
"""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.types import Array

KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'gelu': functools.partial(jax.nn.gelu, approximate=True),
    'linear': lambda x: x,
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
}


def param(module: nn.Module, name: str, init, shape, axes: tuple[str, ...]) -> Array:
  """A float32 parameter with the logical names of its axes."""
  return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


class Dense(nn.Module):
  """`x @ kernel`, without bias: [..., in] -> [..., features]."""

  features: int
  axes: tuple[str, str]
  dtype: jnp.dtype = jnp.float32
  init: Callable = KERNEL_INIT

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = param(self, 'kernel', self.init, (x.shape[-1], self.features), self.axes)
    return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))


class RMSNorm(nn.Module):
  """Root-mean-square norm with statistics in float32: [..., D] -> [..., D]."""

  dtype: jnp.dtype = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = param(self, 'scale', nn.initializers.ones, (x.shape[-1],), ('embed',))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
    return x.astype(self.dtype) * scale.astype(self.dtype)


class Dropout(nn.Module):
  """Dropout whose mask is shared along axis `broadcast` (the length)."""

  rate: float
  broadcast: int = -2

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    if deterministic or self.rate == 0.0:
      return x
    shape = list(x.shape)
    shape[self.broadcast] = 1
    keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.rate, shape)
    return x * (keep / (1 - self.rate)).astype(x.dtype)


def attend(q: Array, k: Array, v: Array, bias: Array | None, mask: Array, more: tuple[Array, Array] | None = None):
  """Unscaled attention with one softmax over `more` keys and the layer's own.

  Args:
    q: queries [B, T, N, H].
    k, v: keys and values [B, S, N, H].
    bias: added to the scores, [1, N, T, S], or None.
    mask: True where a query may see a key, broadcastable to [B, N, T, S].
    more: keys and values every query may see, each [P, N, H] (shared by the batch, never copied) or
      [B, P, N, H].

  Returns:
    [B, T, N, H].
  """
  scores = jnp.einsum('BTNH,BSNH->BNTS', q, k, preferred_element_type=jnp.float32)
  if bias is not None:
    scores += bias.astype(jnp.float32)
  scores += jnp.where(mask, 0.0, -1e10)
  if more is None:
    return jnp.einsum('BNTS,BSNH->BTNH', jax.nn.softmax(scores, axis=-1).astype(q.dtype), v)
  more_k, more_v = more
  b = 'B' if more_k.ndim == 4 else ''
  first = jnp.einsum(f'BTNH,{b}PNH->BNTP', q, more_k.astype(q.dtype), preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(jnp.concatenate([first, scores], axis=-1), axis=-1).astype(q.dtype)
  first, weights = jnp.split(weights, [first.shape[-1]], axis=-1)
  return (
      jnp.einsum(f'BNTP,{b}PNH->BTNH', first, more_v.astype(q.dtype))
      + jnp.einsum('BNTS,BSNH->BTNH', weights, v))


class Attention(nn.Module):
  """Multi-head attention, self or cross, with an optional cache of keys and values."""

  num_heads: int
  head_dim: int
  dropout_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, memory, bias, mask, sites, deterministic, site='attn', cache=None, index=None):
    """Attends from `x` [B, T, D] to `memory` [B, S, D].

    Args:
      memory: what keys and values are made of; None takes them from `cache` unchanged (cross-attention while
        decoding).
      cache: {'k', 'v'} [B, S, N, H] of earlier steps; with `memory`, its projections are written at `index`.
      site: prefix of the sites `{site}_kv` and `{site}_out`.

    Returns:
      ([B, T, D], {'k', 'v'}).
    """
    joined = self.num_heads * self.head_dim
    project = lambda name, y, init=KERNEL_INIT: Dense(
        joined, ('embed', 'joined_kv'), self.dtype, init, name=name)(y).reshape(
            *y.shape[:-1], self.num_heads, self.head_dim)
    # T5 folds the 1/sqrt(H) of the scores into the initial queries.
    q = project('query', x, nn.initializers.variance_scaling(1.0 / self.head_dim, 'fan_in', 'normal'))
    if memory is not None:
      k, v = project('key', memory), project('value', memory)
      if cache is not None:
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=index, axis=1)
        k, v = write(cache['k'], k), write(cache['v'], v)
    else:
      k, v = cache['k'], cache['v']
    cache = {'k': k, 'v': v}
    more = sites[f'{site}_kv'](k, v) if f'{site}_kv' in sites else None
    v = Dropout(self.dropout_rate, broadcast=-1, name='weights_dropout')(v, deterministic)
    y = attend(q, k, v, bias, mask, more).reshape(*x.shape[:-1], joined)
    y = Dense(x.shape[-1], ('joined_kv', 'embed'), self.dtype, name='out')(y)
    return sites_lib.at(sites, f'{site}_out', y), cache


class MLP(nn.Module):
  """Feed-forward block, gated where `activations` names several branches: [B, S, D] -> [B, S, D]."""

  d_ff: int
  activations: tuple[str, ...]
  dropout_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, sites, deterministic: bool) -> Array:
    names = ['wi'] if len(self.activations) == 1 else [f'wi_{i}' for i in range(len(self.activations))]
    branches = [
        ACTIVATIONS[activation](Dense(self.d_ff, ('embed', 'mlp'), self.dtype, name=name)(x))
        for name, activation in zip(names, self.activations, strict=True)]
    a = sites_lib.at(sites, 'mlp_act', functools.reduce(jnp.multiply, branches))  # [B, S, F]
    a = Dropout(self.dropout_rate)(a, deterministic)
    y = Dense(x.shape[-1], ('mlp', 'embed'), self.dtype, name='wo')(a)
    return sites_lib.at(sites, 'mlp_out', y)
