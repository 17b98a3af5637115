"""Prompt tuning (Lester et al. 2021): P trainable embeddings in front of the encoder input, nothing else.

A soft prompt is an embedding table for P virtual tokens, ids V to V + P - 1. The data pipeline puts those ids in
front of each input; the `inputs` site looks them up, before dropout. Masks, positions and relative biases follow
as for any token (section 2 of the paper).
"""

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import initializers
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.types import Array


class VirtualTokens(struct.PyTreeNode):
  """Content of the `inputs` site: rows of a small table in place of the embeddings of virtual tokens."""

  table: Array  # [P, D]

  def __call__(self, embedded: Array, virtual_ids: Array) -> Array:
    """Embeddings [B, S, D] and virtual ids [B, S] (negative: a real token) -> embeddings [B, S, D]."""
    rows = jnp.take(self.table.astype(embedded.dtype), virtual_ids, axis=0, mode='clip')
    return jnp.where((virtual_ids >= 0)[..., None], rows, embedded)


class Prompt(Method):
  """A soft prompt of `length` virtual tokens.

  Attributes:
    length: P; the paper's default is 100.
    initializer: see `methods/initializers.py`; the paper's default is class labels.
  """

  length: int = 100
  initializer: initializers.Initializer = initializers.random_uniform()

  collection = 'prompt'

  @property
  def virtual_tokens(self) -> int:
    return self.length

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The prompt's ids, then the text's: [n] -> [P + n]."""
    return np.concatenate([np.arange(vocab_size, vocab_size + self.length, dtype=tokens.dtype), tokens])

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch. With `base` (at init), the table [P, D] is made by the initializer."""
    table = self.variable('prompt', 'embedding', lambda: self._new_table(self.make_rng('prompt'), base))
    return Patch(sites={'inputs': VirtualTokens(table.value)})

  def _new_table(self, key: jax.Array, base: Base) -> Array:
    shape = (self.length, base.config.d_model)
    table = jnp.asarray(self.initializer(key, shape, base), jnp.float32)
    if table.shape != shape:
      raise ValueError(
          f'The prompt should be {list(shape)} (PROMPT_LENGTH x width of the base model) but its initializer '
          f'made {list(table.shape)}. Use a prompt made for this base, or set PROMPT_LENGTH to its length.')
    return table


def load(path: str) -> Prompt:
  """A finished prompt as a method: its length is the file's.

  Where the file knows the base that it was trained on, another one at `init` gets a `tuned.OtherBaseWarning`.

  Args:
    path: a prompt file, a run folder (its best prompt), a PEFT folder or a T5X checkpoint, see `tuned.load`.
  """
  finished = tuned.load(path, 'prompt')
  table = finished.tensors[tuned.PROMPT]

  def init(key, shape, base):
    del key, shape
    if base.fingerprint is not None:
      tuned.warn_if_other_base(path, finished, base.path, base.fingerprint)
    return table

  return Prompt(length=len(table), initializer=init)
