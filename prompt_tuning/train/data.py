"""seqio tasks -> batches of numpy features, in an order that is a function of the seed alone.

Epoch e is the task's dataset shuffled with seed (seed, e). The position in the data is therefore two integers,
epoch and offset, kept in every checkpoint. Every process reads the same stream and its devices take their rows, so
the global batches do not depend on how many processes there are.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import inspect
import queue
import threading
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning import features, tasks
from prompt_tuning.tasks import caching, vocabularies
from prompt_tuning.tokenizer import AnyTokenizer

tf.config.set_visible_devices([], 'GPU')  # TensorFlow only reads data: left alone it takes all of a GPU's memory

Example = features.Example


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
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  split: str
  batch_size: int
  shuffle: bool = True
  use_cached: bool = False
  on_truncation: str = 'count'
  limit: int | None = None

  @property
  def task(self) -> seqio.Task | seqio.Mixture:
    return tasks.load(self.mixture_or_task_name)

  def epoch(self, seed: int, epoch: int = 0, skip: int = 0) -> Iterator[Example]:
    """Examples of one epoch from offset `skip` on, as numpy, not yet cut to length."""
    task = self.task
    if self.split not in task.splits:
      raise ValueError(
          f'{self.mixture_or_task_name} has no split {self.split!r}; it has {", ".join(sorted(task.splits))}.')
    if self.use_cached:
      caching.require(task, self.split)
    order = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] >> 1)
    more = {'copy_pretokenized': True} if isinstance(task, seqio.Mixture) else {}  # a task keeps its text anyway
    lengths = dict(self.task_feature_lengths) if _asks_for_lengths(task) else None
    data = task.get_dataset(
        sequence_length=lengths, split=self.split, shuffle=self.shuffle, seed=order, num_epochs=1,
        use_cached=self.use_cached, **more)
    if self.limit is not None:
      data = data.take(self.limit)
    return data.skip(skip).as_numpy_iterator()


def _asks_for_lengths(task: seqio.Task | seqio.Mixture) -> bool:
  """Whether a step of the task, other than seqio's cutting, depends on lengths, as of language modelling.

  Elsewhere examples come uncut, so that what is cut can be counted.
  """
  steps = [step for each in getattr(task, 'tasks', [task]) for step in each.preprocessors]
  return any('sequence_length' in inspect.signature(step).parameters
             for step in steps if step is not seqio.preprocessors.append_eos_after_trim)


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


class TrainBatches:
  """Endless batches of a dataset, with a position that can be saved and restored."""

  def __init__(self, dataset: Dataset, converter: features.Converter, seed: int, position: Mapping | None = None):
    """`position`: as `position` gave it, to go on from there."""
    self._dataset, self._converter, self._seed = dataset, converter, seed
    self.position = dict(position or {'epoch': 0, 'offset': 0})
    self._examples = self._open()

  def _open(self):
    return self._dataset.epoch(self._seed, self.position['epoch'], self.position['offset'])

  def __next__(self) -> dict[str, np.ndarray]:
    rows = []
    while len(rows) < self._dataset.batch_size:
      if (example := next(self._examples, None)) is not None:
        rows.append(example)
        self.position['offset'] += 1
        continue
      if not self.position['offset']:
        raise ValueError(f'{self._dataset.mixture_or_task_name}: split {self._dataset.split!r} has no examples.')
      self.position = {'epoch': self.position['epoch'] + 1, 'offset': 0}
      self._examples = self._open()
    return self._converter(rows)


def eval_batches(dataset: Dataset, converter: features.Converter) -> Iterator[tuple[list[Example], dict]]:
  """All examples once, in order: (examples, features), the last batch filled up with empty rows."""
  rows: list[Example] = []
  for example in dataset.epoch(seed=0):
    rows.append(example)
    if len(rows) == dataset.batch_size:
      yield rows, converter(rows)
      rows = []
  if rows:
    yield rows, converter(rows, dataset.batch_size)


def prefetch(batches: TrainBatches, place, depth: int = 2) -> Iterator[tuple[Any, dict]]:
  """(batch on devices, position after it), prepared in a thread while the devices work.

  An error in the thread is raised where the batch would have been.
  """
  ready: queue.Queue = queue.Queue(depth)
  stop = threading.Event()

  def fill():
    while not stop.is_set():
      try:
        item = (place(next(batches)), dict(batches.position), None)
      except Exception as error:  # handed to the consumer, which raises it
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
      batch, position, error = ready.get()
      if error is not None:
        raise error
      yield batch, position
  finally:
    stop.set()
    thread.join(timeout=5)
