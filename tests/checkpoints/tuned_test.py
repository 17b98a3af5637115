"""Trained prompts and prefixes as files: every form that is read, what is written, and every refusal."""

import dataclasses
import hashlib
import json
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, tuned, tuned_file
from tests import models

T5X = models.GOLDENS / 't5x/prompt_tuning_native'
ROWS = np.random.default_rng(0).standard_normal((3, 4), np.float32)
LAYERS = np.random.default_rng(1).standard_normal((2, 2, 5, 3, 4), np.float32)  # keys and values [L, P, N, H]
ABOUT = {
    'base_fingerprint': '0123456789abcdef', 'base_path': 'models/t5', 'task': 'sst2', 'step': 30, 'metric': 91.5,
    'base_config': json.loads(json.dumps(dataclasses.asdict(config_lib.from_size('t5_1_1_tiny')))), 'note': ['é', None]}
PROMPT = tuned.Tuned('prompt', {'prompt/embedding': ROWS}, ABOUT)
PREFIX = tuned.Tuned('prefix', {
    'prefix/decoder/attn_kv/key': LAYERS[0], 'prefix/decoder/attn_kv/value': LAYERS[1],
    'prefix/encoder/attn_kv/key': LAYERS[1, :1], 'prefix/encoder/attn_kv/value': LAYERS[0, :1]}, {'step': 1})

INFIX = tuned.Tuned('infix', {
    'infix/embedding': LAYERS[0, 0, :, 0], 'infix/encoder/attn_kv/key': LAYERS[0],
    'infix/encoder/attn_kv/value': LAYERS[1]})


def rows(path, **kwargs) -> np.ndarray:
  found = tuned.load(path, **kwargs)
  assert found.method == 'prompt'
  assert found.tensors.keys() == {'prompt/embedding'}
  assert found.tensors['prompt/embedding'].dtype == np.float32
  return found.tensors['prompt/embedding']


def file_of(tensors, metadata) -> bytes:
  """A safetensors file of any content."""
  header, data = {'__metadata__': metadata}, b''
  for name, x in tensors.items():
    code = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'int32': 'I32'}[str(x.dtype)]
    header[name] = {'dtype': code, 'shape': x.shape, 'data_offsets': [len(data), len(data) + x.nbytes]}
    data += x.tobytes()
  text = json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def ours(tensors, method='prompt', checksum=None, **metadata) -> bytes:
  """A file with our metadata, whatever the tensors."""
  return file_of(tensors, {
      'format': 'prompt_tuning', 'version': '1', 'method': method, 'sha256': checksum or tuned_file._checksum(tensors),
      'virtual_tokens': '{"count": 3, "place": "front of inputs"}', **metadata})


# --- reading ---


def test_google_prompts_are_read_from_numpy_files_without_suffix_and_from_checkpoints():
  prompt = rows(T5X / 'numpy_checkpoints/checkpoint_5/encoder.prompt.prompt.prompt')
  assert prompt.shape == (10, 128)
  np.testing.assert_array_equal(rows(T5X / 'checkpoint_5'), prompt)


def test_of_a_checkpoint_only_the_prompt_is_read(monkeypatch):
  asked, open_base = [], base.open_base

  def spied(path):
    source = open_base(path)
    return dataclasses.replace(source, read=lambda name, index: asked.append(name) or source.read(name, index))

  monkeypatch.setattr(base, 'open_base', spied)
  tuned.load(T5X / 'checkpoint_5')
  assert asked == ['encoder/prompt/prompt/prompt']


@pytest.mark.parametrize('array', [
    ROWS.astype(np.float64), ROWS.astype('>f4'), np.asfortranarray(ROWS), ROWS.astype(np.float16),
    ROWS.astype(ml_dtypes.bfloat16)], ids=['float64', 'big endian', 'Fortran order', 'float16', 'bfloat16'])
def test_kinds_of_npy(tmp_path, array):
  np.save(tmp_path / 'a.npy', array)
  np.testing.assert_array_equal(rows(tmp_path / 'a.npy'), np.asarray(array, np.float32))


def test_no_length_of_a_header_makes_a_file_a_pickle(tmp_path):
  """A safetensors file begins with the length of its header, and a pickle with the byte 0x80."""
  path, firsts = tmp_path / 'a.safetensors', set()
  for n in range(0, 256, 4):
    tuned.save_safetensors(path, tuned.Tuned('prompt', {tuned.PROMPT: ROWS}, {'task': 'x' * n}))
    firsts.add(path.read_bytes()[0])
    np.testing.assert_array_equal(tuned.load(path).tensors[tuned.PROMPT], ROWS)
  assert 0x80 in firsts


def test_version_2_of_npy(tmp_path):
  with open(tmp_path / 'a', 'wb') as file:
    np.lib.format.write_array(file, ROWS, version=(2, 0))
  np.testing.assert_array_equal(rows(tmp_path / 'a'), ROWS)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_safetensors_come_as_float32(tmp_path, dtype):
  (tmp_path / 'a').write_bytes(ours({'prompt/embedding': ROWS.astype(dtype)}))
  np.testing.assert_array_equal(rows(tmp_path / 'a'), ROWS.astype(dtype).astype(np.float32))


def test_a_run_folder_stands_for_its_best_else_its_newest(tmp_path):
  folder = tmp_path / 'prompts'
  value = lambda x: tuned.Tuned('prompt', {'prompt/embedding': np.full((1, 2), x, np.float32)})
  found = lambda: (rows(tmp_path)[0, 0], rows(folder)[0, 0])
  tuned.save_npy(folder / 'prompt_9.npy', value(9))
  tuned.save_safetensors(folder / 'prompt_9.safetensors', value(9.5))
  assert found() == (9.5, 9.5)
  tuned.save_npy(folder / 'prompt_10.npy', value(10))
  tuned.save_npy(folder / 'prompt_last.npy', value(11))
  assert found() == (10, 10)
  tuned.save_npy(folder / 'best.npy', value(1))
  assert found() == (1, 1)
  tuned.save_safetensors(folder / 'best.safetensors', value(1.5))
  assert found() == (1.5, 1.5)


def test_of_a_run_with_prefixes_the_newest(tmp_path):
  for step in (9, 10):
    small = dataclasses.replace(PREFIX, about={'step': step})
    tuned.save_safetensors(tmp_path / f'prompts/prefix_{step}.safetensors', small)
  assert tuned.load(tmp_path, 'prefix').about == {'step': 10}


# --- writing ---


@pytest.mark.parametrize('small', [PROMPT, PREFIX, INFIX], ids=lambda small: small.method)
def test_what_is_saved_is_loaded(tmp_path, small):
  tuned.save_safetensors(tmp_path / 'new' / 'a.safetensors', small)
  again = tuned.load(tmp_path / 'new' / 'a.safetensors', small.method)
  assert again.method == small.method
  assert again.about == small.about
  assert again.tensors.keys() == small.tensors.keys()
  for name, x in small.tensors.items():
    np.testing.assert_array_equal(again.tensors[name], x)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.safetensors']


@pytest.mark.parametrize(('small', 'digest'), [
    (PROMPT, '688ca4f7c0bc5d78'), (tuned.Tuned('prefix', dict([*PREFIX.tensors.items()][:2])), '890c558a2dbd4287'),
    (INFIX, 'c755327420642b06')], ids=lambda x: getattr(x, 'method', ''))
def test_files_of_the_first_release_keep_their_bytes(tmp_path, small, digest):
  about = {name: ABOUT[name] for name in ('base_path', 'task', 'step', 'metric')}
  tuned.save_safetensors(tmp_path / 'a', tuned.Tuned(small.method, small.tensors, about))
  assert hashlib.sha256((tmp_path / 'a').read_bytes()).hexdigest().startswith(digest)


def test_the_same_content_gives_the_same_bytes(tmp_path):
  backwards = lambda x: dict(reversed(x.items()))
  for i, small in enumerate([PREFIX, tuned.Tuned('prefix', backwards(PREFIX.tensors), backwards(PREFIX.about))] * 2):
    tuned.save_safetensors(tmp_path / f'{i}', small)
  assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_safetensors_package_reads_it(tmp_path):
  tuned.save_safetensors(tmp_path / 'a', PROMPT)
  with safetensors.safe_open(tmp_path / 'a', framework='numpy') as file:
    metadata = file.metadata()
    np.testing.assert_array_equal(file.get_tensor('prompt/embedding'), ROWS)
  assert metadata['format'] == 'prompt_tuning'
  assert metadata['version'] == '1'
  assert json.loads(metadata['virtual_tokens']) == {'count': 3, 'place': 'front of inputs'}
  assert metadata['base_path'] == 'models/t5'
  assert json.loads(metadata['base_config'])['d_model'] == 64
  tuned.save_safetensors(tmp_path / 'b', PREFIX)
  with safetensors.safe_open(tmp_path / 'b', framework='numpy') as file:
    layout = json.loads(file.metadata()['virtual_tokens'])
  assert layout == {'count': 5, 'sites': ['decoder/attn_kv', 'encoder/attn_kv']}


def test_what_is_not_known_is_left_out(tmp_path):
  tuned.save_safetensors(tmp_path / 'a', tuned.Tuned('prompt', PROMPT.tensors, {'metric': None, 'step': 3}))
  assert tuned.load(tmp_path / 'a').about == {'step': 3}


def test_npy_of_a_prompt(tmp_path):
  tuned.save_npy(tmp_path / 'a.npy', PROMPT)
  np.testing.assert_array_equal(np.load(tmp_path / 'a.npy', allow_pickle=False), ROWS)
  np.testing.assert_array_equal(rows(tmp_path / 'a.npy'), ROWS)


@pytest.mark.parametrize(('small', 'message'), [
    (tuned.Tuned('prompt', {'prompt/embedding': np.full((2, 2), np.inf)}), 'a.file: 4 of 4 values are NaN or infinite'),
    (tuned.Tuned('prompt', {'prompt/embedding': ROWS[0]}), r'a.file: expected one float array \[P, D\], found \(4,\)'),
    (tuned.Tuned('prompt', {}), '(?s)other tensors than expected.*- prompt/embedding'),
    (tuned.Tuned('lora', {}), "a.file: of method 'lora'; expected prompt, prefix, .* or head, or some of them joined"),
    (tuned.Tuned('prompt+prompt', PROMPT.tensors), r"of method 'prompt\+prompt'; expected"),
    (tuned.Tuned('prompt', PROMPT.tensors, {'sha256': 'x'}), 'facts about it may not be called sha256'),
])
def test_what_cannot_be_saved(tmp_path, small, message):
  with pytest.raises(ValueError, match=message):
    tuned.save_safetensors(tmp_path / 'a.file', small)
  assert not list(tmp_path.iterdir())


def test_npy_holds_no_prefix(tmp_path):
  with pytest.raises(ValueError, match=r'a.npy: a .npy holds a prompt \[P, D\], not a prefix; save it as .safetensors'):
    tuned.save_npy(tmp_path / 'a.npy', PREFIX)
  assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
  tuned.save_npy(tmp_path / 'a.npy', PROMPT)

  def full(self, content):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
  with pytest.raises(OSError, match='No space left'):
    tuned.save_npy(tmp_path / 'a.npy', tuned.Tuned('prompt', {'prompt/embedding': ROWS + 1}))
  assert [path.name for path in tmp_path.iterdir()] == ['a.npy']
  np.testing.assert_array_equal(rows(tmp_path / 'a.npy'), ROWS)


# --- refusing ---


def npy(array=ROWS, promised=None, **kwargs) -> bytes:
  """A `.npy` whose header may promise another shape."""
  descr = kwargs.get('descr', np.lib.format.dtype_to_descr(array.dtype))
  header = {'descr': descr, 'fortran_order': False, 'shape': promised or array.shape}
  text = repr(header).encode()
  text += b' ' * (-(len(text) + 11) % 64) + b'\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + array.tobytes()


GOOD = {'prompt/embedding': ROWS}
REFUSED = {
    'cut magic': (b'\x93NUMPY', 'not a plain .npy array'),
    'cut header': (npy()[:50], 'not a plain .npy array'),
    'no header': (npy().replace(b"'descr'", b"'desc_'"), 'not a plain .npy array'),
    'other version': (npy().replace(b'NUMPY\x01', b'NUMPY\x07'), r'not a plain .npy array \(version \(7, 0\)'),
    'cut': (npy()[:-1], 'truncated: its header describes 48 bytes .*, 47 follow; copy it again'),
    'trailing': (npy() + b'\0', 'bytes behind the array: its header describes 48 bytes .*, 49 follow'),
    'a promise': (npy(promised=(10**9, 10**9)), 'truncated: its header describes 4000000000000000000 bytes'),
    'negative': (npy(promised=(-3, -4)), r'expected one float array \[P, D\], found \(-3, -4\)'),
    'pickled': (npy(np.zeros((2, 2)), descr='|O'), 'not a plain .npy array: it holds pickled objects'),
    'structured': (npy(np.zeros((1, 2)), descr=[('a', '<f8')]), r'expected one float array \[P, D\]'),
    'integers': (npy(np.zeros((3, 4), np.int32)), r'expected one float array \[P, D\], found \(3, 4\) int32'),
    'one axis': (npy(ROWS[0]), r'expected one float array \[P, D\], found \(4,\) float32'),
    'three axes': (npy(ROWS[None]), r'expected one float array \[P, D\], found \(1, 3, 4\)'),
    'empty': (npy(ROWS[:0]), r'expected one float array \[P, D\], found \(0, 4\)'),
    'NaN': (npy(ROWS * np.nan), '12 of 12 values are NaN or infinite; use an earlier prompt'),
    'beyond float32': (npy(np.full((1, 2), 1e300)), '2 of 2 values are NaN or infinite'),
    'old pickle': (b'\x80\x02}q\x00.', 'is a pickle.*safe_serialization=True'),
    'text': (b'prompt tuning is all you need', 'neither .npy nor .safetensors by its content; expected a .npy file'),
    'nothing': (b'', 'neither .npy nor .safetensors'),
    'safetensors cut': (ours(GOOD)[:-4], 'truncated: prompt/embedding ends at byte'),
    'safetensors header cut': (ours(GOOD)[:40], 'truncated: its header ends at byte'),
    'safetensors trailing': (ours(GOOD) + b'\0' * 4, 'not a whole safetensors file'),
    'checksum': (ours(GOOD)[:-1] + b'\1', 'do not have the sha256 that its metadata promises.*copy it again'),
    'no checksum': (ours(GOOD, checksum='none'), 'do not have the sha256'),
    'no metadata': (file_of(GOOD, {}), 'without the metadata of prompt_tuning .*PEFT adapter name its folder'),
    'later version': (ours(GOOD, version='2'), "version '2' of the format; this release reads version '1': update"),
    'missing tensor': (ours({'embedding': ROWS}), r'(?s)- prompt/embedding.*\+ embedding'),
    'extra tensor': (ours({**GOOD, 'bias': ROWS}), r'(?s)other tensors than expected.*\+ bias'),
    'safetensors integers': (ours({'prompt/embedding': np.zeros((3, 4), np.int32)}), r'found \(3, 4\) int32'),
    'safetensors axes': (ours({'prompt/embedding': ROWS[0]}), r'expected one float array \[P, D\], found \(4,\)'),
    'safetensors NaN': (ours({'prompt/embedding': ROWS * np.nan}), '12 of 12 values are NaN'),
    'method': (ours(GOOD, 'lora'), "of method 'lora'; expected prompt, prefix, "),
    'no JSON': (ours(GOOD, step='{'), 'its metadata is no JSON'),
    'layout': (ours(GOOD, virtual_tokens='{"count": 3, "place": "end"}'), "virtual_tokens in its metadata are.*'end'"),
    'no values': (ours({'prefix/a/key': LAYERS[0]}, 'prefix'), '(?s)- prefix/a/value'),
    'prefix axes': (ours({'prefix/a/key': ROWS, 'prefix/a/value': ROWS}, 'prefix'),
                    r'prefix/a/key: a float array \[L, P, N, H\], found \(3, 4\)'),
    'two sites of an infix': (ours({**INFIX.tensors, 'infix/b/key': LAYERS[0]}, 'infix'),
                              r'(?s)- infix/b/value.*\+ infix/encoder/attn_kv/key'),
    'infix lengths': (ours({**INFIX.tensors, 'infix/embedding': ROWS}, 'infix'), r'lengths \[3, 5\]; expected one P'),
    'unlike values': (ours({'prefix/a/key': LAYERS[0], 'prefix/a/value': LAYERS[1, :1]}, 'prefix'),
                      'prefix/a/value is .* but its keys are'),
    'prefix lengths': (ours({'prefix/a/key': LAYERS[0], 'prefix/a/value': LAYERS[1],
                             'prefix/b/key': LAYERS[0, :, :2], 'prefix/b/value': LAYERS[1, :, :2]}, 'prefix'),
                       r'prefixes of lengths \[2, 5\]; expected one P'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(tmp_path, name):
  content, message = REFUSED[name]
  file = tmp_path / 'some'
  file.write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    tuned.load(file)
  assert str(file) in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(('suffix', 'message'), [
    ('.npy', 'some.npy: not a plain .npy array'), ('.safetensors', 'some.safetensors: truncated'),
    ('.txt', 'some.txt: neither')])
def test_where_content_says_nothing_the_suffix_does(tmp_path, suffix, message):
  (tmp_path / f'some{suffix}').write_bytes(b'words')
  with pytest.raises(ValueError, match=message):
    tuned.load(tmp_path / f'some{suffix}')


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('prompt.npy', npy(np.zeros((1000, 1000), np.float32)))
  assert (tmp_path / 'a.npz').stat().st_size < 10_000
  monkeypatch.setattr(zipfile, 'ZipFile', None)
  for name in ('a.npz', 'a.npy', 'a'):
    (tmp_path / 'a.npz').rename(tmp_path / name)
    with pytest.raises(ValueError, match=f'{name}: is an archive .*not unpacked; save its one array'):
      tuned.load(tmp_path / name)
    (tmp_path / name).rename(tmp_path / 'a.npz')


def test_a_torch_file_is_refused_by_content(tmp_path):
  with zipfile.ZipFile(tmp_path / 'prompt', 'w') as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02.')
  with pytest.raises(ValueError, match=r'prompt: is a pickle.*save_pretrained\(FOLDER, safe_serialization=True\)'):
    tuned.load(tmp_path / 'prompt')


def test_where_there_is_nothing(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere: there is no such prompt; expected a .npy file .*, a PEFT'):
    tuned.load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match=r'no prompts/best.\* and no prompts/prompt_<step>.\* in this folder'):
    tuned.load(tmp_path)


def test_a_base_is_no_prompt():
  with pytest.raises(ValueError, match='checkpoint_0: a T5X checkpoint without encoder/prompt/.*is a base model'):
    tuned.load(models.GOLDENS / models.T5X['t5_1_1_init'])


def test_a_prefix_where_a_prompt_is_expected(tmp_path):
  tuned.save_safetensors(tmp_path / 'a', PREFIX)
  with pytest.raises(ValueError, match=r'a: holds a prefix \(prefix/.*/key \[2, 5, 3, 4\].*where a prompt is'):
    tuned.load(tmp_path / 'a', 'prompt')


def test_damage_is_always_said_in_one_way(tmp_path):
  """Every truncation and every changed byte of a file: it loads (a fact was changed), or it is a ValueError."""
  tuned.save_npy(tmp_path / 'a.npy', PROMPT)
  tuned.save_safetensors(tmp_path / 'a.safetensors', tuned.Tuned('prompt', PROMPT.tensors, {'step': 3}))
  for file in list(tmp_path.iterdir()):
    content = file.read_bytes()
    for n in range(len(content)):
      file.write_bytes(content[:n])
      with pytest.raises(ValueError, match=file.name):
        tuned.load(file)
    messages = []
    for n in range(len(content)):
      file.write_bytes(content[:n] + bytes([content[n] ^ 0x10]) + content[n + 1:])
      try:
        tuned.load(file)
      except ValueError as error:
        messages.append(str(error))
    assert len(messages) > len(content) / 2
    assert all(file.name in message for message in messages)


# --- the base it was trained on ---


def test_another_base_is_a_warning_of_one_sentence():
  with pytest.warns(tuned.OtherBaseWarning, match=(
      r'^a.npy was trained on models/t5 \(fingerprint 0123456789abcdef\) but is used on other \(fingerprint ff\): .*')):
    tuned.warn_if_other_base('a.npy', PROMPT, 'other', lambda: 'ff')
  tuned.warn_if_other_base('a.npy', PROMPT, 'other', lambda: '0123456789abcdef')


def test_a_file_that_does_not_know_its_base_costs_nothing():
  tuned.warn_if_other_base('a.npy', tuned.Tuned('prompt', GOOD), 'other', lambda: 1 / 0)
