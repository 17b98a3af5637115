"""T5X checkpoints, read slice by slice: the native layout (msgpack index + zarr arrays) and the Orbax one.

Differs from T5X in that every array is opened, and every chunk looked for, before any is read, so that an
incomplete copy is an error at once (TensorStore reads a missing chunk as zeros); in that a path cannot leave the
checkpoint; and in that models with scanned layers are shown as ours are: [L, ...], heads joined.
"""
from collections.abc import Callable, Iterator, Mapping
import itertools
import json
import math
import os
import re
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import source as source_lib
from prompt_tuning.checkpoints import t5x_axes
from prompt_tuning.checkpoints.families import t5
from prompt_tuning.checkpoints.storage import Folder

INDEX = 'checkpoint'  # the native layout's msgpack index
ORBAX = 'state/_METADATA'  # the Orbax layout's list of arrays
ORBAX_STORE = 'state/manifest.ocdbt'  # and what holds them

_NDARRAY, _SCALAR = 1, 3  # msgpack extension codes of flax.serialization; 2 is a complex number
_CHUNKED = '__msgpack_chunked_array__'
_DRIVERS = ('file', 'gfile', 'gcs')  # all stand for "beside the index"
_PLACEHOLDER = 'PLACEHOLDER://'  # leaves of T5X's first Orbax checkpoints (2022): the folder's name follows

_LARGE = 2**30  # bytes of a chunk
_UNPACKED = 1100  # bytes at most from one of gzip, T5X's compressor

Tensors = Mapping[str, np.ndarray | ts.TensorStore]


# --- the native layout ---


def open_native(folder: Folder, part: str = 'target') -> source_lib.Source:
  """Opens a native T5X checkpoint, `checkpoint_<step>`, by its msgpack index.

  Args:
    part: 'target', the model, or 'state', the step and the optimizer's slots.

  Raises:
    FileNotFoundError: an array or a chunk of one is missing.
    ValueError: not such an index, a truncated one, or one that points outside the folder.
  """
  file = f'{folder}/{INDEX}'
  content = folder.read(INDEX)
  if content.startswith(b'model_checkpoint_path:'):
    raise ValueError(f'{folder}: is a TensorFlow checkpoint; expected a T5X one: convert it with T5X first.')
  try:
    index = msgpack.unpackb(content)  # arrays stay undecoded `msgpack.ExtType`s
  except (ValueError, msgpack.UnpackException) as error:
    raise ValueError(f'{file}: truncated, or no T5X msgpack index ({error!r}); copy it again.') from error
  if not isinstance(index, dict) or not isinstance(optimizer := index.get('optimizer', index.get('_optimizer')), dict):
    raise ValueError(f'{file}: no T5X index; expected a msgpack map of "version" and "optimizer".')
  if 'optimizer' in index and index.get('version') not in (2, 3):
    raise ValueError(f'{file}: version {index.get("version")!r} of the T5X format; expected 2 or 3.')
  if part == 'target' and not isinstance(optimizer.get(part), dict):
    raise ValueError(f'{file}: has no "target", the model; expected a T5X checkpoint: name another one.')
  places, arrays = {}, {}
  for name, leaf in _leaves(optimizer.get(part)):
    if leaf is None and part == 'state':  # a parameter that a MultiOptimizer does not train
      continue
    try:
      if isinstance(leaf, str) or (isinstance(leaf, dict) and _CHUNKED not in leaf):
        places[name] = _place(leaf)
      else:
        arrays[name] = _inline_array(leaf)
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
      raise ValueError(f'{file}: {name}: {error if type(error) is ValueError else repr(error)}') from error
  exists = set(folder.files()).__contains__ if folder.remote else folder.has
  specs = {}
  for name, (path, metadata) in places.items():
    if not exists(f'{path}/.zarray'):
      raise FileNotFoundError(f'{folder}/{path} holds no zarr array, though the index has {name} there: copy the '
                              'whole checkpoint folder.')
    specs[name] = path, {'driver': 'zarr', 'kvstore': folder.spec(path), **metadata}
  size = None if folder.remote else folder.size
  return _source(folder, arrays | _opened(folder, specs, exists, size), part)


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  """('/'-joined name, leaf) of every array of the index, in its order."""
  stack = [((), tree)]
  while stack:
    path, node = stack.pop()
    is_leaf = isinstance(node, dict) and (_CHUNKED in node or isinstance(node.get('driver'), str))
    if isinstance(node, dict) and not is_leaf:
      stack.extend(((*path, key), child) for key, child in reversed(node.items()))
    else:
      yield '/'.join(path), node


def _place(leaf: Mapping[str, Any] | str) -> tuple[str, dict[str, Any]]:
  """The folder, beside the index, of the array that `leaf` stands for, and what is said of it."""
  if isinstance(leaf, str):
    if not leaf.startswith(_PLACEHOLDER):
      raise ValueError(f'is the text {leaf[:40]!r}; expected an array or the place of one.')
    path, metadata = leaf.removeprefix(_PLACEHOLDER), {}
  else:
    kvstore = leaf.get('kvstore', {})
    path = kvstore['path'] if 'path' in kvstore else leaf['path']  # at the top before TensorStore 0.1.14
    driver = kvstore.get('driver', 'file')
    if leaf['driver'] != 'zarr' or driver not in _DRIVERS:
      raise ValueError(
          f'stored as {leaf["driver"]!r} over {driver!r}; expected zarr over {", ".join(_DRIVERS)}.')
    metadata = {'metadata': {'shape': leaf['metadata']['shape']}}  # TensorStore checks it against the array's own
  local = os.path.normpath(path)
  if os.path.isabs(local) or local.split(os.sep)[0] in ('..', '.'):
    raise ValueError(f'its array would be at {path!r}; expected a path inside the checkpoint folder.')
  return local, metadata


def _inline_array(leaf: Any) -> np.ndarray:
  """An array that lies in the index itself, as flax.serialization wrote it."""
  if isinstance(leaf, dict):
    parts = [_inline_array(leaf['chunks'][str(i)]) for i in range(len(leaf['chunks']))]
    return np.concatenate(parts).reshape([leaf['shape'][str(i)] for i in range(len(leaf['shape']))])
  if isinstance(leaf, int):
    return np.asarray(leaf, np.int32)
  if not isinstance(leaf, msgpack.ExtType) or leaf.code not in (_NDARRAY, _SCALAR):
    kind = f'msgpack extension {leaf.code}' if isinstance(leaf, msgpack.ExtType) else type(leaf).__name__
    raise ValueError(f'is a {kind}; expected an array or the place of one.')
  shape, dtype_name, data = msgpack.unpackb(leaf.data)
  dtype = np.dtype(ml_dtypes.bfloat16 if dtype_name in ('bfloat16', 'V2') else dtype_name)
  if dtype.hasobject or len(data) != math.prod(shape) * dtype.itemsize:
    raise ValueError(f'{len(data)} bytes are no {dtype_name} array of shape {shape}.')
  return np.frombuffer(data, dtype).reshape(shape)


# --- the Orbax layout ---


def open_orbax(folder: Folder, part: str = 'target') -> source_lib.Source:
  """Opens an Orbax T5X checkpoint: zarr arrays in the one OCDBT key-value store of `state/`.

  Raises:
    FileNotFoundError: a chunk of an array is missing.
    ValueError: the metadata are missing or broken, or an array cannot be opened.
  """
  try:
    metadata = json.loads(folder.read(ORBAX))
    paths = [[key['key'] for key in entry['key_metadata']] for entry in metadata['tree_metadata'].values()]
    names = {'.'.join(path): '/'.join(path[1:]) for path in paths if path[0] == part}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{folder}/{ORBAX} is missing or broken ({error!r}); copy it again.') from error
  store = {'driver': 'ocdbt', 'base': folder.spec('state')}
  specs = {name: (path, {'driver': 'zarr', 'kvstore': {**store, 'path': f'{path}/'}}) for path, name in names.items()}
  try:
    present = {key.decode() for key in ts.KvStore.open(store).result().list().result()}
  except ValueError as error:
    raise ValueError(f'{folder}: its key-value store cannot be read ({error}); copy it again.') from error
  return _source(folder, _opened(folder, specs, present.__contains__), part)


# --- arrays ---


def _opened(
    folder: Folder, specs: Mapping[str, tuple[str, dict[str, Any]]], exists: Callable[[str], bool],
    size: Callable[[str], int | None] | None = None) -> Tensors:
  """Opens all arrays by (path, TensorStore spec) and looks at the files of their chunks.

  Args:
    exists: whether there is a file; a chunk that is not there would be read as zeros.
    size: of a file, if that can be told; one far too small for its chunk is refused, because TensorStore ends the
      process when it cannot allocate what an array's metadata promise.
  """
  opening, arrays = {}, {}
  try:
    for name, (_, spec) in specs.items():
      opening[name] = ts.open(spec, open=True, read=True)  # raises what is wrong with the spec itself
    for name, future in opening.items():
      arrays[name] = future.result()
  except ValueError as error:
    raise ValueError(f'{folder}: the array of {name} cannot be opened ({error}).') from error
  for name, array in arrays.items():
    chunk = array.chunk_layout.read_chunk.shape or ()
    if any(c > max(n, 1) for c, n in zip(chunk, array.shape, strict=True)):
      raise ValueError(f'{folder}: {name} of shape {list(array.shape)} is in chunks of {list(chunk)}; expected '
                       'chunks no larger than the array.')
    nbytes = math.prod(chunk) * array.dtype.numpy_dtype.itemsize
    grid = [range(-(-n // c)) for n, c in zip(array.shape, chunk, strict=True)]
    separator = array.spec().to_json()['metadata'].get('dimension_separator', '.')
    for at in itertools.product(*grid):
      file = f'{specs[name][0]}/{separator.join(map(str, at)) or "0"}'
      if size and nbytes > _LARGE and nbytes > _UNPACKED * (have := size(file) or math.inf):
        raise ValueError(f'{folder}/{file} has {have} bytes, too few for a chunk of {name}, which is to have {nbytes}: '
                         'copy it again.')
      if not exists(file):
        raise FileNotFoundError(f'{folder}/{file} is missing, a chunk of {name}: copy the whole checkpoint folder.')
  return arrays


def _source(folder: Folder, arrays: Tensors, part: str) -> source_lib.Source:
  """A source of the model's arrays as we see them, or of the optimizer's as they are stored."""
  plain = part == 'state'
  views = {name: t5x_axes.of('' if plain else name, array.ndim) for name, array in arrays.items()}

  def info(array: np.ndarray | ts.TensorStore, view: t5x_axes.Axes) -> source_lib.TensorInfo:
    dtype = array.dtype if isinstance(array, np.ndarray) else array.dtype.numpy_dtype
    return source_lib.TensorInfo(view.shape(array.shape), dtype)

  def read(name: str, index: source_lib.Index) -> np.ndarray:
    array, view = arrays[name], views[name]
    outer, inner = view.index(index, array.shape)
    try:
      value = array[outer] if isinstance(array, np.ndarray) else array[outer].read().result()
    except ValueError as error:
      raise ValueError(f'{folder}: the array of {name} cannot be read ({error}); copy it again.') from error
    return view.ours(value)[inner]

  tensors = {name: info(array, views[name]) for name, array in arrays.items()}
  return source_lib.Source(
      path=str(folder),
      kind='T5X',
      tensors=tensors,
      config=None if plain else config_from_shapes({name: info.shape for name, info in tensors.items()}),
      read=read,
      key_table=t5.t5x_scanned_key_table if any(map(t5x_axes.SCANNED.match, arrays)) else t5.t5x_key_table,
      ignored=lambda name: 'prompt' in name)


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> config_lib.BackboneConfig | None:
  """The dimensions of a T5 as its parameters' shapes tell them, or None if these are not a T5's.

  Shapes tell neither the reach of the relative positions (128 in every released T5) nor the gate's function
  (GELU).
  """
  layer = 'encoder' if any(map(t5x_axes.SCANNED.match, shapes)) else 'layers_0'
  gated = f'encoder/{layer}/mlp/wi_0/kernel' in shapes
  tables = (f'encoder/{layer}/relpos_bias/rel_embedding', 'encoder/relpos_bias/rel_embedding')
  try:
    vocab_size, d_model = shapes['token_embedder/embedding']
    *_, num_heads, buckets = shapes[next(table for table in tables if table in shapes)]
    *_, joined = shapes[f'encoder/{layer}/attention/query/kernel']
    *_, d_ff = shapes[f'encoder/{layer}/mlp/{"wi_0" if gated else "wi"}/kernel']
  except (KeyError, ValueError, StopIteration):
    return None
  if not num_heads or joined % num_heads:
    return None

  def layers(stack: str) -> int:
    if scanned := shapes.get(f'{stack}/{stack}/pre_mlp_layer_norm/scale'):
      return scanned[0]
    return sum(re.fullmatch(rf'{stack}/layers_\d+/pre_mlp_layer_norm/scale', name) is not None for name in shapes)

  return config_lib.BackboneConfig(
      family='t5',
      vocab_size=vocab_size,
      d_model=d_model,
      num_heads=num_heads,
      head_dim=joined // num_heads,
      d_ff=d_ff,
      encoder_layers=layers('encoder'),
      decoder_layers=layers('decoder'),
      mlp_activations=('gelu', 'linear') if gated else ('relu',),
      tied_embeddings='decoder/logits_dense/kernel' not in shapes,
      relpos_buckets=buckets,
      relpos_per_layer=tables[0] in shapes)
