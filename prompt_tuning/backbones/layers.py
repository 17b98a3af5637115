"""Layers that the backbones share: projections, norms, dropout, attention, feed-forward.

Numerics follow T5X: softmax and norm statistics in float32, masking by adding -1e10, and dropout masks that are
broadcast along the length axis. As such a mask on attention weights is the same for every query, it is applied
to the values instead, which is the same sum and touches [B, S, N, H] instead of [B, N, T, S].
"""

from collections.abc import Callable, Sequence
import functools
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import quantized
from prompt_tuning.backbones import fused
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.types import Array

KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'gelu': functools.partial(jax.nn.gelu, approximate=True),
    'gelu_exact': functools.partial(jax.nn.gelu, approximate=False),
    'linear': lambda x: x,
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
}


def param(module: nn.Module, name: str, init, shape, axes: tuple[str, ...]) -> Array:
  """A float32 parameter with the logical names of its axes."""
  return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def constrain(x: Array, *axes: str) -> Array:
  """`x` laid out on the mesh by the logical names of its axes, where `Partitioner.constraints` is active."""
  return nn.with_logical_constraint(x, axes)


def states(x: Array) -> Array:
  """States [B, T, D], laid out on the mesh."""
  return constrain(x, 'batch', 'length', 'embed')


def times_transposed(x: Array, w: Array) -> Array:
  """x [..., in] times w [out, in], transposed: [..., out]. In this order XLA:CPU is fastest where the x are few."""
  return jnp.moveaxis(jax.lax.dot_general(w, x, (((1,), (x.ndim - 1,)), ((), ()))), 0, -1)


def times(x: Array, w: Array) -> Array:
  """x [..., in] times w [in, out] in the type of x. A w of another type is converted again for the backward pass.

  Else a scanned stack would keep the converted weights of all its layers.
  """
  product = lambda x, w: jnp.dot(x, w.astype(x.dtype))
  return product(x, w) if w.dtype == x.dtype else jax.checkpoint(product)(x, w)


class Dense(nn.Module):
  """`x @ kernel (+ bias)`: [..., in] -> [..., features]. The kernel may be quantised."""

  features: int
  axes: tuple[str, str]
  dtype: jnp.dtype = jnp.float32
  init: Callable = KERNEL_INIT
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.has_variable('params', 'transposed'):  # while decoding, see `stack.apart_params`
      y = times_transposed(x.astype(self.dtype), self.get_variable('params', 'transposed').astype(self.dtype))
    else:
      kernel = param(self, 'kernel', self.init, (x.shape[-1], self.features), self.axes)
      y = times(x.astype(self.dtype), kernel)
    y = quantized.rescaled(self, 'kernel', y)
    if self.use_bias:
      y += param(self, 'bias', nn.initializers.zeros, (self.features,), self.axes[1:]).astype(self.dtype)
    return y


class Embedder(nn.Module):
  """A table of embeddings [V, D], which may be quantised."""

  rows: int
  d_model: int
  dtype: jnp.dtype
  init: Callable = nn.initializers.normal(1.0)
  axis: str = 'vocab'

  def setup(self):
    self.embedding = param(self, 'embedding', self.init, (self.rows, self.d_model), (self.axis, 'embed'))

  def __call__(self, ids: Array) -> Array:
    """Ids [...] -> [..., D]; ids outside the table read its last row, negative ones its first."""
    x = jnp.take(self.embedding, ids, axis=0, mode='clip').astype(self.dtype)
    if self.has_variable('params', 'embedding' + quantized.SCALE):
      scale = self.get_variable('params', 'embedding' + quantized.SCALE)
      x = (x.astype(jnp.float32) * jnp.take(scale, ids, mode='clip')[..., None]).astype(self.dtype)
    return x

  def attend(self, x: Array) -> Array:
    """[B, T, D] -> similarity with every row, float32 [B, T, V]."""
    y = jnp.einsum('BTD,VD->BTV', x.astype(jnp.float32), self.embedding.astype(jnp.float32))
    return constrain(quantized.rescaled(self, 'embedding', y), 'batch', 'length', 'vocab')


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


class LayerNorm(nn.Module):
  """Layer norm with statistics in float32: [..., D] -> [..., D]."""

  dtype: jnp.dtype = jnp.float32
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = param(self, 'scale', nn.initializers.ones, (x.shape[-1],), ('embed',))
    bias = param(self, 'bias', nn.initializers.zeros, (x.shape[-1],), ('embed',))
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
    return (x * scale + bias).astype(self.dtype)


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


def attend(
    q: Array, own: Sequence[tuple[Array, Array]], bias: Array | None, mask: Array,
    more: tuple[Array, Array] | None = None, more_kept: Array | None = None) -> Array:
  """Unscaled attention with one softmax over `more` keys and the layer's own, none of them copied to join the others.

  Args:
    q: queries [B, T, N, H].
    own: keys and values in pieces, each [B, S_i, N, H], or [B, N, H, S_i] in a `HeadsFirst`.
    bias: added to the scores of all S = sum of S_i own keys, broadcastable to [B, N, T, S], or None.
    mask: True where a query may see a key, broadcastable to [B, N, T, S].
    more: keys and values every query may see, each [P, N, H] (shared by the batch, never copied) or
      [B, P, N, H]; a `HeadsFirst` also here.
    more_kept: factors of the weights of `more` (dropout), [B, N, 1, P].

  Returns:
    [B, T, N, H].
  """
  pieces = [*([] if more is None else [more]), *own]
  pieces = [(_letters(piece), *(x.astype(q.dtype) for x in piece)) for piece in pieces]
  scores = [jnp.einsum(f'BTNH,{keys}->BNTS', q, k, preferred_element_type=jnp.float32) for keys, k, _ in pieces]
  ends = list(itertools.accumulate(x.shape[-1] for x in scores))
  first, scores = (None, scores) if more is None else (scores[0], scores[1:])
  scores = _joined(scores)
  if bias is not None:
    scores += bias.astype(jnp.float32)
  scores += jnp.where(mask, 0.0, -1e10)
  weights = jax.nn.softmax(_joined([scores] if first is None else [first, scores]), axis=-1).astype(q.dtype)
  weights = jnp.split(weights, ends[:-1], axis=-1)
  if more_kept is not None:
    weights[0] *= more_kept.astype(q.dtype)
  return sum(jnp.einsum(f'BNTS,{values}->BTNH', w, v) for w, (values, _, v) in zip(weights, pieces, strict=True))


def _letters(piece: tuple[Array, Array]) -> str:
  letters = 'NHS' if isinstance(piece, sites_lib.HeadsFirst) else 'SNH'
  return letters if piece[0].ndim == 3 else f'B{letters}'


def _joined(pieces: Sequence[Array]) -> Array:
  return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)


class Attention(nn.Module):
  """Multi-head attention, self or cross.

  Attributes:
    scaled: scores are divided by sqrt(H). T5 folds that into the initial queries instead.
    use_bias: projections have biases.
    implementation: 'einsum' (`attend`), or one of `fused.IMPLEMENTATIONS`, which decoding steps do without.
  """

  num_heads: int
  head_dim: int
  dropout_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32
  scaled: bool = False
  use_bias: bool = False
  implementation: str = 'einsum'

  @nn.compact
  def __call__(self, x, memory, virtual, bias, mask, sites, deterministic, site='attn', cache=None):
    """Attends from `x` [B, T, D] to what `cache` holds and to `memory` [B, S, D], in this order.

    Args:
      memory: what keys and values are made of; None: all there is lies in `cache` (cross-attention while decoding).
      virtual: virtual ids of the memory's tokens, [B, S], for the site.
      bias, mask: of all keys, see `attend`.
      cache: {'k', 'v'} [B, N, H, M] of earlier calls, or None; it is only read.
      site: prefix of the sites `{site}_kv` and `{site}_out`.

    Returns:
      ([B, T, D], {'k', 'v'} [B, S, N, H] of the memory).
    """
    joined = self.num_heads * self.head_dim
    project = lambda name, y, init=KERNEL_INIT: constrain(Dense(
        joined, ('embed', 'joined_kv'), self.dtype, init, self.use_bias, name=name)(y).reshape(
            *y.shape[:-1], self.num_heads, self.head_dim), 'batch', 'length', 'heads', 'kv')
    spread = 1.0 if self.scaled else 1.0 / self.head_dim
    q = project('query', x, nn.initializers.variance_scaling(spread, 'fan_in', 'normal'))
    q = q * self.head_dim**-0.5 if self.scaled else q
    content = sites.get(f'{site}_kv')
    own, new = [] if cache is None else [sites_lib.HeadsFirst(**cache)], None
    if memory is not None:
      k, v = project('key', memory), project('value', memory)
      if content is not None:
        k, v = content(k, v, virtual)
      new = {'k': k, 'v': v}
      own.append((k, Dropout(self.dropout_rate, broadcast=-1, name='weights_dropout')(v, deterministic)))
    more = more_kept = None
    if content is not None and content.more is not None:
      more = content.more
      ones = jnp.ones((x.shape[0], self.num_heads, 1, content.length), self.dtype)
      more_kept = Dropout(self.dropout_rate, name='prefix_dropout')(ones, deterministic)
    more_kept = None if deterministic else more_kept
    if self.implementation != 'einsum' and fused.fits(own):
      y = fused.attend(self.implementation, q, *own[0], bias, mask, more, more_kept)
    else:
      y = attend(q, own, bias, mask, more, more_kept)
    y = y.reshape(*x.shape[:-1], joined)
    y = Dense(x.shape[-1], ('joined_kv', 'embed'), self.dtype, use_bias=self.use_bias, name='out')(y)
    return sites_lib.at(sites, f'{site}_out', y), new


class MLP(nn.Module):
  """Feed-forward block, gated where `activations` names several branches: [B, S, D] -> [B, S, D]."""

  d_ff: int
  activations: tuple[str, ...]
  dropout_rate: float = 0.0
  dtype: jnp.dtype = jnp.float32
  use_bias: bool = False
  out_bias: bool = False  # of the output projection alone

  @nn.compact
  def __call__(self, x: Array, sites, deterministic: bool) -> Array:
    names = ['wi'] if len(self.activations) == 1 else [f'wi_{i}' for i in range(len(self.activations))]
    dense = functools.partial(Dense, dtype=self.dtype)
    branches = [
        ACTIVATIONS[activation](dense(self.d_ff, ('embed', 'mlp'), use_bias=self.use_bias, name=name)(x))
        for name, activation in zip(names, self.activations, strict=True)]
    a = constrain(functools.reduce(jnp.multiply, branches), 'batch', 'length', 'mlp')
    a = sites_lib.at(sites, 'mlp_act', a)  # [B, S, F]
    for reading in sites_lib.readings(sites.get('mlp_act')):
      self.sow(sites_lib.READ, 'mlp_act', reading.read(a), init_fn=lambda: None, reduce_fn=lambda _, new: new)
    a = Dropout(self.dropout_rate)(a, deterministic)
    y = dense(x.shape[-1], ('mlp', 'embed'), use_bias=self.use_bias or self.out_bias, name='wo')(a)
    return sites_lib.at(sites, 'mlp_out', y)
