"""Several methods at once: a prompt and the whole model (P-tuning of a tuned model), a prefix and biases, or nothing.

Each keeps its own variables, site contents are put one behind the other in the order of the methods, and a finished
file holds the tensors of all. Without any method the model is as it is: what is left to train is the readout's head.
"""

from collections import Counter
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.types import Array, Trainable


class Together(Method):
  """Methods of different collections; at most one of them may have virtual tokens."""

  methods: tuple[Method, ...] = ()

  @property
  def collection(self) -> str:
    return '+'.join(self.collections)

  @property
  def collections(self) -> tuple[str, ...]:
    """Those of all methods.

    Raises:
      ValueError: two have the same.
    """
    found = [name for method in self.methods for name in method.collections]
    if twice := [name for name, n in Counter(found).items() if n > 1]:
      raise ValueError(f'Together.methods: two of them keep what they train as {twice[0]!r}; expected methods of '
                       'different kinds.')
    return tuple(found)

  @property
  def dropout_rate(self) -> float:
    return max([method.dropout_rate for method in self.methods], default=0.0)

  @property
  def virtual_tokens(self) -> int:
    """How many ids from V on its one method with virtual tokens owns.

    Raises:
      ValueError: two have virtual tokens.
    """
    counts = [method.virtual_tokens for method in self.methods if method.virtual_tokens]
    if len(counts) > 1:
      raise ValueError(f'Together.methods: {len(counts)} of them have virtual tokens ({counts}), which would be the '
                       'same ids; expected one at most.')
    return sum(counts)

  def bind(self, config: BackboneConfig, tokenizer: Any) -> 'Together':
    return self.clone(methods=tuple(method.bind(config, tokenizer) for method in self.methods))

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """As the method with virtual tokens places them."""
    return functools.reduce(lambda tokens, method: method.place(tokens, vocab_size), self.methods, tokens)

  def settings(self) -> dict[str, Any]:
    """Those of all; no two methods have one of the same name."""
    return functools.reduce(lambda both, method: both | method.settings(), self.methods, {})

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """The tensors of all."""
    return functools.reduce(lambda both, method: both | method.export(trainable), self.methods, {})

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    patch = Patch()
    for i, method in enumerate(self.methods):
      method = method.clone(parent=None)
      if base is not None:
        keys = {name: jax.random.fold_in(self.make_rng(name), i) for name in method.collections}
        for collection, variables in method.init(keys, base).items():
          for name, value in variables.items():
            self.variable(collection, name, lambda value=value: value)
      own = {name: x for name, x in self.variables.items() if name in method.collections}
      rngs = {'dropout': self.make_rng('dropout')} if self.has_rng('dropout') else {}
      patch = _joined(patch, method.apply(own, rngs=rngs))
    return patch


def _joined(first: Patch, second: Patch) -> Patch:
  if both := sorted(set(first.overlay) & set(second.overlay)):
    raise ValueError(f'Together.methods: two of them train the parameter {both[0]} of the base ({len(both)} in all); '
                     'expected methods that train different ones.')
  return Patch(sites_lib.join(first.sites, second.sites), {**first.overlay, **second.overlay})
