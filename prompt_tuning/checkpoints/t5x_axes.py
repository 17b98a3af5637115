"""How the axes of T5X's arrays become ours: T5X scans layers along axis 1, and splits heads where it does.

We have layers first, [L, ...], and the heads of an attention joined, [D, N*H].
"""
import math
import re
from typing import NamedTuple

import numpy as np

from prompt_tuning.checkpoints.source import Index

SCANNED = re.compile(r'(encoder/encoder|decoder/decoder)/')  # names of the arrays of scanned layers


class Axes(NamedTuple):
  """How a stored array becomes one of ours: `groups[i]` are the stored axes that, joined, are our axis i."""

  groups: tuple[tuple[int, ...], ...]

  def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape of an array of shape `stored`."""
    return tuple(math.prod(stored[axis] for axis in group) for group in self.groups)

  def index(self, ours: Index, stored: tuple[int, ...]) -> tuple[Index, Index]:
    """The stored slices that cover our slices `ours`, and ours within what they give."""
    ours = (*ours, *[slice(None)] * (len(self.groups) - len(ours)))
    outer, inner = [slice(None)] * len(stored), []
    for group, s, n in zip(self.groups, ours, self.shape(stored), strict=True):
      start, stop, _ = s.indices(n)
      width = n // stored[group[0]] if n else 1  # of one row of the first of the joined axes
      first = start // width
      outer[group[0]] = slice(first, -(-stop // width))
      inner.append(slice(start - first * width, stop - first * width))
    return tuple(outer), tuple(inner)

  def ours(self, value: np.ndarray) -> np.ndarray:
    """A stored value as one of ours."""
    return value.transpose([axis for group in self.groups for axis in group]).reshape(self.shape(value.shape))

  def stored_shape(self, ours: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """The shape in which an array of ours is stored; axes that we join are `heads` and what is left."""
    sizes = {}
    for group, n in zip(self.groups, ours, strict=True):
      sizes |= {group[0]: n} if len(group) == 1 else {group[0]: heads, group[1]: n // heads}
    return tuple(sizes[axis] for axis in range(len(sizes)))

  def stored(self, value: np.ndarray, heads: int) -> np.ndarray:
    """A value of ours as it is stored."""
    shape, order = self.stored_shape(value.shape, heads), [axis for group in self.groups for axis in group]
    return value.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def of(name: str, ndim: int) -> Axes:
  """Of the array that T5X calls `name`: layers come first, the heads of an attention are joined.

  Scanned layers are axis 1 in T5X's `scalable_t5`, whose attention kernels are [E, N, H] and [N, H, E].
  """
  scanned = SCANNED.match(name) is not None
  first, rest = ([(1,)], [0, *range(2, ndim)]) if scanned else ([], list(range(ndim)))
  if len(rest) == 3 and re.search(r'/(query|key|value)/kernel$', name):
    return Axes((*first, (rest[0],), tuple(rest[1:])))
  if len(rest) == 3 and name.endswith('/out/kernel'):
    return Axes((*first, tuple(rest[:2]), (rest[2],)))
  return Axes((*first, *((axis,) for axis in rest)))
