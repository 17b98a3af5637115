"""seqio tasks -> examples as numpy, in an order that is a function of the seed alone.

Epoch e is the task's dataset shuffled with seed (seed, e); `batches.py` makes batches of epochs.

With DATA_SHARDS = 1 every process reads the same stream and its devices take their rows. With more, the dataset is cut
into that many streams, each of which goes round its own epochs and gives as many rows of every batch; a process reads
those alone whose rows its devices hold. Either way the global batches do not depend on how many processes there are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import inspect

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
