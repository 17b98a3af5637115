"""Frozen matrices as 8-bit integers and one scale a channel, dequantised where they are used.

A matrix W [..., in, out] is kept as codes round(W / s), int8 in [-127, 127], with s [..., out] = max |W| / 127 over
`in`: x @ W is (x @ codes) s but for the rounding. An embedding table [V, D] has a scale a row, which serves the lookup
and, where the table is the LM head, the logits. In a parameter tree the codes have the name of the matrix, and the
scales lie beside them as `{name}_scale`. What is no matrix (norms, biases, positions) is small and stays float32. Only
what is frozen is kept like this: integers have no gradient.
"""

from collections.abc import Mapping
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.types import Array, Params, PyTree

SCALE = '_scale'
_QUANTIZED = r'(.*/)?kernel|token_embedder/embedding'
_SHARED = {'kernel': -2, 'embedding': -1}  # name -> the axis along which a scale is the same


def shared_axis(path: str) -> int:
  """The axis of the parameter at `path` along which its scale is the same."""
  return _SHARED[path.split('/')[-1]]


def quantize(x: Array, axis: int) -> tuple[Array, Array]:
  """Floating-point numbers -> their codes, int8, and scales, float32, without `axis`."""
  numpy = np if isinstance(x, np.ndarray) else jnp
  x = x.astype(numpy.float32)
  scale = numpy.maximum(x.max(axis), -x.min(axis)) / numpy.float32(127)
  divisor = numpy.where(scale == 0, numpy.float32(1), scale)  # a channel of zeros
  return numpy.rint(x / numpy.expand_dims(divisor, axis)).astype(numpy.int8), scale


def abstract(boxed: PyTree) -> PyTree:
  """Shapes of a float32 tree, boxed with the logical names of their axes, as they are quantised."""
  result = {}
  for path, box in trees.flatten(boxed).items():
    result[path] = box
    if re.fullmatch(_QUANTIZED, path):
      axis = shared_axis(path) % len(box.value.shape)
      without = lambda x, axis=axis: (*x[:axis], *x[axis + 1:])
      result[path] = box.replace(value=jax.ShapeDtypeStruct(box.value.shape, jnp.int8))
      result[path + SCALE] = box.replace(
          value=jax.ShapeDtypeStruct(without(box.value.shape), jnp.float32), names=without(box.names))
  return trees.unflatten(result)


def apart(flat: Mapping[str, Array]) -> list[list[str]]:
  """The paths of a flat tree: codes and scales of each matrix by themselves, then all others."""
  matrices = [[path, path + SCALE] for path, x in flat.items() if x.dtype == jnp.int8]
  return [*matrices, sorted(set(flat) - {path for both in matrices for path in both})]


def cast(params: Params, like: PyTree) -> Params:
  """Floating-point parameters in the types of `like` (arrays or shapes), quantised where it is."""
  flat, result = trees.flatten(params), {}
  for path, leaf in trees.flatten(like).items():
    if leaf.dtype == jnp.int8:
      result[path], result[path + SCALE] = quantize(flat[path], shared_axis(path))
    elif path in flat:
      result[path] = flat[path].astype(leaf.dtype)
  return trees.unflatten(result)


def dequantized(params: Params) -> Params:
  """The parameters, or a part of them, as floating-point numbers; those that are none already as they are."""
  result = {}
  for name, x in params.items():
    if isinstance(x, Mapping):
      result[name] = dequantized(x)
    elif (scale := params.get(name + SCALE)) is not None:
      result[name] = x.astype(jnp.float32) * jnp.expand_dims(scale, shared_axis(name))
    elif name.removesuffix(SCALE) not in params or not name.endswith(SCALE):
      result[name] = x
  return result


def rescaled(module: nn.Module, name: str, y: Array) -> Array:
  """y [..., out], a product with the codes of the module's parameter `name`, times its scales; else as it is."""
  if not module.has_variable('params', name + SCALE):
    return y
  scale = module.get_variable('params', name + SCALE)
  return (y.astype(jnp.float32) * scale).astype(y.dtype)
