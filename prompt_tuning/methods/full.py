"""Full fine-tuning: every parameter of the base is trained. The method that the small ones are compared with.

The parameters are copied into the trainable tree and laid over the frozen ones, so that the rest of the code needs to
know nothing of it. Copies are float32 and whole on every device; a finished file is as large as the model.
"""

from flax import linen as nn

from prompt_tuning import trees
from prompt_tuning.methods.base import Base, Given, Method, Patch, exported
from prompt_tuning.types import Array, Trainable


class Full(Method):
  """All parameters, beginning as those of the base.

  Attributes:
    given: what they begin as instead, see `finished.load`.
  """

  given: Given | None = None

  collection = 'full'

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """The parameters as `full/<path>`."""
    return exported(trainable, 'full')

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      self.make_variables(lambda: base.loaded('full fine-tuning'), self.given, base)
    return Patch(overlay=trees.flatten(self.variables['full']))
