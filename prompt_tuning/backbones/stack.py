"""A stack of equal layers, its parameters [L, ...], run as a compiled loop or unrolled."""

from flax import linen as nn
import jax

REMAT_POLICIES = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stack(block: type[nn.Module], length: int, scan: bool, remat: str):
  """`block` repeated `length` times as one module.

  The block's `__call__(x, shared, per_layer)` returns `(x, out)`; leaves of `per_layer` (sites, caches) and
  `out` have a leading axis [L, ...], `shared` goes to every layer. Parameters look the same either way: `scan`
  compiles one layer and loops (short compilation, one layer's code), else the loop is unrolled (layer by layer
  optimisation by the compiler).

  Args:
    remat: what the backward pass keeps of a layer: 'none' (all of it), 'dots' (products with weights), 'full'
      (nothing: recompute).

  Raises:
    ValueError: an unknown `remat`.
  """
  if remat not in REMAT_POLICIES:
    raise ValueError(f'remat={remat!r}; expected one of {", ".join(REMAT_POLICIES)}.')
  if remat != 'none':
    block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
  return nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast, 0),
      length=length,
      unroll=1 if scan else length,
      metadata_params={nn.PARTITION_NAME: 'layers'})
