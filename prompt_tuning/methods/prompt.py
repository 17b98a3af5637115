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
from prompt_tuning.methods import initializers, reparameterization
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.methods.reparameterization import LSTM, MLP
from prompt_tuning.types import Array, PyTree, Trainable


class VirtualTokens(struct.PyTreeNode):
  """Content of the `inputs` site: rows of a small table in place of the embeddings of virtual tokens."""

  table: Array  # [P, D]

  def __call__(self, embedded: Array, virtual_ids: Array) -> Array:
    """Embeddings [B, S, D] and virtual ids [B, S] (negative: a real token) -> embeddings [B, S, D]."""
    rows = jnp.take(self.table.astype(embedded.dtype), virtual_ids, axis=0, mode='clip')
    return jnp.where((virtual_ids >= 0)[..., None], rows, embedded)


class Table(Method):
  """What prompts have in common, wherever they stand in the text: a table that is all that is kept of them.

  Subclasses have `length` (P), `initializer` and `reparameterization`, see `Prompt`.
  """

  collection = 'prompt'

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """The table [P, D]."""
    return {tuned.PROMPT: reparameterization.apply(trainable['prompt'])}

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      for name, value in self.begin(self.make_rng('prompt'), base).items():
        self.variable('prompt', name, lambda value=value: value)
    return Patch(sites={'inputs': VirtualTokens(reparameterization.apply(self.variables['prompt']))})

  def begin(self, key: jax.Array, base: Base) -> PyTree:
    """New variables: {'embedding': [P, D]}, or those of the network that makes it."""
    width, network = base.config.d_model, self.reparameterization
    table = None
    if self.initializer is not None or network is None:
      table = new_table(key, self.length, self.initializer, base)
    if network is None:
      return {'embedding': table}
    params = network.init(jax.random.fold_in(key, 1), self.length, width, (width,))
    return params if table is None else reparameterization.fit(params, table)[0]


class Prompt(Table):
  """A soft prompt of `length` virtual tokens in front of the input.

  Attributes:
    length: P; the paper's default is 100.
    initializer: see `methods/initializers.py`; the paper's default is class labels. None: N(0, 1).
    reparameterization: makes the table while it is trained ("embedding-only" of Li & Liang 2021); an `initializer`
      is then what the network is fitted to, None leaves it as it begins.
  """

  length: int = 100
  initializer: initializers.Initializer | None = initializers.random_uniform()
  reparameterization: MLP | LSTM | None = None

  @property
  def virtual_tokens(self) -> int:
    return self.length

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The prompt's ids, then the text's: [n] -> [P + n]."""
    return np.concatenate([np.arange(vocab_size, vocab_size + self.length, dtype=tokens.dtype), tokens])


def new_table(key: jax.Array, length: int, initializer: initializers.Initializer | None, base: Base) -> Array:
  """Embeddings [P, D] of virtual tokens as the initializer makes them; None: N(0, 1).

  Raises:
    ValueError: they are of another shape.
  """
  shape = (length, base.config.d_model)
  if initializer is None:
    return jax.random.normal(key, shape)
  table = jnp.asarray(initializer(key, shape, base), jnp.float32)
  if table.shape != shape:
    raise ValueError(
        f'The prompt should be {list(shape)} (PROMPT_LENGTH x width of the base model) but its initializer '
        f'made {list(table.shape)}. Use a prompt made for this base, or set PROMPT_LENGTH to its length.')
  return table
