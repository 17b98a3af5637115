"""Tasks from your own files: TSV with a header line, or JSONL (the official SuperGLUE files among them).

Rows are held in memory and shuffled whole, which suits files up to some hundred megabytes.
"""

from collections.abc import Mapping
import csv
import json
import os

import seqio
import tensorflow as tf

from prompt_tuning.tasks import text_to_text


class LocalSource(seqio.DataSource):
  """Examples from one file a split. Unlike `seqio.FunctionDataSource` it shuffles splits whole and shards."""

  supports_arbitrary_sharding = True

  def __init__(self, paths: Mapping[str, str | os.PathLike], format_: text_to_text.Format):
    """Makes the source. `paths` (split name -> `.tsv` or `.jsonl`) may be remote (`gs://...`)."""
    super().__init__(splits=tuple(paths))
    self._paths, self._format = paths, format_

  def list_shards(self, split: str) -> list[str]:
    return [os.fspath(self._paths[split])]

  def get_dataset(self, split='train', shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """Reads the file of `split`, as `seqio.DataSource.get_dataset` says."""
    if split not in self._paths:
      raise ValueError(f'There is no split {split!r}; the task has {", ".join(self._paths)}.')
    columns = read_columns(os.fspath(self._paths[split]), self._format)
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset.shuffle(len(columns['label']), seed=seed) if shuffle else dataset


def local_task(
    name: str, paths: Mapping[str, str | os.PathLike], format_: text_to_text.Format) -> seqio.Task:
  """Registers a classification task on files: `paths` maps split names to `.tsv` or `.jsonl` files.

  A row has the fields of `format_` and a `label`: a label word (JSON's true and false are `True` and `False`)
  or its position in `format_.labels`. No label, or -1, is an unlabelled row. Nothing is read yet.
  """
  return text_to_text.register(name, LocalSource(paths, format_), format_)


def read_columns(path: str, format_: text_to_text.Format) -> dict[str, list]:
  """Reads a `.tsv` or `.jsonl` file as `{field: [text, ...], 'label': [class number, ...]}`.

  Raises:
    ValueError: the file is of another kind or empty, or a row lacks a field or has an unknown label.
    FileNotFoundError: there is no such file.
  """
  if not path.endswith(('.tsv', '.jsonl')):
    raise ValueError(f'{path}: expected a .tsv file (with a header line) or a .jsonl file.')
  if not tf.io.gfile.exists(path):
    raise FileNotFoundError(f'{path}: no such file. Check the path given for this split.')
  columns = {name: [] for name in (*format_.fields, 'label')}
  with tf.io.gfile.GFile(path) as f:
    if path.endswith('.tsv'):
      rows = csv.DictReader(f, delimiter='\t', quoting=csv.QUOTE_NONE)
    else:
      rows = (json.loads(line) for line in f if line.strip())
    for number, row in enumerate(rows, start=1):
      where = f'{path}, row {number}'
      missing = [name for name in format_.fields if row.get(name) is None]
      if missing:
        raise ValueError(f'{where}: no {missing}; expected {list(columns)}, found {list(row)}.')
      for name in format_.fields:
        columns[name].append(str(row[name]))
      columns['label'].append(_class_number(str(row.get('label', -1)), format_.labels, where))
  if not columns['label']:
    raise ValueError(f'{path}: no rows. Expected one example a line.')
  return columns


def _class_number(label, labels, where) -> int:
  if label in labels:
    return labels.index(label)
  if label in map(str, range(-1, len(labels))):
    return int(label)
  raise ValueError(f'{where}: label {label!r}; expected one of {list(labels)}, its position (from 0) or -1.')
