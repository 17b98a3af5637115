"""Batches of a dataset: endless for training, with a position to go on from, and once over for evaluation.

The position is two integers, epoch and offset of the next example, kept in every checkpoint; within a window of batches
(`batching.Bucketed.window`) those of its first, and how many of its batches are done.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import queue
import sys
import threading
import time
from typing import Any

import numpy as np

from prompt_tuning import batching as batching_lib
from prompt_tuning import features
from prompt_tuning.features import Example
from prompt_tuning.train import data

WAIT = 10.0  # seconds
SORTED_BATCHES = 16  # of an evaluation, at a time


class Stream:
  """The endless examples of one shard of a dataset, epoch after epoch.

  Attributes:
    position: {'epoch': n, 'offset': n} of the next example.
  """

  def __init__(self, dataset: data.Dataset, seed: int, shard: int = 0, position: Mapping[str, int] | None = None):
    """`position`: as `position` gave it, to go on from there."""
    self._dataset, self._seed, self._shard = dataset, seed, shard
    self.position = dict(position or {'epoch': 0, 'offset': 0})
    self._examples = self._open()

  def _open(self) -> Iterator[Example]:
    return self._dataset.epoch(self._seed, self.position['epoch'], self.position['offset'], self._shard)

  def __next__(self) -> Example:
    while (example := next(self._examples, None)) is None:
      if not self.position['offset']:
        part = f' for shard {self._shard} of DATA_SHARDS={self._dataset.shards}' if self._dataset.shards > 1 else ''
        raise ValueError(
            f'{self._dataset.mixture_or_task_name}: split {self._dataset.split!r} has no examples{part}.')
      self.position = {'epoch': self.position['epoch'] + 1, 'offset': 0}
      self._examples = self._open()
    self.position['offset'] += 1
    return example


class TrainBatches:
  """Endless batches of a dataset, with a position that can be saved and restored."""

  def __init__(
      self, dataset: data.Dataset, converter: features.Converter, seed: int, position: Mapping | None = None,
      shards: Sequence[int] | None = None):
    """Args:
      position: as `position` gave it (of all shards), to go on from there.
      shards: those whose rows are needed here, see `Partitioner.shards_here`; None: all.

    Raises:
      ValueError: the position is of another number of shards or another window, or rows of shards that are read
        elsewhere would be of other shapes.
    """
    self._dataset, self._converter = dataset, converter
    position = dict(position or {})
    within = position.pop('window', None)
    before = position.get('shards', [position]) if position else [None] * dataset.shards
    if len(before) != dataset.shards:
      raise ValueError(f'The run began with DATA_SHARDS={len(before)}, asked for now: {dataset.shards}. An epoch would '
                       'not be whole; go on with what it began with.')
    wanted = range(dataset.shards) if shards is None else shards
    if len(wanted) < dataset.shards and not isinstance(dataset.batching, batching_lib.Padded):
      raise ValueError(f'{type(dataset.batching).__name__} rows have shapes that depend on all examples of a batch, of '
                       f'which this host reads {len(wanted)} of DATA_SHARDS={dataset.shards} parts. Set DATA_SHARDS=1, '
                       'or BATCHING=@batching.Padded().')
    self._streams = {shard: Stream(dataset, seed, shard, before[shard]) for shard in wanted}
    self._seed, self._window = seed, dataset.batching.window
    self._start = self._ready = None  # where the window began, and its batches to come
    if within:
      if within['batches'] != self._window:
        raise ValueError(f'The run was stopped within Bucketed.window={within["batches"]}, asked for now: '
                         f'{self._window}. Examples would be lost; go on with what it began with.')
      self._fill()
      del self._ready[:within['done']]

  @property
  def position(self) -> dict[str, Any]:
    """That of the stream, or {'shards': of each}, None for those that are not read here; in a window where it began."""
    if self._ready:
      return {**self._start, 'window': {'batches': self._window, 'done': self._window - len(self._ready)}}
    found = [dict(self._streams[i].position) if i in self._streams else None for i in range(self._dataset.shards)]
    return found[0] if self._dataset.shards == 1 else {'shards': found}

  def __next__(self) -> dict[str, np.ndarray]:
    """A batch; rows of shards that are not read here are zeros, and no device here holds them."""
    if not self._ready:
      self._fill()
    batch = self._converter.features(self._ready.pop(0))
    if len(self._streams) == self._dataset.shards:
      return batch
    each = self._dataset.batch_size // self._dataset.shards
    here = np.concatenate([np.arange(shard * each, (shard + 1) * each) for shard in self._streams])
    return {name: _spread(x, here, self._dataset.batch_size) for name, x in batch.items()}

  def _fill(self) -> None:
    """Reads the next window."""
    self._start = self.position
    each = self._dataset.batch_size // self._dataset.shards
    self._ready = [[self._converter.ids(next(stream)) for stream in self._streams.values() for _ in range(each)]
                   for _ in range(self._window)]
    if self._window > 1:
      of_all = list(itertools.chain(*self._ready))
      dealt = batching_lib.by_length(of_all, self._dataset.batch_size, lambda ids: len(ids.source))
      behind = next(iter(self._streams.values())).position
      order = np.random.default_rng([self._seed, behind['epoch'], behind['offset']]).permutation(self._window)
      self._ready = [dealt[i] for i in order]


def _spread(x: np.ndarray, rows: np.ndarray, batch_size: int) -> np.ndarray:
  """[n, ...] as those rows of [B, ...]; the others are zeros, memory that is never touched."""
  whole = np.zeros((batch_size, *x.shape[1:]), x.dtype)
  whole[rows] = x
  return whole


def eval_batches(
    dataset: data.Dataset, converter: features.Converter
) -> Iterator[tuple[list[int], list[Example], dict[str, np.ndarray]]]:
  """All examples once: (their numbers, examples, features), the last batch filled up with empty rows.

  Where it is of use, those of each few batches are sorted by length.

  Raises:
    ValueError: batches cannot be evaluated as they are to stand.
  """
  if converter.batching.packs or converter.batching.pieces > 1:
    raise ValueError(f'{converter.batching} is for training: in evaluation each example has a row of its own, in one '
                     'array. Use @batching.Padded(), or @batching.Bucketed() with groups=1.')
  size, begin = dataset.batch_size, 0
  examples = iter(dataset.epoch(seed=0))
  while window := list(itertools.islice(examples, SORTED_BATCHES * size)):
    ids = [converter.ids(example) for example in window]
    order = list(range(len(window)))
    if converter.batching.sorts:
      order.sort(key=lambda i: len(ids[i].source))
    for at in range(0, len(order), size):
      some = order[at:at + size]
      yield [begin + i for i in some], [window[i] for i in some], converter.features([ids[i] for i in some], size)
    begin += len(window)


def prefetch(batches: TrainBatches, place, depth: int = 2) -> Iterator[tuple[Any, dict]]:
  """(batch on devices, position after it), prepared in a thread while the devices work.

  An error in the thread is raised where the batch would have been. Where none comes for long, that is said.
  """
  ready: queue.Queue = queue.Queue(depth)
  stop = threading.Event()

  def fill():
    while not stop.is_set():
      try:
        item = (place(next(batches)), dict(batches.position), None)
      except BaseException as error:  # handed to the consumer, which raises it
        item = (None, None, error)
      while not stop.is_set():
        try:
          ready.put(item, timeout=0.5)
          break
        except queue.Full:
          pass
      if item[2] is not None:
        return

  thread = threading.Thread(target=fill, daemon=True, name='prefetch')
  thread.start()
  try:
    while True:
      batch, position, error = _wait(ready)
      if error is not None:
        raise error
      yield batch, position
  finally:
    stop.set()
    thread.join(timeout=5)


def _wait(ready: queue.Queue):
  """The next item; a line every WAIT seconds while there is none."""
  began = time.monotonic()
  while True:
    try:
      return ready.get(timeout=WAIT)
    except queue.Empty:
      print(f'waiting for data ({time.monotonic() - began:.0f} s)', file=sys.stderr, flush=True)
