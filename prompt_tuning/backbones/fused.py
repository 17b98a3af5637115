"""Attention by `jax.nn.dot_product_attention`, whose cuDNN kernels never hold the scores [B, N, T, S] in memory.

The same function as `layers.attend`, which is the reference: one softmax over a prefix and the layer's own keys. Here
the prefix is joined to them as keys and values of each row, with no bias and nothing hidden, and dropout of its weights
is applied to its values (a mask that all queries share is the same sum either way).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from prompt_tuning.types import Array

IMPLEMENTATIONS = ('einsum', 'xla', 'cudnn')
LARGEST_HEAD = 128  # of cuDNN's kernels on every generation of GPU


def check(implementation: str, dtype: jnp.dtype, head_dim: int, platform: str | None = None) -> None:
  """Raises ValueError where an implementation cannot run a model; `platform`: of the devices, None: not known."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'ATTENTION={implementation!r}; expected one of {", ".join(IMPLEMENTATIONS)}.')
  if implementation != 'cudnn':
    return
  hint = "choose ATTENTION = 'einsum' (or 'xla')."
  if platform not in (None, 'gpu', 'cuda'):
    raise ValueError(f"ATTENTION='cudnn' runs on NVIDIA GPUs; these devices are of the platform {platform!r}: {hint}")
  if dtype not in (jnp.bfloat16, jnp.float16):
    raise ValueError(f"ATTENTION='cudnn' needs ACTIVATION_DTYPE = 'bfloat16', not {jnp.dtype(dtype).name}; or {hint}")
  if head_dim > LARGEST_HEAD or head_dim % 8:
    raise ValueError(f"ATTENTION='cudnn' needs heads that are a multiple of 8 and at most {LARGEST_HEAD} wide; this "
                     f'model has {head_dim}: {hint}')


def attend(
    implementation: str, q: Array, k: Array, v: Array, bias: Array | None, mask: Array,
    more: tuple[Array, Array] | None = None, more_kept: Array | None = None) -> Array:
  """Unscaled attention, as `layers.attend` has it of one piece of own keys.

  Args:
    implementation: 'xla' or 'cudnn'.
    q: queries [B, T, N, H].
    k, v: own keys and values [B, S, N, H].
    bias, mask: of the own keys, broadcastable to [B, N, T, S].
    more, more_kept: keys and values [P, N, H] or [B, P, N, H] every query may see, and factors [B, N, 1, P] of their
      weights.

  Returns:
    [B, T, N, H].
  """
  batch, queries, heads, _ = q.shape
  mask = jnp.broadcast_to(mask, (*mask.shape[:2], queries, k.shape[1]))
  if bias is not None:
    bias = bias.astype(q.dtype if implementation == 'cudnn' else jnp.float32)
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], queries, k.shape[1]))
  if more is not None:
    first = [jnp.broadcast_to(x.astype(q.dtype), (batch, *x.shape[-3:])) for x in more]
    if more_kept is not None:
      first[1] *= jnp.moveaxis(more_kept, 3, 1)[..., 0, None].astype(q.dtype)  # [B, P, N, 1]
    k, v = (jnp.concatenate([x, own.astype(q.dtype)], axis=1) for x, own in zip(first, (k, v), strict=True))
    mask, bias = (None if x is None else jnp.pad(x, [(0, 0)] * 3 + [(first[0].shape[1], 0)], constant_values=fill)
                  for x, fill in ((mask, True), (bias, 0)))
  if implementation == 'cudnn':  # wants even lengths, and its bias whole
    odd_t, odd_s = queries % 2, k.shape[1] % 2
    q, k, v = (jnp.pad(x, [(0, 0), (0, odd), (0, 0), (0, 0)]) for x, odd in ((q, odd_t), (k, odd_s), (v, odd_s)))
    at_end = [(0, 0), (0, 0), (0, odd_t), (0, odd_s)]
    mask = jnp.pad(jnp.broadcast_to(mask, (batch, heads, *mask.shape[2:])), at_end)
    bias = None if bias is None else jnp.pad(bias, at_end)
  out = jax.nn.dot_product_attention(
      q, k.astype(q.dtype), v.astype(q.dtype), bias, mask, scale=1.0, implementation=implementation)
  return out[:, :queries]


def fits(own: Sequence) -> bool:
  """Whether there is one piece of own keys, with lengths first: not so while decoding, which is done by products."""
  return len(own) == 1 and type(own[0]) is tuple
