"""Adapters: small bottlenecks in each layer, x + up(f(down(x))), on a frozen model.

| design | where | layer norm in front | besides | begins as |
|---|---|---|---|---|
| `houlsby` (Houlsby et al. 2019) | behind attention and feed-forward block, before they are added to the residual | no | all norms of the base are trained | N(0, 0.01), nearly the identity |
| `pfeiffer` (one of the two; Wang et al. 2022) | behind the feed-forward block, before the addition | no | | N(0, 0.01), nearly the identity |
| `lin` (Lin et al. 2020, as in Li & Liang 2021) | in the residual stream, behind each layer | yes | | `up` zero: the identity |
| `lin_2` (the second design of Li & Liang's code) | as `houlsby`, without its norms | no | | `up` zero: the identity |

An encoder-decoder has them in both of its stacks, and in the decoder one behind the cross-attention too where there is
one behind the self-attention. AdapterHub's "pfeiffer" reads what the layer's norm makes of the sum with the residual;
here it reads what the feed-forward block puts out, as Houlsby's does. How Lin et al. begin is not known to us: zero is
ours. A head is trained besides if the readout has one.
"""  # noqa: E501

from collections.abc import Iterable
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from prompt_tuning import trees
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.methods.base import Base, Given, Method, Patch, exported
from prompt_tuning.types import Array, Params, PyTree, Trainable

ACTIVATIONS = {'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'silu': jax.nn.silu, 'tanh': jnp.tanh}
SITES = ('attn_out', 'cross_attn_out', 'mlp_out', 'block_out')
_EPSILON = 1e-5
_NORM = r'(.*/)?\w*norm/\w+'  # parameters of a norm of the base


@dataclasses.dataclass(frozen=True)
class Design:
  """Where adapters are and what they compute.

  Attributes:
    sites: some of `SITES`, in each stack that has them.
    layer_norm: each has a norm of its own in front.
    activation: one of `ACTIVATIONS`.
    train_norms: train the norms of the base too.
    spread: standard deviation of the kernels; biases are zero.
    zero_up: but `up` begins as zero.
  """

  sites: tuple[str, ...] = ('mlp_out',)
  layer_norm: bool = False
  activation: str = 'relu'
  train_norms: bool = False
  spread: float = 0.01
  zero_up: bool = False

  def __post_init__(self):
    if not self.sites or set(self.sites) - set(SITES):
      raise ValueError(f'Design.sites={tuple(self.sites)}; expected some of {SITES}.')
    if self.activation not in ACTIVATIONS:
      raise ValueError(f'Design.activation={self.activation!r}; expected one of {", ".join(ACTIVATIONS)}.')


_BOTH = ('attn_out', 'cross_attn_out', 'mlp_out')
DESIGNS = {
    'houlsby': Design(_BOTH, activation='gelu', train_norms=True),
    'pfeiffer': Design(),
    'lin': Design(('block_out',), layer_norm=True, zero_up=True),
    'lin_2': Design(_BOTH, zero_up=True),
}


class Bottleneck(struct.PyTreeNode):
  """Content of a site in a layer: x + up(f(down(x))), or x + up(f(down(norm(x)))).

  Attributes:
    params: {'down': {'kernel': [L, D, b], 'bias': [L, b]}, 'up': {'kernel': [L, b, D], 'bias': [L, D]}} and, with a
      norm, {'norm': {'scale', 'bias'}}, both [L, D].
  """

  params: Params
  activation: str = struct.field(pytree_node=False)

  def __call__(self, x: Array) -> Array:
    """[B, S, D] -> [B, S, D]."""
    dense = lambda name, y: y @ self.params[name]['kernel'].astype(x.dtype) + self.params[name]['bias'].astype(x.dtype)
    y = _norm(x, **self.params['norm']).astype(x.dtype) if 'norm' in self.params else x
    return x + dense('up', ACTIVATIONS[self.activation](dense('down', y)))


def _norm(x: Array, scale: Array, bias: Array) -> Array:
  x = x.astype(jnp.float32)
  return jax.nn.standardize(x, epsilon=_EPSILON) * scale + bias


class Adapter(Method):
  """Adapters in every layer.

  Attributes:
    design: a name of `DESIGNS`, or one of your own.
    bottleneck: b, their width.
    budget: in its place, the share of the base's parameters that is to be trained (0.001 is Li & Liang's 0.1%); b is
      then what comes nearest to it.
    given: what they begin as instead, see `finished.load`.
  """

  design: str | Design = 'houlsby'
  bottleneck: int = 64
  budget: float | None = None
  given: Given | None = None

  collection = 'adapter'

  def settings(self) -> dict[str, Any]:
    return {'adapter_activation': self._design().activation}

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """`adapter/<stack>/<site>/{down,up,norm}/...` as in `Bottleneck`, and norms as `adapter/norms/<path>`."""
    return exported(trainable, 'adapter')

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      key = self.make_rng('adapter')
      self.make_variables(lambda: self._new(key, base), self.given, base)
    variables = dict(self.variables['adapter'])
    norms = trees.flatten(variables.pop('norms', {}))
    activation = self._design().activation
    return Patch(sites={f'{stack}/{site}': Bottleneck(params, activation)
                        for stack, sites in variables.items() for site, params in sites.items()}, overlay=norms)

  def _design(self) -> Design:
    if isinstance(self.design, Design):
      return self.design
    if self.design not in DESIGNS:
      raise ValueError(f'ADAPTER={self.design!r}; expected one of {", ".join(DESIGNS)}, or an adapter.Design.')
    return DESIGNS[self.design]

  def _new(self, key: jax.Array, base: Base) -> PyTree:
    design, width = self._design(), base.config.d_model
    lengths = layers_at(base.config, design.sites)
    if not lengths:
      raise ValueError(f'Design.sites={design.sites}: a {base.config.family} has none of them.')
    norms = {}
    if design.train_norms:
      norms = trees.select(base.loaded('an adapter that trains its norms'), _NORM)
    b = self._width(base, sum(lengths.values()) * width * (1 + 2 * design.layer_norm) + trees.size(norms),
                    sum(lengths.values()) * (2 * width + 1))

    def kernel(i, shape, zero=False):
      return jnp.zeros(shape) if zero else design.spread * jax.random.normal(jax.random.fold_in(key, i), shape)

    new = {f'norms/{path}': x for path, x in norms.items()}
    for i, (site, length) in enumerate(lengths.items()):
      new |= {f'{site}/down/kernel': kernel(2 * i, (length, width, b)), f'{site}/down/bias': jnp.zeros((length, b)),
              f'{site}/up/kernel': kernel(2 * i + 1, (length, b, width), design.zero_up),
              f'{site}/up/bias': jnp.zeros((length, width))}
      if design.layer_norm:
        new |= {f'{site}/norm/scale': jnp.ones((length, width)), f'{site}/norm/bias': jnp.zeros((length, width))}
    return trees.unflatten(new)

  def _width(self, base: Base, fixed: int, each: int) -> int:
    """b, of which there are `fixed + b * each` parameters."""
    if self.budget is None:
      if self.bottleneck < 1:
        raise ValueError(f'BOTTLENECK={self.bottleneck}; expected at least 1.')
      return self.bottleneck
    size = base.size() if base.size is not None else trees.size(base.loaded('a BUDGET'))
    b = round((self.budget * size - fixed) / each)
    if b < 1 or self.budget >= 1:
      raise ValueError(
          f'BUDGET={self.budget} of {size} parameters; expected a share of them, at least {(fixed + each) / size:.3g} '
          'for these adapters (a BOTTLENECK of 1) and less than 1.')
    return b


def layers_at(config: BackboneConfig, sites: Iterable[str]) -> dict[str, int]:
  """{`{stack}/{site}`: L} of those sites that are in the layers of a model."""
  lengths = {'encoder': config.encoder_layers, 'decoder': config.decoder_layers}
  return {f'{stack}/{site}': length for stack, length in lengths.items() for site in sites
          if length and (not site.startswith('cross_') or (stack == 'decoder' and config.encoder_layers))}
