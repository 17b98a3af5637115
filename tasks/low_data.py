"""Low-data subsets (Li & Liang 2021, sec. 6.3): `<task>_low<size>_s<seed>`, such as `e2e_low100_s3`, of any task.

`size` training examples are drawn without replacement from the task's training split, and 30% as many more from its
other examples as the validation split, never with the inputs of a training example. The test split is the task's own,
whole; where that has no labels (GLUE, SuperGLUE) or is missing it is the task's validation split. What is drawn are
examples as text (of ReCoRD, one a gold answer), and the draw depends on the corpus, the size and the seed alone: every
method sees the same subset. The paper draws five subsets a size.
"""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning import tasks
from prompt_tuning.tasks import pipeline

SIZES = (50, 100, 200, 500)
SEEDS = range(5)
DEV_SHARE = 0.3
READ_BATCH = 1024  # examples that are looked at at once
_NAME = re.compile(r'(\w+)_low(\d+)_s(\d+)')


def draw(sources: Sequence, size: int, seed: int) -> tuple[list[int], list[int]]:
  """Positions of `size` training and 30% as many validation examples among `sources`, which tell equal sources.

  Raises:
    ValueError: there are too few.
  """
  order = np.random.default_rng([size, seed]).permutation(len(sources)).tolist()
  train = order[:size]
  taken = {sources[i] for i in train}
  dev = [i for i in order[size:] if sources[i] not in taken][:round(DEV_SHARE * size)]
  if len(train) < size or len(dev) < round(DEV_SHARE * size):
    raise ValueError(f'{len(sources)} training examples are too few for {size} and, of other sources, '
                     f'{round(DEV_SHARE * size)} for validation.')
  return train, dev


def define(name: str) -> bool:
  """Registers the task called `name` if it is a low-data name of a task; tells whether it is one.

  Raises:
    ValueError: the size or the seed is not one of the paper's.
  """
  match = _NAME.fullmatch(name)
  base = match and tasks.find(match[1])
  if not isinstance(base, seqio.Task) or 'train' not in base.splits:
    return False
  size, seed = int(match[2]), int(match[3])
  if size not in SIZES or seed not in SEEDS:
    raise ValueError(f'{name!r}: expected {match[1]}_low<size>_s<seed> with a size of {SIZES} and a seed from 0 to 4.')

  @functools.cache  # two passes over the corpus, once
  def drawn() -> tuple[Any, dict[str, list[Mapping]]]:
    examples = pipeline.as_text(base, 'train')
    batches = examples.map(lambda row: row['inputs']).batch(READ_BATCH).as_numpy_iterator()
    train, dev = draw([hash(text) for batch in batches for text in batch], size, seed)
    wanted = tf.constant(train + dev, tf.int64)
    drawn = examples.enumerate().filter(lambda i, row: tf.reduce_any(i == wanted))
    rows = {int(i): row for i, row in drawn.as_numpy_iterator()}
    return examples.element_spec, {'train': [rows[i] for i in train], 'validation': [rows[i] for i in dev]}

  def read(split: str) -> tf.data.Dataset:
    if split == 'test':
      return pipeline.as_text(base, test)
    spec, rows = drawn()  # now, so that errors are not TensorFlow's
    return tf.data.Dataset.from_generator(lambda: iter(rows[split]), output_signature=spec)

  unlabelled = {'test'} if isinstance(base.source, seqio.TfdsDataSource) else set()
  test = next((split for split in ('test', 'validation') if split in {*base.splits} - unlabelled), None)
  pipeline.add(
      name, pipeline.TextSource(read, ('train', 'validation', 'test')[:3 if test else 2]),
      postprocess_fn=base.postprocessor, metric_fns=base.metric_fns)
  return True
