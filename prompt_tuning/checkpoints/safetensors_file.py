"""The safetensors file format: 8 bytes of header length, a JSON header, then the raw tensors.

Read here through memory maps, because the NumPy front end of the `safetensors` package does not know
bfloat16, and written piece by piece, because that package wants all tensors in memory at once.
"""
from collections.abc import Mapping
import json
import math
import mmap
import pathlib
import struct
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from prompt_tuning.checkpoints import source as source_lib

_DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
    'F8_E5M2': ml_dtypes.float8_e5m2, 'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8,
    'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip
_DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes, the limit that the format itself sets


# --- reading ---


class Tensor(NamedTuple):
  """A tensor in a file."""

  info: source_lib.TensorInfo
  file: pathlib.Path
  begin: int  # of the tensor, in bytes

  def read(self, index: source_lib.Index) -> np.ndarray:
    """A view of the slice `index` of the tensor; of the disk, only its rows are read.

    They are mapped into memory for as long as the view lives: a map of the whole file would count all of the
    pages ever read as this process's memory.
    """
    shape = self.info.shape or (1,)
    first, behind, _ = (index[0] if index else slice(None)).indices(shape[0])
    row = self.info.nbytes // max(shape[0], 1)
    nbytes = row * (behind - first)
    if nbytes <= 0:
      return np.zeros(self.info.shape, self.info.dtype)[index]
    begin = self.begin + first * row
    start = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with open(self.file, 'rb') as f:
      pages = mmap.mmap(f.fileno(), begin - start + nbytes, access=mmap.ACCESS_READ, offset=start)
    pages.madvise(mmap.MADV_WILLNEED)
    rows = np.frombuffer(pages, np.uint8, nbytes, begin - start).view(self.info.dtype)
    rows = rows.reshape(behind - first, *shape[1:])[(slice(None), *index[1:])]
    return rows if self.info.shape else rows[0]


def open_file(file: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of `file` by name, none of them read yet.

  Raises:
    ValueError: not a safetensors file, or the file ends before the data that its header promises.
  """
  size = file.stat().st_size
  if size < 8:
    raise ValueError(f'{file}: truncated ({size} bytes); download the file again.')
  with open(file, 'rb') as f:
    (length,) = struct.unpack('<Q', f.read(8))
    start = 8 + length
    if length > _MAX_HEADER:
      raise ValueError(f'{file}: not a safetensors file (its header would be {length} bytes long).')
    if start > size:
      raise ValueError(f'{file}: truncated: its header ends at byte {start} of {size}; download it again.')
    content = f.read(length)
  try:
    header = json.loads(content)
    header.pop('__metadata__', None)
    tensors = {name: _tensor(entry, file, start) for name, entry in header.items()}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f'{file}: not a safetensors file: its header is broken ({error!r}).') from error
  for name, tensor in tensors.items():
    if (end := tensor.begin + tensor.info.nbytes) > size:
      raise ValueError(f'{file}: truncated: {name} ends at byte {end} of {size}; download it again.')
  return tensors


def _tensor(entry: Mapping[str, Any], file: pathlib.Path, start: int) -> Tensor:
  shape, (begin, end) = tuple(entry['shape']), entry['data_offsets']
  if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
    raise ValueError(f'bad entry {entry}')
  info = source_lib.TensorInfo(shape, np.dtype(_DTYPES[entry['dtype']]))
  if end - begin != info.nbytes:
    raise ValueError(f'shape and size of an entry disagree: {entry}')
  return Tensor(info, file, start + begin)


# --- writing ---


class Writer:
  """Writes one file, tensor by tensor, in any order; not atomic, that is the caller's part. A context."""

  def __init__(self, file: pathlib.Path, tensors: Mapping[str, source_lib.TensorInfo]):
    """`tensors`: those that will come, in the order in which they are to lie."""
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    position = 0
    for name, info in tensors.items():
      offsets = [position, position + info.nbytes]
      header[name] = {'dtype': _DTYPE_NAMES[info.dtype], 'shape': info.shape, 'data_offsets': offsets}
      position += info.nbytes
    text = json.dumps(header).encode()
    text = text.ljust(math.ceil(len(text) / 8) * 8)  # tensors begin at a multiple of 8
    self._begin = {name: 8 + len(text) + header[name]['data_offsets'][0] for name in tensors}
    self._infos, self._missing = tensors, {name: math.prod(info.shape) for name, info in tensors.items()}
    self._file = open(file, 'wb')  # noqa: SIM115
    try:
      self._file.write(struct.pack('<Q', len(text)) + text)
      self._file.truncate(8 + len(text) + position)
    except BaseException:
      self._file.close()
      raise

  def write(self, name: str, value: np.ndarray, columns: slice = slice(None)) -> None:
    """Writes a tensor, or those `columns` of its last axis; each element is to come once.

    Raises:
      ValueError: not the shape or type that was announced.
    """
    info = self._infos[name]
    width = info.shape[-1] if info.shape else 1
    first, behind, _ = columns.indices(width)
    if value.dtype != info.dtype or value.shape != (*info.shape[:-1], behind - first)[-len(info.shape):]:
      raise ValueError(f'{name}: {value.dtype} {value.shape} given; expected {info.dtype} {info.shape}.')
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    pieces = [data] if behind - first == width else data.reshape(-1, (behind - first) * info.dtype.itemsize)
    for row, piece in enumerate(pieces):
      self._file.seek(self._begin[name] + (row * width + first) * info.dtype.itemsize)
      self._file.write(piece.data)
    self._missing[name] -= value.size

  def check_complete(self) -> None:
    """Raises ValueError unless each element of each tensor was written."""
    if wrong := [name for name, missing in self._missing.items() if missing]:
      raise ValueError(f'{len(wrong)} of {len(self._infos)} tensors were not written once, such as {wrong[0]}.')

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *error) -> None:
    self._file.close()
