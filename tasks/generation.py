"""What the generation tasks share: rows of (source, references, group) become seqio tasks.

`inputs` is the source and `targets` the first reference, so that teacher-forced scores exist; the metrics get every
reference. Tokens are T5's; the text stays beside them (`*_pretokenized`), and `references` too.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.tasks import builders, features, table_files

SHUFFLE_BUFFER = 65_536  # examples: more than any of these corpora but XSum, whose order is random as it comes

GroupFilter = Callable[[tf.Tensor], tf.Tensor]


class _Source(seqio.DataSource):
  """Shards and shuffles what `read(split)` gives."""

  supports_arbitrary_sharding = True

  def read(self, split: str) -> tf.data.Dataset:
    """The rows of a split, in order, as `{'source': [], 'references': [R], 'group': []}` strings."""
    raise NotImplementedError

  def list_shards(self, split: str) -> list[str]:
    return [split]

  def get_dataset(self, split='train', shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """Reads a split, as `seqio.DataSource.get_dataset` says."""
    if split not in self.splits:
      raise ValueError(f'There is no split {split!r}; the task has {", ".join(self.splits)}.')
    dataset = self.read(split)
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset.shuffle(SHUFFLE_BUFFER, seed=seed) if shuffle else dataset


class BuilderSource(_Source):
  """Reads one of our TFDS builders, which is prepared when a split is first asked for."""

  def __init__(self, builder_class: type, keep: Mapping[str, GroupFilter] | None = None, needs: str = ''):
    """Makes the source.

    Args:
      builder_class: of `builders`.
      keep: split -> which groups to keep; all of them in splits that are not named.
      needs: what to say where nothing is kept.
    """
    super().__init__(splits=builders.SPLITS)
    self._builder_class, self._keep, self._needs = builder_class, keep or {}, needs

  def read(self, split):
    name = f'{self._builder_class.name}:{self._builder_class.VERSION}'
    builder = builders.prepared(self._builder_class, split, seqio.LazyTfdsLoader(name).data_dir)
    dataset = builder.as_dataset(split=split, read_config=tfds.ReadConfig(try_autocache=False))
    if keep := self._keep.get(split):
      dataset = dataset.filter(lambda row: keep(row['group']))
      if not any(True for _ in dataset.take(1)):
        raise ValueError(f'{builder.name}: none of the {builder.info.splits[split].num_examples} examples of {split!r} '
                         f'is of the kind this task wants. {self._needs}'.rstrip())
    return dataset


class RowSource(_Source):
  """Reads rows from memory: `rows` maps a split to a function that gives them (training rows one a pair)."""

  def __init__(self, rows: Mapping[str, Callable[[], Sequence[table_files.Row]]]):
    super().__init__(splits=tuple(rows))
    self._rows = rows

  def read(self, split):
    rows = self._rows[split]()  # now, so that errors are not TensorFlow's
    source, group = ([getattr(row, field) for row in rows] for field in ('source', 'group'))
    references = [text for row in rows for text in row.references]
    bounds = np.cumsum([0, *(len(row.references) for row in rows)])

    def row(i):
      return {'source': tf.gather(source, i), 'group': tf.gather(group, i),
              'references': tf.constant(references)[tf.gather(bounds, i):tf.gather(bounds, i + 1)]}

    return tf.data.Dataset.range(len(rows)).map(row)


def to_row(example: Mapping) -> table_files.Row:
  """A row from its numpy form."""
  return table_files.Row(example['source'].decode(), tuple(text.decode() for text in example['references']),
                         example['group'].decode())


def rows_to_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Preprocessor: `inputs`, `targets` (the first reference) and `references` of every row."""
  return dataset.map(
      lambda row: {'inputs': row['source'], 'targets': row['references'][0], 'references': row['references']},
      num_parallel_calls=tf.data.AUTOTUNE)


def references_or_text(text: str, example: Mapping | None = None, is_target: bool = False, **unused):
  """Postprocessor: all references of a target, a prediction without surrounding space."""
  if not is_target:
    return text.strip()
  if example is None or 'references' not in example:
    raise ValueError('The example has lost its references; score the task itself, with the features it gives.')
  return [reference.decode() for reference in example['references']]


def register(name: str, source: seqio.DataSource, metric: Callable) -> seqio.Task:
  """Registers a generation task. Reads nothing yet.

  Args:
    name: name of the task, new to the registry.
    source: gives rows as `_Source.read` says.
    metric: `(targets, predictions) -> {name: value}`, targets being lists of references.
  """
  return seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=[
          rows_to_text,
          seqio.preprocessors.tokenize,
          seqio.CacheDatasetPlaceholder(),
          seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=features.OUTPUT_FEATURES,
      postprocess_fn=references_or_text,
      metric_fns=[metric],
  )
