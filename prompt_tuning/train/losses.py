"""Cross-entropy as T5X computes it, so that its learning rates and logs carry over.

The loss is a sum over target tokens; z-loss is part of it; the entropy of the smoothed targets is taken off, so
that a perfect prediction costs 0. See `normalizer` for what the sum is divided by.
"""

import functools

from flax import struct
import jax
import jax.numpy as jnp

from prompt_tuning.backbones import masks
from prompt_tuning.prompted import Unread
from prompt_tuning.types import Array, Batch

SPECIAL_NORMALIZERS = ('NUM_REAL_TARGET_TOKENS', 'NUM_TOTAL_TARGET_TOKENS', 'AVERAGE_PER_SEQUENCE', 'NUM_SEQUENCES')


class Loss(struct.PyTreeNode):
  """Sums over the batch, which add up over microbatches; `total / normalizer` is minimised."""

  total: Array  # includes `z_loss`
  z_loss: Array
  weight: Array  # what the total is divided by, unless that is a constant
  correct: Array  # target tokens predicted right
  tokens: Array  # target tokens with a weight
  constant: float | None = struct.field(pytree_node=False, default=None)  # does not add up

  @property
  def normalizer(self) -> Array | float:
    return self.weight if self.constant is None else self.constant


def token_loss(logits: Array, targets: Array, label_smoothing: float = 0.0, z_loss: float = 0.0):
  """Logits [B, T, V] and targets [B, T] -> (loss with z-loss, z-loss), each [B, T]."""
  vocab = logits.shape[-1]
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - log_z
  confidence, low = 1.0 - label_smoothing, label_smoothing / (vocab - 1)
  loss = -target
  if label_smoothing:
    others = jnp.sum(logits, axis=-1) - vocab * log_z - target
    entropy = -(confidence * jnp.log(confidence) + (vocab - 1) * low * jnp.log(low))
    loss = -confidence * target - low * others - entropy
  z = z_loss * jnp.square(log_z)
  return loss + z, z


def compute(
    logits: Array | Unread, batch: Batch, *, label_smoothing: float = 0.0, z_loss: float = 0.0,
    normalizing_factor: float | str | None = None, chunk: int | None = None) -> Loss:
  """The loss of a batch.

  Args:
    logits: [B, T, V], or what they are made of.
    normalizing_factor: LOSS_NORMALIZING_FACTOR: None or a number divides by it; 'NUM_REAL_TARGET_TOKENS' by the sum
      of weights; 'NUM_TOTAL_TARGET_TOKENS' by B x T, which depends on how rows are padded or packed;
      'AVERAGE_PER_SEQUENCE' weighs each example equally; 'NUM_SEQUENCES' (not T5X's; Li & Liang 2021) divides by the
      examples with a target: a sum over each, their mean over the batch. An example is a row, or a segment of a packed
      one.
    chunk: LOSS_CHUNK: logits are made for so many target positions at a time, and made again for the gradient, so
      that [B, chunk, V] of them are held, not [B, T, V]; None: all at once.

  Raises:
    ValueError: an unknown name of a normalizing factor, or a chunk of no positions.
  """
  if chunk is not None and chunk < 1:
    raise ValueError(f'LOSS_CHUNK={chunk}; expected a number of target positions, or None for all at once.')
  weights = batch['decoder_loss_weights']
  tokens, constant = jnp.sum(weights), None
  if isinstance(normalizing_factor, str):
    if normalizing_factor == 'NUM_REAL_TARGET_TOKENS':
      normalizer = tokens
    elif normalizing_factor == 'NUM_TOTAL_TARGET_TOKENS':
      normalizer = jnp.float32(weights.size)
    elif normalizing_factor == 'AVERAGE_PER_SEQUENCE':
      weights = weights / jnp.maximum(_per_example(weights, batch), 1e-9)
      normalizer = jnp.sum(weights)
    elif normalizing_factor == 'NUM_SEQUENCES':
      there = weights > 0
      first = masks.positions(there, batch.get('decoder_segment_ids')) == 0
      normalizer = jnp.sum(first & there).astype(jnp.float32)
    else:
      raise ValueError(
          f'LOSS_NORMALIZING_FACTOR={normalizing_factor!r}; expected None, a number or one of '
          + ', '.join(SPECIAL_NORMALIZERS))
  else:
    normalizer, constant = tokens, float(normalizing_factor or 1.0)
  targets = batch['decoder_target_tokens']
  sums = functools.partial(_sums, label_smoothing=label_smoothing, z_loss=z_loss)
  if not isinstance(logits, Unread):
    total, z, correct = sums(logits, targets, weights)
  elif chunk is None or logits.head is None:
    total, z, correct = sums(logits.logits(), targets, weights)
  else:
    total, z, correct = _summed_in_chunks(sums, logits, targets, weights, chunk)
  return Loss(total, z, normalizer, correct, tokens, constant)


def _sums(
    logits: Array, targets: Array, weights: Array, label_smoothing: float, z_loss: float) -> tuple[Array, Array, Array]:
  """Sums over [B, T]: loss, z-loss and right predictions."""
  loss, z = token_loss(logits, targets, label_smoothing, z_loss)
  correct = (jnp.argmax(logits, axis=-1) == targets) * (weights > 0)
  return jnp.sum(loss * weights), jnp.sum(z * weights), jnp.sum(correct)


def _summed_in_chunks(sums, unread: Unread, targets: Array, weights: Array, chunk: int) -> tuple[Array, Array, Array]:
  """`sums` over a few positions at a time; of none of them are logits kept for the backward pass."""
  count = -(-targets.shape[1] // chunk)

  def pieces(x):  # [B, T, ...] -> [count, B, chunk, ...]: rows stay where they are on a mesh
    x = jnp.pad(x, [(0, 0), (0, count * chunk - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(len(x), count, chunk, *x.shape[2:]), 1, 0)

  def add(totals, piece):
    states, targets, weights = piece
    return jax.tree.map(jnp.add, totals, sums(unread.head(states), targets, weights)), None

  zeros = (jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))
  return jax.lax.scan(
      jax.checkpoint(add, prevent_cse=False), zeros, tuple(map(pieces, (unread.states, targets, weights))))[0]


def _per_example(weights: Array, batch: Batch) -> Array:
  """The sum of the weights [B, T] of the example that each target is of, [B, 1] or, of packed rows, [B, T]."""
  if (segments := batch.get('decoder_segment_ids')) is None:
    return jnp.sum(weights, axis=-1, keepdims=True)
  same = (segments[:, :, None] == segments[:, None, :]).astype(weights.dtype)
  return jnp.einsum('BTU,BU->BT', same, weights)
