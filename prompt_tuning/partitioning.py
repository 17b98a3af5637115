"""Which device holds what: a mesh (data, model) and T5X's logical axis rules."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import math

from flax import linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from prompt_tuning import trees
from prompt_tuning.types import PyTree

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

MESH_AXES = ('data', 'model')
LOGICAL_AXES = ('batch', 'length', 'vocab', 'embed', 'mlp', 'heads', 'kv', 'joined_kv', 'relpos_buckets',
                'abspos_buckets', 'layers')
"""All names of axes that parameters and activations have; T5X's."""


def standard_rules(activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 1) -> Rules:
  """Logical axis -> mesh axis, as T5X's `standard_logical_axis_rules`. The first rule for a name that is free counts.

  Args:
    activation_partitioning_dims: 2 spreads the width of activations over `model` too.
    parameter_partitioning_dims: 2 spreads the width of parameters over `data` too (FSDP, ZeRO-3): each device keeps
      its share and gathers a layer's when it comes to use it.

  Raises:
    ValueError: one of the two is neither 1 nor 2.
  """
  for name, dims in (('ACTIVATION_PARTITIONING_DIMS', activation_partitioning_dims),
                     ('PARAMETER_PARTITIONING_DIMS', parameter_partitioning_dims)):
    if dims not in (1, 2):
      raise ValueError(f'{name}={dims!r}; expected 1 or 2.')
  width = [('embed', 'model')] * (activation_partitioning_dims == 2)
  width += [('embed', 'data')] * (parameter_partitioning_dims == 2)
  return (('batch', 'data'), ('vocab', 'model'), ('mlp', 'model'), ('heads', 'model'), ('joined_kv', 'model'), *width)


class Partitioner:
  """Places base parameters, activations, batches and trainables on all devices.

  The frozen base is split over the `model` axis, and with `parameter_partitioning_dims` 2 over `data` too; batches over
  `data`; trainables and their optimizer state are small and whole on every device.
  """

  def __init__(
      self, num_partitions: int = 1, model_parallel_submesh: Sequence[int] | None = None,
      additional_rules: Rules = (), devices: Sequence[jax.Device] | None = None,
      activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 1):
    """Args:
      num_partitions: size of the `model` axis.
      model_parallel_submesh: T5X's way to say the same: its product is taken.
      additional_rules: logical axis rules that go before the standard ones.
      devices: all of them if None. Those of several slices are joined along `data`, the axis with least traffic.
      activation_partitioning_dims, parameter_partitioning_dims: see `standard_rules`.

    Raises:
      ValueError: the devices do not divide into that many partitions, or a rule names an axis that there is not.
    """
    devices = list(devices or jax.devices())
    if model_parallel_submesh is not None:
      num_partitions = math.prod(model_parallel_submesh)
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    together = len(devices) // slices
    if num_partitions < 1 or together % num_partitions:
      raise ValueError(
          f'NUM_PARTITIONS={num_partitions} does not divide the {together} devices'
          f'{" of a slice" if slices > 1 else ""}; choose one of '
          f'{[n for n in range(1, together + 1) if together % n == 0]}.')
    self.num_partitions = num_partitions
    own = [_checked(rule) for rule in additional_rules]
    rules = (*own, *standard_rules(activation_partitioning_dims, parameter_partitioning_dims))
    self.rules = tuple(sorted(rules, key=lambda rule: rule[0] != 'batch'))  # rows stay where they are, whatever follows
    shape = together // num_partitions, num_partitions
    create, more = mesh_utils.create_device_mesh, ()
    if slices > 1:
      create, more = mesh_utils.create_hybrid_device_mesh, ((slices, 1),)
    # As `jax.make_mesh`, which refuses axes that are no product of the sides of a torus: 8 of 4 x 4 x 4.
    grid = create(shape, *more, devices=devices, allow_split_physical_axes=True)
    self.mesh: Mesh = Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 2)

  @functools.cached_property
  def replicated(self) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  @functools.cached_property
  def rows(self) -> NamedSharding:
    """Leading axis over `data`."""
    return NamedSharding(self.mesh, PartitionSpec('data'))

  def shardings(self, abstract_boxed: PyTree) -> PyTree:
    """Shardings of a tree of shapes boxed with logical axis names.

    A vocabulary that does not divide over its mesh axis is whole on every device.

    Raises:
      ValueError: another dimension does not divide; the message names parameter, size and axis.
    """
    return trees.unflatten({
        path: NamedSharding(self.mesh, spec) for path, (spec, _) in self._specs(abstract_boxed).items()})

  def describe(self, abstract_boxed: PyTree) -> str:
    """The mesh, and what cannot be split over it, in one line."""
    whole = [text for _, text in self._specs(abstract_boxed).values() if text]
    return '; '.join([f'mesh {dict(self.mesh.shape)}', *whole])

  @contextlib.contextmanager
  def constraints(self, apart: bool = False) -> Iterator[None]:
    """Where a backbone is applied within it, its activations are laid out by the rules.

    See `flax.linen.with_logical_constraint`. Lengths that do not divide over a mesh axis are padded by the compiler.

    Args:
      apart: under a `jax.vmap` whose axis is spread over `data`, which no other axis can be then.
    """
    if self.mesh.size == 1:
      yield
      return
    rules = [(name, _without_data(over)) for name, over in self.rules] if apart else self.rules
    with nn.logical_axis_rules(rules), jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
      yield

  def check_heads(self, num_heads: int) -> None:
    """Raises ValueError where a head would be split over devices."""
    if num_heads % (n := self._size(nn.logical_to_mesh_axes(('heads',), self.rules)[0])):
      raise ValueError(
          f'NUM_PARTITIONS={n} cannot share {num_heads} attention heads equally; choose a divisor of {num_heads}.')

  def check_batch(self, batch_size: int, name: str = 'BATCH_SIZE') -> None:
    """Raises ValueError where the batch does not divide over the data axis."""
    if batch_size % self.mesh.shape['data']:
      raise ValueError(
          f'{name}={batch_size} does not divide over the {self.mesh.shape["data"]} data-parallel devices '
          f'(mesh {dict(self.mesh.shape)}); choose a multiple.')

  def shards_here(self, batch_size: int, shards: int) -> list[int]:
    """Which of `shards` equal runs of a batch's rows have some that this process's devices hold."""
    held = self.rows.addressable_devices_indices_map((batch_size,)).values()
    rows = {row for (index,) in held for row in range(*index.indices(batch_size))}
    return sorted({row * shards // batch_size for row in rows})

  def place_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The same host batch [B, ...] on every process -> global arrays, each device given its own rows."""
    return {
        name: jax.make_array_from_callback(x.shape, self.rows, lambda index, x=x: x[index])
        for name, x in batch.items()}

  def replicate(self, tree: PyTree) -> PyTree:
    """Puts small host or device arrays whole on every device."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), self.replicated, lambda index: np.asarray(x)[index]), tree)

  def _size(self, over: str | Sequence[str] | None) -> int:
    """Devices along mesh axes."""
    return 1 if over is None else math.prod(self.mesh.shape[axis] for axis in np.atleast_1d(over))

  def _specs(self, abstract_boxed: PyTree) -> dict[str, tuple[PartitionSpec, str]]:
    """By path: how a parameter is split, and what is to be said of it."""
    names = trees.flatten(nn.get_partition_spec(abstract_boxed))
    found = {}
    for path, x in trees.flatten(nn.meta.unbox(abstract_boxed)).items():
      spec, note = list(nn.logical_to_mesh_axes(names[path], self.rules)), ''
      for axis, (size, over) in enumerate(zip(x.shape, spec, strict=False)):
        if size % (n := self._size(over)):
          if names[path][axis] != 'vocab':
            raise ValueError(
                f'{path} {list(x.shape)}: axis {axis} of {size} does not divide over {n} devices of mesh axis {over!r} '
                f'(mesh {dict(self.mesh.shape)}). Change NUM_PARTITIONS, PARAMETER_PARTITIONING_DIMS, '
                'ACTIVATION_PARTITIONING_DIMS or LOGICAL_AXIS_RULES.')
          spec[axis] = None
          note = f'{path} is not split over {over!r}: {size} tokens do not divide by {n}'
      found[path] = PartitionSpec(*spec), note
    return found


def _without_data(over: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return tuple(axis for axis in np.atleast_1d(over) if axis not in ('data', None))


def _checked(rule: Sequence) -> tuple[str, str | tuple[str, ...] | None]:
  """A rule of the user's.

  Raises:
    ValueError: it is no pair, or names an axis that there is not.
  """
  expected = f"expected pairs such as ('embed', 'data') of a logical axis, one of {', '.join(LOGICAL_AXES)}, and " \
             f"{' or '.join(map(repr, MESH_AXES))}, a tuple of both, or None."
  if isinstance(rule, str) or len(rule) != 2 or rule[0] not in LOGICAL_AXES:
    raise ValueError(f'LOGICAL_AXIS_RULES: {rule!r} is no rule for a logical axis; {expected}')
  axes = () if rule[1] is None else (rule[1],) if isinstance(rule[1], str) else tuple(rule[1])
  if wrong := [axis for axis in axes if axis not in MESH_AXES]:
    raise ValueError(f'LOGICAL_AXIS_RULES: {tuple(rule)!r} names no mesh axis by {wrong[0]!r}; {expected}')
  return rule[0], rule[1] if rule[1] is None or isinstance(rule[1], str) else axes
