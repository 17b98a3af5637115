"""How a soft prompt begins: functions `(key, shape [P, D], base) -> array [P, D]`.

Lester et al. 2021, section 3.2. Two places where paper and released code differ are arguments: the paper draws
random prompts from U[-0.5, 0.5), the released configuration from U[0, 0.5) (`low=0`); and the released code takes
the first 5,000 ids as "most common", pad, end and unknown included, which is what we do too: SentencePiece ids
are ordered by frequency.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods.base import Base
from prompt_tuning.types import Array

Initializer = Callable[[jax.Array, tuple[int, int], Base], Array]

_COMMON = 5000


def random_uniform(low: float = -0.5, high: float = 0.5) -> Initializer:
  """Uniform in [low, high)."""
  return lambda key, shape, base: jax.random.uniform(key, shape, jnp.float32, low, high)


def normal(stddev: float = 1.0) -> Initializer:
  """N(0, stddev^2); Wang et al. 2022 begin with 1/30."""
  return lambda key, shape, base: stddev * jax.random.normal(key, shape)


def sampled_vocabulary(most_common: int = _COMMON) -> Initializer:
  """Embeddings of different tokens drawn from the `most_common` first ids."""

  def init(key, shape, base):
    available = min(most_common, base.config.vocab_size)
    if shape[0] > available:
      raise ValueError(
          f'A prompt of {shape[0]} cannot be drawn from {available} different tokens; raise '
          'sampled_vocabulary.most_common or lower PROMPT_LENGTH.')
    ids = jax.random.choice(key, available, (shape[0],), replace=False)
    return base.embeddings([int(i) for i in ids])

  return init


def class_labels(labels: Sequence[str], most_common: int = _COMMON) -> Initializer:
  """One row a label (the mean of its pieces' embeddings), the rest as `sampled_vocabulary`.

  Labels beyond the prompt's length are left out, as in the paper.
  """

  def init(key, shape, base):
    rows = [np.mean(base.embeddings(_pieces(base, label)), axis=0) for label in labels[:shape[0]]]
    if len(rows) < shape[0]:
      rest = sampled_vocabulary(most_common)(key, (shape[0] - len(rows), shape[1]), base)
      rows = np.concatenate([np.stack(rows), rest]) if rows else rest
    return np.asarray(rows)

  return init


def text(words: str, most_common: int = _COMMON) -> Initializer:
  """The embeddings of a text's pieces, cut at P or followed by rows as `sampled_vocabulary`."""

  def init(key, shape, base):
    rows = np.asarray(base.embeddings(_pieces(base, words)[:shape[0]]))
    if len(rows) == shape[0]:
      return rows
    rest = sampled_vocabulary(most_common)(key, (shape[0] - len(rows), shape[1]), base)
    return np.concatenate([rows, rest])

  return init


def mask() -> Initializer:
  """The embedding of the mask token in every row (WARP, Hambardzumyan et al. 2021)."""

  def init(key, shape, base):
    del key
    if base.config.mask_id is None:
      raise ValueError(f'{base.path}: this {base.config.family} has no mask token to initialise a prompt from; choose '
                       'another INITIALIZER.')
    return np.tile(base.embeddings([base.config.mask_id]), (shape[0], 1))

  return init


def from_file(path: str) -> Initializer:
  """A prompt that was trained before, in any form that `checkpoints/tuned.py` reads.

  Such as `prompts/*` of another run, the run folder itself (its best, else newest prompt), a `.npy` released by
  Google or a PEFT folder. The base that it was trained on may be another one.
  """

  def init(key, shape, base):
    del key, shape, base
    return load_prompt(path)

  return init


def load_prompt(path: str) -> np.ndarray:
  """Reads a prompt [P, D], see `checkpoints.tuned.load`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, of a form that is not read, or a prefix.
  """
  return tuned.load(path, 'prompt').tensors[tuned.PROMPT]


def _pieces(base: Base, words: str) -> list[int]:
  if not (ids := base.encode(words)):
    raise ValueError(f'The text {words!r} has no tokens to initialise a prompt from.')
  return ids
