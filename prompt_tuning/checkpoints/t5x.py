"""T5X checkpoints, read slice by slice: the native layout (msgpack index + zarr arrays) and the Orbax one.

Only the parameters (`target`) are listed; optimizer state is skipped without being decoded. Differs from T5X
in that every array is opened before any is read, so that a missing folder is an error at once (TensorStore
reads a missing *chunk* as zeros, which is how it stores chunks of zeros), and in that a path can not leave
the checkpoint.
"""
from collections.abc import Iterator, Mapping
import json
import math
import os
import pathlib
import re
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import source as source_lib
from prompt_tuning.checkpoints import t5_keys

INDEX = 'checkpoint'  # the native layout's msgpack index
ORBAX_STATE = 'state'  # the Orbax layout's folder of arrays

_NDARRAY, _SCALAR = 1, 3  # msgpack extension codes of flax.serialization; 2 is a complex number
_CHUNKED = '__msgpack_chunked_array__'
_DRIVERS = ('file', 'gfile', 'gcs')  # all stand for "beside the index"


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> config_lib.BackboneConfig | None:
  """The dimensions of a T5 as its parameters' shapes tell them, or None if these are not a T5's.

  Shapes tell neither the reach of the relative positions (128 in every released T5) nor the gate's function
  (GELU).
  """
  gated = 'encoder/layers_0/mlp/wi_0/kernel' in shapes
  try:
    vocab_size, d_model = shapes['token_embedder/embedding']
    num_heads, buckets = shapes['encoder/relpos_bias/rel_embedding']
    _, joined = shapes['encoder/layers_0/attention/query/kernel']
    _, d_ff = shapes[f'encoder/layers_0/mlp/{"wi_0" if gated else "wi"}/kernel']
  except (KeyError, ValueError):
    return None
  if not num_heads or joined % num_heads:
    return None
  return config_lib.BackboneConfig(
      family='t5',
      vocab_size=vocab_size,
      d_model=d_model,
      num_heads=num_heads,
      head_dim=joined // num_heads,
      d_ff=d_ff,
      encoder_layers=_count(r'encoder/layers_\d+/pre_mlp_layer_norm/scale', shapes),
      decoder_layers=_count(r'decoder/layers_\d+/pre_mlp_layer_norm/scale', shapes),
      mlp_activations=('gelu', 'linear') if gated else ('relu',),
      tied_embeddings='decoder/logits_dense/kernel' not in shapes,
      relpos_buckets=buckets)


def _count(pattern: str, names: Mapping[str, Any]) -> int:
  return sum(re.fullmatch(pattern, name) is not None for name in names)


def _source(
    folder: pathlib.Path, specs: Mapping[str, Any], inline: Mapping[str, np.ndarray]
) -> source_lib.Source:
  """A source of arrays that TensorStore opens by `specs`, and of arrays already in memory."""
  futures, arrays = {}, dict(inline)
  try:
    for name, spec in specs.items():
      futures[name] = ts.open(spec, open=True, read=True)
    for name, future in futures.items():
      arrays[name] = future.result()
  except ValueError as error:
    raise ValueError(f'{folder}: the array of {name} cannot be opened ({error}).') from error
  if any(re.match(r'(en|de)coder/(en|de)coder/', name) for name in arrays):
    raise ValueError(f'{folder}: its layers are scanned (encoder/encoder/...); expected layers_0, layers_1, '
                     '...: export it with scan_layers=False.')

  def info(array) -> source_lib.TensorInfo:
    dtype = array.dtype if isinstance(array, np.ndarray) else array.dtype.numpy_dtype
    return source_lib.TensorInfo(tuple(array.shape), dtype)

  def read(name: str, index: source_lib.Index) -> np.ndarray:
    part = arrays[name][index]
    try:
      return part if isinstance(part, np.ndarray) else part.read().result()
    except ValueError as error:
      raise ValueError(f'{folder}: the array of {name} cannot be read ({error}); copy it again.') from error

  tensors = {name: info(array) for name, array in arrays.items()}
  return source_lib.Source(
      path=folder,
      kind='T5X',
      tensors=tensors,
      config=config_from_shapes({name: info.shape for name, info in tensors.items()}),
      read=read,
      key_table=t5_keys.t5x,
      ignored=lambda name: 'prompt' in name)


# --- the native layout ---


def open_native(folder: pathlib.Path) -> source_lib.Source:
  """Opens a native T5X checkpoint folder, `checkpoint_<step>`, by its msgpack index.

  Raises:
    FileNotFoundError: an array's folder is missing.
    ValueError: not such an index, a truncated one, or one that points outside the folder.
  """
  file = folder / INDEX
  content = file.read_bytes()
  if content.startswith(b'model_checkpoint_path:'):
    raise ValueError(f'{folder}: is a TensorFlow checkpoint; expected a T5X one: convert it with T5X first.')
  try:
    index = msgpack.unpackb(content)  # arrays stay undecoded `msgpack.ExtType`s
  except (ValueError, msgpack.UnpackException) as error:
    raise ValueError(f'{file}: truncated, or no T5X msgpack index ({error!r}); copy it again.') from error
  if not isinstance(index, dict) or not isinstance(index.get('optimizer'), dict):
    raise ValueError(f'{file}: no T5X index; expected a msgpack map of "version" and "optimizer".')
  if index.get('version') not in (2, 3):
    raise ValueError(f'{file}: version {index.get("version")!r} of the T5X format; expected 2 or 3.')
  specs, inline = {}, {}
  for name, leaf in _leaves(index['optimizer'].get('target')):
    try:
      if isinstance(leaf, dict) and _CHUNKED not in leaf:
        specs[name] = _local_spec(leaf, folder)
      else:
        inline[name] = _inline_array(leaf)
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
      raise ValueError(f'{file}: {name}: {error if type(error) is ValueError else repr(error)}') from error
  for name, spec in specs.items():
    if not os.path.isfile(os.path.join(spec['kvstore']['path'], '.zarray')):
      raise FileNotFoundError(f'{spec["kvstore"]["path"]} holds no zarr array, though the index has {name} '
                              'there: copy the whole checkpoint folder.')
  return _source(folder, specs, inline)


def _leaves(target: Any) -> Iterator[tuple[str, Any]]:
  """('/'-joined name, leaf) of every array of the index, in its order."""
  stack = [((), target)]
  while stack:
    path, node = stack.pop()
    is_spec = isinstance(node, dict) and (_CHUNKED in node or isinstance(node.get('driver'), str))
    if isinstance(node, dict) and not is_spec:
      stack.extend(((*path, key), child) for key, child in reversed(node.items()))
    else:
      yield '/'.join(path), node


def _local_spec(spec: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """The TensorStore spec that opens the array `spec` stands for, inside `folder` whatever its driver was."""
  kvstore = spec.get('kvstore', {})
  path = kvstore['path'] if 'path' in kvstore else spec['path']  # at the top before TensorStore 0.1.14
  driver = kvstore.get('driver', 'file')
  if spec['driver'] != 'zarr' or driver not in _DRIVERS:
    raise ValueError(
        f'stored as {spec["driver"]!r} over {driver!r}; expected zarr over {", ".join(_DRIVERS)}.')
  local = os.path.normpath(path)
  if os.path.isabs(local) or local.split(os.sep)[0] in ('..', '.'):
    raise ValueError(f'its array would be at {path!r}; expected a path inside the checkpoint folder.')
  return {
      'driver': 'zarr',
      'kvstore': {'driver': 'file', 'path': os.path.join(os.path.abspath(folder), local, '')},
      'metadata': {'shape': spec['metadata']['shape']},  # TensorStore checks it against the array's own
  }


def _inline_array(leaf: Any) -> np.ndarray:
  """An array that lies in the index itself, as flax.serialization wrote it."""
  if isinstance(leaf, dict):
    parts = [_inline_array(leaf['chunks'][str(i)]) for i in range(len(leaf['chunks']))]
    return np.concatenate(parts).reshape([leaf['shape'][str(i)] for i in range(len(leaf['shape']))])
  if not isinstance(leaf, msgpack.ExtType) or leaf.code not in (_NDARRAY, _SCALAR):
    kind = f'msgpack extension {leaf.code}' if isinstance(leaf, msgpack.ExtType) else type(leaf).__name__
    raise ValueError(f'is a {kind}; expected an array or the place of one.')
  shape, dtype_name, data = msgpack.unpackb(leaf.data)
  dtype = np.dtype(ml_dtypes.bfloat16 if dtype_name in ('bfloat16', 'V2') else dtype_name)
  if dtype.hasobject or len(data) != math.prod(shape) * dtype.itemsize:
    raise ValueError(f'{len(data)} bytes are no {dtype_name} array of shape {shape}.')
  return np.frombuffer(data, dtype).reshape(shape)


# --- the Orbax layout ---


def open_orbax(folder: pathlib.Path) -> source_lib.Source:
  """Opens an Orbax T5X checkpoint folder: zarr arrays in the one OCDBT key-value store of `state/`.

  Raises:
    ValueError: the metadata are missing or broken, or an array cannot be opened.
  """
  state = folder / ORBAX_STATE
  try:
    metadata = json.loads((state / '_METADATA').read_text(encoding='utf-8'))
    paths = [[key['key'] for key in entry['key_metadata']] for entry in metadata['tree_metadata'].values()]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{state}: _METADATA is missing or broken ({error!r}); copy it again.') from error
  store = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': os.path.join(os.path.abspath(state), '')}}
  specs = {
      '/'.join(path[1:]): {'driver': 'zarr', 'kvstore': {**store, 'path': '.'.join(path) + '/'}}
      for path in paths
      if path[0] == 'target'
  }
  return _source(folder, specs, {})
