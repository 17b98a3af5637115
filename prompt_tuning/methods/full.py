"""Full fine-tuning: every parameter of the base is trained. The method that the small ones are compared with.

The parameters are copied into the trainable tree and laid over the frozen ones, so that the rest of the code needs to
know nothing of it. Copies are float32 and whole on every device.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import trees
from prompt_tuning.methods.base import Base, Method, Patch


class Full(Method):
  """All parameters, beginning as those of the base."""

  collection = 'full'

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      if base.params is None:
        raise ValueError(f'{base.path}: full fine-tuning begins with the model itself; load it with `loading.load`.')
      for name, value in jax.tree.map(jnp.float32, base.params()).items():
        self.variable('full', name, lambda value=value: value)
    return Patch(overlay=trees.flatten(self.variables['full']))
