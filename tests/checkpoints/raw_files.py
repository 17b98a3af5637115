"""Checkpoints as others see them: readers and checks that share no code with the package.

`t5x` follows what T5X itself needs of a native checkpoint: it accepts what T5X wrote (the goldens) and is the
stand-in for T5X, which is on no package index, for what we write.
"""
import json
import pathlib

import flax.serialization
import numpy as np
import safetensors.numpy
import tensorstore as ts


def hugging_face(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a folder, through the package's own reader (which knows no bfloat16)."""
  tensors = {}
  for file in folder.glob('*.safetensors'):
    tensors |= safetensors.numpy.load_file(file)
  return tensors


def t5x_index(folder: pathlib.Path) -> dict[str, object]:
  """The leaves of the msgpack index by '/'-joined path: arrays, TensorStore specs or None."""
  index = flax.serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  assert sorted(index) == ['optimizer', 'version']
  assert index['version'] == 3
  return _flat(index['optimizer'])


def _flat(tree, prefix='') -> dict[str, object]:
  if not isinstance(tree, dict) or isinstance(tree.get('driver'), str):
    return {prefix: tree}
  assert list(tree) == sorted(tree), f'{prefix}: keys are not sorted'
  return {path: leaf for key, child in tree.items()
          for path, leaf in _flat(child, f'{prefix}/{key}' if prefix else key).items()}


def t5x(folder: pathlib.Path, part: str = 'target') -> dict[str, np.ndarray | None]:
  """All arrays of the 'target' or the 'state' of a native checkpoint, each opened by the index's own spec."""
  found = {}
  for path, leaf in t5x_index(folder).items():
    if path.startswith(f'{part}/'):
      found[path.removeprefix(f'{part}/')] = _array(folder, leaf) if isinstance(leaf, dict) else leaf
  return found


def _array(folder: pathlib.Path, spec) -> np.ndarray:
  """Reads an array as T5X does, after checking that the index and the array's own metadata say the same."""
  metadata, path = spec['metadata'], spec['kvstore']['path']
  assert set(spec) == {'driver', 'dtype', 'kvstore', 'metadata'}
  assert (spec['driver'], spec['kvstore']['driver']) == ('zarr', 'file')
  assert path.endswith('/')
  assert set(metadata) == {'chunks', 'compressor', 'shape'}
  on_disk = json.loads((folder / path / '.zarray').read_text())
  assert {key: on_disk[key] for key in metadata} == metadata
  assert on_disk['zarr_format'] == 2
  assert on_disk['dtype'] == {'float32': '<f4', 'bfloat16': 'bfloat16', 'int32': '<i4'}[spec['dtype']]
  opened = {**spec, 'kvstore': {'driver': 'file', 'path': f'{folder}/{path}'}}
  return ts.open(opened, open=True).result().read().result()


def orbax(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of an Orbax checkpoint of T5X: 'target.…' and 'state.…', by '/'-joined path."""
  store = {'driver': 'ocdbt', 'base': f'file://{folder}/state'}
  keys = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
  open_array = lambda path: ts.open({'driver': 'zarr', 'kvstore': {**store, 'path': f'{path}/'}}).result()
  return {
      path.replace('.', '/'): open_array(path).read().result()
      for path in (key.removesuffix('/.zarray') for key in keys if key.endswith('/.zarray'))}


def same_bits(first, second) -> None:
  """Asserts equal names, types, shapes and bytes."""
  assert sorted(first) == sorted(second)
  for name, x in first.items():
    y = second[name]
    assert (x.dtype, x.shape) == (y.dtype, y.shape), name
    assert x.tobytes() == y.tobytes(), name
