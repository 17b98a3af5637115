"""A stack of equal layers, its parameters [L, ...], run as a compiled loop, unrolled, or with its layers apart.

Layers that differ are several such stacks, one behind the other: segments (`BackboneConfig.segments`). A pruned model
has them. What goes in and comes out per layer is still [L, ...], of all of them.

Decoding reads every weight for a handful of tokens, and on a CPU a layer's slice of a stacked weight is copied before
it is used, at each token. `Apart` keeps what belongs to each layer in arrays of its own, made once before the loop.
"""

from collections.abc import Callable, Mapping
import functools

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.backbones.layers import states
from prompt_tuning.types import Array, Params, PyTree

REMAT_POLICIES = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Apart(struct.PyTreeNode):
  """An array [L, ...] as L arrays, one a layer."""

  layers: tuple[Array, ...]


def apart(tree: PyTree, length: int) -> PyTree:
  """Every leaf [L, ...] as `Apart`, which the compiler will not undo."""
  split = jax.tree.map(lambda x: Apart(tuple(x[i] for i in range(length))), tree)
  return jax.lax.optimization_barrier(split)


def of_layer(tree: PyTree, i: int) -> PyTree:
  """What belongs to layer `i` of a tree of `Apart`."""
  return jax.tree.map(lambda x: x.layers[i], tree, is_leaf=lambda x: isinstance(x, Apart))


def apart_params(params: Params, stack: str, length: int) -> Params:
  """The parameters of a backbone as its `apart` version wants them.

  Those of `{stack}/layers` are apart, and each `kernel` of the stack, [in, out], is `transposed`, [out, in].
  """
  layers = apart(params[stack]['layers'], length)
  own = {**params[stack], 'layers': {str(i): of_layer(layers, i) for i in range(length)}}
  return {**params, stack: jax.lax.optimization_barrier(_transposed(own))}


def _transposed(params: Params) -> Params:
  one = lambda name, x: ('transposed', x.mT) if name == 'kernel' else (name, x)
  return dict((name, _transposed(x)) if isinstance(x, Mapping) else one(name, x) for name, x in params.items())


class ApartLayers(nn.Module):
  """Layers with parameters of their own, `0` to `L - 1`; what goes in per layer is `Apart`, and what comes out."""

  make: Callable[..., nn.Module]
  length: int

  @nn.compact
  def __call__(self, x, shared, per_layer):
    outs = []
    for i in range(self.length):
      x, out = self.make(name=str(i))(x, shared, of_layer(per_layer, i))
      outs.append(out)
    return x, jax.tree.map(lambda *each: Apart(each), *outs)


def stack(
    block: type[nn.Module], segments: Mapping[str, tuple[int, BackboneConfig]], scan: bool, remat: str,
    apart: bool = False) -> Callable:
  """`block` repeated: (arguments of `block` behind its configuration) -> (x, shared, per_layer) -> (x, out).

  The latter is the form of the block's own `__call__`; leaves of `per_layer` (sites, caches) and `out` have a leading
  axis [L, ...] here, `shared` goes to every layer. Parameters look the same either way: `scan` compiles one layer and
  loops (short compilation, one layer's code), else the loop is unrolled (layer by layer optimisation by the compiler).

  Args:
    segments: name -> how many layers, and the configuration of each, in order.
    remat: what the backward pass keeps of a layer: 'none' (all of it), 'dots' (products with weights), 'full'
      (nothing: recompute).
    apart: layers with parameters, caches and sites of their own, see `Apart`; for decoding, of one segment.

  Raises:
    ValueError: an unknown `remat`.
  """
  if remat not in REMAT_POLICIES:
    raise ValueError(f'remat={remat!r}; expected one of {", ".join(REMAT_POLICIES)}.')

  def run(args, x, shared, per_layer):
    x, outs, first = states(x), [], 0
    for name, (length, config) in segments.items():
      own = per_layer if len(segments) == 1 else _rows(per_layer, first, length)
      if apart:
        layers = ApartLayers(functools.partial(block, config, *args), length, name=name)
      else:
        layers = _scanned(block, length, scan, remat)(config, *args, name=name)
      x, out = layers(x, shared, own)
      outs.append(out)
      first += length
    return x, outs[0] if len(outs) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)

  return lambda *args: functools.partial(run, args)


def _rows(tree: PyTree, first: int, length: int) -> PyTree:
  return jax.tree.map(lambda x: x[first:first + length], tree)


def _scanned(block: type[nn.Module], length: int, scan: bool, remat: str) -> Callable[..., nn.Module]:
  """Equal layers as one module."""
  if remat != 'none':
    block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
  return nn.scan(
      block,
      variable_axes={'params': 0, sites_lib.READ: 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast, 0),
      length=length,
      unroll=1 if scan else length,
      metadata_params={nn.PARTITION_NAME: 'layers'})
