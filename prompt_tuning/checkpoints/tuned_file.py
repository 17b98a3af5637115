"""Single files of something trained: NumPy's `.npy`, and `.safetensors` with facts about it in the metadata.

Google's prompt-tuning leaves a bare `.npy`: nothing in it says which model it belongs to. Ours says so, and has a
checksum. Both are small and come from strangers, so a header is compared with the size of its file before
anything is allocated, and nothing is unpickled or decompressed.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy_format
import safetensors

from prompt_tuning.checkpoints import atomic, safetensors_file
from prompt_tuning.checkpoints.tuned_tensors import PROMPT, checked, is_float, virtual_tokens

_FORMAT, _VERSION = 'prompt_tuning', '1'
_OURS = ('format', 'version', 'method', 'virtual_tokens', 'sha256')  # metadata that is no part of `about`
_TEXT = ('base_fingerprint', 'base_path', 'task')  # metadata as it is; all else in `about` is JSON
_NPY_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


@dataclasses.dataclass(frozen=True)
class Tuned:
  """What training made, apart from the base it was trained on.

  Attributes:
    method: 'prompt', 'prefix', 'adapter+head', ...: see `tuned_tensors.py`.
    tensors: float32 arrays by path, see there.
    about: JSON-able facts, as far as they are known: `base_fingerprint`, `base_path`, `base_dtype` (PARAMETER_DTYPE),
      `base_config` (the fields of a `BackboneConfig`), `task`, `step`, `metric`; what the method and the readout need
      besides tensors (`settings`, `readout`); and of a PEFT adapter `peft_type` and `peft_config`.
  """

  method: str
  tensors: Mapping[str, np.ndarray]
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# --- .npy ---


def read_npy(file: pathlib.Path) -> Tuned:
  """Reads a prompt [P, D], such as those of Google's prompt-tuning, with or without the suffix.

  Raises:
    ValueError: not a whole `.npy` of one finite float array of two axes, or one of pickled objects.
  """
  with open(file, 'rb') as f:
    try:
      version = npy_format.read_magic(f)
      if version not in _NPY_HEADERS:
        raise ValueError(f'version {version} of the format')
      shape, is_fortran, dtype = _NPY_HEADERS[version](f)
    except Exception as error:  # NumPy's parser raises whatever Python's does
      raise ValueError(f'{file}: not a plain .npy array ({error}); copy it again.') from error
    begin, size = f.tell(), os.fstat(f.fileno()).st_size
  if dtype.hasobject:
    raise ValueError(f'{file}: not a plain .npy array: it holds pickled objects, which could run code when loaded; '
                     'save the prompt as a float array [P, D].')
  if dtype.kind == 'V' and dtype.itemsize == 2 and dtype.fields is None:
    dtype = np.dtype(ml_dtypes.bfloat16)  # what NumPy writes for it
  if len(shape) != 2 or not is_float(dtype) or min(shape) < 1:
    raise ValueError(f'{file}: expected one float array [P, D], found {shape} {dtype}.')
  if (promised := math.prod(shape) * dtype.itemsize) != size - begin:
    what = 'truncated' if promised > size - begin else 'bytes behind the array'
    raise ValueError(f'{file}: {what}: its header describes {promised} bytes {list(shape)}, {size - begin} follow; '
                     'copy it again.')
  flat = np.fromfile(file, dtype, math.prod(shape), offset=begin)
  return Tuned('prompt', checked(file, 'prompt', {PROMPT: flat.reshape(shape, order='F' if is_fortran else 'C')}))


def save_npy(path: str | os.PathLike, tuned: Tuned) -> None:
  """Writes a prompt as float32 `.npy`, under a temporary name first; what is known about it is lost.

  Raises:
    ValueError: not a whole prompt; nothing was written.
  """
  if tuned.method != 'prompt':
    raise ValueError(f'{path}: a .npy holds a prompt [P, D], not a {tuned.method}; save it as .safetensors.')
  content = io.BytesIO()
  npy_format.write_array(content, checked(path, 'prompt', tuned.tensors)[PROMPT], allow_pickle=False)
  write_bytes(atomic.on_disk(path), content.getvalue())


# --- .safetensors ---


def open_safetensors(file: pathlib.Path) -> tuple[dict[str, safetensors_file.Tensor], dict[str, str]]:
  """The tensors of a file, none of them read yet, and its metadata.

  Raises:
    ValueError: not a whole safetensors file.
  """
  tensors = safetensors_file.open_file(file)
  try:
    with safetensors.safe_open(file, framework='numpy') as f:
      metadata = f.metadata() or {}
  except safetensors.SafetensorError as error:  # such as bytes that belong to no tensor
    raise ValueError(f'{file}: not a whole safetensors file ({error}); copy it again.') from error
  return tensors, metadata


def read_ours(file: pathlib.Path) -> Tuned:
  """Reads what `save_safetensors` wrote.

  Raises:
    ValueError: damaged, of another version, without our metadata, or with tensors that its method does not have.
  """
  stored, metadata = open_safetensors(file)
  if metadata.get('format') != _FORMAT:
    raise ValueError(f'{file}: safetensors without the metadata of prompt_tuning ({", ".join(_OURS)}); expected a '
                     'prompt or prefix that prompt_tuning saved; of a PEFT adapter name its folder.')
  if metadata.get('version') != _VERSION:
    raise ValueError(f'{file}: version {metadata.get("version")!r} of the format; this release reads version '
                     f'{_VERSION!r}: update prompt_tuning.')
  tensors = {name: tensor.read(()) for name, tensor in stored.items()}
  if metadata.get('sha256') != _checksum(tensors):
    raise ValueError(f'{file}: its tensors do not have the sha256 that its metadata promises: it was changed or '
                     'damaged; copy it again.')
  method = metadata.get('method')
  arrays = checked(file, method, tensors)
  try:
    layout = json.loads(metadata.get('virtual_tokens', 'null'))
    about = {name: value if name in _TEXT else json.loads(value)
             for name, value in sorted(metadata.items()) if name not in _OURS}
  except ValueError as error:
    raise ValueError(f'{file}: its metadata is no JSON ({error}); save it again with prompt_tuning.') from error
  if layout != (expected := virtual_tokens(arrays, about.get('settings'))):
    raise ValueError(f'{file}: virtual_tokens in its metadata are {layout}; expected {expected}: it was made by '
                     'another version of prompt_tuning.')
  return Tuned(method, arrays, about)


def save_safetensors(path: str | os.PathLike, tuned: Tuned) -> None:
  """Writes float32 tensors and all that is known about them, under a temporary name first.

  The same content gives the same bytes (the `safetensors` package writes metadata in any order).

  Raises:
    ValueError: not a whole prompt or prefix, or a fact whose name is taken; nothing was written.
  """
  tensors = checked(path, tuned.method, tuned.tensors)
  if taken := sorted(set(tuned.about) & set(_OURS)):
    raise ValueError(f'{path}: facts about it may not be called {", ".join(taken)}.')
  metadata = {name: str(value) if name in _TEXT else json.dumps(value, sort_keys=True)
              for name, value in tuned.about.items() if value is not None}
  metadata |= {
      'format': _FORMAT, 'version': _VERSION, 'method': tuned.method, 'sha256': _checksum(tensors),
      'virtual_tokens': json.dumps(virtual_tokens(tensors, tuned.about.get('settings')), sort_keys=True)}
  write_bytes(atomic.on_disk(path), encode_safetensors(tensors, metadata))


def encode_safetensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
  """A file of float32 tensors, in the order of their names."""
  header: dict[str, Any] = {'__metadata__': dict(sorted(metadata.items()))}
  data, end = [], 0
  for name, value in sorted(tensors.items()):
    header[name] = {'dtype': 'F32', 'shape': value.shape, 'data_offsets': [end, end + value.nbytes]}
    data.append(value.astype('<f4').tobytes())
    end += value.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # tensors begin at a multiple of 8
  return b''.join([struct.pack('<Q', len(text)), text, *data])


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
  """sha256 of names, types, shapes and bytes, in the order of names."""
  digest = hashlib.sha256()
  for name, value in sorted(tensors.items()):
    digest.update(json.dumps([name, str(value.dtype), value.shape]).encode())
    digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()


def write_bytes(file: pathlib.Path, content: bytes) -> None:
  """Writes a file under a temporary name, then renames."""
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary = file.with_name(f'.{file.name}.tmp')
  try:
    temporary.write_bytes(content)
    os.replace(temporary, file)
  finally:
    temporary.unlink(missing_ok=True)
