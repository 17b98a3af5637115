"""Which device holds what: a mesh (data, model) and T5X's logical axis rules."""

from collections.abc import Sequence
import functools
import math

from flax import linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from prompt_tuning import trees
from prompt_tuning.types import PyTree

Rules = Sequence[tuple[str, str | None]]

STANDARD_RULES: Rules = (
    ('batch', 'data'), ('vocab', 'model'), ('mlp', 'model'), ('heads', 'model'), ('joined_kv', 'model'),
    ('embed', None), ('kv', None), ('relpos_buckets', None), ('length', None), ('layers', None),
)
"""Logical axis -> mesh axis, T5X's one-dimensional partitioning. The first rule for a name counts."""


class Partitioner:
  """Places base parameters, batches and trainables on all devices.

  The frozen base is split over the `model` axis, batches over `data`; trainables and their optimizer state are
  small and whole on every device.
  """

  def __init__(
      self, num_partitions: int = 1, model_parallel_submesh: Sequence[int] | None = None,
      additional_rules: Rules = (), devices: Sequence[jax.Device] | None = None):
    """Args:
      num_partitions: size of the `model` axis.
      model_parallel_submesh: T5X's way to say the same: its product is taken.
      additional_rules: logical axis rules that go before `STANDARD_RULES`.
      devices: all of them if None.

    Raises:
      ValueError: the devices do not divide into that many partitions.
    """
    devices = list(devices or jax.devices())
    if model_parallel_submesh is not None:
      num_partitions = math.prod(model_parallel_submesh)
    if num_partitions < 1 or len(devices) % num_partitions:
      raise ValueError(
          f'NUM_PARTITIONS={num_partitions} does not divide the {len(devices)} devices; choose one of '
          f'{[n for n in range(1, len(devices) + 1) if len(devices) % n == 0]}.')
    self.num_partitions = num_partitions
    self.rules = (*additional_rules, *STANDARD_RULES)
    self.mesh: Mesh = jax.make_mesh(
        (len(devices) // num_partitions, num_partitions), ('data', 'model'),
        axis_types=(AxisType.Auto,) * 2, devices=devices)

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

    Raises:
      ValueError: a dimension does not divide over its mesh axis; the message names parameter, size and axis.
    """
    specs = nn.get_partition_spec(abstract_boxed)
    shardings = nn.logical_to_mesh_sharding(specs, self.mesh, self.rules)
    shapes = trees.flatten(nn.meta.unbox(abstract_boxed))
    for path, sharding in trees.flatten(shardings).items():
      for axis, (size, over) in enumerate(zip(shapes[path].shape, sharding.spec, strict=False)):
        if over is not None and size % (n := math.prod(self.mesh.shape[a] for a in np.atleast_1d(over))):
          raise ValueError(
              f'{path} {list(shapes[path].shape)}: axis {axis} of {size} does not divide over {n} devices of mesh '
              f'axis {over!r}. Lower NUM_PARTITIONS (now {self.num_partitions}) or change the axis rules.')
    return shardings

  def check_heads(self, num_heads: int) -> None:
    """Raises ValueError where a head would be split over devices."""
    if num_heads % self.num_partitions:
      raise ValueError(
          f'NUM_PARTITIONS={self.num_partitions} cannot share {num_heads} attention heads equally; choose a divisor '
          f'of {num_heads}.')

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
