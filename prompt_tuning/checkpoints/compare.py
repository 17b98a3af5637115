"""What there is in a checkpoint, and how two differ: parameter by parameter, whatever their formats."""
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from prompt_tuning.checkpoints import base, convert, keys
from prompt_tuning.checkpoints.source import Source, TensorInfo


class Difference(NamedTuple):
  """A parameter of which two checkpoints say different things; None for one that does not have it."""

  path: str
  infos: tuple[TensorInfo | None, TensorInfo | None]
  largest: float | None  # difference of two values, where the shapes agree
  unequal: int  # how many values differ

  def lines(self) -> list[str]:
    """As a diff: `-` the first, `+` the second, `~` both, with other values."""
    if self.largest is not None:
      size = int(np.prod(self.infos[0].shape))
      return [f'~ {self.path} {list(self.infos[0].shape)}  {self.unequal} of {size} values differ, by at most '
              f'{self.largest:.3g}']
    return [f'{sign} {self.path} {list(info.shape)}' for sign, info in zip('-+', self.infos, strict=True) if info]


def parameters(source: Source) -> dict[str, convert.Leaf]:
  """Every parameter of a checkpoint: by our path for a model that is known here, else by its stored name."""
  known = source.key_table(source.config) if source.config else {}
  shapes = {name: info.shape for name, info in source.tensors.items()}
  table = {path: entry for path, entry in known.items()  # whole, with one shape in all layers
           if len(found := set(map(shapes.get, entry.names))) == 1 and None not in found}
  named = {name for entry in table.values() for name in entry.names}
  leaves = {path: convert.leaf(source, entry) for path, entry in table.items()}
  rest = [name for name in source.tensors if name not in named and not source.ignored(name)]
  return leaves | {name: convert.leaf(source, keys.Entry((name,))) for name in rest}


def in_memory(tensors: Mapping[str, np.ndarray]) -> dict[str, convert.Leaf]:
  """Arrays as `parameters` would give them."""
  return {
      name: convert.Leaf(TensorInfo(x.shape, x.dtype), lambda x=x: iter([(0, x)])) for name, x in tensors.items()}


def differences(
    first: Mapping[str, convert.Leaf], second: Mapping[str, convert.Leaf], atol: float = 0.0,
    tick: Callable[[int], None] = lambda nbytes: None) -> Iterator[Difference]:
  """Yields what is missing on either side, has another shape, or values that differ by more than `atol`.

  Types may differ: values are compared as float32. Not-a-number equals itself. `tick` is told how many bytes of
  `first` were compared, after each parameter.
  """
  for path in sorted({**first, **second}):
    infos = tuple(side[path].info if path in side else None for side in (first, second))
    if None in infos or infos[0].shape != infos[1].shape:
      yield Difference(path, infos, None, 0)
      continue
    largest, unequal = 0.0, 0
    for a, b in _in_step(first[path], second[path]):
      a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
      with np.errstate(invalid='ignore'):  # infinite values
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
      differs = ~(apart <= atol)
      unequal += int(differs.sum())
      largest = float(np.max(apart, initial=largest))
    tick(infos[0].nbytes)
    if unequal:
      yield Difference(path, infos, largest, unequal)


def _in_step(first: convert.Leaf, second: convert.Leaf) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The same parts of two leaves, layer by layer if both can."""
  if first.piecewise and second.piecewise:
    yield from ((a, b) for (_, a), (_, b) in zip(first.pieces(), second.pieces(), strict=True))
  else:
    yield first.whole(), second.whole()


def fingerprint(source: Source, tick: Callable[[int], None] = lambda nbytes: None) -> str:
  """The fingerprint of a model on disk, equal to `base.fingerprint` of what is loaded; one parameter at a time.

  `tick` is told how many bytes were read, after each.
  """
  checksums = {}
  for path, leaf in parameters(source).items():
    checksums[path] = leaf.info.shape, int(jax.device_get(base.checksum(leaf.whole())))
    tick(leaf.info.nbytes)
  return base.digest(checksums)
