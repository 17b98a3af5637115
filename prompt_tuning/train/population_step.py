"""One step of many trainings: which members are one `vmap`, their batches, and their gradients and updates."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning import features, loading, trees
from prompt_tuning.checkpoints.tuned import PROMPT
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import batches as batches_lib
from prompt_tuning.train import data
from prompt_tuning.train.step import LossFn, TrainState
from prompt_tuning.types import Array, Batch, Params, Trainable


class Group(NamedTuple):
  """Members that are one `vmap`."""

  numbers: tuple[int, ...]
  model: Prompted  # of the longest of them
  length: int  # rows of its prompt, which the others are padded to; 0: nothing is padded


def groups(members: Sequence[loading.Loaded], trainables: Sequence[Trainable], pad: bool) -> list[Group]:
  """Members by the shapes of their trainables; `pad`: prompts that differ in length alone are together."""
  found: dict[tuple, list[int]] = {}
  for i, trainable in enumerate(trainables):
    shapes = {path: np.shape(x) for path, x in trees.flatten(trainable).items()}
    if pad and not any(path.startswith('prompt/') and path != PROMPT for path in shapes):  # no network, no neighbours
      shapes[PROMPT] = shapes.get(PROMPT, ())[1:]
    found.setdefault(tuple(sorted(shapes.items())), []).append(i)
  rows = lambda i: len(trainables[i]['prompt']['embedding']) if 'prompt' in trainables[i] else 0
  result = []
  for numbers in found.values():
    longest = max(numbers, key=rows)
    uneven = len({rows(i) for i in numbers}) > 1
    result.append(Group(tuple(numbers), members[longest].model, rows(longest) if uneven else 0))
  return result


class Batches:
  """A batch of each member at a time, with the position in the data of them all."""

  def __init__(
      self, dataset: data.Dataset, converters: Sequence[features.Converter], seeds: Sequence[int],
      positions: Sequence[Mapping] | None, shared_order: bool, shards: Sequence[int] | None = None):
    """Args:
      converters: of each member.
      positions: as `position` gave them, to go on from there.
      shared_order: all members see the examples in the order of the first one's seed, which are then read once.
      shards: of the dataset that are needed here (None: all).
    """
    self._shared = shared_order
    if shared_order:
      converters, seeds = [_Every(tuple(converters))], seeds[:1]
    self._streams = [
        batches_lib.TrainBatches(dataset, convert, seed, position, shards)
        for convert, seed, position in zip(converters, seeds, positions or [None] * len(seeds), strict=True)]

  @property
  def position(self) -> dict[str, list[dict[str, int]]]:
    return {'streams': [dict(stream.position) for stream in self._streams]}

  def __next__(self) -> list[dict[str, np.ndarray]]:
    batches = [next(stream) for stream in self._streams]
    return batches[0] if self._shared else batches


class _Every(NamedTuple):
  """The converters of all members as one."""

  converters: Sequence[features.Converter]

  def ids(self, example: features.Example) -> list[features.Ids]:
    return [converter.ids(example) for converter in self.converters]

  def features(self, ids: Sequence[Sequence[features.Ids]]) -> list[dict[str, np.ndarray]]:
    return [converter.features(own) for converter, own in zip(self.converters, zip(*ids, strict=True), strict=True)]


def place(
    groups: Sequence[Group], batches: Sequence[Mapping[str, np.ndarray]], rows: jax.sharding.Sharding,
    pad_id: int) -> list[dict[str, Array]]:
  """Members' batches [B, ...] -> of each group one [n, B, ...] on devices, sources padded to the longest."""
  stacked = []
  for group in groups:
    some = [batches[i] for i in group.numbers]
    width = max(batch['encoder_input_tokens'].shape[1] for batch in some)
    stacks = {name: np.stack([_widened(batch[name], width, pad_id) if name == 'encoder_input_tokens' else batch[name]
                              for batch in some]) for name in some[0]}
    stacked.append({name: jax.make_array_from_callback(x.shape, rows, lambda index, x=x: x[index])
                    for name, x in stacks.items()})
  return stacked


def _widened(tokens: np.ndarray, width: int, pad_id: int) -> np.ndarray:
  return np.pad(tokens, [(0, 0), (0, width - tokens.shape[1])], constant_values=pad_id)


def make(
    groups: Sequence[Group], optimizers: Sequence[optax.GradientTransformation], loss_fn: LossFn,
    dropout_seeds: Sequence[int] | None) -> Callable[[TrainState, Params, Sequence[Batch]], tuple[TrainState, tuple]]:
  """The jitted `(state, frozen, batches) -> (state, metrics of each member)`.

  `trainable` and `opt_state` of the state are tuples over members, in their true shapes. The state is donated.

  Args:
    dropout_seeds: of each member, folded with the step; None: no dropout.
  """

  def gradients(group: Group, trainables, frozen, batch, keys):
    """Gradients of each member of a group, and their losses with leaves [n]."""

    def total(trainables):
      stacked = jax.tree.map(lambda *x: jnp.stack(x), *[_padded(t, group.length) for t in trainables])
      each = lambda trainable, batch, key: loss_fn(group.model.unread(trainable, frozen, batch, key), batch)
      loss = jax.vmap(each)(stacked, batch, keys)
      return jnp.sum(loss.total), loss  # members do not meet: the gradient of the sum is that of each

    return jax.grad(total, has_aux=True)(trainables)

  def train_step(state: TrainState, frozen: Params, batches: Sequence[Batch]):
    trainables, opt_states, metrics = (list(x) for x in (state.trainable, state.opt_state, state.trainable))
    for group, batch in zip(groups, batches, strict=True):
      keys = None
      if dropout_seeds is not None:
        seeds = jnp.array([dropout_seeds[i] for i in group.numbers])
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), state.step))(seeds)
      grads, losses = gradients(group, [state.trainable[i] for i in group.numbers], frozen, batch, keys)
      for at, i in enumerate(group.numbers):
        loss = jax.tree.map(lambda x, at=at: x[at], losses)
        grad = jax.tree.map(lambda g, by=loss.normalizer: g / by, grads[at])
        updates, opt_states[i] = optimizers[i].update(grad, state.opt_state[i], state.trainable[i])
        trainables[i] = optax.apply_updates(state.trainable[i], updates)
        metrics[i] = {
            'loss': loss.total / loss.normalizer,
            'z_loss': loss.z_loss / loss.normalizer,
            'loss_per_nonpadding_target_token': loss.total / jnp.maximum(loss.tokens, 1),
            'accuracy': loss.correct / jnp.maximum(loss.tokens, 1),
            'grad_norm': optax.tree.norm(grad),
        }
    return TrainState(state.step + 1, tuple(trainables), tuple(opt_states)), tuple(metrics)

  return jax.jit(train_step, donate_argnums=0)


def _padded(trainable: Trainable, length: int) -> Trainable:
  """A prompt with rows of zeros behind its own, whose ids stand nowhere; `length` 0: as it is."""
  if not length:
    return trainable
  table = trainable['prompt']['embedding']
  return {**trainable, 'prompt': {'embedding': jnp.pad(table, [(0, length - len(table)), (0, 0)])}}
