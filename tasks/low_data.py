"""Low-data subsets (Li & Liang 2021, sec. 6.3): `<task>_low<size>_s<seed>`, such as `e2e_low100_s3`.

`size` training pairs are drawn without replacement from the task's training split, and 30% as many more from its other
pairs as the validation split, never with a source of the training pairs. The test split is the task's own, whole (its
validation split if it has no test). The draw depends on the corpus, the size and the seed alone: every method sees the
same subset. The paper draws five subsets a size.
"""

from collections.abc import Sequence
import functools
import re

import numpy as np
import seqio

from prompt_tuning.tasks import generation, table_files

SIZES = (50, 100, 200, 500)
SEEDS = range(5)
DEV_SHARE = 0.3
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
  """Registers the task called `name` if it is a low-data name of a generation task; tells whether it is one.

  Raises:
    ValueError: the size or the seed is not one of the paper's.
  """
  match = _NAME.fullmatch(name)
  base = match and match[1] in seqio.TaskRegistry.names() and seqio.TaskRegistry.get(match[1])
  if not base or not isinstance(base.source, generation._Source) or 'train' not in base.splits:
    return False
  size, seed = int(match[2]), int(match[3])
  if size not in SIZES or seed not in SEEDS:
    raise ValueError(f'{name!r}: expected {match[1]}_low<size>_s<seed> with a size of {SIZES} and a seed from 0 to 4.')
  source = base.source

  @functools.cache  # two passes over the corpus, once
  def drawn() -> tuple[list[table_files.Row], list[table_files.Row]]:
    train, dev = draw([hash(row['source']) for row in source.read('train').as_numpy_iterator()], size, seed)
    wanted = {*train, *dev}
    rows = {i: generation.to_row(row) for i, row in enumerate(source.read('train').as_numpy_iterator()) if i in wanted}
    return [rows[i] for i in train], [rows[i] for i in dev]

  generation.register(
      name,
      generation.RowSource({'train': lambda: drawn()[0], 'validation': lambda: drawn()[1], 'test': lambda: [
          generation.to_row(row) for row in source.read(source.splits[-1]).as_numpy_iterator()]}),
      base.metric_fns[0])
  return True
