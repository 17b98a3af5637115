"""Infix-tuning (Li & Liang 2021, section 7.3): virtual tokens between source and target, [x; INFIX; y].

The frozen model reads P virtual tokens with trainable embeddings behind the source, at their natural positions, and
trainable offsets are added to the keys and values that it computes for them in each layer. Those of the source stay
as they are. An encoder-decoder, which the paper did not try, gets its infix at the end of the encoder's input.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.backbones.sites import KeysValues
from prompt_tuning.methods import initializers, prefix, prompt
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.methods.reparameterization import MLP
from prompt_tuning.types import Array, PyTree, Trainable


class Offsets(KeysValues):
  """Content of an `attn_kv` site: [L, P, N, H] are added to the keys and values of virtual tokens."""

  @property
  def more(self) -> None:
    return None

  @property
  def length(self) -> int:
    return 0

  def __call__(self, k: Array, v: Array, virtual_ids: Array) -> tuple[Array, Array]:
    """Keys and values [B, S, N, H] and virtual ids [B, S] (negative: a real token) -> keys and values."""

    def moved(x, offsets):  # offsets: [P, N, H] of this layer
      rows = jnp.take(offsets.astype(x.dtype), virtual_ids, axis=0, mode='clip')
      return x + jnp.where((virtual_ids >= 0)[..., None, None], rows, 0)

    return moved(k, self.key), moved(v, self.value)


class Infix(Method):
  """Virtual tokens at the end of the source, with keys and values of their own making.

  Attributes:
    length: P.
    initializer: of the embeddings, see `methods/initializers.py`; None: N(0, 1).
    reparameterization: makes the offsets while they are trained; None: they are trained themselves.
    offsets: what they begin as; None: zero, or the MLP as it begins.
  """

  length: int = 10
  initializer: initializers.Initializer | None = None
  reparameterization: MLP | None = MLP()
  offsets: prefix.Initializer | None = None

  collection = 'infix'

  @property
  def virtual_tokens(self) -> int:
    return self.length

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The text's ids, then the infix's: [n] -> [n + P]."""
    return np.concatenate([tokens, np.arange(vocab_size, vocab_size + self.length, dtype=tokens.dtype)])

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """`infix/embedding` [P, D], and offsets [L, P, N, H] as `infix/<site>/key` and `.../value`."""
    table, (site, (key, value)) = _parts(trainable['infix'])
    return {'infix/embedding': table, f'infix/{site}/key': key, f'infix/{site}/value': value}

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      for name, value in self._new(self.make_rng('infix'), base).items():
        self.variable('infix', name, lambda value=value: value)
    table, (site, both) = _parts(self.variables['infix'])
    return Patch(sites={'inputs': prompt.VirtualTokens(table), site: Offsets(*both)})

  def _new(self, key: jax.Array, base: Base) -> PyTree:
    site = prefix.sites_of(base.config)[0]  # where the source is read
    given = prefix.given_to([site], self.offsets, base, self.length).get(site)
    table, offsets = jax.random.split(key)
    return {
        'embedding': prompt.new_table(table, self.length, self.initializer, base),
        **trees.unflatten({site: prefix.new_site(
            offsets, base.config, site, self.length, self.reparameterization, given,
            lambda key, shape: jnp.zeros(shape))})}


def _parts(collection: PyTree) -> tuple[Array, tuple[str, tuple[Array, Array]]]:
  """Trainables -> the table, and the one site with its offsets."""
  ((site, params),) = prefix.by_site({k: v for k, v in collection.items() if k != 'embedding'}).items()
  return collection['embedding'], (site, prefix.generate(params))
