"""seqio tasks -> batches of numpy features, in an order that is a function of the seed alone.

Epoch e is the task's dataset shuffled with seed (seed, e). The position in the data is therefore two integers,
epoch and offset, kept in every checkpoint.

With DATA_SHARDS = 1 every process reads the same stream and its devices take their rows. With more, the dataset is cut
into that many streams, each of which goes round its own epochs and gives as many rows of every batch; a process reads
those alone whose rows its devices hold. Either way the global batches do not depend on how many processes there are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import inspect
import itertools
import queue
import sys
import threading
import time
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning import batching as batching_lib
from prompt_tuning import features, tasks
from prompt_tuning.tasks import caching, vocabularies
from prompt_tuning.tokenizer import AnyTokenizer
from prompt_tuning.train import retrying

tf.config.set_visible_devices([], 'GPU')  # TensorFlow only reads data: left alone it takes all of a GPU's memory

Example = features.Example
FIRST = 16  # examples, and files, that hosts compare
WAIT = 10.0  # seconds
SORTED_BATCHES = 16  # of an evaluation, at a time


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One split of a task or mixture (T5X's DatasetConfig).

  Attributes:
    mixture_or_task_name: a registered name; `prompt_tuning.tasks` lists ours.
    task_feature_lengths: {'inputs': tokens, 'targets': tokens}, without virtual tokens.
    split: such as 'train' or 'validation'.
    batch_size: examples over all devices.
    shuffle: a new order each epoch, or the file's.
    use_cached: read what `seqio_cache_tasks` has written.
    on_truncation: 'count' examples longer than their feature length, or 'error'.
    limit: at most so many examples (None: all).
    shards: streams that batches are made of, each of its own part of the examples.
    retries: further tries, in half a minute, where the source fails at an example.
    batching: how examples stand in rows.

  Raises:
    ValueError: there is no such number of shards, or the batch does not divide into them.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  split: str
  batch_size: int
  shuffle: bool = True
  use_cached: bool = False
  on_truncation: str = 'count'
  limit: int | None = None
  shards: int = 1
  retries: int = 5
  batching: batching_lib.Batching = batching_lib.Padded()  # noqa: RUF009 (frozen)

  def __post_init__(self):
    if self.shards < 1 or self.batch_size % self.shards:
      raise ValueError(f'BATCH_SIZE={self.batch_size} does not divide into DATA_SHARDS={self.shards} streams; choose '
                       'a divisor of it, such as the number of hosts.')

  @property
  def task(self) -> seqio.Task | seqio.Mixture:
    return tasks.load(self.mixture_or_task_name)

  def epoch(self, seed: int, epoch: int = 0, skip: int = 0, shard: int | None = None) -> Iterator[Example]:
    """Examples of one epoch from offset `skip` on, as numpy, not yet cut to length.

    `shard`: those of that stream alone (None: all). Every example is in one of them: where seqio takes every n-th of
    one shuffled stream, all of them are shuffled with the same seed.

    Raises:
      ValueError: there is no such split.
      retrying.SourceError: here or later, the source has failed `retries` times.
    """
    part = f', shard {shard} of {self.shards}' if shard is not None and self.shards > 1 else ''
    return retrying.Retrying(
        lambda offset: self._epoch(seed, epoch, offset, shard), skip, self.retries, _may_be_gone_next_time,
        f'{self.mixture_or_task_name}, split {self.split!r}{part}, epoch {epoch}')

  def _epoch(self, seed: int, epoch: int, skip: int, shard: int | None) -> Iterator[Example]:
    task = self.task
    if self.split not in task.splits:
      raise ValueError(
          f'{self.mixture_or_task_name} has no split {self.split!r}; it has {", ".join(sorted(task.splits))}.')
    if self.use_cached:
      caching.require(task, self.split)
    order = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] >> 1)
    more = {'copy_pretokenized': True} if isinstance(task, seqio.Mixture) else {}  # a task keeps its text anyway
    lengths = dict(self.task_feature_lengths) if _asks_for_lengths(task) else None
    limit = self.limit
    if shard is not None and self.shards > 1:
      more['shard_info'] = seqio.ShardInfo(shard, self.shards)
      limit = limit and (limit + self.shards - 1 - shard) // self.shards
    data = task.get_dataset(
        sequence_length=lengths, split=self.split, shuffle=self.shuffle, seed=order, num_epochs=1,
        use_cached=self.use_cached, **more)
    if limit is not None:
      data = data.take(limit)
    return data.skip(skip).as_numpy_iterator()


_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_PASSING = (tf.errors.AbortedError, tf.errors.DataLossError, tf.errors.DeadlineExceededError, tf.errors.InternalError,
            tf.errors.UnavailableError, tf.errors.UnknownError)  # the last: what Python code raised in a pipeline


def _may_be_gone_next_time(error: Exception) -> bool:
  return isinstance(error, _PASSING) or isinstance(error, OSError) and not isinstance(error, _LASTING)


def _asks_for_lengths(task: seqio.Task | seqio.Mixture) -> bool:
  """Whether a step of the task, other than seqio's cutting, depends on lengths, as of language modelling.

  Elsewhere examples come uncut, so that what is cut can be counted.
  """
  steps = [step for each in getattr(task, 'tasks', [task]) for step in each.preprocessors]
  return any('sequence_length' in inspect.signature(step).parameters
             for step in steps if step is not seqio.preprocessors.append_eos_after_trim)


def facts(datasets: Sequence[Dataset]) -> dict[str, str]:
  """What hosts compare to see that they read the same data: of each dataset its first examples, how many it says that
  there are, and the sizes of its first files, where it has files.
  """
  found = {}
  for dataset in datasets:
    split, lines = dataset.split, []
    for task in getattr(dataset.task, 'tasks', [dataset.task]):
      if split in task.splits:
        files = [path for path in task.source.list_shards(split)[:FIRST] if tf.io.gfile.exists(path)]
        sizes = [tf.io.gfile.stat(path).length for path in files]
        lines.append(f'{task.name}: {task.source.num_input_examples(split)} examples, files of {sizes} bytes')
    for example in dataclasses.replace(dataset, shuffle=False, limit=FIRST, shards=1).epoch(seed=0):
      lines += [f'{name} {np.asarray(value).tolist()}' for name, value in sorted(example.items())]
    found[f'data of {dataset.mixture_or_task_name}, {split}'] = '\n'.join(lines)
  return found


def encoder(
    dataset: Dataset, tokenizer: AnyTokenizer, layout: features.Layout,
    targets: bool = True) -> Callable[[Example], Example] | None:
  """What encodes a task's text again, for a base with other ids or another layout than the task's.

  A task's own ids are taken as they are (None) if they are the base's and the layout has no more than an end behind
  a text, which is what seqio puts there. So a task on T5's vocabulary serves every base.

  Args:
    targets: the ids of targets are needed; else their text is what counts.

  Raises:
    ValueError: from what is returned: an example has no text.
  """
  wanted = {name: f for name, f in dataset.task.output_features.items() if targets or name != 'targets'}
  plain = not (layout.spaces or layout.opening or (targets and layout.target_opening))
  if plain and all(vocabularies.same_ids(feature.vocabulary, tokenizer) for feature in wanted.values()):
    return None

  def encode(example: Example) -> Example:
    texts = {}
    for name in ('inputs', 'targets'):
      text = example.get(f'{name}_pretokenized')
      if name in wanted and text is None:
        raise ValueError(
            f'{dataset.mixture_or_task_name}: its token ids are not those of the base model, and it keeps no text to '
            f'encode again ({name}_pretokenized). Let the task keep it, as seqio.preprocessors.tokenize does, or use '
            'a base with the vocabulary of the task.')
      texts[name] = None if text is None or name not in wanted else text.decode()
    return layout.encode(tokenizer, **texts)

  return encode


class Stream:
  """The endless examples of one shard of a dataset, epoch after epoch.

  Attributes:
    position: {'epoch': n, 'offset': n} of the next example.
  """

  def __init__(self, dataset: Dataset, seed: int, shard: int = 0, position: Mapping[str, int] | None = None):
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
      self, dataset: Dataset, converter: features.Converter, seed: int, position: Mapping | None = None,
      shards: Sequence[int] | None = None):
    """Args:
      position: as `position` gave it (of all shards), to go on from there.
      shards: those whose rows are needed here, see `Partitioner.shards_here`; None: all.

    Raises:
      ValueError: the position is of another number of shards, or rows of shards that are read elsewhere would be of
        other shapes.
    """
    self._dataset, self._converter = dataset, converter
    before = [None] * dataset.shards if position is None else position.get('shards', [position])
    if len(before) != dataset.shards:
      raise ValueError(f'The run began with DATA_SHARDS={len(before)}, asked for now: {dataset.shards}. An epoch would '
                       'not be whole; go on with what it began with.')
    wanted = range(dataset.shards) if shards is None else shards
    if len(wanted) < dataset.shards and not isinstance(dataset.batching, batching_lib.Padded):
      raise ValueError(f'{type(dataset.batching).__name__} rows have shapes that depend on all examples of a batch, of '
                       f'which this host reads {len(wanted)} of DATA_SHARDS={dataset.shards} parts. Set DATA_SHARDS=1, '
                       'or BATCHING=@batching.Padded().')
    self._streams = {shard: Stream(dataset, seed, shard, before[shard]) for shard in wanted}

  @property
  def position(self) -> dict[str, Any]:
    """That of the stream, or {'shards': of each}; None for those that are not read here."""
    found = [dict(self._streams[i].position) if i in self._streams else None for i in range(self._dataset.shards)]
    return found[0] if self._dataset.shards == 1 else {'shards': found}

  def __next__(self) -> dict[str, np.ndarray]:
    """A batch; rows of shards that are not read here are zeros, and no device here holds them."""
    each = self._dataset.batch_size // self._dataset.shards
    batch = self._converter([next(stream) for stream in self._streams.values() for _ in range(each)])
    if len(self._streams) == self._dataset.shards:
      return batch
    here = np.concatenate([np.arange(shard * each, (shard + 1) * each) for shard in self._streams])
    return {name: _spread(x, here, self._dataset.batch_size) for name, x in batch.items()}


def _spread(x: np.ndarray, rows: np.ndarray, batch_size: int) -> np.ndarray:
  """[n, ...] as those rows of [B, ...]; the others are zeros, memory that is never touched."""
  whole = np.zeros((batch_size, *x.shape[1:]), x.dtype)
  whole[rows] = x
  return whole


def eval_batches(
    dataset: Dataset, converter: features.Converter
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
