"""Opens a frozen base model in any format, and loads it straight into the sharding it is to have.

Differs from T5X, which restores a whole checkpoint into a train state: here names and shapes are compared
before a byte of a tensor is read, each device's part is read on its own, and what is loaded has a
fingerprint, so that a prompt can say which frozen model it was trained on.
"""
from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
import hashlib
import os
import pathlib
import re

import jax
import jax.numpy as jnp

from prompt_tuning import quantized, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import huggingface, keys, shards, t5x
from prompt_tuning.checkpoints.source import Source
from prompt_tuning.checkpoints.storage import Folder, is_remote
from prompt_tuning.types import Array, Params, PyTree

_THREADS = min(8, os.cpu_count() or 1)
_OTHER_WEIGHTS = ('pytorch_model.bin', 'pytorch_model.bin.index.json', 'tf_model.h5', 'flax_model.msgpack')


class CheckpointMismatchError(ValueError):
  """The checkpoint's parameters are not the model's; the message is a diff of both."""


# --- opening ---


def open_base(path: str | os.PathLike) -> Source:
  """Opens the checkpoint in folder `path`, whatever its format; no tensor is read yet.

  Formats: Hugging Face (`config.json` + safetensors; local only), T5X native (msgpack index + zarr), T5X Orbax.

  Raises:
    FileNotFoundError: there is no such folder, or a file of the checkpoint is missing.
    NotADirectoryError: `path` is a file.
    ValueError: the folder holds no checkpoint, several, one of a format that is not read, or a broken one.
  """
  if (opened := open_t5x(path)) is not None:
    return opened
  folder = pathlib.Path(path)
  if is_remote(path):
    raise ValueError(f'{path} holds no T5X checkpoint; expected checkpoint_<step> with its index. What is not T5X is '
                     'read from a disk: copy the folder first.')
  if not folder.exists():
    raise FileNotFoundError(f'{path} does not exist; expected a folder that holds a checkpoint.')
  if not folder.is_dir():
    raise NotADirectoryError(f'{path} is a file; expected the folder of a checkpoint: name {folder.parent}.')
  names = {child.name for child in folder.iterdir()}
  if names & {huggingface.WEIGHTS, huggingface.WEIGHTS_INDEX}:
    if huggingface.CONFIG not in names:
      raise FileNotFoundError(f'{folder / huggingface.CONFIG} is missing beside the weights; download it.')
    return huggingface.open_folder(folder)
  raise ValueError(f'{folder} {_why_not(folder, names)}')


def open_t5x(path: str | os.PathLike, part: str = 'target') -> Source | None:
  """Opens the model ('target') or the optimizer state ('state') of a T5X checkpoint; None if it is none."""
  folder = Folder(path)
  if folder.has(t5x.INDEX):
    return t5x.open_native(folder, part)
  if folder.has(t5x.ORBAX) or folder.has(t5x.ORBAX_STORE):
    return t5x.open_orbax(folder, part)
  return None


def is_model(path: str | os.PathLike) -> bool:
  """Whether `path` is to be read as a model, by `open_base`; else as something trained on one, by `tuned.load`.

  Raises:
    FileNotFoundError: there is nothing at `path`.
  """
  if is_remote(path):
    return not str(path).endswith('.npy')
  folder = pathlib.Path(path)
  if not folder.exists():
    raise FileNotFoundError(f'{path} does not exist; expected a checkpoint, a prompt, an adapter or a run folder.')
  return folder.is_dir() and not any(folder.glob('adapter_*')) and not any(
      child.name in ('prompts', 'best.npy', 'best.safetensors') for child in folder.iterdir())


def _why_not(folder: pathlib.Path, names: set[str]) -> str:
  """What is wrong with a folder that is no checkpoint."""
  if not names:
    return 'is empty; expected a checkpoint.'
  steps = sorted(int(match[1]) for name in names if (match := re.fullmatch(r'checkpoint_(\d+)', name)))
  if steps:
    return (f'holds the checkpoints of steps {", ".join(map(str, steps))}; name one, such as '
            f'{folder / f"checkpoint_{steps[-1]}"}.')
  if names & {'adapter_config.json', 'prompts'}:
    return ('holds something trained on a base model, not one; name its base here, and this folder as CHECKPOINT_PATH '
            '(or INITIAL_PROMPT).')
  for name in _OTHER_WEIGHTS:
    if name in names:
      return (f'holds {name}, which is not read; convert it once with transformers: AutoModelForSeq2SeqLM'
              f'.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER), and name NEW_FOLDER.')
  return (f'holds no checkpoint; expected {huggingface.CONFIG} with {huggingface.WEIGHTS} or its shards '
          '(Hugging Face), or the files of a T5X checkpoint_<step>. '
          f'It has: {trees.shorten(sorted(names), 8, ", ")}.')


# --- loading ---


def load_params(
    source: Source, abstract: PyTree, shardings: PyTree = None, dtype: jnp.dtype | None = None,
    tick: Callable[[int], None] = lambda nbytes: None) -> Params:
  """Reads the parameters of a model from an opened checkpoint.

  Of each stored tensor, what this process's devices need is read once, by several threads.

  Args:
    source: from `open_base`.
    abstract: our nested parameter tree, with a shape and a dtype at each leaf (`jax.ShapeDtypeStruct`); of int8, with
      scales beside them (`quantized.abstract`), a tensor is quantised when it is read.
    shardings: a tree of `jax.sharding.Sharding` like `abstract`, or one sharding for all. None: whole arrays on
      the first local device.
    dtype: overrides the dtypes of `abstract`.
    tick: told how many bytes of the result are there, after each parameter.

  Returns:
    The tree of arrays. At most one parameter beyond the result is held meanwhile.

  Raises:
    CheckpointMismatchError: names or shapes differ; nothing was read.
  """
  expected = trees.flatten(abstract)
  table = source.key_table(source.config) if source.config else {}
  quantised = {path for path, leaf in expected.items() if leaf.dtype == jnp.int8}
  scales = {path + quantized.SCALE for path in quantised}
  check(source, table, {path: tuple(leaf.shape) for path, leaf in expected.items() if path not in scales})
  if shardings is None:
    shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shardings = trees.flatten(jax.tree.broadcast(shardings, abstract))
  params = {}
  with futures.ThreadPoolExecutor(_THREADS) as threads:
    for path in (p for p in expected if p not in scales):
      paths = [path, *([path + quantized.SCALE] if path in quantised else [])]
      leaves = [jax.ShapeDtypeStruct(expected[p].shape, dtype or expected[p].dtype) for p in paths]
      params |= zip(paths, shards.load(
          source, table[path], path, leaves, [shardings[p] for p in paths], threads), strict=True)
      tick(sum(params[p].nbytes for p in paths))
  return trees.unflatten(params)


# --- comparing ---


def check(source: Source, table: keys.KeyTable, expected: dict[str, tuple[int, ...]]) -> None:
  """Raises unless the checkpoint has exactly the parameters `expected`; speaks of our paths where it can."""
  lines = [*_missing(source, table, expected), *_unknown(source, table, expected)]
  resized = [line for path, shape in expected.items() for line in _resized(source, table, path, shape)]
  if lines or resized:
    head = f'The {source.kind} checkpoint {source.path} does not fit the model:'
    message = trees.shorten([*lines, *resized], sep='\n')
    raise CheckpointMismatchError(f'{head}\n{message}\n{_hint(source.config)}')


def _missing(source, table, expected):
  for path, shape in expected.items():
    names = table[path].names if path in table else ()
    absent = [name for name in names if name not in source.tensors]
    if len(absent) == len(names):  # all of its layers, or the format has no place for it
      yield f'- {path} {list(shape)}  (expected by the model, not in the checkpoint)'
    else:
      yield from (f'- {name}  (a layer of {path}, not in the checkpoint)' for name in absent)


def _unknown(source, table, expected):
  remark = '(in the checkpoint, unknown to the model)'
  for path, entry in table.items():
    if path not in expected and entry.names[0] in source.tensors:
      yield f'+ {path} {list(entry.our_shape(source.tensors[entry.names[0]].shape))}  {remark}'
  known = {name for entry in table.values() for name in entry.names}
  for name, info in source.tensors.items():
    if name not in known and not source.ignored(name):
      yield f'+ {name} {list(info.shape)}  {remark}'


def _resized(source, table, path, shape):
  entry = table.get(path)
  if entry is None or any(name not in source.tensors for name in entry.names):
    return
  infos = {name: source.tensors[name] for name in entry.names}
  shapes = sorted({entry.our_shape(info.shape) for info in infos.values()})
  if shapes != [shape]:
    found = ' and '.join(str(list(s)) for s in shapes)
    yield f'~ {path}  the model has {list(shape)}, the checkpoint {found}'
  for name, info in infos.items():
    if not jnp.issubdtype(info.dtype, jnp.floating):
      yield f'~ {path}  {name} is {info.dtype}; expected floating-point numbers'


def _hint(config: config_lib.BackboneConfig | None) -> str:
  if config is None:
    return 'The checkpoint does not look like a T5.'
  for name, size in config_lib.SIZES.items():
    unseen = {'relpos_max_distance': size.relpos_max_distance, 'pad_id': size.pad_id, 'eos_id': size.eos_id}
    if dataclasses.replace(config, **unseen) == size:
      return f'The checkpoint looks like {name}; if the model is of another size, set MODEL_SIZE = {name!r}.'
  return f'The checkpoint looks like {config}.'


# --- fingerprint ---


def fingerprint(params: Params) -> str:
  """A fingerprint of the names, shapes and values of a parameter tree: 16 hex digits.

  Each element's bits, as float32, are hashed together with its position (murmur3's 32-bit finalizer) and the
  hashes are summed modulo 2**32 where the arrays lie, so that neither sharding nor the type in which equal values
  are kept matters. Cheap; no proof against someone who looks for a collision.
  """
  leaves = trees.flatten(params)
  sums = jax.device_get({path: checksum(leaf) for path, leaf in leaves.items()})
  return digest({path: (leaf.shape, int(sums[path])) for path, leaf in leaves.items()})


def digest(checksums: Mapping[str, tuple[tuple[int, ...], int]]) -> str:
  """The fingerprint of parameters by (shape, `checksum`)."""
  lines = sorted(f'{path} {tuple(shape)} {value}' for path, (shape, value) in checksums.items())
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


@jax.jit
def checksum(x: Array) -> Array:
  """The checksum of one array, as `fingerprint` takes it."""
  h = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  stride = 1
  for axis in reversed(range(x.ndim)):  # the row-major position times a constant, modulo 2**32
    h += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride * 0x9E3779B9 % 2**32)
    stride *= x.shape[axis]
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)
