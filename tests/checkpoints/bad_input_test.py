"""Broken and hostile checkpoints, as a user meets them: one message that names the file, exit code 1, nothing written.

What the readers refuse one by one is in huggingface_test and t5x_test; prompt files are in tuned_test.
"""
import json
import re
import shutil

import jax
import msgpack
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import loading
from prompt_tuning.checkpoints import base
from prompt_tuning.methods.prompt import Prompt
from scripts import convert_checkpoint
from tests import models
from tests.checkpoints import folders


@pytest.fixture
def refused(tmp_path, capsys):
  """Converts a folder, which is to fail; returns the message."""

  def convert(folder) -> str:
    before = sorted(tmp_path.iterdir())
    assert convert_checkpoint.main([str(folder), str(tmp_path / 'checkpoint_9')]) == 1
    assert sorted(tmp_path.iterdir()) == before
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith('convert_checkpoint.py: ')
    return said.err

  return convert


# --- Hugging Face ---

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
WO = 'encoder.block.1.layer.1.DenseReluDense.wo.weight'


def cut(name, at):
  return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:at])


def tensors(change):
  """Rewrites the weights, changed."""

  def spoil(folder):
    found = folders.raw(folder)
    change(found)
    safetensors.numpy.save_file(found, folder / WEIGHTS)

  return spoil


def index(content):
  """The weights as one shard that `content`, of its name, describes."""

  def spoil(folder):
    (folder / WEIGHTS).rename(folder / 'model-00001-of-00001.safetensors')
    (folder / INDEX).write_text(content)

  return spoil


def header(entry):
  """Weights whose header promises `entry`, and no data."""

  def spoil(folder):
    text = json.dumps({'shared.weight': entry}).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, 'little') + text)

  return spoil


def config(**settings):
  return lambda folder: folders.rewrite(folder, **settings)


def only(name):
  def spoil(folder):
    (folder / WEIGHTS).rename(folder / name)

  return spoil


HUGE = [10**6, 10**6]  # 4 TB in float32
CASES_HUGGING_FACE = {
    'truncated weights': (cut(WEIGHTS, -1), r'model\.safetensors: truncated: .* ends at byte \d+ of \d+; download it'),
    'truncated header': (cut(WEIGHTS, 2000), r'model\.safetensors: truncated: its header ends at byte'),
    'truncated config': (cut('config.json', 30), r'config\.json: not valid JSON .*; download the file again'),
    'truncated index': (index('{"weight_map": {"sha'), r'index\.json: not valid JSON .*; download the file again'),
    'path out of the folder': (
        index('{"weight_map": {"shared.weight": "../x"}}'), r"index\.json: '\.\./x' is not a file of this folder"),
    'absolute path': (
        index('{"weight_map": {"shared.weight": "/etc/x"}}'), r"index\.json: '/etc/x' is not a file of this folder"),
    'deeply nested index': (index('{"weight_map": ' + '[' * 10**5), r'index\.json: not valid JSON'),
    'integers': (
        tensors(lambda x: x.update({WO: x[WO].astype(np.int32)})), f'{WO} is int32; expected floating-point numbers'),
    'missing tensor': (tensors(lambda x: x.pop(WO)), f'- {WO}  \\(a layer of encoder/layers/mlp/wo/kernel, not in the'),
    'extra tensor': (
        tensors(lambda x: x.update(more=x[WO])), r'\+ more \[32, 48\]  \(in the checkpoint, unknown to the model\)'),
    'a layer of another shape': (
        tensors(lambda x: x.update({WO: np.ascontiguousarray(x[WO][:, :9])})),
        r'~ encoder/layers/mlp/wo/kernel  the model has \[2, 48, 32\], the checkpoint \[2, 9, 32\] and \[2, 48, 32\]'),
    'another config': (config(d_ff=64), r'~ decoder/layers/mlp/wi_0/kernel  the model has \[2, 32, 64\], the check'),
    'a vocabulary without end': (config(vocab_size=10**12), r'config\.json: vocab_size is 1000000000000; expected a'),
    'layers without end': (config(num_layers=10**9), r'config\.json: encoder_layers is 1000000000; expected a number'),
    'no heads': (config(num_heads=0), r'config\.json: num_heads is 0; expected a number from 1'),
    'a tensor without data': (
        header({'dtype': 'F32', 'shape': HUGE, 'data_offsets': [0, 4 * 10**12]}), r'safetensors: truncated: shared\.'),
    'a tensor of unknown type': (
        header({'dtype': 'F4', 'shape': [1], 'data_offsets': [0, 0]}), r"safetensors: .* header is broken .*'F4'"),
    'a pickle': (only('pytorch_model.bin'), r'holds pytorch_model\.bin, which is not read; convert it once with'),
    'TensorFlow': (only('tf_model.h5'), r'holds tf_model\.h5, which is not read; convert it once with'),
}


@pytest.mark.parametrize('case', CASES_HUGGING_FACE)
def test_hugging_face(goldens, tmp_path, refused, case):
  spoil, message = CASES_HUGGING_FACE[case]
  folder = shutil.copytree(goldens / 'hf/t5_v1_1', tmp_path / 'model')
  spoil(folder)
  assert re.search(message, refused(folder))


# --- T5X ---

EMBEDDING, NORM = 'token_embedder/embedding', 'decoder/decoder_norm/scale'
SLOT = 'state.param_states.encoder.relpos_bias.rel_embedding.v'


def place(name):
  return f'target.{name.replace("/", ".")}'


def leaf(name, change):
  """Replaces a leaf of the index."""

  def spoil(folder):
    content = msgpack.unpackb((folder / 'checkpoint').read_bytes())
    node = content['optimizer']['target']
    *outer, last = name.split('/')
    for key in outer:
      node = node[key]
    node[last] = change(node.get(last))
    if node[last] is None:
      del node[last]
    (folder / 'checkpoint').write_bytes(msgpack.packb(content))

  return spoil


def at(path):
  return leaf(NORM, lambda spec: {**spec, 'kvstore': {'driver': 'file', 'path': path}})


def zarray(name, **metadata):
  """Changes an array's own metadata, and its shape in the index."""

  def spoil(folder):
    file = folder / place(name) / '.zarray'
    file.write_text(json.dumps({**json.loads(file.read_text()), **metadata}))
    if 'shape' in metadata:
      leaf(name, lambda spec: {**spec, 'metadata': {**spec['metadata'], 'shape': metadata['shape']}})(folder)

  return spoil


def chunk(name, change, file='0.0'):
  def spoil(folder):
    path = folder / place(name) / file
    content = change(path.read_bytes())
    path.unlink()
    if content is not None:
      path.write_bytes(content)

  return spoil


def inline(shape, dtype='float32', data=b'1234'):
  return msgpack.ExtType(1, msgpack.packb([shape, dtype, data]))


CHUNKED = {'__msgpack_chunked_array__': True, 'shape': {'0': 10**12}, 'chunks': {'0': inline([1])}}
CASES_T5X = {
    'truncated index': (cut('checkpoint', -9), r'/checkpoint: truncated, or no T5X msgpack index .*; copy it again'),
    'nested without end': (
        lambda folder: (folder / 'checkpoint').write_bytes(b'\x81\xa1a' * 10**5), r'/checkpoint: truncated, or no T5X'),
    'inline array without end': (
        leaf(NORM, lambda _: inline([10**12])), rf'{NORM}: 4 bytes are no float32 array of shape \[1000000000000\]'),
    'inline array of objects': (leaf(NORM, lambda _: inline([1], 'O', b'12345678')), f'{NORM}: 8 bytes are no O array'),
    'inline array in pieces without end': (leaf(NORM, lambda _: CHUNKED), f'{NORM}: cannot reshape array of size 1'),
    'path out of the folder': (at('../x/'), rf"{NORM}: its array would be at '\.\./x/'; expected a path inside"),
    'absolute path': (at('/etc/x/'), f"{NORM}: its array would be at '/etc/x/'; expected a path inside the checkpoint"),
    'truncated chunk': (chunk(EMBEDDING, lambda x: x[:-100]), f'array of {EMBEDDING} cannot be read .*; copy it again'),
    'corrupted chunk': (
        chunk(EMBEDDING, lambda x: x[:5000] + bytes(20) + x[5020:]), f'array of {EMBEDDING} cannot be read .*inflate'),
    'checksum of a chunk': (
        chunk(EMBEDDING, lambda x: x[:-8] + bytes(8)), f'{EMBEDDING} cannot be read .*incorrect data check'),
    'missing chunk': (chunk(EMBEDDING, lambda x: None), rf'embedding/0\.0 is missing, a chunk of {EMBEDDING}: copy'),
    'missing folder': (lambda folder: shutil.rmtree(folder / place(NORM)), 'decoder_norm.scale holds no zarr array'),
    'missing folder of the optimizer': (lambda folder: shutil.rmtree(folder / SLOT), f'{SLOT} holds no zarr array'),
    'broken metadata': (
        lambda folder: (folder / place(NORM) / '.zarray').write_text('{'), f'array of {NORM} cannot be opened'),
    'chunk larger than its array': (
        zarray(NORM, chunks=[1000]), rf'{NORM} of shape \[128\] is in chunks of \[1000\]; expected chunks no larger'),
    'array without end': (
        zarray(EMBEDDING, shape=[10**9, 128], chunks=[10**9, 128]),
        rf'embedding/0\.0 has \d+ bytes, too few for a chunk of {EMBEDDING}, which is to have 512000000000: copy it'),
    'integers': (zarray(NORM, dtype='<i4'), f'{NORM} is int32; expected floating-point numbers'),
    'missing array': (leaf(NORM, lambda _: None), rf'- {NORM} \[128\]  \(expected by the model, not in the checkpoint'),
    'extra array': (leaf('mixer', lambda _: inline([1])), r'\+ mixer \[1\]  \(in the checkpoint, unknown to the model'),
    'a layer of another shape': (
        zarray('encoder/layers_1/mlp/wo/kernel', shape=[100, 128], chunks=[100, 128]),
        r'~ encoder/layers/mlp/wo/kernel  the model has \[2, 144, 128\], the checkpoint \[2, 100, 128\] and \[2, 144'),
    'no model': (
        lambda folder: (folder / 'checkpoint').write_bytes(msgpack.packb({'version': 3, 'optimizer': {'state': {}}})),
        '/checkpoint: has no "target", the model; expected a T5X checkpoint'),
    'TensorFlow': (
        lambda folder: (folder / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-1"\n'),
        'is a TensorFlow checkpoint; expected a T5X one: convert it with T5X first'),
}


@pytest.mark.parametrize('case', CASES_T5X)
def test_t5x(goldens, tmp_path, refused, case):
  spoil, message = CASES_T5X[case]
  folder = shutil.copytree(goldens / 't5x/t5x_native_multiopt/checkpoint_0', tmp_path / 'checkpoint_0')
  spoil(folder)
  assert re.search(message, refused(folder))


def largest(folder):
  return max((folder / 'state').rglob('d/*'), key=lambda file: file.stat().st_size)


CASES_ORBAX = {
    'list of arrays': (cut('state/_METADATA', 50), r'state/_METADATA is missing or broken .*; copy it again'),
    'manifest': (cut('state/manifest.ocdbt', 20), r'checkpoint_0: its key-value store cannot be read .* copy it'),
    'tree': (lambda folder: [file.unlink() for file in folder.glob('state/d/*')], 'its key-value store cannot be read'),
    'data': (lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:-5000]), 'copy it again'),
}


@pytest.mark.parametrize('case', CASES_ORBAX)
def test_orbax(goldens, tmp_path, refused, case):
  spoil, message = CASES_ORBAX[case]
  folder = shutil.copytree(goldens / 't5x/t5x_orbax/checkpoint_0', tmp_path / 'checkpoint_0')
  spoil(folder)
  assert re.search(message, refused(folder))


# --- loading for a run ---


@pytest.mark.parametrize('name', ['hf/t5_v1_1', 't5x/t5x_native/checkpoint_0', 't5x/t5x_native_scan/checkpoint_0'])
def test_another_model_size_than_the_checkpoints(goldens, name):
  with pytest.raises(base.CheckpointMismatchError) as error:
    loading.load(str(goldens / name), Prompt(length=1), loading.Backbone(size='t5_1_1_small'), models.one_device())
  said = str(error.value)
  assert f'{name} does not fit the model:\n' in said
  assert '~ decoder/decoder_norm/scale  the model has [512], the checkpoint [' in said


def test_links_out_of_a_checkpoint_are_followed(goldens):
  """The index comes from a stranger, links are the user's own: shared arrays may be linked, as the goldens are."""
  folder = goldens / 't5x/t5x_native_multiopt/checkpoint_0'
  assert (folder / place(EMBEDDING)).is_symlink()
  source = base.open_base(folder)
  assert jax.tree.leaves(base.load_params(source, folders.shapes(source)))
