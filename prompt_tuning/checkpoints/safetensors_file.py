"""The safetensors file format: 8 bytes of header length, a JSON header, then the raw tensors.

Read here through a memory map, because the NumPy front end of the `safetensors` package does not know
bfloat16, and written as a stream, because that package wants all tensors in memory at once.
"""
from collections.abc import Iterable, Mapping
import json
import math
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


class Tensor(NamedTuple):
  """A tensor in a file."""

  info: source_lib.TensorInfo
  file_bytes: np.memmap  # the whole file, [bytes]
  begin: int  # of the tensor, in bytes

  def read(self, index: source_lib.Index) -> np.ndarray:
    """A view of the slice `index` of the tensor; nothing else is read from disk."""
    data = self.file_bytes[self.begin : self.begin + self.info.nbytes]
    return data.view(self.info.dtype).reshape(self.info.shape)[index]


def open_file(file: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of `file` by name, none of them read yet.

  Raises:
    ValueError: not a safetensors file, or the file ends before the data that its header promises.
  """
  size = file.stat().st_size
  if size < 8:
    raise ValueError(f'{file}: truncated ({size} bytes); download the file again.')
  data = np.memmap(file, dtype=np.uint8, mode='r')
  (length,) = struct.unpack('<Q', data[:8].tobytes())
  start = 8 + length
  if length > _MAX_HEADER:
    raise ValueError(f'{file}: not a safetensors file (its header would be {length} bytes long).')
  if start > size:
    raise ValueError(f'{file}: truncated: its header ends at byte {start} of {size}; download it again.')
  try:
    header = json.loads(data[8:start].tobytes())
    header.pop('__metadata__', None)
    tensors = {name: _tensor(entry, data, start) for name, entry in header.items()}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f'{file}: not a safetensors file: its header is broken ({error!r}).') from error
  for name, tensor in tensors.items():
    if (end := tensor.begin + tensor.info.nbytes) > size:
      raise ValueError(f'{file}: truncated: {name} ends at byte {end} of {size}; download it again.')
  return tensors


def _tensor(entry: Mapping[str, Any], data: np.memmap, start: int) -> Tensor:
  shape, (begin, end) = tuple(entry['shape']), entry['data_offsets']
  if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
    raise ValueError(f'bad entry {entry}')
  info = source_lib.TensorInfo(shape, np.dtype(_DTYPES[entry['dtype']]))
  if end - begin != info.nbytes:
    raise ValueError(f'shape and size of an entry disagree: {entry}')
  return Tensor(info, data, start + begin)


def write_file(file: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], expected: set[str]) -> np.dtype:
  """Streams tensors to `file`, holding one at a time, and returns their type.

  Args:
    file: the file to write; not atomic, that is the caller's part.
    tensors: (name, value), in any order.
    expected: the names that must come, each once.

  Raises:
    ValueError: a tensor is missing, unknown, given twice, or of another type than the first.
  """
  room = 8 * math.ceil((256 + sum(len(name) + 128 for name in expected)) / 8)  # the header may be padded
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  dtypes = set()
  position = 0
  with open(file, 'wb') as f:
    f.seek(8 + room)
    for name, value in tensors:
      dtypes.add(value.dtype)
      if name not in expected or name in header or len(dtypes) > 1:
        raise ValueError(
            f'{name} ({value.dtype}): expected each of {len(expected)} tensors once, all of one type.')
      f.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
      offsets = [position, position + value.nbytes]
      header[name] = {'dtype': _DTYPE_NAMES[value.dtype], 'shape': value.shape, 'data_offsets': offsets}
      position += value.nbytes
    if missing := sorted(expected - header.keys()):
      raise ValueError(f'{len(missing)} of {len(expected)} tensors were not given, such as {missing[0]}.')
    f.seek(0)
    f.write(struct.pack('<Q', room) + json.dumps(header).encode().ljust(room))
  return dtypes.pop()
