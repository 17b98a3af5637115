"""What every method is: a linen module that owns a small variable collection and returns a `Patch`."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.types import Array, Params, PyTree, Trainable


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
    size: how many parameters it has, for those who need not load them; None: those of `params` are counted.
  """

  config: BackboneConfig
  embeddings: Callable[[Sequence[int]], np.ndarray]
  encode: Callable[[str], list[int]]
  path: str = ''
  fingerprint: Callable[[], str] | None = None
  activations: Callable[[Sequence[int]], Mapping[str, tuple[np.ndarray, np.ndarray]]] | None = None
  params: Callable[[], Params] | None = None
  size: Callable[[], int] | None = None

  def loaded(self, method: str) -> Params:
    """The parameters, for a method that begins with them.

    Raises:
      ValueError: they are not loaded.
    """
    if self.params is None:
      raise ValueError(f'{self.path}: {method} begins with the model itself; load it with `loading.load`.')
    return self.params()


Given = Callable[[Base], Mapping[str, np.ndarray]]
"""What a method that was trained before begins as: base -> its exported tensors, by path."""


class Method(nn.Module):
  """Base class. Subclasses define `__call__(self, base=None) -> Patch`; `base` is given at `init` only."""

  collection = 'params'  # the variable collection, and first key of the trainable tree
  dropout_rate = 0.0  # of the method's own dropout, which is active while training

  @property
  def collections(self) -> tuple[str, ...]:
    """The variable collections, first keys of the trainable tree."""
    return (self.collection,)

  def bind(self, config: BackboneConfig, tokenizer: Any) -> 'Method':
    """The method for a model and its tokenizer (None: it has none); called once, before anything else."""
    del config, tokenizer
    return self

  def settings(self) -> dict[str, Any]:
    """JSON-able facts beside the exported tensors that a finished file of them needs."""
    return {}

  @property
  def virtual_tokens(self) -> int:
    """How many tokens `place` adds at most: virtual ones, and words of a template."""
    return 0

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Puts virtual tokens into the token ids [n] of one input."""
    del vocab_size
    return tokens

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """What is kept when training is done: the tensors of `checkpoints.tuned.Tuned`, by path; {}: no such form."""
    del trainable
    return {}

  def make_variables(self, make: Callable[[], PyTree], given: Given | None, base: Base) -> None:
    """Makes the variables, float32: what `make` makes, or what is given in its place.

    They are copies: what is trained may be given away (donated) at each step, what is frozen may not.

    Raises:
      ValueError: what is given has other names or shapes than what `make` makes for this base; or that is quantised.
    """
    expected = make() if given is None else jax.eval_shape(make)
    if any(x.dtype == jnp.int8 for x in jax.tree.leaves(expected)):
      raise ValueError(f'{base.path}: {type(self).__name__} trains matrices of the base, which are int8 codes here and '
                       "have no gradient; set PARAMETER_DTYPE to 'bfloat16' or 'float32'.")
    values = expected
    if given is not None:
      values = trees.unflatten({path.removeprefix(f'{self.collection}/'): x for path, x in given(base).items()})
      if lines := trees.diff(expected, values):
        raise ValueError(
            f'{base.path}: what was trained before ({self.collection}) does not fit this {base.config.family}; use the '
            'base that it was trained on (- expected, + found):\n  ' + trees.shorten(lines))
    for name, value in values.items():
      self.variable(self.collection, name, lambda value=value: jax.tree.map(
          lambda x: jnp.array(x, jnp.float32), value))


def plain(method: Method) -> Method:
  """The method beginning at random: what it begins from has no part in its size."""
  fields = {field.name for field in dataclasses.fields(method)}
  if 'methods' in fields:
    return method.clone(methods=tuple(map(plain, method.methods)))
  return method.clone(**{name: None for name in ('initializer', 'offsets') if name in fields})


def exported(trainable: Trainable, collection: str) -> dict[str, Array]:
  """All variables of a collection by path, for methods that are kept as they are trained."""
  return {f'{collection}/{path}': x for path, x in trees.flatten(trainable[collection]).items()}
