"""Optimizers and learning-rate schedules.

`adafactor` is T5X's (Shazeer & Stern 2018, without its relative step size), because the learning rate of 0.3 of
Lester et al. 2021 depends on its details; optax's differs in the decay of the second moment's first step, in the
order of clipping and weight decay, and scales weight decay by the learning rate. Each layer of a base's stacked
parameters [L, ...] is a parameter of its own to it, as it is to T5X with layers scanned or not. `adamw` is optax's.
"""

from collections.abc import Callable, Mapping
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from prompt_tuning.types import Array, PyTree

Schedule = Callable[[Array], Array]
Optimizer = Callable[[Schedule], optax.GradientTransformation]
"""What a configuration names: a schedule -> an optax transformation."""


_STACKED = re.compile(r'(encoder|decoder)/layers(_\d+)?/')  # in the paths of a base's parameters [L, ...]


class Slots(NamedTuple):
  """Second-moment estimate of one parameter: whole (`v`), or factored into rows and columns."""

  v: Array | None
  v_row: Array | None
  v_col: Array | None


class AdafactorState(NamedTuple):
  step: Array
  slots: PyTree


def adafactor(
    *, decay_rate: float = 0.8, clipping_threshold: float = 1.0, weight_decay_rate: float = 0.0,
    multiply_by_parameter_scale: bool = True, factored: bool = True, min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30, epsilon2: float = 1e-3) -> Optimizer:
  """T5X's Adafactor. Lester et al. 2021 use weight_decay_rate=1e-5, no parameter scale, nothing factored.

  Args:
    decay_rate: the second moment decays by 1 - (step + 1) ** -decay_rate.
    clipping_threshold: bound on the root mean square of an update, before the learning rate.
    weight_decay_rate: each step takes this share of the parameter, whatever the learning rate.
    multiply_by_parameter_scale: steps relative to a parameter's root mean square (at least `epsilon2`).
    factored: keep row and column means of the second moment where both dimensions reach
      `min_dim_size_to_factor`.
  """

  def dims(shape):
    """The two largest axes, smaller first, or None where the moment is kept whole."""
    if not factored or len(shape) < 2:
      return None
    smaller, larger = sorted(range(len(shape)), key=lambda i: shape[i])[-2:]
    return (smaller, larger) if shape[smaller] >= min_dim_size_to_factor else None

  def init_slots(p):
    if (axes := dims(p.shape)) is None:
      return Slots(jnp.zeros(p.shape, jnp.float32), None, None)
    without = lambda axis: jnp.zeros([n for i, n in enumerate(p.shape) if i != axis], jnp.float32)
    return Slots(None, without(axes[1]), without(axes[0]))

  def update_leaf(g, p, slots, step, learning_rate):
    g, p32 = g.astype(jnp.float32), p.astype(jnp.float32)
    beta = 1.0 - (step + 1.0) ** -decay_rate
    g2 = jnp.square(g) + epsilon1
    if (axes := dims(p.shape)) is None:
      slots = Slots(beta * slots.v + (1 - beta) * g2, None, None)
      update = g * jax.lax.rsqrt(slots.v)
    else:
      smaller, larger = axes
      v_row = beta * slots.v_row + (1 - beta) * jnp.mean(g2, axis=larger)
      v_col = beta * slots.v_col + (1 - beta) * jnp.mean(g2, axis=smaller)
      slots = Slots(None, v_row, v_col)
      row_axis = smaller - (smaller > larger)  # of the smaller axis within v_row
      row = jax.lax.rsqrt(v_row / jnp.mean(v_row, axis=row_axis, keepdims=True))
      update = g * jnp.expand_dims(row, larger) * jnp.expand_dims(jax.lax.rsqrt(v_col), smaller)
    rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))
    update /= jnp.maximum(1.0, rms(update) / clipping_threshold)
    if multiply_by_parameter_scale:
      learning_rate = learning_rate * jnp.maximum(rms(p32), epsilon2)
    return (-learning_rate * update - weight_decay_rate * p32).astype(p.dtype), slots

  def make(schedule: Schedule) -> optax.GradientTransformation:
    def each_layer(path, fn):
      stacked = _STACKED.search(jax.tree_util.keystr(path, simple=True, separator='/'))
      return jax.vmap(fn) if stacked else fn

    def init(params):
      slots = jax.tree_util.tree_map_with_path(lambda path, p: each_layer(path, init_slots)(p), params)
      return AdafactorState(jnp.zeros((), jnp.int32), slots)

    def update(grads, state, params):
      step, rate = state.step.astype(jnp.float32), schedule(state.step)
      leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
      pairs = [
          each_layer(path, lambda g, p, s: update_leaf(g, p, s, step, rate))(g, p, s)
          for g, (path, p), s in zip(
              treedef.flatten_up_to(grads), leaves, treedef.flatten_up_to(state.slots), strict=True)]
      updates, slots = ([pair[i] for pair in pairs] for i in (0, 1))
      return treedef.unflatten(updates), AdafactorState(state.step + 1, treedef.unflatten(slots))

    return optax.GradientTransformation(init, update)

  return make


def adamw(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
    max_grad_norm: float | None = None) -> Optimizer:
  """AdamW; `max_grad_norm` clips the gradient's global norm first (prefix-tuning uses 1.0)."""
  clip = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
  return lambda schedule: optax.chain(*clip, optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay))


def by_collection(optimizer: Optimizer, factors: Mapping[str, float]) -> Optimizer:
  """The same optimizer with another learning rate for some collections, each with slots and clipping of its own.

  Args:
    factors: what the schedule is multiplied with, by collection: {'full': 0.1} trains the model of P-tuning with 1e-5
      where its prompt has 1e-4.
  """

  def labels(trainable):
    if unknown := sorted(set(factors) - set(trainable)):
      raise ValueError(f'by_collection.factors names {", ".join(unknown)}; what is trained is {", ".join(trainable)}.')
    return {name: name if name in factors else '' for name in trainable}

  def make(schedule: Schedule) -> optax.GradientTransformation:
    scaled = lambda factor: optimizer(lambda step: factor * schedule(step))
    return optax.partition({'': optimizer(schedule), **{name: scaled(x) for name, x in factors.items()}}, labels)

  return make


def _with_warmup(warmup_steps: int, after: Schedule) -> Schedule:
  """Linear from 0 over `warmup_steps`, times `after` (a function of the whole step)."""
  if not warmup_steps:
    return after
  return lambda step: jnp.minimum(1.0, step / warmup_steps) * after(step)


def constant(learning_rate: float, warmup_steps: int = 0) -> Schedule:
  """The same rate at every step (after warm-up)."""
  return _with_warmup(warmup_steps, lambda step: jnp.asarray(learning_rate, jnp.float32))


def linear(learning_rate: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
  """Falls to 0 at `total_steps` (Li & Liang 2021; Wang et al. 2022)."""
  left = lambda step: jnp.clip((total_steps - step) / max(1, total_steps - warmup_steps), 0.0, 1.0)
  return _with_warmup(warmup_steps, lambda step: learning_rate * left(step))


def rsqrt(learning_rate: float = 1.0, warmup_steps: int = 10_000) -> Schedule:
  """`learning_rate / sqrt(max(step, warmup_steps))`, T5's pre-training schedule: flat, then decaying."""
  return lambda step: learning_rate * jax.lax.rsqrt(jnp.maximum(step, max(1, warmup_steps)).astype(jnp.float32))
