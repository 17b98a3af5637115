"""What all tasks share: text becomes tokens, and a task can be made from another by a change of its text."""

from collections.abc import Callable, Sequence
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.tasks import features

SHUFFLE_BUFFER = 65_536  # examples

Step = Callable[[tf.data.Dataset], tf.data.Dataset]


def add(name: str, source: seqio.DataSource, steps: Sequence[Step] = (), **more: Any) -> seqio.Task:
  """Registers a task with seqio. Reads nothing yet.

  Args:
    name: of the task, new to the registry.
    source: where examples come from.
    steps: what makes `{'inputs': text, 'targets': text, ...}` of them; other fields are for the postprocessor.
    **more: `postprocess_fn` and `metric_fns` of `seqio.TaskRegistry.add`.

  Returns:
    The task. Its examples hold `inputs` and `targets`, T5 token ids as int32 `[length]` that end with eos (1)
    even when trimmed, beside the text they came from: `inputs_pretokenized` and `targets_pretokenized`.
  """
  return seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=[
          *steps,
          seqio.preprocessors.tokenize,
          seqio.CacheDatasetPlaceholder(),
          seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=features.OUTPUT_FEATURES,
      **more)


def change(field: str, function: Callable[[tf.Tensor], tf.Tensor]) -> Step:
  """The step that changes the text of a field."""
  return lambda dataset: dataset.map(
      lambda row: {**row, field: function(row[field])}, num_parallel_calls=tf.data.AUTOTUNE)


def prepend(field: str, text: str) -> Step:
  """The step that puts `text` and a space in front of a field."""
  return change(field, lambda value: tf.strings.join([text, value], separator=' '))


def text_steps(task: seqio.Task) -> list[Step]:
  """The steps of a task that make text of its examples.

  Raises:
    ValueError: the task does not use `seqio.preprocessors.tokenize`.
  """
  steps = list(task.preprocessors)
  if seqio.preprocessors.tokenize not in steps:
    raise ValueError(f'{task.name} cannot be changed as text: it does not use seqio.preprocessors.tokenize.')
  return steps[:steps.index(seqio.preprocessors.tokenize)]


def as_text(task: seqio.Task, split: str) -> tf.data.Dataset:
  """A task's examples before they are tokens, in order: `{'inputs': string, 'targets': string, ...}`."""
  dataset = task.source.get_dataset(split, shuffle=False)
  for step in text_steps(task):
    dataset = step(dataset)
  return dataset


class TextSource(seqio.DataSource):
  """Examples as text, `{'inputs': [], 'targets': [], ...}`: shards and shuffles what `read(split)` gives in order."""

  supports_arbitrary_sharding = True

  def __init__(self, read: Callable[[str], tf.data.Dataset], splits: Sequence[str]):
    """Makes the source; nothing is read yet."""
    super().__init__(splits=tuple(splits))
    self._read = read

  def list_shards(self, split: str) -> list[str]:
    return [split]

  def get_dataset(self, split='train', shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """Reads a split, as `seqio.DataSource.get_dataset` says."""
    if split not in self.splits:
      raise ValueError(f'There is no split {split!r}; the task has {", ".join(self.splits)}.')
    dataset = self._read(split)
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset.shuffle(SHUFFLE_BUFFER, seed=seed) if shuffle else dataset
