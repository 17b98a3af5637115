"""How the examples of a batch stand in rows: padded to one length, to buckets of lengths, or several in a row.

However they stand, a batch has the same examples (unless `Bucketed.window` deals out several), so that losses, updates
and epochs are those of padded rows to rounding, and only the time differs. (With dropout on, its masks differ: they
are drawn by row, and the segments of a packed row share one along its length.) How they stand depends on the batch
alone, not on those before it, so that an interrupted run goes on as it would have. Numpy only: what is made of it on
the device is the features' affair.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ATTENTION = 1000  # tokens of a row whose attention costs as much as all else of it
_TARGET = 1.5  # what a target token costs in source tokens: a column of logits


class Room(NamedTuple):
  """What padded rows have room for.

  Attributes:
    rows: of the batch, one an example.
    source, target: S and T, virtual tokens included.
    virtual: how many of S are for virtual tokens.
    multiple: the rows of an array are a multiple of this.
  """

  rows: int
  source: int
  target: int
  virtual: int = 0
  multiple: int = 1


class Place(NamedTuple):
  """Where an example stands: its number in the batch, a row, and the first slots of its source and its target."""

  example: int
  row: int
  source: int = 0
  target: int = 0


class Piece(NamedTuple):
  """Arrays [rows, source] and [rows, target] and who stands where; of a row in order, if it is packed."""

  rows: int
  source: int
  target: int
  places: tuple[Place, ...]
  packed: bool = False


@dataclasses.dataclass(frozen=True)
class Padded:
  """A row an example, all rows of the feature lengths: one shape."""

  pieces = 1  # of a batch
  packs = False
  sorts = False  # evaluation gains by batches of similar lengths
  window = 1

  def __call__(self, sources: Sequence[int], targets: Sequence[int], room: Room) -> list[Piece]:
    """Lengths of placed sources [n] and of targets [n] -> the pieces of the batch."""
    del targets
    return [Piece(room.rows, room.source, room.target, tuple(Place(i, i) for i in range(len(sources))))]


@dataclasses.dataclass(frozen=True)
class Bucketed:
  """A row an example, as long as the bucket of the longest: at most one shape a bucket.

  Attributes:
    lengths: the buckets, tokens of text, on top of which virtual tokens come; and the feature length.
    target_lengths: the same of targets; None: they have the feature length.
    groups: the examples of a training step are dealt out by length to at most so many arrays of equally many rows, each
      with its own bucket, and their gradients are added up. Of the numbers of arrays that divide this one and
      BATCH_SIZE (over devices and microbatches), the cheapest for a batch is taken.
    array_cost: what one more array costs, in tokens: all parameters are read once more. More where the processor is
      faster than its memory.
    window: training reads so many batches at once and deals their examples out by length to that many steps, in random
      order. More than 1 saves more, and a step has other examples than with padded rows.
  """

  lengths: tuple[int, ...] = LENGTHS
  target_lengths: tuple[int, ...] | None = None
  groups: int = 1
  array_cost: float = 150
  window: int = 1

  packs = False
  sorts = True

  def __post_init__(self):
    _check_lengths(self.lengths, 'Bucketed.lengths')
    _check_lengths(self.target_lengths or (1,), 'Bucketed.target_lengths')
    for name, value in (('groups', self.groups), ('window', self.window)):
      if not isinstance(value, int) or value < 1:
        raise ValueError(f'Bucketed.{name}={value!r}; expected a number from 1 on.')

  @property
  def pieces(self) -> int:
    return self.groups

  def __call__(self, sources: Sequence[int], targets: Sequence[int], room: Room) -> list[Piece]:
    """As `Padded`."""
    order = np.argsort(sources, kind='stable').tolist() if self.groups > 1 else list(range(len(sources)))
    counts = [n for n in range(2, self.groups + 1) if self.groups % n == 0 and room.rows % (n * room.multiple) == 0]
    dealt = [self._dealt(order, room.rows // n, sources, targets, room) for n in (1, *counts)]
    return min(dealt, key=lambda pieces: sum(self.array_cost + _cost(*piece[:3]) for piece in pieces))

  def _dealt(
      self, order: Sequence[int], rows: int, sources: Sequence[int], targets: Sequence[int], room: Room) -> list[Piece]:
    """The examples in that order, `rows` an array."""
    found = []
    for some in (order[i:i + rows] for i in range(0, len(order), rows)):
      source = _bucket(max(sources[i] for i in some), self.lengths, room.virtual, room.source)
      target = room.target
      if self.target_lengths is not None:
        target = _bucket(max(targets[i] for i in some), self.target_lengths, 0, room.target)
      found.append(Piece(rows, source, target, tuple(Place(i, row) for row, i in enumerate(some))))
    return found


@dataclasses.dataclass(frozen=True)
class Packed:
  """Several examples a row, which do not see each other: a segment each, with virtual tokens of its own.

  Of the row lengths that hold the longest example, and of rows for one to eight times the targets' feature length, the
  cheapest are taken. BATCH_SIZE still counts examples; rows are as many as these fill, rounded up.

  Attributes:
    lengths: of rows, virtual tokens included; and that of a padded row.
    steps: the number of rows is a multiple of BATCH_SIZE / steps, so that there are at most that many shapes a length.
  """

  lengths: tuple[int, ...] = (128, 256, 384, 512)
  steps: int = 8

  pieces = 1
  packs = True
  sorts = False
  window = 1

  def __post_init__(self):
    _check_lengths(self.lengths, 'Packed.lengths')
    if not isinstance(self.steps, int) or self.steps < 1:
      raise ValueError(f'Packed.steps={self.steps!r}; expected a number from 1 on.')

  def __call__(self, sources: Sequence[int], targets: Sequence[int], room: Room) -> list[Piece]:
    """As `Padded`."""
    grid = _rounded_up(-(-room.rows // self.steps), room.multiple)
    found = []
    for source in sorted({*self.lengths, room.source}):
      for target in (room.target * n for n in (1, 2, 4, 8) if source >= max(sources)):
        places = _first_fit(sources, targets, source, target)
        rows = _rounded_up(1 + max(place.row for place in places), grid)
        found.append((_cost(rows, source, target), Piece(rows, source, target, places, packed=True)))
    return [min(found, key=lambda pair: pair[0])[1]]


Batching = Padded | Bucketed | Packed


def _first_fit(sources: Sequence[int], targets: Sequence[int], source: int, target: int) -> tuple[Place, ...]:
  """The longest sources first, each into the first row [source], [target] with room for it and its target."""
  filled: list[list[int]] = []
  places = []
  for i in np.argsort(-np.asarray(sources), kind='stable').tolist():
    fits = (row for row, (s, t) in enumerate(filled) if s + sources[i] <= source and t + targets[i] <= target)
    if (row := next(fits, None)) is None:
      row = len(filled)
      filled.append([0, 0])
    places.append(Place(i, row, *filled[row]))
    filled[row][0] += sources[i]
    filled[row][1] += targets[i]
  return tuple(places)


def by_length(items: Sequence[Any], size: int, length: Callable[[Any], int]) -> list[list[Any]]:
  """The items of a window in batches of `size`, the shortest first."""
  order = sorted(items, key=length)
  return [order[i:i + size] for i in range(0, len(order), size)]


def each(function: Callable[[Mapping[str, Any]], Any], batch: Mapping[str, Any] | tuple[Mapping[str, Any], ...]):
  """The function of a batch, or of each of its pieces."""
  return tuple(map(function, batch)) if isinstance(batch, tuple) else function(batch)


def sources(batch: Mapping[str, Any] | tuple[Mapping[str, Any], ...]) -> list[Any]:
  """The encoder's tokens of a batch or of each of its pieces."""
  return [piece['encoder_input_tokens'] for piece in (batch if isinstance(batch, tuple) else (batch,))]


def _cost(rows: int, source: int, target: int) -> float:
  """Of a step on such arrays, in source tokens."""
  return rows * (source * (1 + source / _ATTENTION) + _TARGET * target)


def _bucket(longest: int, lengths: Sequence[int], virtual: int, limit: int) -> int:
  return min((n + virtual for n in lengths if longest <= n + virtual < limit), default=limit)


def _rounded_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _check_lengths(lengths: Sequence[int], name: str) -> None:
  if not lengths or not all(isinstance(n, int) and n > 0 for n in lengths):
    raise ValueError(f'{name}={lengths!r}; expected one or more numbers of tokens, such as (64, 128, 256, 512).')
