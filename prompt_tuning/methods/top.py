"""Top-layer fine-tuning (FT-TOPk of Li & Liang 2021, where k is 2): the last layers, and the norm behind them.

Which parameters the paper's "top two" are is not known: the released code has a setting that trains the embedding
table too, which is GPT-2's LM head (`embedding`), and one that does not.

Rows [k, ...] of the stacked parameters [L, ...] are trained and put over the last ones of the base. Optimizer,
checkpoints and files hold these rows alone. A scanned stack (`scan=True`) still runs backwards through all of its
layers: to its compiled loop every layer is like the others, so that a step costs what one of full fine-tuning does,
less its optimizer. An unrolled one (`scan=False`) ends its backward pass at the first trained layer.
"""

import re

from flax import linen as nn
from flax import struct
import jax.numpy as jnp

from prompt_tuning import trees
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.methods.base import Base, Given, Method, Patch, exported
from prompt_tuning.types import Array, PyTree, Trainable

_STACKED = r'\w+/layers(_\d+)?/.+'  # paths of parameters [L, ...]
_TABLES = ('token_embedder/embedding', 'decoder/logits_dense/kernel')


class LastRows(struct.PyTreeNode):
  """A leaf of an overlay: the base's with other last rows, in the base's type."""

  rows: Array  # [k, ...]

  def __call__(self, frozen: Array) -> Array:
    """[L, ...] -> [L, ...]."""
    kept = len(frozen) - len(self.rows)
    return jnp.concatenate([frozen[:kept], self.rows.astype(frozen.dtype)])


class Top(Method):
  """The last layers of the base, beginning as they are.

  Attributes:
    layers: k, of each stack.
    stacks: 'encoder', 'decoder' or both; None: the last one that the model has.
    embedding: train the embedding table too, and the LM head of a model that has one of its own.
    given: what they begin as instead, see `finished.load`.
  """

  layers: int = 2
  stacks: tuple[str, ...] | None = None
  embedding: bool = False
  given: Given | None = None

  collection = 'top'

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """The parameters as `top/<path>`; those of layers are [k, ...]."""
    return exported(trainable, 'top')

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      self.make_variables(lambda: self._new(base), self.given, base)
    flat = trees.flatten(self.variables['top'])
    return Patch(overlay={path: LastRows(x) if re.fullmatch(_STACKED, path) else x for path, x in flat.items()})

  def _new(self, base: Base) -> PyTree:
    lengths = {'encoder': base.config.encoder_layers, 'decoder': base.config.decoder_layers}
    lengths = {stack: length for stack, length in lengths.items() if length}
    stacks = [*lengths][-1:] if self.stacks is None else self.stacks
    if not stacks or set(stacks) - set(lengths):
      raise ValueError(f'TOP_STACKS={tuple(stacks)} on a {base.config.family}; expected some of {tuple(lengths)}, or '
                       'None for the last.')
    if wrong := [stack for stack in stacks if not 1 <= self.layers <= lengths[stack]]:
      raise ValueError(f'TOP_LAYERS={self.layers}; expected 1 to {lengths[wrong[0]]}, the layers of the {wrong[0]}.')
    flat = trees.flatten(base.loaded('top-layer fine-tuning'))
    segments = {f'{stack}/{name}/': n for stack in stacks for name, n in self._last(base.config, stack).items()}
    chosen = {path: x[-n:] for prefix, n in segments.items() for path, x in flat.items() if path.startswith(prefix)}
    whole = [*[f'{stack}/{stack}_norm/' for stack in stacks], *(_TABLES if self.embedding else ())]
    return trees.unflatten(chosen | {path: x for path, x in flat.items() if path.startswith(tuple(whole))})

  def _last(self, config: BackboneConfig, stack: str) -> dict[str, int]:
    """How many of the last layers are in which segment of a stack."""
    found, left = {}, self.layers
    for name, (length, _) in reversed(config.segments(stack).items()):
      found[name] = min(left, length)
      left -= found[name]
    return {name: n for name, n in found.items() if n}
