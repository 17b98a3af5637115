"""convert_checkpoint, inspect_checkpoint and diff_checkpoints as a user runs them: what they say, their exit codes."""
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import trees
from prompt_tuning.checkpoints import base, tuned
from scripts import convert_checkpoint, diff_checkpoints, inspect_checkpoint
from tests import models
from tests.checkpoints import folders, raw_files

HF, T5X = models.GOLDENS / 'hf', models.GOLDENS / 't5x'
ORBAX, MULTIOPT, SCAN = (
    T5X / f'{name}/checkpoint_0' for name in ('t5x_orbax', 't5x_native_multiopt', 't5x_native_scan'))
PROMPTED = T5X / 'prompt_tuning_native'
SCRIPTS = {'convert_checkpoint': convert_checkpoint, 'inspect_checkpoint': inspect_checkpoint,
           'diff_checkpoints': diff_checkpoints}


@pytest.fixture
def run(capsys):
  """(script, arguments) -> exit code, stdout, stderr."""

  def call(script, *args):
    code = script.main([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, said.err

  return call


@pytest.fixture
def convert(run):
  """Converts, which is to succeed; returns what is said."""

  def call(*args):
    code, out, err = run(convert_checkpoint, *args)
    assert (code, err) == (0, '')
    return out

  return call


# --- as processes ---


@pytest.mark.parametrize(('script', 'args', 'code', 'out', 'err'), [
    ('convert_checkpoint', [HF / 't5_v1_0', '{}/model'], 0, r'-> .*/model \(huggingface\) in .* s\n', ''),
    ('inspect_checkpoint', ['{}/nowhere'], 1, '', r'inspect_checkpoint\.py: .*/nowhere does not exist; expected a'),
    ('diff_checkpoints', [HF / 't5_v1_0', HF / 't5_v1_1'], 1, r'~ encoder/.*\n(.*\n)*31 of 31 parameters differ\n', ''),
])
def test_exit_codes(tmp_path, script, args, code, out, err):
  command = [sys.executable, f'scripts/{script}.py', *(str(arg).format(tmp_path) for arg in args)]
  done = subprocess.run(command, cwd=models.GOLDENS.parents[1], capture_output=True, text=True, timeout=120)
  assert done.returncode == code, done.stderr
  assert re.search(out, done.stdout)
  assert re.match(err, done.stderr) if err else not done.stderr
  assert (tmp_path / 'model').exists() == (script == 'convert_checkpoint')


@pytest.mark.parametrize('script', SCRIPTS)
def test_help(script, capsys):
  with pytest.raises(SystemExit) as stop:
    SCRIPTS[script].main(['--help'])
  assert stop.value.code == 0
  assert SCRIPTS[script].__doc__.splitlines()[0] in capsys.readouterr().out


# --- convert ---


@pytest.mark.parametrize(('origin', 'to', 'form'), [
    (HF / 't5_v1_1', 'checkpoint_12', 't5x'), (ORBAX, 'checkpoint_0', 't5x'), (SCAN, 'checkpoint_0', 't5x_scan'),
    (MULTIOPT, 'a_folder', 'huggingface'), (HF / 'gpt2', 'a_folder', 'huggingface'),
    (HF / 'peft_t5_v1_1_prompt', 'prompt.npy', 'npy'), (PROMPTED / 'checkpoint_5', 'prompt.npy', 'npy'),
    (HF / 'peft_t5_v1_1_prompt', 'prompt.safetensors', 'safetensors'),
    (HF / 'peft_t5_v1_1_prompt', 'adapter', 'peft')])
def test_formats_go_by_the_names(convert, tmp_path, origin, to, form):
  flags = ['--no_state'] if origin == SCAN else []  # its golden lacks the optimizer's arrays
  assert convert(origin, tmp_path / to, *flags).startswith(f'{origin} -> {tmp_path / to} ({form}) in ')
  assert (tmp_path / to).exists()


def test_a_copy_without_the_optimizers_arrays(convert, run, tmp_path):
  code, _, err = run(convert_checkpoint, SCAN, tmp_path / 'checkpoint_0')
  assert code == 1
  assert re.match(r'.*/state\.param_states\.\S+ holds no zarr array, though the index has .*--no_state', err)
  assert list(tmp_path.iterdir()) == []
  convert(SCAN, tmp_path / 'checkpoint_0', '--no_state')
  assert raw_files.t5x(tmp_path / 'checkpoint_0', 'state').keys() == {'step'}
  code, out, _ = run(inspect_checkpoint, SCAN)
  assert code == 0
  assert re.search(r'^optimizer    not whole: .* holds no zarr array', out, re.MULTILINE)


def test_converting_there_and_back_says_what_is_left_out(convert, tmp_path):
  native = tmp_path / 'checkpoint_0'
  assert convert(ORBAX, native).splitlines()[1:] == ['  52 tensors, 2.3 MB']
  assert len(raw_files.t5x(native, 'state')) == 209
  said = convert(native, tmp_path / 'model').splitlines()[1:]
  assert said == ['  52 tensors, 2.3 MB', '  The optimizer state and the step were left out.']
  convert(tmp_path / 'model', tmp_path / 'checkpoint_1', '--to_format', 't5x')
  raw_files.same_bits(raw_files.t5x(native), raw_files.t5x(tmp_path / 'checkpoint_1'))


def test_converting_to_another_type(convert, run, tmp_path):
  convert(ORBAX, tmp_path / 'checkpoint_0', '--dtype', 'bfloat16')
  assert {x.dtype.name for x in raw_files.t5x(tmp_path / 'checkpoint_0').values()} == {'bfloat16'}
  assert {x.dtype.name for x in raw_files.t5x(tmp_path / 'checkpoint_0', 'state').values()} == {'float32', 'int32'}
  code, _, err = run(convert_checkpoint, HF / 'peft_t5_v1_1_prompt', tmp_path / 'x.npy', '--dtype', 'bfloat16')
  assert (code, err) == (1, 'convert_checkpoint.py: --dtype is for models; prompts and prefixes are float32.\n')


@pytest.mark.parametrize('to', ['x.npy', 'x.safetensors', 'adapter', 'model', 'checkpoint_1'])
def test_what_exists_is_not_written_over(run, tmp_path, to):
  origin = HF / ('peft_t5_v1_1_prompt' if to in ('x.npy', 'x.safetensors', 'adapter') else 't5_v1_1')
  (tmp_path / to).write_text('mine')
  code, out, err = run(convert_checkpoint, origin, tmp_path / to)
  assert (code, out) == (1, '')
  assert re.match(rf'convert_checkpoint\.py: .*/{to} .*(exists|holds something).*: remove it, or name another', err)
  assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(to, 'mine')]


@pytest.mark.parametrize(('origin', 'to'), [
    ('t5_v1_1', 'gs://bucket/model'), ('peft_t5_v1_1_prompt', 'gs://bucket/x.npy'),
    ('peft_t5_v1_1_prompt', 'gs://bucket/x.safetensors'), ('peft_t5_v1_1_prompt', 'gs://bucket/adapter')])
def test_an_address_is_no_folder_here(run, tmp_path, monkeypatch, origin, to):
  monkeypatch.chdir(tmp_path)
  code, _, err = run(convert_checkpoint, HF / origin, to)
  assert (code, err) == (1, f'convert_checkpoint.py: {to} is not on a disk; only T5X checkpoints (checkpoint_<step>) '
                         'are written elsewhere: name a local path and copy it.\n')
  assert not list(tmp_path.iterdir())


def test_a_prompt_through_every_form(convert, run, tmp_path):
  """PEFT -> .safetensors -> PEFT -> .npy -> .safetensors keep the values, the first two what is known as well."""
  origin, ours, adapter = HF / 'peft_t5_v1_1_prompt', tmp_path / 'a.safetensors', tmp_path / 'adapter'
  convert(origin, ours)
  assert tuned.load(ours).about['peft_type'] == 'PROMPT_TUNING'
  convert(ours, adapter)
  stored = [safetensors.numpy.load_file(f / 'adapter_model.safetensors') for f in (origin, adapter)]
  raw_files.same_bits(*stored)
  said = convert(adapter, tmp_path / 'b.npy')
  rows = stored[0]['prompt_embeddings']
  assert said.splitlines()[1:] == [f'  prompt/embedding {list(rows.shape)} float32']
  np.testing.assert_array_equal(np.load(tmp_path / 'b.npy', allow_pickle=False), rows)
  convert(tmp_path / 'b.npy', tmp_path / 'c.safetensors')
  assert run(diff_checkpoints, origin, tmp_path / 'c.safetensors') == (0, 'equal: 1 parameters\n', '')


def test_googles_prompts(convert, run, tmp_path):
  """From the checkpoint, and from the `.npy` without a suffix that lies beside it."""
  file = PROMPTED / 'numpy_checkpoints/checkpoint_5/encoder.prompt.prompt.prompt'
  convert(PROMPTED / 'checkpoint_5', tmp_path / 'a.npy')
  convert(file, tmp_path / 'b.safetensors')
  assert run(diff_checkpoints, tmp_path / 'a.npy', tmp_path / 'b.safetensors')[0] == 0
  assert (tmp_path / 'a.npy').read_bytes() == file.read_bytes()


# --- inspect ---


@pytest.mark.parametrize('folder', [HF / 't5_v1_1', HF / 'bart', ORBAX, MULTIOPT])
def test_inspect_lists_parameters_and_the_fingerprint_of_what_is_loaded(run, folder):
  code, out, err = run(inspect_checkpoint, folder)
  assert (code, err) == (0, '')
  source = base.open_base(folder)
  params = base.load_params(source, folders.shapes(source))
  lines = {line.split()[0]: line for line in out.splitlines() if line}
  for path, x in trees.flatten(params).items():
    assert re.fullmatch(rf'{path} +float32 +{x.nbytes:,}  {re.escape(str(list(x.shape)))}', lines[path])
  assert lines['fingerprint'].split()[1] == base.fingerprint(params)
  assert lines['format'] == f'format       {source.kind}'
  assert f'{sum(info.nbytes for info in source.tensors.values()):,} bytes' in lines['model']


def test_inspect_shows_the_optimizer_and_stored_names(run):
  _, out, _ = run(inspect_checkpoint, MULTIOPT, '--stored', '--no_fingerprint')
  assert re.search(r'^encoder/layers_1/mlp/wo/kernel +float32 +73,728  \[144, 128\]$', out, re.MULTILINE)
  assert re.search(r'^step +0\noptimizer +9 arrays, ', out, re.MULTILINE)
  assert 'family t5, vocab_size 1024, d_model 128, num_heads 4' in out
  assert 'fingerprint' not in out


def test_inspect_a_prompt(run, tmp_path):
  rows, about = np.full((3, 4), 0.5, np.float32), {'base_fingerprint': '0123', 'step': 7}
  tuned.save_safetensors(tmp_path / 'a.safetensors', tuned.Tuned('prompt', {tuned.PROMPT: rows}, about))
  code, out, _ = run(inspect_checkpoint, tmp_path / 'a.safetensors')
  assert code == 0
  for line in ('prompt/embedding  float32               48  [3, 4]', 'method           prompt',
               'norms            prompt/embedding: from 1 to 1, mean 1', 'base_fingerprint 0123', 'step             7'):
    assert line in out.splitlines()


# --- diff ---


@pytest.mark.parametrize(('a', 'b'), [
    (ORBAX, T5X / 't5x_native/checkpoint_0'), (ORBAX, PROMPTED / 'checkpoint_5'), (HF / 'gpt2', HF / 'gpt2')])
def test_equal_models(run, a, b):
  source = base.open_base(a)
  assert run(diff_checkpoints, a, b) == (0, f'equal: {len(source.key_table(source.config))} parameters\n', '')


def test_equal_in_two_formats(run, convert, tmp_path):
  convert(HF / 't5_v1_0', tmp_path / 'checkpoint_0')
  assert run(diff_checkpoints, HF / 't5_v1_0', tmp_path / 'checkpoint_0')[0] == 0


def test_lines_of_a_difference(run, tmp_path):
  folder = shutil.copytree(HF / 't5_v1_0', tmp_path / 'model')
  tensors = folders.raw(folder)
  tensors['encoder.final_layer_norm.weight'][3] += 0.5
  tensors['more.weight'] = np.zeros((2, 3), np.float32)
  tensors['shared.weight'] = tensors['shared.weight'][:200].copy()
  del tensors['decoder.block.1.layer.2.DenseReluDense.wi.weight']
  folders.rewrite(folder, tensors)
  code, out, _ = run(diff_checkpoints, HF / 't5_v1_0', folder)
  assert code == 1
  *lines, last = out.splitlines()
  assert sorted(lines) == [
      '+ decoder.block.0.layer.2.DenseReluDense.wi.weight [48, 32]',
      '+ more.weight [2, 3]',
      '+ token_embedder/embedding [200, 32]',
      '- decoder/layers/mlp/wi/kernel [2, 32, 48]',
      '- token_embedder/embedding [256, 32]',
      '~ encoder/encoder_norm/scale [32]  1 of 32 values differ, by at most 0.5',
  ]
  assert re.fullmatch(r'5 of \d+ parameters differ', last)


def test_a_tolerance(run):
  native, bf16 = T5X / 't5x_native/checkpoint_0', T5X / 't5x_native_bf16/checkpoint_0'
  assert run(diff_checkpoints, native, bf16)[0] == 1
  assert run(diff_checkpoints, native, bf16, '--atol', '0.02')[0] == 0


@pytest.mark.parametrize(('a', 'b', 'message'), [
    (HF / 't5_v1_1', pathlib.Path('/nowhere'), '/nowhere does not exist; expected a checkpoint'),
    (HF / 't5_v1_1', HF / 'peft_t5_v1_1_prompt', 'is a model, the other a prompt or prefix; name two of a kind')])
def test_what_cannot_be_compared(run, a, b, message):
  code, out, err = run(diff_checkpoints, a, b)
  assert (code, out) == (2, '')
  assert message in err


def test_broken_models_can_be_looked_at(run, tmp_path):
  """A parameter that is not whole, or not of one shape, is shown tensor by tensor."""
  folder = shutil.copytree(HF / 't5_v1_0', tmp_path / 'model')
  tensors = folders.raw(folder)
  del tensors['encoder.block.0.layer.1.DenseReluDense.wi.weight']
  wo = 'encoder.block.1.layer.1.DenseReluDense.wo.weight'
  tensors[wo] = tensors[wo][:, :40].copy()
  folders.rewrite(folder, tensors)
  code, out, err = run(inspect_checkpoint, folder)
  assert (code, err) == (0, '')
  assert re.search(rf'^{wo} +float32 +5,120  \[32, 40\]$', out, re.MULTILINE)
  assert 'encoder.block.1.layer.1.DenseReluDense.wi.weight' in out
  assert run(diff_checkpoints, HF / 't5_v1_0', folder)[0] == 1
