"""Hugging Face folders: values against the raw tensors, the head's many spellings, and every refusal."""
import json
import mmap
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, huggingface, safetensors_file
from prompt_tuning.checkpoints.families import t5
from prompt_tuning.checkpoints.source import TensorInfo

MODELS = ('t5_v1_1', 't5_v1_0')


@pytest.fixture
def folder(goldens, tmp_path):
  """A writable copy of the T5 1.1."""
  return shutil.copytree(goldens / 'hf/t5_v1_1', tmp_path / 'model')


def raw(folder):
  return safetensors.numpy.load_file(folder / 'model.safetensors')


def rewrite(folder, tensors=None, **settings):
  """Replaces tensors, and keys of the config (None: removes them)."""
  if tensors is not None:
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  config = {**json.loads((folder / 'config.json').read_text()), **settings}
  (folder / 'config.json').write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def load(folder, abstract_t5, dtype=jnp.float32):
  source = base.open_base(folder)
  return base.load_params(source, abstract_t5(source.config, dtype))


# --- reading ---


def test_config(goldens):
  shape = dict(family='t5', vocab_size=256, d_model=32, head_dim=8, d_ff=48, encoder_layers=2, decoder_layers=2,
               relpos_buckets=8, relpos_max_distance=20)
  v1_1 = config_lib.BackboneConfig(num_heads=3, **shape)
  v1_0 = config_lib.BackboneConfig(num_heads=4, mlp_activations=('relu',), tied_embeddings=True, **shape)
  assert base.open_base(goldens / 'hf/t5_v1_1').config == v1_1
  assert base.open_base(goldens / 'hf/t5_v1_0').config == v1_0


@pytest.mark.parametrize('model', MODELS)
def test_values_equal_the_transposed_tensors(goldens, abstract_t5, model):
  stored = raw(goldens / 'hf' / model)
  params = trees.flatten(load(goldens / 'hf' / model, abstract_t5))

  def equal(path, name, layers=None):
    tensors = [stored.pop(name.format(i)).T for i in range(layers or 1)]
    np.testing.assert_array_equal(params.pop(path), np.stack(tensors) if layers else tensors[0], err_msg=path)

  bias = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  norm = 'block.{}.layer.%d.layer_norm.weight'
  np.testing.assert_array_equal(params.pop('token_embedder/embedding'), stored.pop('shared.weight'))
  for stack in ('encoder', 'decoder'):
    equal(f'{stack}/relpos_bias/rel_embedding', f'{stack}.{bias}')
    equal(f'{stack}/{stack}_norm/scale', f'{stack}.final_layer_norm.weight')
  for ours, theirs in {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}.items():
    equal(f'encoder/layers/attention/{ours}/kernel', f'encoder.block.{{}}.layer.0.SelfAttention.{theirs}.weight', 2)
    equal(f'decoder/layers/self_attention/{ours}/kernel',
          f'decoder.block.{{}}.layer.0.SelfAttention.{theirs}.weight', 2)
    equal(f'decoder/layers/encoder_decoder_attention/{ours}/kernel',
          f'decoder.block.{{}}.layer.1.EncDecAttention.{theirs}.weight', 2)
  for kernel in ('wi', 'wo') if model == 't5_v1_0' else ('wi_0', 'wi_1', 'wo'):
    equal(f'encoder/layers/mlp/{kernel}/kernel', f'encoder.block.{{}}.layer.1.DenseReluDense.{kernel}.weight', 2)
    equal(f'decoder/layers/mlp/{kernel}/kernel', f'decoder.block.{{}}.layer.2.DenseReluDense.{kernel}.weight', 2)
  equal('encoder/layers/pre_attention_layer_norm/scale', f'encoder.{norm % 0}', 2)
  equal('encoder/layers/pre_mlp_layer_norm/scale', f'encoder.{norm % 1}', 2)
  equal('decoder/layers/pre_self_attention_layer_norm/scale', f'decoder.{norm % 0}', 2)
  equal('decoder/layers/pre_cross_attention_layer_norm/scale', f'decoder.{norm % 1}', 2)
  equal('decoder/layers/pre_mlp_layer_norm/scale', f'decoder.{norm % 2}', 2)
  if model == 't5_v1_1':
    equal('decoder/logits_dense/kernel', 'lm_head.weight')
  assert not params
  assert not stored


def test_a_slice_is_read_on_its_own(folder):
  source = base.open_base(folder)
  part = source.read('shared.weight', (slice(5, 9), slice(0, 3)))
  np.testing.assert_array_equal(part, raw(folder)['shared.weight'][5:9, :3])


def test_shards(folder, abstract_t5):
  whole = load(folder, abstract_t5)
  tensors = raw(folder)
  (folder / 'model.safetensors').unlink()
  weight_map = {name: f'model-0000{i % 2 + 1}-of-00002.safetensors' for i, name in enumerate(tensors)}
  for shard in set(weight_map.values()):
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if weight_map[k] == shard}, folder / shard)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))
  assert base.fingerprint(load(folder, abstract_t5)) == base.fingerprint(whole)

  index.write_text(json.dumps({'weight_map': {**weight_map, 'more.weight': 'model-00001-of-00002.safetensors'}}))
  with pytest.raises(ValueError, match=r'1 tensors are in no shard, such as more\.weight'):
    base.open_base(folder)
  index.write_text(json.dumps({'weight_map': {'shared.weight': '../elsewhere.safetensors'}}))
  with pytest.raises(ValueError, match=r"'\.\./elsewhere\.safetensors' is not a file of this folder"):
    base.open_base(folder)
  index.write_text(json.dumps({'weight_map': weight_map}))
  (folder / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match=r'model-00002-of-00002\.safetensors is missing'):
    base.open_base(folder)


@pytest.mark.parametrize('head', ['none', 'equal', 'other'])
@pytest.mark.parametrize(('settings', 'tied'), [
    ({'tie_word_embeddings': None, 'scale_decoder_outputs': None}, True),  # the first T5 releases
    ({'tie_word_embeddings': True, 'scale_decoder_outputs': None}, True),
    ({'tie_word_embeddings': False, 'scale_decoder_outputs': None}, False),  # T5 1.1 by transformers 4
    ({'tie_word_embeddings': True, 'scale_decoder_outputs': False}, False),  # T5 1.1 by transformers 5
])  # fmt: skip
def test_head_is_tied_if_the_tensors_say_so(folder, abstract_t5, settings, tied, head):
  tensors = raw(folder)
  embedding, own_head = tensors['shared.weight'], tensors.pop('lm_head.weight')
  stored = {'none': None, 'equal': embedding.copy(), 'other': own_head}[head]
  rewrite(folder, {**tensors, **({} if stored is None else {'lm_head.weight': stored})}, **settings)
  source = base.open_base(folder)
  if settings['tie_word_embeddings'] is False and head == 'none':
    with pytest.raises(base.CheckpointMismatchError, match=r'- decoder/logits_dense/kernel \[32, 256\]'):
      load(folder, abstract_t5)
    return
  assert source.config.tied_embeddings == (tied and head != 'other')
  params = load(folder, abstract_t5)
  if source.config.tied_embeddings:
    assert 'logits_dense' not in params['decoder']
  else:
    expected = own_head if head == 'other' else embedding
    np.testing.assert_array_equal(params['decoder']['logits_dense']['kernel'], expected.T)


def test_scaled_logits_of_a_head_of_its_own_are_refused(folder):
  rewrite(folder, scale_decoder_outputs=True)
  with pytest.raises(ValueError, match='scale_decoder_outputs is set and lm_head.weight is not the embedding'):
    base.open_base(folder)


def test_aliases_and_leftovers_are_ignored(folder, abstract_t5):
  whole = base.fingerprint(load(folder, abstract_t5))
  tensors = raw(folder)
  embedding = tensors['shared.weight']
  bias = tensors['decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight']
  tensors['decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'] = bias.copy()
  tensors |= {f'{stack}.embed_tokens.weight': embedding.copy() for stack in ('encoder', 'decoder')}
  rewrite(folder, tensors)
  assert base.fingerprint(load(folder, abstract_t5)) == whole
  del tensors['shared.weight'], tensors['decoder.embed_tokens.weight']
  rewrite(folder, tensors)
  assert base.fingerprint(load(folder, abstract_t5)) == whole


@pytest.mark.parametrize(('settings', 'message'), [
    ({'model_type': 'mbart'}, "model_type is 'mbart'; expected one of t5, mt5, "),
    ({'d_kv': None}, 'd_kv is None; expected a whole number'),
    ({'num_heads': '3'}, "num_heads is '3'; expected a whole number"),
    ({'feed_forward_proj': 'gelu'}, "feed_forward_proj is 'gelu'; expected one of relu, gated-gelu"),
    ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon is 1e-05; the backbone computes with 1e-6'),
])  # fmt: skip
def test_configs_that_are_refused(folder, settings, message):
  rewrite(folder, **settings)
  with pytest.raises(ValueError, match=f'config.json: {message}'):
    base.open_base(folder)


def test_keys_that_old_configs_lack(folder):
  rewrite(folder, num_decoder_layers=None, relative_attention_max_distance=None, pad_token_id=None)
  config = base.open_base(folder).config
  assert (config.decoder_layers, config.relpos_max_distance, config.pad_id) == (2, 128, 0)


def test_broken_files(folder):
  file = folder / 'model.safetensors'
  content = file.read_bytes()
  for length, message in [(4, 'truncated'), (100, 'its header ends at byte'), (len(content) - 1, 'ends at byte')]:
    file.write_bytes(content[:length])
    with pytest.raises(ValueError, match=rf'model\.safetensors: truncated.*{message}|truncated \(4 bytes\)'):
      base.open_base(folder)
  file.write_bytes(b'PK\x03\x04' * 100)
  with pytest.raises(ValueError, match='not a safetensors file'):
    base.open_base(folder)
  wrong = json.dumps({'shared.weight': {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 12]}}).encode()
  file.write_bytes(len(wrong).to_bytes(8, 'little') + wrong + bytes(16))
  with pytest.raises(ValueError, match='shape and size of an entry disagree'):
    base.open_base(folder)
  file.write_bytes(content)
  (folder / 'config.json').write_text('{"d_model": 3')
  with pytest.raises(ValueError, match=r'config\.json: not valid JSON'):
    base.open_base(folder)


# --- writing ---


@pytest.fixture
def tiny():
  """A small T5 1.0 and its parameters by our path, bfloat16."""
  config = config_lib.BackboneConfig(
      family='t5', vocab_size=10, d_model=4, num_heads=1, head_dim=4, d_ff=8, encoder_layers=1, decoder_layers=2,
      mlp_activations=('relu',), tied_embeddings=True)
  rng = np.random.default_rng(0)
  shapes = {'embedding': (10, 4), 'scale': (4,), 'rel_embedding': (1, 32), 'wi': (4, 8), 'wo': (8, 4)}
  parameters = {}
  for path, entry in t5.key_table(config).items():
    kind = path.removesuffix('/kernel').rpartition('/')[2]
    shape = shapes.get(kind, (4, 4))
    shape = (len(entry.names), *shape) if entry.stacked else shape
    parameters[path] = rng.normal(size=shape).astype(ml_dtypes.bfloat16)
  return config, parameters


def write(folder, config, parameters, given=None, tokenizer=None):
  """Writes the items `given`, by default all `parameters`, to a folder for all of them."""
  infos = {path: TensorInfo(x.shape, x.dtype) for path, x in parameters.items()}
  with huggingface.writing(folder, config, infos, tokenizer) as writer:
    for path, x in parameters.items() if given is None else given:
      writer.write(path, x)


def test_written_folder_reads_back(tiny, tmp_path, abstract_t5, goldens):
  config, parameters = tiny
  vocabulary = goldens / 'README.md'  # any file will do
  folder = tmp_path / 'to' / 'model'
  write(folder, config, parameters, tokenizer=vocabulary)
  assert [p.name for p in (tmp_path / 'to').iterdir()] == ['model']  # nothing temporary is left
  source = base.open_base(folder)
  assert source.config == config
  assert source.tokenizer_path == str(folder / 'spiece.model')
  assert (folder / 'spiece.model').read_bytes() == vocabulary.read_bytes()
  assert {info.dtype for info in source.tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
  np.testing.assert_array_equal(
      source.read('decoder.block.1.layer.0.SelfAttention.k.weight', ()),
      parameters['decoder/layers/self_attention/key/kernel'][1].T)
  params = trees.flatten(base.load_params(source, abstract_t5(config, jnp.float32)))
  assert params.keys() == parameters.keys()
  for path, x in parameters.items():
    np.testing.assert_array_equal(params[path], x.astype(np.float32), err_msg=path)
  with safetensors.safe_open(folder / 'model.safetensors', 'numpy') as file:  # the package agrees
    assert set(file.keys()) == set(source.tensors)
    assert file.metadata() == {'format': 'pt'}
  settings = json.loads((folder / 'config.json').read_text())
  assert (settings['model_type'], settings['torch_dtype']) == ('t5', 'bfloat16')


def test_a_failed_write_leaves_nothing(tiny, tmp_path):
  config, parameters = tiny
  items = list(parameters.items())
  (path, first), last = items[0], 'decoder.final_layer_norm.weight'
  for given, message in [
      (items[:-1], f'1 of 39 tensors were not written once, such as {last}'),
      ([*items, items[-1]], f'1 of 39 tensors were not written once, such as {last}'),
      ([(path, first.astype(np.float32))], r'shared.weight: float32 \(10, 4\) given; expected bfloat16 \(10, 4\)'),
      ([(path, first[:9])], r'shared.weight: bfloat16 \(9, 4\) given; expected bfloat16 \(10, 4\)'),
  ]:
    with pytest.raises(ValueError, match=message):
      write(tmp_path / 'model', config, parameters, given)
    assert not list(tmp_path.iterdir())
  with pytest.raises(KeyError, match='decoder/logits_dense/kernel'):
    write(tmp_path / 'model', config, parameters, [('decoder/logits_dense/kernel', first)])
  assert not list(tmp_path.iterdir())
  (tmp_path / 'model').mkdir()
  (tmp_path / 'model' / 'notes').touch()
  with pytest.raises(FileExistsError, match='already holds something: remove it'):
    write(tmp_path / 'model', config, parameters)


def test_a_slice_maps_its_rows_only(goldens, monkeypatch):
  file = goldens / 'hf/t5_v1_1/model.safetensors'
  tensor = safetensors_file.open_file(file)['shared.weight']
  whole = tensor.read(())
  mapped = []
  real = mmap.mmap
  monkeypatch.setattr(mmap, 'mmap', lambda fd, length, **kwargs: (mapped.append(length), real(fd, length, **kwargs))[1])
  for index in (np.s_[3:5], np.s_[250:, 7:9], np.s_[:0], np.s_[:, 31:]):
    index = index if isinstance(index, tuple) else (index,)
    np.testing.assert_array_equal(tensor.read(index), whole[index])
  row = whole[0].nbytes
  page = mmap.ALLOCATIONGRANULARITY
  assert [(n - rows * row) // page for n, rows in zip(mapped, (2, 6, 256), strict=True)] == [0, 0, 0]
