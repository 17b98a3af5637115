"""Axes that tables share."""

from collections.abc import Mapping, Sequence

QUICKSTART = 'quickstart'


def t5_sizes(
    checkpoints: str, quickstart: str = 'models/quickstart_t5',
    sizes: Sequence[str] = ('small', 'base', 'large', 'xl', 'xxl')) -> Mapping[str, Sequence[str]]:
  """The axis 'size' of T5 1.1: label -> bindings of the base and of its dimensions.

  Args:
    checkpoints: path of the bases, with `{size}` in the place of the label, such as '/models/lm100k_{size}'.
    quickstart: path of the quick start's base, which is the point 'quickstart'.
    sizes: labels.

  Raises:
    ValueError: the path is the same for all sizes.
  """
  if '{size}' not in checkpoints:
    raise ValueError(f'CHECKPOINTS={checkpoints!r}; expected a path with {{size}} in it, such as /models/t5_{{size}}.')
  points = {size: (f"MODEL_SIZE = 't5_1_1_{size}'", f'INITIAL_CHECKPOINT_PATH = {checkpoints!r}') for size in sizes}
  # It is of Hugging Face and has no optimizer to go on with.
  plain = ('INITIAL_STEP = 0', 'RESTORE_OPTIMIZER = False')
  return {**points, QUICKSTART: (f'INITIAL_CHECKPOINT_PATH = {quickstart!r}', *plain)}
