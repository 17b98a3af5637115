"""What every method is: a linen module that owns a small variable collection and returns a `Patch`."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import numpy as np

from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.types import Array, Params, Trainable


class Patch(struct.PyTreeNode):
  """What a method asks of a backbone.

  Attributes:
    sites: content of named sites (`backbones/sites.py`).
    overlay: backbone parameters to put in place of frozen ones, by path.
  """

  sites: sites_lib.Sites = struct.field(default_factory=dict)
  overlay: Mapping[str, Any] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Base:
  """What a method may know of the frozen model when it is initialised.

  Attributes:
    config: its dimensions.
    embeddings: rows of its input embedding table, ids [n] -> float array [n, D].
    encode: text -> token ids, without end of sequence.
    path: where it came from, for messages.
    fingerprint: of its content, see `checkpoints/base.py`; None where nobody asks.
    activations: what it makes of a text, ids [n] -> {`attn_kv` site: (keys, values) [L, n, N, H]}; None where its
      parameters are not loaded.
    params: the parameters themselves, as a tree; None where they are not loaded.
  """

  config: BackboneConfig
  embeddings: Callable[[Sequence[int]], np.ndarray]
  encode: Callable[[str], list[int]]
  path: str = ''
  fingerprint: Callable[[], str] | None = None
  activations: Callable[[Sequence[int]], Mapping[str, tuple[np.ndarray, np.ndarray]]] | None = None
  params: Callable[[], Params] | None = None


class Method(nn.Module):
  """Base class. Subclasses define `__call__(self, base=None) -> Patch`; `base` is given at `init` only."""

  collection = 'params'  # the variable collection, and first key of the trainable tree
  dropout_rate = 0.0  # of the method's own dropout, which is active while training

  @property
  def virtual_tokens(self) -> int:
    """How many ids from V on the method owns."""
    return 0

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Puts virtual tokens into the token ids [n] of one input."""
    del vocab_size
    return tokens

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """What is kept when training is done: the tensors of `checkpoints.tuned.Tuned`, by path; {}: no such form."""
    del trainable
    return {}
