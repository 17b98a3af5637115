"""Opening by folder, the diff of a model that does not fit, sharded loading, and fingerprints."""
import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, convert, shards


@pytest.fixture
def source(goldens):
  return base.open_base(goldens / 'hf/t5_v1_1')


@pytest.fixture
def mesh():
  return jax.make_mesh((2, 4), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def spread(mesh, tree):
  """Shardings that split the last axis that four devices can share, and the layers over two."""

  def spec(x):
    axes = [None] * len(x.shape)
    last = next((i for i in reversed(range(len(x.shape))) if x.shape[i] % 4 == 0), None)
    if last is not None:
      axes[last] = 'model'
    if len(x.shape) == 3 and x.shape[0] % 2 == 0:
      axes[0] = 'data'
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(spec, tree)


# --- opening ---


def test_folders_that_are_no_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere does not exist; expected a folder'):
    base.open_base(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=f'{tmp_path} is empty'):
    base.open_base(tmp_path)
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(ValueError, match=r'holds no checkpoint; expected .* It has: notes\.txt'):
    base.open_base(tmp_path)
  with pytest.raises(NotADirectoryError, match=f'notes.txt is a file; .* name {tmp_path}'):
    base.open_base(tmp_path / 'notes.txt')
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='holds no checkpoint; expected config.json with model.safetensors'):
    base.open_base(tmp_path)


def test_what_was_trained_is_no_base(goldens, tmp_path):
  (tmp_path / 'prompts').mkdir()
  for folder in (goldens / 'hf/peft_t5_v1_1_prompt', tmp_path):
    with pytest.raises(ValueError, match=f'{folder} holds something trained on a base model.* as CHECKPOINT_PATH'):
      base.open_base(folder)


def test_of_several_steps_one_must_be_named(tmp_path):
  for step in (100, 20):
    (tmp_path / f'checkpoint_{step}').mkdir()
  (tmp_path / 'checkpoint_300.tmp-1700000000').mkdir()
  with pytest.raises(ValueError, match=r'steps 20, 100; name one, such as .*/checkpoint_100\.'):
    base.open_base(tmp_path)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'pytorch_model.bin.index.json', 'tf_model.h5'])
def test_other_weights_are_refused_with_the_way_out(tmp_path, name):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / name).touch()
  with pytest.raises(ValueError, match=f'holds {name}, which is not read; convert it .*save_pretrained'):
    base.open_base(tmp_path)


def test_weights_without_config(goldens, tmp_path):
  shutil.copy(goldens / 'hf/t5_v1_1/model.safetensors', tmp_path)
  with pytest.raises(FileNotFoundError, match=r'config\.json is missing beside the weights'):
    base.open_base(tmp_path)


# --- comparing ---


def mismatch(source, abstract):
  """The message about a model that does not fit, and proof that nothing was read for it."""

  def read(name, index):
    raise AssertionError(f'{name} was read')

  with pytest.raises(base.CheckpointMismatchError) as error:
    base.load_params(dataclasses.replace(source, read=read), abstract)
  return str(error.value).split('\n')


def test_another_size(source, abstract_t5):
  head, *lines, hint = mismatch(source, abstract_t5(dataclasses.replace(source.config, d_ff=64)))
  assert head == f'The Hugging Face checkpoint {source.path} does not fit the model:'
  assert sorted(lines) == [
      f'~ {stack}/layers/mlp/{kernel}/kernel  the model has {model}, the checkpoint {stored}'
      for stack in ('decoder', 'encoder')
      for kernel, model, stored in (('wi_0', '[2, 32, 64]', '[2, 32, 48]'), ('wi_1', '[2, 32, 64]', '[2, 32, 48]'),
                                    ('wo', '[2, 64, 32]', '[2, 48, 32]'))]  # fmt: skip
  assert hint == f'The checkpoint looks like {source.config}.'


def test_more_layers_than_the_model(source, abstract_t5):
  lines = mismatch(source, abstract_t5(dataclasses.replace(source.config, decoder_layers=1)))
  assert ('~ decoder/layers/self_attention/query/kernel  the model has [1, 32, 24], the checkpoint [2, 32, 24]'
          in lines)


def test_t5_1_0_for_1_1(goldens, abstract_t5, source):
  old = base.open_base(goldens / 'hf/t5_v1_0')
  lines = mismatch(old, abstract_t5(dataclasses.replace(source.config, num_heads=4)))
  assert lines[1:-1] == [
      '- encoder/layers/mlp/wi_0/kernel [2, 32, 48]  (expected by the model, not in the checkpoint)',
      '- encoder/layers/mlp/wi_1/kernel [2, 32, 48]  (expected by the model, not in the checkpoint)',
      '- decoder/layers/mlp/wi_0/kernel [2, 32, 48]  (expected by the model, not in the checkpoint)',
      '- decoder/layers/mlp/wi_1/kernel [2, 32, 48]  (expected by the model, not in the checkpoint)',
      '- decoder/logits_dense/kernel [32, 256]  (expected by the model, not in the checkpoint)',
      '+ encoder/layers/mlp/wi/kernel [2, 32, 48]  (in the checkpoint, unknown to the model)',
      '+ decoder/layers/mlp/wi/kernel [2, 32, 48]  (in the checkpoint, unknown to the model)',
  ]


def test_single_tensors(source, abstract_t5):
  tensors = dict(source.tensors)
  lost = 'encoder.block.1.layer.0.SelfAttention.q.weight'
  del tensors[lost]
  tensors['adapter.weight'] = tensors['shared.weight']
  lines = mismatch(dataclasses.replace(source, tensors=tensors), abstract_t5(source.config))
  assert lines[1:-1] == [
      f'- {lost}  (a layer of encoder/layers/attention/query/kernel, not in the checkpoint)',
      '+ adapter.weight [256, 32]  (in the checkpoint, unknown to the model)',
  ]


def test_long_differences_are_cut(source, abstract_t5):
  lines = mismatch(source, abstract_t5(dataclasses.replace(source.config, d_model=64)))
  assert len(lines) == 1 + 20 + 1 + 1
  assert re.fullmatch(r'\.\.\. and \d+ more', lines[-2])


def test_a_known_size_is_named(tmp_path, abstract_t5):
  config = config_lib.from_size('t5_1_1_tiny')
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float16), abstract_t5(config))
  convert.convert(convert.in_memory(params, config), tmp_path / 'model', 'huggingface')
  small = abstract_t5(config_lib.from_size('t5_1_1_small'))
  hint = mismatch(base.open_base(tmp_path / 'model'), small)[-1]
  assert hint.startswith('The checkpoint looks like t5_1_1_tiny;')
  assert "MODEL_SIZE = 't5_1_1_tiny'" in hint


# --- loading ---


def test_types(source, abstract_t5):
  whole = base.load_params(source, abstract_t5(source.config))
  half = base.load_params(source, abstract_t5(source.config, jnp.bfloat16))
  forced = base.load_params(source, abstract_t5(source.config), dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
  jax.tree.map(np.testing.assert_array_equal, half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole))
  jax.tree.map(np.testing.assert_array_equal, half, forced)
  assert all(len(x.devices()) == 1 for x in jax.tree.leaves(whole))


@pytest.mark.parametrize('folder', ['hf/t5_v1_1', 't5x/t5x_native_trained/checkpoint_40'])
def test_sharded_equals_unsharded_and_reads_each_tensor_once(goldens, abstract_t5, mesh, folder):
  source = base.open_base(goldens / folder)
  abstract = abstract_t5(source.config)
  whole = base.load_params(source, abstract)
  names, parts = [], []

  def read(name, index):
    part = source.read(name, index)
    names.append(name)
    parts.append(part.nbytes)
    return part

  shardings, ticks = spread(mesh, abstract), []
  params = base.load_params(dataclasses.replace(source, read=read), abstract, shardings, tick=ticks.append)
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, params, shardings))
  assert sorted(names) == sorted(source.tensors)
  assert sum(parts) == sum(ticks) == sum(info.nbytes for info in source.tensors.values())
  assert base.fingerprint(params) == base.fingerprint(whole)


@pytest.mark.parametrize(('folder', 'path'), [
    ('hf/t5_v1_1', 'encoder/layers/mlp/wo/kernel'), ('hf/gpt2', 'decoder/layers/self_attention/value/kernel'),
    ('t5x/t5x_native_trained/checkpoint_40', 'encoder/layers/mlp/wo/kernel'),
    ('t5x/t5x_native_scan/checkpoint_0', 'decoder/layers/self_attention/query/kernel'),
    ('t5x/t5x_native_scan/checkpoint_0', 'decoder/layers/self_attention/out/kernel')])
def test_a_host_reads_the_hull_of_its_devices_parts(goldens, folder, path):
  """As on the second of several hosts: two devices with three columns each of a tensor."""
  source = base.open_base(goldens / folder)
  entry = source.key_table(source.config)[path]
  stored = source.tensors[entry.names[0]].shape
  whole = shards.read(source, entry, 0, tuple((0, n) for n in entry.our_shape(stored)[entry.stacked:]))
  layers = () if entry.stacked else ((1, 2),)  # T5X's scanned layers are one tensor: of it the second one
  bounds = [(*layers, (0, whole.shape[-2]), last) for last in ((9, 12), (12, 15))]
  sizes = []

  def read(name, index):
    part = source.read(name, index)
    sizes.append(part.size)
    return part

  parts = {b: np.empty([stop - start for start, stop in b], whole.dtype) for b in bounds}
  shards.fill(dataclasses.replace(source, read=read), entry, 0, [parts])
  for b, part in parts.items():
    np.testing.assert_array_equal(part, whole[tuple(slice(*pair) for pair in b)])
  assert sizes == [whole.shape[-2] * 6]


def test_one_sharding_for_all(source, abstract_t5, mesh):
  everywhere = NamedSharding(mesh, PartitionSpec())
  params = base.load_params(source, abstract_t5(source.config), everywhere)
  assert all(len(x.devices()) == 8 for x in jax.tree.leaves(params))
  np.testing.assert_array_equal(params['token_embedder']['embedding'], source.read('shared.weight', ()))


# --- fingerprint ---


def test_fingerprint_is_stable(source, abstract_t5):
  """Run checkpoints hold it: if this changes, old runs no longer resume."""
  params = base.load_params(source, abstract_t5(source.config))
  assert base.fingerprint(params) == '13007a7fddb7b6af'


def test_fingerprint_sees_every_change():
  x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  flipped = x.copy()
  flipped.view(np.uint32)[1, 2, 3] ^= 1
  variants = {
      'same': {'a': {'b': x}},
      'one bit': {'a': {'b': flipped}},
      'rows swapped': {'a': {'b': x[:, ::-1]}},
      'layers swapped': {'a': {'b': x[::-1]}},
      'transposed': {'a': {'b': np.moveaxis(x, 1, 2)}},
      'reshaped': {'a': {'b': x.reshape(2, 4, 3)}},
      'renamed': {'a': {'c': x}},
      'sign of zero': {'a': {'b': np.where(x == 0, -x, x)}},
  }
  prints = {name: base.fingerprint(jax.tree.map(jnp.asarray, tree)) for name, tree in variants.items()}
  assert len(set(prints.values())) == len(variants), prints
  assert all(re.fullmatch('[0-9a-f]{16}', value) for value in prints.values())


def test_fingerprint_is_of_values_whatever_their_type():
  x = np.arange(24, dtype=np.float32).reshape(2, 12) / 8  # exact in bfloat16
  prints = [base.fingerprint({'x': jnp.asarray(y)}) for y in (x, x.astype(jnp.bfloat16), x.astype(np.float16))]
  assert len(set(prints)) == 1
  y = x + np.float32(1 / 1024)  # not exact
  assert base.fingerprint({'x': y}) != base.fingerprint({'x': y.astype(jnp.bfloat16)})


def test_fingerprint_of_coarse_values_is_not_fooled_by_a_swap():
  # bfloat16 values held as float32 have 16 zero bits: a position-weighted sum would miss swaps 2**15 apart.
  x = jnp.zeros(2**16 + 1).at[0].set(1.5)
  assert base.fingerprint({'x': x}) != base.fingerprint({'x': jnp.roll(x, 2**15)})
  assert base.fingerprint({'x': x}) != base.fingerprint({'x': jnp.roll(x, 2**16)})
