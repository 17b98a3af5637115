"""From the tensors of an opened checkpoint into shards of our parameters, quantised on the way if they are to be."""

from collections.abc import Sequence
from concurrent import futures
import math

import jax
import numpy as np

from prompt_tuning import quantized
from prompt_tuning.checkpoints import keys
from prompt_tuning.checkpoints.source import Source
from prompt_tuning.types import Array

Bounds = tuple[tuple[int, int], ...]  # (start, stop) of each axis
Parts = dict[Bounds, np.ndarray]


def load(
    source: Source, entry: keys.Entry, path: str, leaves: Sequence[jax.ShapeDtypeStruct],
    shardings: Sequence[jax.sharding.Sharding], threads: futures.Executor) -> list[Array]:
  """The parameter at `path`: an array as `leaves` and `shardings` say, or two of them, int8 codes and their scales.

  Of each tensor, what this process's devices need is read once; a thread holds one of them at a time.
  """
  shared = None
  if len(leaves) == 2:
    axis, rank = quantized.shared_axis(path), len(leaves[0].shape)
    shared = (axis + rank - entry.stacked, leaves[0].shape[axis])
  bounds = [
      {device: tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
       for device, index in sharding.addressable_devices_indices_map(leaf.shape).items()}
      for leaf, sharding in zip(leaves, shardings, strict=True)]
  parts = [  # replicas share one
      {b: _empty([stop - start for start, stop in b], leaf.dtype) for b in each.values()}
      for leaf, each in zip(leaves, bounds, strict=True)]
  if entry.stacked:
    layers = sorted({i for b in parts[0] for i in range(*b[0])})
    list(threads.map(lambda i: fill(source, entry, i, [{
        b[1:]: part[i - b[0][0]] for b, part in each.items() if b[0][0] <= i < b[0][1]} for each in parts], shared),
                     layers))
  else:
    fill(source, entry, 0, parts, shared)
  return [
      jax.make_array_from_single_device_arrays(
          leaf.shape, sharding, [jax.device_put(own[b], device) for device, b in each.items()])
      for leaf, sharding, own, each in zip(leaves, shardings, parts, bounds, strict=True)]


def fill(
    source: Source, entry: keys.Entry, layer: int, parts: Sequence[Parts],
    shared: tuple[int, int] | None = None) -> None:
  """Fills arrays, keyed by their bounds in one layer of our leaf, from one tensor, of which it reads the hull.

  Args:
    parts: of the parameter; or of its codes, and of their scales, which lack an axis.
    shared: that axis, which is read whole, and its size.
  """
  bounds = list(parts[0])
  if shared is not None:
    axis, size = shared
    bounds += [(*b[:axis], (0, size), *b[axis:]) for b in parts[1]]
  hull = tuple((min(start for start, _ in pair), max(stop for _, stop in pair)) for pair in zip(*bounds, strict=True))
  value = read(source, entry, layer, hull)
  if shared is None:
    _cut(value, hull, parts[0])
  else:
    codes, scales = quantized.quantize(value, axis)
    _cut(codes, hull, parts[0])
    _cut(scales, (*hull[:axis], *hull[axis + 1:]), parts[1])


def _cut(value: np.ndarray, hull: Bounds, parts: Parts) -> None:
  """Fills arrays, keyed by their bounds, from what lies within `hull`."""
  for bounds, part in parts.items():
    part[...] = value[tuple(slice(a - h, b - h) for (a, b), (h, _) in zip(bounds, hull, strict=True))]


def read(source: Source, entry: keys.Entry, layer: int, bounds: Bounds) -> np.ndarray:
  """What lies within `bounds` of one layer of our leaf (or of all of it)."""
  name = entry.names[layer]
  tensor = source.read(name, entry.stored_index(bounds, source.tensors[name].shape))
  return _transposed(tensor) if entry.transpose else tensor


def _transposed(x: np.ndarray) -> np.ndarray:
  """A copy of the transpose of a matrix, five times faster than NumPy's and reading `x` from front to back."""
  result = np.empty(x.shape[::-1], x.dtype)
  rows = max(1, 32 // x.itemsize)
  for i in range(0, len(x), rows):
    result[:, i:i + rows] = x[i:i + rows].T
  return result


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """An array that begins at a multiple of 64 bytes, which a CPU device takes over without a copy."""
  dtype = np.dtype(dtype)
  size = math.prod(shape) * dtype.itemsize
  data = np.empty(size + 64, np.uint8)
  offset = -data.ctypes.data % 64
  return data[offset:offset + size].view(dtype).reshape(shape)
