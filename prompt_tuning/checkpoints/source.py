"""What every checkpoint reader returns: the tensors there are, and a way to read a slice of one."""
from collections.abc import Callable, Mapping
import dataclasses
import math

import numpy as np

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import keys

Index = tuple[slice, ...]  # one slice per axis; an empty tuple is the whole tensor


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Shape and type of a stored tensor."""

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Source:
  """An opened checkpoint: its index is in memory, its tensors are on disk until `read`.

  Attributes:
    path: the folder, for messages.
    kind: the format, for messages.
    tensors: the stored name of every model tensor -> its shape and type. No optimizer state.
    config: the model's dimensions, or None where they cannot be told.
    read: (name, index) -> that slice of the tensor; nothing else is read.
    key_table: the dimensions of a model -> where each of its parameters lies here.
    ignored: stored names that no model needs (duplicates, prompts).
    tokenizer_path: the tokenizer that came with the checkpoint, a file or the folder of its files.
  """

  path: str
  kind: str
  tensors: Mapping[str, TensorInfo]
  config: config_lib.BackboneConfig | None
  read: Callable[[str, Index], np.ndarray]
  key_table: Callable[[config_lib.BackboneConfig], keys.KeyTable]
  ignored: Callable[[str], bool]
  tokenizer_path: str | None = None
