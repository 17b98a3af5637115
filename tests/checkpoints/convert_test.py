"""Conversion between formats: the same bits there and back, and what others need of what we write."""
import functools
import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.checkpoints import base, compare, convert, huggingface, source, t5x_writer
from tests.checkpoints import folders, raw_files
from tests.checkpoints.folders import run

HUGGING_FACE = [f'hf/{name}' for name in ('t5_v1_1', 't5_v1_0', 'gpt2', 'bart', 'roberta', 'bert')]
UNROLLED = [f't5x/{name}' for name in (
    't5x_native/checkpoint_0', 't5x_native_trained/checkpoint_40', 't5x_native_t5_1_0/checkpoint_0',
    't5x_native_bf16/checkpoint_0', 't5x_orbax/checkpoint_0', 't5x_native_multiopt/checkpoint_0',
    'prompt_tuning_native/checkpoint_5')]
NATIVE, SCANNED, ORBAX = UNROLLED[0], 't5x/t5x_native_scan/checkpoint_0', 't5x/t5x_orbax/checkpoint_0'
MULTIOPT = 't5x/t5x_native_multiopt/checkpoint_0'
PROMPT = 'encoder/prompt/prompt/prompt'  # of Google's prompt-tuning, beside the model


def raw(folder):
  """The stored tensors of the model, read without the package."""
  if (folder / 'config.json').exists():
    return raw_files.hugging_face(folder)
  if (folder / 'state').exists():
    arrays = raw_files.orbax(folder)
    return {path.removeprefix('target/'): x for path, x in arrays.items() if path.startswith('target/')}
  return raw_files.t5x(folder)


# --- there and back ---


@pytest.mark.parametrize('name', [*HUGGING_FACE, *UNROLLED, SCANNED])
def test_through_memory_and_back_are_the_same_bits(goldens, tmp_path, name):
  opened = base.open_base(goldens / name)
  (dtype,) = {info.dtype for info in opened.tensors.values()}
  params = base.load_params(opened, folders.shapes(opened, dtype))
  form = 'huggingface' if name in HUGGING_FACE else 't5x_scan' if name == SCANNED else 't5x'
  convert.convert(convert.in_memory(params, opened.config), tmp_path / 'checkpoint_1', form)
  stored = raw(goldens / name)
  stored.pop(PROMPT, None)
  raw_files.same_bits(stored, raw(tmp_path / 'checkpoint_1'))


@pytest.mark.parametrize('name', [*HUGGING_FACE[:2], *UNROLLED[:1], *UNROLLED[2:5]])
def test_t5_by_way_of_the_other_format(goldens, tmp_path, name):
  there, back = ('t5x', 'huggingface') if name in HUGGING_FACE else ('huggingface', 't5x')
  run(goldens / name, tmp_path / 'checkpoint_1', there)
  run(tmp_path / 'checkpoint_1', tmp_path / 'checkpoint_2', back)
  stored = raw(goldens / name)
  stored.pop(PROMPT, None)
  raw_files.same_bits(stored, raw(tmp_path / 'checkpoint_2'))
  pairs = [compare.parameters(base.open_base(f)) for f in (goldens / name, tmp_path / 'checkpoint_1')]
  assert not list(compare.differences(*pairs))


def test_as_bfloat16_is_t5xs_own_bfloat16_checkpoint(goldens, tmp_path):
  run(goldens / NATIVE, tmp_path / 'checkpoint_0', 't5x', dtype='bfloat16')
  raw_files.same_bits(raw(goldens / 't5x/t5x_native_bf16/checkpoint_0'), raw(tmp_path / 'checkpoint_0'))


def test_bfloat16_is_kept_by_hugging_face_folders(goldens, tmp_path):
  run(goldens / 't5x/t5x_native_bf16/checkpoint_0', tmp_path / 'model', 'huggingface')
  written = base.open_base(tmp_path / 'model')
  assert {info.dtype.name for info in written.tensors.values()} == {'bfloat16'}
  assert json.loads((tmp_path / 'model/config.json').read_text())['torch_dtype'] == 'bfloat16'


def test_of_layers_of_two_types_the_wider_is_kept(goldens, tmp_path):
  folder = shutil.copytree(goldens / 'hf/t5_v1_0', tmp_path / 'from')
  tensors = folders.raw(folder)
  narrow = 'encoder.block.0.layer.1.DenseReluDense.wo.weight'
  folders.rewrite(folder, {**tensors, narrow: tensors[narrow].astype(np.float16)})
  written = raw(run(folder, tmp_path / 'checkpoint_1', 't5x'))
  assert {x.dtype.name for x in written.values()} == {'float32'}
  wide = tensors[narrow.replace('block.0', 'block.1')]
  np.testing.assert_array_equal(written['encoder/layers_1/mlp/wo/kernel'], wide.T)


# --- scanned layers ---


def test_one_relative_position_table_becomes_one_a_layer_and_back(goldens, tmp_path):
  run(goldens / NATIVE, tmp_path / 'checkpoint_1', 't5x_scan')
  stored, scanned = raw(goldens / NATIVE), raw(tmp_path / 'checkpoint_1')
  for stack in ('encoder', 'decoder'):
    table = scanned[f'{stack}/{stack}/relpos_bias/rel_embedding']
    assert table.shape == (4, 2, 32)  # [N, L, buckets]
    for layer in range(2):
      np.testing.assert_array_equal(table[:, layer], stored[f'{stack}/relpos_bias/rel_embedding'])
  assert {name: x.shape for name, x in scanned.items()} == {name: x.shape for name, x in raw(goldens / SCANNED).items()}
  run(tmp_path / 'checkpoint_1', tmp_path / 'checkpoint_2', 't5x')
  raw_files.same_bits(stored, raw(tmp_path / 'checkpoint_2'))


@pytest.mark.parametrize('form', ['t5x', 'huggingface'])
def test_tables_that_differ_stay_in_scanned_layers(goldens, tmp_path, form):
  message = f'{SCANNED} has another relative position table in each layer of the encoder; of the formats only t5x_scan'
  with pytest.raises(ValueError, match=message):
    run(goldens / SCANNED, tmp_path / 'checkpoint_1', form)
  assert not list(tmp_path.iterdir())


# --- what T5X needs of a native checkpoint; `raw_files.t5x` checks the form ---


@pytest.mark.parametrize('chunk_bytes', [64_000_000, 5000])
@pytest.mark.parametrize(('name', 'form'), [(NATIVE, 't5x'), (SCANNED, 't5x_scan'), ('hf/t5_v1_0', 't5x')])
def test_a_written_t5x_checkpoint_has_what_t5x_reads(goldens, tmp_path, monkeypatch, name, form, chunk_bytes):
  monkeypatch.setattr(t5x_writer, '_CHUNK_BYTES', chunk_bytes)
  folder = run(goldens / name, tmp_path / 'checkpoint_7', form)
  values = raw_files.t5x(folder)
  step = raw_files.t5x_index(folder)['state/step']
  assert isinstance(step, np.ndarray)
  assert (step.shape, step.dtype, int(step)) == ((), np.int32, 7)
  specs = raw_files.t5x_index(folder)
  for path in values:
    spec = specs[f'target/{path}']
    assert spec['kvstore']['path'] == f'target.{path.replace("/", ".")}/'
    if '/layers' in path or '/encoder/' in path:  # a layer can be read on its own
      assert np.prod(spec['metadata']['chunks']) * 4 <= max(chunk_bytes, 4 * 144 * 128)
  files = list((folder / 'target.token_embedder.embedding').glob('[0-9]*'))
  assert (len(files) > 1) == (chunk_bytes == 5000)
  if 'hf' not in name:
    raw_files.same_bits(raw(goldens / name), values)


@pytest.mark.parametrize('inline_bytes', [1_000_000, 1000])
def test_orbax_to_native_keeps_the_optimizers_state(goldens, tmp_path, monkeypatch, inline_bytes):
  monkeypatch.setattr(t5x_writer, '_INLINE_BYTES', inline_bytes)
  folder = run(goldens / ORBAX, tmp_path / 'checkpoint_0', 't5x', state=base.open_t5x(goldens / ORBAX, 'state'))
  arrays = raw_files.orbax(goldens / ORBAX)
  state = {path.removeprefix('state/'): x for path, x in arrays.items() if path.startswith('state/')}
  assert len(state) == 209
  written = raw_files.t5x(folder, 'state')
  assert isinstance(raw_files.t5x_index(folder)['state/step'], np.ndarray)
  raw_files.same_bits(state, written)
  large = list(folder.glob('state.param_states.*.self_attention.query.kernel.v'))  # large ones have folders
  assert len(large) == (2 if inline_bytes == 1000 else 0)
  again = base.open_t5x(folder, 'state')
  raw_files.same_bits(state, {name: np.asarray(again.read(name, ())) for name in again.tensors})


def test_a_multi_optimizer_keeps_nil_for_what_it_does_not_train(goldens, tmp_path):
  folder = run(goldens / MULTIOPT, tmp_path / 'checkpoint_0', 't5x', state=base.open_t5x(goldens / MULTIOPT, 'state'))
  before, after = raw_files.t5x(goldens / MULTIOPT, 'state'), raw_files.t5x(folder, 'state')
  untrained = {path for path, x in before.items() if x is None}
  assert len(untrained) == 50
  assert untrained == {path for path, x in after.items() if x is None}
  kept = [{path: x for path, x in state.items() if x is not None} for state in (before, after)]
  raw_files.same_bits(*kept)


def test_a_prompt_beside_the_model_is_kept_by_t5x_only(goldens, tmp_path):
  opened = base.open_base(goldens / UNROLLED[-1])
  folder = run(goldens / UNROLLED[-1], tmp_path / 'checkpoint_5', 't5x')
  raw_files.same_bits(raw(goldens / UNROLLED[-1]), raw(folder))
  assert convert.left_out(opened, 't5x', None) == []
  assert convert.left_out(opened, 'huggingface', None) == [f'Not part of the model and left out: {PROMPT}.']


def test_what_is_left_out_is_said(goldens):
  orbax, hf = base.open_base(goldens / ORBAX), base.open_base(goldens / 'hf/t5_v1_1')
  state = base.open_t5x(goldens / ORBAX, 'state')
  assert convert.left_out(orbax, 't5x', state) == []
  for form in ('t5x_scan', 'huggingface'):
    assert convert.left_out(orbax, form, state) == ['The optimizer state and the step were left out.']
  (note,) = convert.left_out(hf, 't5x', None)
  assert note.endswith('does not say these dimensions, set them where it is used: relpos_max_distance 20.')


# --- Hugging Face folders ---


def test_large_models_are_cut_into_shards(goldens, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface, 'writing', functools.partial(huggingface.writing, shard_bytes=50_000))
  folder = run(goldens / 'hf/t5_v1_1', tmp_path / 'model', 'huggingface')
  raw_files.same_bits(raw(goldens / 'hf/t5_v1_1'), raw(folder))
  files = sorted(file.name for file in folder.glob('*.safetensors'))
  assert files == [f'model-{i:05}-of-{len(files):05}.safetensors' for i in range(1, len(files) + 1)]
  assert len(files) > 3
  assert all((folder / file).stat().st_size < 60_000 for file in files)
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  assert set(index['weight_map'].values()) == set(files)
  assert index['metadata']['total_size'] == sum(x.nbytes for x in raw(folder).values())
  again = run(folder, tmp_path / 'checkpoint_0', 't5x')
  assert compare.fingerprint(base.open_base(again)) == compare.fingerprint(base.open_base(goldens / 'hf/t5_v1_1'))


@pytest.mark.parametrize('name', ['t5_v1_1', 't5_v1_0'])
def test_config_json_says_what_the_original_said(goldens, tmp_path, name):
  run(goldens / 'hf' / name, tmp_path / 'model', 'huggingface')
  before, after = (json.loads((f / 'config.json').read_text()) for f in (goldens / 'hf' / name, tmp_path / 'model'))
  for key in ('architectures', 'model_type', 'vocab_size', 'd_model', 'd_kv', 'd_ff', 'num_layers',
              'num_decoder_layers', 'num_heads', 'relative_attention_num_buckets', 'relative_attention_max_distance',
              'feed_forward_proj', 'layer_norm_epsilon', 'is_encoder_decoder', 'pad_token_id', 'eos_token_id',
              'decoder_start_token_id'):
    assert after[key] == before[key], key
  assert after['tie_word_embeddings'] == (name == 't5_v1_0')  # as transformers 4 does, see HF's two spellings


def test_the_tokenizer_goes_along(goldens, tmp_path):
  folder = shutil.copytree(goldens / 'hf/t5_v1_1', tmp_path / 'from')
  (folder / 'spiece.model').write_bytes(b'pieces')
  run(folder, tmp_path / 'to', 'huggingface')
  assert (tmp_path / 'to/spiece.model').read_bytes() == b'pieces'


# --- what goes where ---


def test_the_format_goes_by_the_name(goldens):
  opened, scanned = base.open_base(goldens / NATIVE), base.open_base(goldens / SCANNED)
  assert convert.form_for(opened, '/x/checkpoint_12') == 't5x'
  assert convert.form_for(scanned, 'gs://x/checkpoint_12/') == 't5x_scan'
  assert convert.form_for(opened, '/x/checkpoint_12/model') == 'huggingface'


def test_what_a_format_has_no_place_for(goldens, tmp_path):
  gpt2 = base.open_base(goldens / 'hf/gpt2')
  with pytest.raises(ValueError, match='T5X has T5 only; this is gpt2. Convert it to Hugging Face'):
    convert.convert(gpt2, tmp_path / 'checkpoint_1', 't5x')
  with pytest.raises(ValueError, match='x: T5X looks for folders checkpoint_<step>; name it so, such as .*/x/'):
    run(goldens / NATIVE, tmp_path / 'x', 't5x')
  with pytest.raises(ValueError, match="no format 'onnx' for a model; expected one of huggingface, t5x, t5x_scan"):
    convert.convert(gpt2, tmp_path / 'x', 'onnx')
  assert not list(tmp_path.iterdir())


def test_parameters_in_memory_are_a_checkpoint(goldens):
  opened = base.open_base(goldens / 'hf/t5_v1_0')
  params = base.load_params(opened, folders.shapes(opened))
  memory = convert.in_memory(params, opened.config)
  assert compare.fingerprint(memory) == compare.fingerprint(opened) == base.fingerprint(params)
  half = convert.in_memory(trees.unflatten({'x': jnp.ones((2, 3), jnp.bfloat16)}), opened.config)
  assert half.tensors['x'] == source.TensorInfo((2, 3), np.dtype(ml_dtypes.bfloat16))
