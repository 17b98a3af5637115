"""Writes native T5X checkpoints that T5X restores, with unrolled or with scanned layers.

Differs from what T5X writes in that chunks are not compressed: weights hardly shrink, and unpacking is what
bounds the reading of a T5X checkpoint. T5X reads either.
"""
from collections.abc import Iterator, Mapping
import contextlib
import math
import re
from typing import Any, NamedTuple

from flax import serialization, traverse_util
import numpy as np
import tensorstore as ts

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import atomic, keys, t5x, t5x_axes
from prompt_tuning.checkpoints import source as source_lib
from prompt_tuning.checkpoints.families import t5
from prompt_tuning.checkpoints.storage import Folder, is_remote

_INLINE_BYTES = 1_000_000  # optimizer slots up to this size go into the index, as T5X's factored ones do
_CHUNK_BYTES = 64_000_000  # so that a host which needs a slice does not read all


class _Plan(NamedTuple):
  """How an array is stored."""

  info: source_lib.TensorInfo
  axes: t5x_axes.Axes
  chunks: tuple[int, ...]


class Writer:
  """Where the parameters of a model go, see `writing`."""

  def __init__(self, folder: Folder, table: keys.KeyTable, plans: Mapping[str, _Plan], heads: int, step: int):
    self.table = table
    self._folder, self._plans, self._heads = folder, plans, heads
    self._stores: dict[str, ts.TensorStore] = {}
    self._missing = {f'target/{name}': math.prod(plan.info.shape) for name, plan in plans.items()}
    self._inline: dict[str, np.ndarray | None] = {'state/step': np.asarray(step, np.int32)}

  def write(self, path: str, value: np.ndarray, first: int = 0) -> None:
    """Writes a parameter of ours; of one with a layer axis [L, ...], the layers from `first` on."""
    entry = self.table[path]
    if not entry.stacked:
      self._write(f'target/{entry.names[0]}', self._plans[entry.names[0]], value, first)
      return
    for name, x in zip(entry.names[first:], value, strict=False):
      self._write(f'target/{name}', self._plans[name], x)

  def write_as_is(self, name: str, value: np.ndarray | None) -> None:
    """Writes 'state/step', 'state/param_states/...' or a further 'target/...'.

    None stands for the optimizer state of a parameter that was not trained.
    """
    if value is None or value.nbytes <= _INLINE_BYTES:
      self._inline[name] = None if value is None else np.asarray(value)
    else:
      self._write(name, _plan(source_lib.TensorInfo(value.shape, value.dtype), t5x_axes.of('', value.ndim)), value)

  def _write(self, name: str, plan: _Plan, value: np.ndarray, first: int = 0) -> None:
    """Writes an array, or the rows from `first` on of its first axis as we see it."""
    shape, dtype = plan.info.shape, plan.info.dtype
    if name not in self._stores:
      self._stores[name] = ts.open({
          'driver': 'zarr', 'kvstore': self._folder.spec(_file(name)), 'store_data_equal_to_fill_value': True,
          'metadata': {'chunks': plan.chunks, 'compressor': None, 'shape': shape, 'fill_value': None,
                       'dtype': 'bfloat16' if dtype.name == 'bfloat16' else dtype.str}},
          create=True).result()
    rows = (slice(first, first + len(value)),) if shape else ()
    outer, _ = plan.axes.index(rows, shape)
    self._stores[name][outer].write(plan.axes.stored(value, self._heads)).result()
    self._missing[name] = self._missing.get(name, value.size) - value.size

  def index(self) -> bytes:
    """The msgpack index of what was written.

    Raises:
      ValueError: a parameter was not written.
    """
    if wrong := [name for name, missing in self._missing.items() if missing]:
      raise ValueError(f'{len(wrong)} of {len(self._missing)} arrays were not written once, such as {wrong[0]}.')
    leaves: dict[str, Any] = dict(self._inline)
    for name, store in self._stores.items():
      metadata = {'chunks': list(store.chunk_layout.write_chunk.shape), 'compressor': None, 'shape': list(store.shape)}
      leaves[name] = {
          'driver': 'zarr', 'dtype': store.dtype.name, 'kvstore': {'driver': 'file', 'path': f'{_file(name)}/'},
          'metadata': metadata}
    tree = traverse_util.unflatten_dict(dict(sorted(leaves.items())), sep='/')
    return serialization.msgpack_serialize({'version': 3, 'optimizer': tree})


def _file(name: str) -> str:
  return name.replace('/', '.')


def _plan(info: source_lib.TensorInfo, axes: t5x_axes.Axes) -> _Plan:
  """Cuts an array of stored shape `info` into chunks: by layers, and by rows if it is large."""
  chunks = list(info.shape)
  if axes.groups[:1] == ((1,),):
    chunks[1] = 1
  if chunks:
    parts = math.ceil(math.prod(chunks) * info.dtype.itemsize / _CHUNK_BYTES)
    chunks[0] = math.ceil(chunks[0] / max(parts, 1))
  return _Plan(info, axes, tuple(chunks))


@contextlib.contextmanager
def writing(
    path: str, config: config_lib.BackboneConfig, parameters: Mapping[str, source_lib.TensorInfo], *,
    scanned: bool = False) -> Iterator[Writer]:
  """A context in which a T5 is written as a T5X checkpoint, which is valid, and visible, only when it is left.

  On a disk the folder appears by renaming; in a bucket the index, without which T5X ignores a folder, comes last.

  Args:
    path: the folder `checkpoint_<step>`; it may exist only if it is empty.
    config: the model's dimensions.
    parameters: shape and type of every parameter, by our path.
    scanned: stacks as T5X's `scalable_t5` scans them, else one array a layer as in `t5`.

  Raises:
    FileExistsError: `path` holds something.
    ValueError: not such a path, no T5, or a parameter was not written.
  """
  match = re.fullmatch(r'checkpoint_(\d+)', Folder(path).name)
  if not match:
    raise ValueError(f'{path}: T5X looks for folders checkpoint_<step>; name it so, such as {path}/checkpoint_0.')
  if config.family != 't5':
    raise ValueError(f'{path}: T5X has T5 only; this is {config.family}. Convert it to Hugging Face.')
  if config.relpos_per_layer and not scanned:
    raise ValueError(f'{path}: the unrolled T5 of T5X has one relative position table a stack, this model one a '
                     'layer; convert it to t5x_scan.')
  table = t5.t5x_scanned_key_table(config) if scanned else t5.t5x_key_table(config)
  plans = {}
  for ours, entry in table.items():
    info = parameters[ours]
    shape = entry.stored_shape(info.shape)
    joined = scanned and re.search(r'/layers/.*attention/(query|key|value|out)/', ours)
    axes = t5x_axes.of(entry.names[0], len(shape) + 1 if joined else len(shape))
    plan = _plan(source_lib.TensorInfo(axes.stored_shape(shape, config.num_heads), info.dtype), axes)
    plans |= dict.fromkeys(entry.names, plan)
  with atomic.new_folder(path) if not is_remote(path) else contextlib.nullcontext(path) as partial:
    if (folder := Folder(partial)).has(t5x.INDEX):
      raise FileExistsError(f'{path} already holds a checkpoint: remove it, or name another folder.')
    writer = Writer(folder, table, plans, config.num_heads, int(match[1]))
    yield writer
    folder.write(t5x.INDEX, writer.index())
