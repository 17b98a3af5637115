"""BitFit (Ben Zaken et al. 2021): the biases are trained, nothing else (and the head, where a readout has one).

Trained is every parameter whose name is `bias` or ends in `_bias`: of projections, norms, and of the logits (BART's,
which Hugging Face keeps as a buffer of zeros). T5's relative position table is no bias in this sense.

T5 has none at all. There, biases are added to what each sub-layer puts out (as OpenDelta does), zero in the beginning.
With those of the attention's output come those of its values, which are the same function: weights sum to one, so a
constant value reaches the output as a constant. Biases of keys would move all scores of a query alike, which a softmax
does not see. Not covered are biases of queries and of the first projection of a feed-forward block.
"""

import re

from flax import linen as nn
from flax import struct
import jax.numpy as jnp

from prompt_tuning import trees
from prompt_tuning.methods.adapter import layers_at
from prompt_tuning.methods.base import Base, Given, Method, Patch, exported
from prompt_tuning.types import Array, PyTree, Trainable

ADDED_AT = ('attn_out', 'cross_attn_out', 'mlp_out')


class Added(struct.PyTreeNode):
  """Content of a site in a layer: x + bias."""

  bias: Array  # [L, D]

  def __call__(self, x: Array) -> Array:
    """[B, S, D] -> [B, S, D]."""
    return x + self.bias.astype(x.dtype)


class Bias(Method):
  """All biases of the base, or, where it has none, new ones behind its sub-layers.

  Attributes:
    given: what they begin as instead, see `finished.load`.
  """

  given: Given | None = None

  collection = 'bias'

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """The base's own as `bias/params/<path>`, added ones [L, D] as `bias/sites/<site>`."""
    return exported(trainable, 'bias')

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      self.make_variables(lambda: _new(base), self.given, base)
    variables = self.variables['bias']
    return Patch(
        sites={site: Added(x) for site, x in trees.flatten(variables.get('sites', {})).items()},
        overlay=trees.flatten(variables.get('params', {})))


def _new(base: Base) -> PyTree:
  params = trees.flatten(base.loaded('BitFit'))
  if own := {path: x for path, x in params.items() if re.fullmatch(r'(.*/)?([a-z]+_)*bias', path)}:
    return {'params': trees.unflatten(own)}
  width = base.config.d_model
  layers = layers_at(base.config, ADDED_AT)
  return {'sites': trees.unflatten({site: jnp.zeros((length, width)) for site, length in layers.items()})}
