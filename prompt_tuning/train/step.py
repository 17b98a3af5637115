"""One optimizer step and its state. The gradient is of the trainable argument alone."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning.prompted import Prompted, Unread
from prompt_tuning.train import losses
from prompt_tuning.types import Array, Batch, Params, PyTree, Trainable


class TrainState(NamedTuple):
  """All that a run changes; a few times the size of the trainables."""

  step: Array  # int32 []
  trainable: Trainable
  opt_state: PyTree


LossFn = Callable[[Unread, Batch], losses.Loss]


def init_state(trainable: Trainable, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def make_train_step(
    model: Prompted, optimizer: optax.GradientTransformation, loss_fn: LossFn, *, dropout_seed: int | None,
    microbatches: int = 1, use_hardware_rng: bool = True,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Array]]]:
  """The jitted `(state, frozen, batch) -> (state, metrics)`.

  The state is donated; the frozen parameters never are.

  Args:
    loss_fn: (`Unread` logits, batch) -> `losses.Loss`.
    dropout_seed: seed of the frozen model's dropout, folded with the step; None: no dropout.
    microbatches: gradients are summed over so many slices of the batch, to save memory.
    use_hardware_rng: draw dropout with XLA's generator, which compiles in half the time, rather than with threefry,
      whose bits are the same on every kind of device and in every version of jax.
  """

  parts = _parts(model, optimizer, loss_fn, dropout_seed, microbatches, use_hardware_rng)

  def train_step(state: TrainState, frozen: Params, batch: Batch):
    return parts.update(state, *parts.gradients(state.trainable, frozen, batch, parts.dropout_key(state.step)))

  return jax.jit(train_step, donate_argnums=0)


def make_pieces_step(
    model: Prompted, optimizer: optax.GradientTransformation, loss_fn: LossFn, *, dropout_seed: int | None,
    microbatches: int = 1, use_hardware_rng: bool = True,
) -> Callable[[TrainState, Params, Sequence[Batch]], tuple[TrainState, dict[str, Array]]]:
  """The same for batches in pieces of different shapes, whose gradients are added up: a program for each shape."""
  parts = _parts(model, optimizer, loss_fn, dropout_seed, microbatches, use_hardware_rng)

  @jax.jit
  def gradients(trainable, step, frozen, piece, number):
    key = parts.dropout_key(step)
    return parts.gradients(trainable, frozen, piece, None if key is None else jax.random.fold_in(key, number))

  add = jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more), donate_argnums=0)
  update = jax.jit(lambda state, total: parts.update(state, *total), donate_argnums=0)

  def train_step(state: TrainState, frozen: Params, pieces: Sequence[Batch]):
    found = (gradients(state.trainable, state.step, frozen, piece, np.int32(i)) for i, piece in enumerate(pieces))
    return update(state, functools.reduce(add, found))

  return train_step


class _Parts(NamedTuple):
  """What a step is made of, to be traced."""

  dropout_key: Callable  # step -> key or None
  gradients: Callable  # (trainable, frozen, batch, key) -> (summed gradients, `losses.Loss`)
  update: Callable  # (state, summed gradients, loss) -> (state, metrics)


def _parts(model, optimizer, loss_fn, dropout_seed, microbatches, use_hardware_rng) -> _Parts:

  def gradients(trainable, frozen, batch, key):
    if microbatches > 1:
      return _accumulated(model, loss_fn, microbatches, trainable, frozen, batch, key)

    def summed_loss(trainable):
      loss = loss_fn(model.unread(trainable, frozen, batch, key), batch)
      return loss.total, loss

    return jax.grad(summed_loss, has_aux=True)(trainable)

  def dropout_key(step):
    if dropout_seed is None:
      return None
    impl = 'unsafe_rbg' if use_hardware_rng else 'threefry2x32'
    return jax.random.fold_in(jax.random.key(dropout_seed, impl=impl), step)

  def update(state: TrainState, grads, loss: losses.Loss):
    grads = jax.tree.map(lambda g: g / loss.normalizer, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {
        'loss': loss.total / loss.normalizer,
        'z_loss': loss.z_loss / loss.normalizer,
        'loss_per_nonpadding_target_token': loss.total / jnp.maximum(loss.tokens, 1),
        'accuracy': loss.correct / jnp.maximum(loss.tokens, 1),
        'grad_norm': optax.tree.norm(grads),
    }
    return TrainState(state.step + 1, trainable, opt_state), metrics

  return _Parts(dropout_key, gradients, update)


def _accumulated(
    model: Prompted, loss_fn: LossFn, microbatches: int, trainable: Trainable, frozen: Params, batch: Batch,
    key: jax.Array | None) -> tuple[Trainable, losses.Loss]:
  """Summed gradients and loss of a batch, a slice of its rows after the other.

  Each of the G groups of devices along `data` adds up gradients of its own rows, with respect to a copy of its own of
  what the method puts into the backbone. What crosses the network is their sum, once, and not each slice's.
  """
  patch, pull_back = jax.vjp(lambda trainable: model.patch(trainable, key), trainable)
  with model.constraints():
    groups = jax.sharding.get_abstract_mesh().shape.get('data', 1)
  if groups > 1:
    model = dataclasses.replace(model, constraints=functools.partial(model.constraints, apart=True))
  slices = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(groups, -1, microbatches, *x.shape[1:]), 2, 0), batch)
  keys = None if key is None else jax.random.split(key, (microbatches, groups))
  copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, *x.shape)), patch)

  @functools.partial(jax.vmap, spmd_axis_name='data')
  @functools.partial(jax.grad, has_aux=True)
  def gradients(patch, rows, key):
    loss = loss_fn(model.unread_with(patch, frozen, rows, key), rows)
    return loss.total, loss

  def accumulate(total, piece):
    return jax.tree.map(jnp.add, total, gradients(copies, *piece)), None

  shapes = jax.eval_shape(gradients, copies, *jax.tree.map(lambda x: x[0], (slices, keys)))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  of_patch, loss = jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.lax.scan(accumulate, zeros, (slices, keys))[0])
  return *pull_back(of_patch), loss
