"""T5X checkpoints: values against the raw arrays, the spellings its versions wrote, and every refusal."""
import dataclasses
import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base
from tests.checkpoints import folders

CONFIG = config_lib.BackboneConfig(
    family='t5', vocab_size=1024, d_model=128, num_heads=4, head_dim=8, d_ff=144, encoder_layers=2, decoder_layers=2)
CONFIG_1_0 = dataclasses.replace(CONFIG, mlp_activations=('relu',), tied_embeddings=True)
CHECKPOINTS = {
    't5x_native/checkpoint_0': CONFIG,
    't5x_native_trained/checkpoint_40': CONFIG,
    't5x_native_t5_1_0/checkpoint_0': CONFIG_1_0,
    't5x_native_bf16/checkpoint_0': CONFIG,
    't5x_native_multiopt/checkpoint_0': CONFIG,
}


def load(folder, abstract_t5, dtype=jnp.float32):
  source = base.open_base(folder)
  return base.load_params(source, abstract_t5(source.config, dtype))


def stored_arrays(folder):
  """Every array folder of a checkpoint, by '/'-joined name, read whole."""
  spec = lambda path: {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{path}/'}}
  return {
      path.name.removeprefix('target.').replace('.', '/'): ts.open(spec(path)).result().read().result()
      for path in folder.glob('target.*')
  }


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_values_equal_the_stacked_arrays(goldens, abstract_t5, name):
  folder = goldens / 't5x' / name
  assert base.open_base(folder).config == CHECKPOINTS[name]
  stored = stored_arrays(folder)
  for path, leaf in trees.flatten(load(folder, abstract_t5)).items():
    if '/layers/' in path:
      expected = np.stack([stored.pop(path.replace('/layers/', f'/layers_{i}/')) for i in range(2)])
    else:
      expected = stored.pop(path)
    np.testing.assert_array_equal(leaf, expected, err_msg=path)
  assert not stored


@pytest.mark.parametrize('name', ['t5x_orbax', 't5x_native_bf16'])
def test_the_same_model_in_other_layouts(goldens, abstract_t5, name):
  native = load(goldens / 't5x/t5x_native/checkpoint_0', abstract_t5, jnp.bfloat16 if 'bf16' in name else jnp.float32)
  source = base.open_base(goldens / f't5x/{name}/checkpoint_0')
  assert source.config == CONFIG
  assert base.fingerprint(load(source.path, abstract_t5)) == base.fingerprint(native)


def test_scanned_layers(goldens):
  """Ours are [L, ...] with heads joined; in T5X layers are axis 1, heads and their width axes of their own."""
  folder = goldens / 't5x/t5x_native_scan/checkpoint_0'
  source = base.open_base(folder)
  assert source.config == dataclasses.replace(CONFIG, relpos_per_layer=True)
  stored = stored_arrays(folder)
  params = trees.flatten(base.load_params(source, folders.shapes(source)))
  for path, leaf in params.items():
    x = stored.pop(path.replace('/layers/', f'/{path[:7]}/'))
    if '/layers/' in path:
      x = np.moveaxis(x, 1, 0)
      if 'attention/' in path:
        x = x.reshape(2, 32, 128) if path.endswith('out/kernel') else x.reshape(2, 128, 32)
    np.testing.assert_array_equal(leaf, x, err_msg=path)
  assert not stored


@pytest.mark.parametrize(('name', 'trained'), [('t5x_orbax', 52), ('t5x_native_multiopt', 2)])
def test_optimizer_state(goldens, name, trained):
  """The step, and four slots of each parameter that is trained."""
  state = base.open_t5x(goldens / f't5x/{name}/checkpoint_0', 'state')
  assert len(state.tensors) == 1 + 4 * trained
  assert state.read('step', ()) == 0
  table = 'param_states/encoder/relpos_bias/rel_embedding'
  shapes = {slot: state.read(f'{table}/{slot}', ()).shape for slot in ('m', 'v', 'v_col', 'v_row')}
  assert shapes == {'m': (1,), 'v': (4, 32), 'v_col': (1,), 'v_row': (1,)}
  assert state.config is None


def test_prompts_can_be_read_and_do_not_disturb(goldens, abstract_t5):
  folder = goldens / 't5x/prompt_tuning_native'
  source = base.open_base(folder / 'checkpoint_5')
  prompt = np.load(folder / 'numpy_checkpoints/checkpoint_5/encoder.prompt.prompt.prompt', allow_pickle=False)
  np.testing.assert_array_equal(source.read('encoder/prompt/prompt/prompt', ()), prompt)
  np.testing.assert_array_equal(source.read('encoder/prompt/prompt/prompt', np.s_[2:5, :7]), prompt[2:5, :7])
  params = base.load_params(source, abstract_t5(source.config))
  assert base.fingerprint(params) == base.fingerprint(load(goldens / 't5x/t5x_native/checkpoint_0', abstract_t5))


# --- what versions of T5X wrote; a small model, written here ---

TINY = config_lib.BackboneConfig(
    family='t5', vocab_size=12, d_model=4, num_heads=2, head_dim=3, d_ff=8, encoder_layers=1, decoder_layers=2)


@pytest.fixture
def tiny(abstract_t5):
  """The arrays of a tiny T5 by T5X's names, and its parameter tree."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract_t5(TINY))
  arrays = {}
  for path, leaf in trees.flatten(params).items():
    layers = enumerate(leaf) if '/layers/' in path else [(0, leaf)]
    arrays |= {path.replace('/layers/', f'/layers_{i}/'): np.asarray(layer) for i, layer in layers}
  return arrays, params


def spec_of(name, array, **changes):
  path = f'target.{name.replace("/", ".")}'
  metadata = {'chunks': list(array.shape), 'compressor': {'id': 'gzip', 'level': 1}, 'shape': list(array.shape)}
  return {'driver': 'zarr', 'dtype': array.dtype.name, 'kvstore': {'driver': 'file', 'path': f'{path}/'},
          'metadata': metadata, **changes}


def write_array(folder, name, array, chunks):
  path = f'{folder}/target.{name.replace("/", ".")}/'
  metadata = {'shape': array.shape, 'chunks': chunks, 'compressor': {'id': 'gzip', 'level': 1}}
  ts.open({'driver': 'zarr', 'dtype': array.dtype.name, 'kvstore': {'driver': 'file', 'path': path},
           'metadata': metadata}, create=True).result().write(array).result()


def write(folder, target, arrays=(), chunks=lambda shape: shape, **top):
  """A native checkpoint of index leaves `target`, with zarr folders for `arrays`."""
  folder.mkdir()
  for name, array in dict(arrays).items():
    write_array(folder, name, array, chunks(array.shape))
  index = {'version': 3, 'optimizer': {'state': {'step': np.int32(0)}, 'target': trees.unflatten(target)}, **top}
  (folder / 'checkpoint').write_bytes(flax.serialization.msgpack_serialize(index))
  return folder


def as_2021(name, array):
  """Driver gfile, no trailing slash, no dtype at the top."""
  path = f'target.{name.replace("/", ".")}'
  spec = spec_of(name, array, kvstore={'driver': 'gfile', 'path': path})
  del spec['dtype']
  return spec


def as_placeholder(name, array):
  '''T5X's first Orbax checkpoints, 2022.'''
  del array
  return f'PLACEHOLDER://target.{name.replace("/", ".")}'


def as_path_on_top(name, array):
  spec = spec_of(name, array, kvstore={'driver': 'gcs', 'bucket': 't5x-dummy-bucket'})
  return {**spec, 'path': f'target.{name.replace("/", ".")}/'}


@pytest.mark.parametrize('make_spec', [spec_of, as_2021, as_path_on_top, as_placeholder])
def test_spellings_of_specs(tmp_path, abstract_t5, tiny, make_spec):
  arrays, params = tiny
  target = {name: make_spec(name, array) for name, array in arrays.items()}
  several = lambda shape: [max(1, shape[0] // 2 - 1), *shape[1:]]  # chunks that do not divide the array
  folder = write(tmp_path / 'checkpoint_3', target, arrays, several)
  assert len(list((folder / 'target.token_embedder.embedding').glob('[0-9]*'))) == 3
  assert base.open_base(folder).config == TINY
  jax.tree.map(np.testing.assert_array_equal, load(folder, abstract_t5), params)


@pytest.mark.parametrize('chunk_bytes', [2**30, 64])
def test_inline_arrays(tmp_path, abstract_t5, tiny, monkeypatch, chunk_bytes):
  arrays, params = tiny
  monkeypatch.setattr(flax.serialization, 'MAX_CHUNK_SIZE', chunk_bytes)
  folder = write(tmp_path / 'checkpoint_3', arrays)
  content = (folder / 'checkpoint').read_bytes()
  assert (b'__msgpack_chunked_array__' in content) == (chunk_bytes == 64)
  jax.tree.map(np.testing.assert_array_equal, load(folder, abstract_t5), params)


def test_bfloat16(tmp_path, abstract_t5, tiny):
  arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in tiny[0].items()}
  target = {name: array if array.ndim == 1 else spec_of(name, array) for name, array in arrays.items()}
  folder = write(tmp_path / 'checkpoint_3', target, {k: v for k, v in arrays.items() if v.ndim > 1})
  narrow = load(folder, abstract_t5, jnp.bfloat16)
  wide = load(folder, abstract_t5, jnp.float32)
  embedding = arrays['token_embedder/embedding']
  assert narrow['token_embedder']['embedding'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(narrow['token_embedder']['embedding'], embedding)
  np.testing.assert_array_equal(wide['token_embedder']['embedding'], embedding.astype(np.float32))
  np.testing.assert_array_equal(wide['decoder']['decoder_norm']['scale'],
                                arrays['decoder/decoder_norm/scale'].astype(np.float32))


def test_orbax(tmp_path, abstract_t5, tiny):
  arrays, params = tiny
  tree = {'state': {'step': np.zeros((), np.int32)}, 'target': trees.unflatten(arrays)}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'checkpoint_3' / 'state', tree)
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / 'checkpoint_3', abstract_t5), params)
  assert base.open_base(tmp_path / 'checkpoint_3').config == TINY
  (tmp_path / 'checkpoint_3/state/_METADATA').unlink()
  with pytest.raises(ValueError, match='_METADATA is missing or broken'):
    base.open_base(tmp_path / 'checkpoint_3')


# --- refusals ---


@pytest.fixture
def folder(goldens, tmp_path):
  """A writable copy of the T5 1.1."""
  return shutil.copytree(goldens / 't5x/t5x_native/checkpoint_0', tmp_path / 'checkpoint_0')


def test_a_missing_array_folder_is_named(folder):
  shutil.rmtree(folder / 'target.decoder.layers_1.mlp.wo.kernel')
  with pytest.raises(FileNotFoundError, match=r'decoder\.layers_1\.mlp\.wo\.kernel holds no zarr array'):
    base.open_base(folder)


def test_a_spec_that_tensorstore_refuses_is_named(tmp_path):
  spec = spec_of('a/b', np.ones(2, np.float32), metadata={'shape': {'0': 2}})
  folder = write(tmp_path / 'checkpoint_3', {'a/b': spec}, {'a/b': np.ones(2, np.float32)})
  with pytest.raises(ValueError, match='array of a/b cannot be opened .*Expected array'):
    base.open_base(folder)


def test_a_broken_chunk_is_named(folder, abstract_t5):
  chunk = folder / 'target.decoder.layers_1.mlp.wo.kernel' / '0.0'
  chunk.write_bytes(chunk.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r'array of decoder/layers_1/mlp/wo/kernel cannot be read .* copy it again'):
    load(folder, abstract_t5)


def test_an_array_of_another_checkpoint_is_refused(folder):
  norm = folder / 'target.decoder.decoder_norm.scale'
  shutil.rmtree(norm)
  write_array(folder, 'decoder/decoder_norm/scale', np.ones(64, np.float32), [64])
  with pytest.raises(ValueError, match='array of decoder/decoder_norm/scale cannot be opened .*128.*64'):
    base.open_base(folder)


def test_broken_indices(folder):
  file = folder / 'checkpoint'
  content = file.read_bytes()
  for wrong, message in [
      (content[:-7], 'truncated, or no T5X msgpack index'),
      (b'', 'truncated, or no T5X msgpack index'),
      (msgpack.packb([1, 2]), 'no T5X index; expected a msgpack map'),
      (msgpack.packb({'version': 3, 'target': {}}), 'no T5X index; expected a msgpack map'),
      (msgpack.packb({'version': 1, 'optimizer': {}}), 'version 1 of the T5X format; expected 2 or 3'),
      (b'model_checkpoint_path: "model.ckpt-1000000"\n', 'is a TensorFlow checkpoint; expected a T5X one'),
  ]:
    file.write_bytes(wrong)
    with pytest.raises(ValueError, match=message):
      base.open_base(folder)


@pytest.mark.parametrize('path', ['/etc/', '../target.x/', 'a/../../x', '.', ''])
@pytest.mark.parametrize('on_top', [False, True])
def test_paths_outside_the_folder_are_refused(tmp_path, path, on_top):
  array = np.ones((2, 2), np.float32)
  place = {'kvstore': {'driver': 'file'}, 'path': path} if on_top else {'kvstore': {'driver': 'file', 'path': path}}
  folder = write(tmp_path / 'checkpoint_3', {'a/b': spec_of('a/b', array, **place)})
  with pytest.raises(ValueError, match=r'checkpoint: a/b: its array would be at .*inside the checkpoint folder'):
    base.open_base(folder)


@pytest.mark.parametrize(('leaf', 'message'), [
    (np.complex64(1j).item(), 'is a msgpack extension 2; expected an array or the place of one'),
    ('target.a.b', "is the text 'target.a.b'; expected an array or the place of one"),
    (None, 'is a NoneType; expected an array'),
    (spec_of('a/b', np.ones(2), driver='n5'), "stored as 'n5' over 'file'; expected zarr over file, gfile, gcs"),
    (spec_of('a/b', np.ones(2), kvstore={'driver': 'http', 'path': 'x'}), "stored as 'zarr' over 'http'"),
    (spec_of('a/b', np.ones(2), metadata={}), "KeyError.*'shape'"),
    (msgpack.ExtType(1, msgpack.packb([[4], 'float32', b'1234'])), '4 bytes are no float32 array of shape'),
    (msgpack.ExtType(1, msgpack.packb([[1], 'object', b'12345678'])), '8 bytes are no object array'),
    (msgpack.ExtType(1, b'\xc1'), 'FormatError'),
])  # fmt: skip
def test_leaves_that_are_no_arrays(tmp_path, leaf, message):
  folder = tmp_path / 'checkpoint_3'
  folder.mkdir()
  if isinstance(leaf, complex):
    leaf = msgpack.ExtType(2, msgpack.packb((leaf.real, leaf.imag)))
  index = {'version': 3, 'optimizer': {'target': {'a': {'b': leaf}}}}
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))
  with pytest.raises(ValueError, match=f'checkpoint: a/b: {message}'):
    base.open_base(folder)


def test_bfloat16_stored_as_integers_is_refused(tmp_path, abstract_t5, tiny):
  arrays, _ = tiny
  folder = write(tmp_path / 'checkpoint_3', {**arrays, 'decoder/decoder_norm/scale': np.ones(4, np.uint16)})
  with pytest.raises(base.CheckpointMismatchError, match='decoder_norm/scale is uint16; expected floating-point'):
    load(folder, abstract_t5)


def test_a_checkpoint_of_something_else(tmp_path, abstract_t5):
  folder = write(tmp_path / 'checkpoint_3', {'mixer/kernel': np.ones((2, 2), np.float32)})
  source = base.open_base(folder)
  assert source.config is None
  with pytest.raises(base.CheckpointMismatchError, match=r'\+ mixer/kernel \[2, 2\][^?]*does not look like a T5'):
    base.load_params(source, {'mixer': {'bias': jax.ShapeDtypeStruct((2,), jnp.float32)}})
