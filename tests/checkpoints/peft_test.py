"""PEFT's adapter folders: what is read of PEFT's own, what goes back, and every refusal."""

import dataclasses
import json
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.checkpoints import peft, tuned, tuned_file
from tests import models
from tests.checkpoints.tuned_test import file_of

HF = models.GOLDENS / 'hf'
WARNINGS = {  # adapter -> what is unsound about it in PEFT
    'peft_t5_v1_1_prompt': None,
    'peft_t5_v1_0_prompt_vocab': None,
    'peft_t5_v1_1_p_tuning': None,
    'peft_t5_v1_1_p_tuning_lstm': 'num_transformer_submodules = 2 PEFT stores twice the prompt',
    'peft_t5_v1_0_prefix': 'no prefix and leaves half of these rows unused',
    'peft_t5_v1_1_prefix_dim': 'no prefix and leaves half of these rows unused',
    'peft_bart_prefix_proj': 'no prefix and leaves half of these rows unused',
    'peft_gpt2_prompt': 'PEFT generates wrong text for the left-padded rows of a batch',
    'peft_gpt2_prefix': None,
}
CONFIG = BackboneConfig(
    't5', vocab_size=9, d_model=4, num_heads=3, head_dim=2, d_ff=8, encoder_layers=2, decoder_layers=2)
PROMPT = tuned.Tuned('prompt', {'prompt/embedding': np.arange(12.0).reshape(3, 4)})
PREFIX = tuned.Tuned('prefix', {
    f'prefix/decoder/attn_kv/{name}': np.random.default_rng(i).standard_normal((2, 5, 3, 2), np.float32)
    for i, name in enumerate(['key', 'value'])})  # [L, P, N, H]

# What PEFT does is checked where it is the subject.
pytestmark = pytest.mark.filterwarnings('ignore::prompt_tuning.checkpoints.peft.UnsoundAdapterWarning')


def stored(folder) -> np.ndarray:
  (tensor,) = tuned_file.open_safetensors(folder / peft.WEIGHTS)[0].values()
  return tensor.read(())


def config_of(folder) -> dict:
  return json.loads((folder / peft.CONFIG).read_text())


@pytest.fixture
def copy(tmp_path):
  """(golden, changes of its configuration, tensors instead of its own) -> a copy of its folder."""

  def make(name, tensors=None, **changes):
    folder = shutil.copytree(HF / name, tmp_path / name)
    (folder / peft.CONFIG).write_text(json.dumps({**config_of(folder), **changes}))
    if tensors is not None:
      (folder / peft.WEIGHTS).write_bytes(file_of(tensors, {'format': 'pt'}))
    return folder

  return make


# --- reading ---


@pytest.mark.parametrize('name', WARNINGS)
def test_adapters_are_read_as_their_layout_says(name):
  found, table, config = tuned.load(HF / name), stored(HF / name), config_of(HF / name)
  assert found.about['peft_type'] == config['peft_type']
  assert found.about['peft_config'] == config
  assert found.about['base_path'] == config['base_model_name_or_path']
  if found.method == 'prompt':
    np.testing.assert_array_equal(found.tensors['prompt/embedding'], table[:5])
    return
  rows = table.reshape(4, 4, config['num_attention_heads'], 8)  # [P, 2 L, N, H]
  for layer in range(2):
    for offset, kind in enumerate(['key', 'value']):
      np.testing.assert_array_equal(
          found.tensors[f'prefix/decoder/attn_kv/{kind}'][layer], rows[:, 2 * layer + offset])


@pytest.mark.parametrize('name', WARNINGS)
def test_what_is_unsound_in_peft_is_said_in_one_sentence(name):
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    tuned.load(HF / name)
  if WARNINGS[name] is None:
    assert not said
    return
  (warning,) = said
  assert warning.category is peft.UnsoundAdapterWarning
  assert WARNINGS[name] in str(warning.message)
  assert str(warning.message).startswith(str(HF / name))
  assert str(warning.message).count('. ') == 0


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_comes_as_float32(copy, dtype):
  table = np.random.default_rng(0).standard_normal((5, 32)).astype(dtype)
  rows = tuned.load(copy('peft_t5_v1_1_prompt', {'prompt_embeddings': table})).tensors['prompt/embedding']
  assert rows.dtype == np.float32
  np.testing.assert_array_equal(rows, table.astype(np.float32))


def test_an_encoders_prefix(copy):
  folder = copy('peft_gpt2_prefix', task_type='FEATURE_EXTRACTION')
  assert tuned.load(folder).tensors.keys() == {'prefix/encoder/attn_kv/key', 'prefix/encoder/attn_kv/value'}


TABLE = np.ones((5, 32), np.float32)


@pytest.mark.parametrize(('name', 'tensors', 'changes', 'message'), [
    ('peft_t5_v1_1_prompt', None, {'num_virtual_tokens': 7},
     r'adapter_config.json: num_virtual_tokens is 7 and .* has 5 rows; expected 7'),
    ('peft_t5_v1_1_prompt', None, {'num_transformer_submodules': 2}, 'has 5 rows; expected 10'),
    ('peft_t5_v1_1_prompt', None, {'num_transformer_submodules': None}, 'has 5 rows; expected 10'),
    ('peft_t5_v1_1_prompt', None, {'num_transformer_submodules': 3}, 'num_transformer_submodules is 3; expected at mo'),
    ('peft_gpt2_prompt', None, {'num_transformer_submodules': 2}, 'submodules is 2; expected at most 1 for CAUSAL_LM'),
    ('peft_t5_v1_1_prompt', None, {'token_dim': 64}, 'adapter_config.json: token_dim is 64, but .* is 32 wide'),
    ('peft_t5_v1_1_prompt', None, {'num_virtual_tokens': '5'}, "num_virtual_tokens is '5'; expected a positive number"),
    ('peft_gpt2_prefix', None, {'num_virtual_tokens': 5}, 'num_virtual_tokens is 5, but .* has 4 rows'),
    ('peft_gpt2_prefix', None, {'num_layers': 3}, 'num_layers is 3 and .* is 128 wide; expected .* = 192'),
    ('peft_gpt2_prefix', None, {'token_dim': 64}, 'token_dim 64, but .* is 128 wide; expected .* = 256'),
    ('peft_gpt2_prefix', None, {'num_attention_heads': 3}, 'token_dim is 32; expected a multiple of num_attention_hea'),
    ('peft_t5_v1_1_prefix_dim', None, {'token_dim': 36}, 'is 96 wide; expected .* = 144'),  # N H, not D
    ('peft_gpt2_prefix', None, {'num_attention_heads': None}, 'num_attention_heads is None; expected a positive'),
    ('peft_t5_v1_1_prompt', None, {'peft_type': 'MULTITASK_PROMPT_TUNING'},
     "peft_type is 'MULTITASK_PROMPT_TUNING', which is not read; expected one of PROMPT_TUNING, P_TUNING, PREFIX_TUN"),
    ('peft_t5_v1_1_prompt', None, {'peft_type': 'LORA'}, "peft_type is 'LORA', which is not read"),
    ('peft_t5_v1_1_prompt', None, {'peft_type': ['LORA']}, 'peft_type is .*, which is not read'),
    ('peft_t5_v1_1_prompt', None, {'task_type': 'SEQ_CLS'}, "task_type is 'SEQ_CLS', which is not read"),
    ('peft_t5_v1_1_prompt', {'prompt_embeddings': TABLE, 'base_model.classifier.weight': TABLE}, {},
     'adapter_model.safetensors: holds base_model.classifier.weight besides prompt_embeddings'),
    ('peft_t5_v1_1_prompt', {}, {}, 'adapter_model.safetensors: holds no prompt_embeddings'),
    ('peft_t5_v1_1_prompt', {'prompt_embeddings': TABLE[None]}, {}, r'prompt_embeddings is \[1, 5, 32\]; expected two'),
    ('peft_t5_v1_1_prompt', {'prompt_embeddings': TABLE.astype(np.int32)}, {}, r'found \(5, 32\) int32'),
    ('peft_t5_v1_1_prompt', {'prompt_embeddings': TABLE * np.nan}, {}, '160 of 160 values are NaN or infinite'),
])
def test_adapters_that_are_refused(copy, name, tensors, changes, message):
  folder = copy(name, tensors, **changes)
  before = sorted(folder.iterdir())
  with pytest.raises(ValueError, match=message) as error:
    tuned.load(folder)
  assert str(folder) in str(error.value)
  assert sorted(folder.iterdir()) == before


def test_files_that_are_missing_or_broken(copy):
  folder = copy('peft_t5_v1_1_prompt')
  content = (folder / peft.WEIGHTS).read_bytes()
  (folder / peft.WEIGHTS).write_bytes(content[:-8])
  with pytest.raises(ValueError, match='adapter_model.safetensors: truncated'):
    tuned.load(folder)
  (folder / peft.WEIGHTS).write_bytes(content + b'\0')
  with pytest.raises(ValueError, match='adapter_model.safetensors: not a whole safetensors file'):
    tuned.load(folder)
  (folder / peft.WEIGHTS).unlink()
  with pytest.raises(FileNotFoundError, match='adapter_model.safetensors is missing beside adapter_config.json'):
    tuned.load(folder)
  (folder / 'adapter_model.bin').write_bytes(b'\x80\x02.')
  with pytest.raises(ValueError, match=r'adapter_model.bin: is a pickle.*save_pretrained\(FOLDER, safe_serializatio'):
    tuned.load(folder)
  (folder / peft.WEIGHTS).write_bytes(content)
  for text, message in (('{', 'not JSON'), ('[]', 'no JSON object'), ('[' * 100_000, 'not JSON')):
    (folder / peft.CONFIG).write_text(text)
    with pytest.raises(ValueError, match=f'adapter_config.json: {message}'):
      tuned.load(folder)
  (folder / peft.CONFIG).unlink()
  with pytest.raises(FileNotFoundError, match='adapter_config.json is missing beside the weights'):
    tuned.load(folder)


# --- writing ---


@pytest.mark.parametrize('through', ['directly', 'through a file of ours'])
@pytest.mark.parametrize('name', WARNINGS)
def test_there_and_back_again(tmp_path, name, through):
  found = tuned.load(HF / name)
  if through != 'directly':
    tuned.save_safetensors(tmp_path / 'ours.safetensors', found)
    found = tuned.load(tmp_path / 'ours.safetensors')
  peft.write_folder(tmp_path / 'back', found)
  config = config_of(HF / name)
  if WARNINGS[name] and '2 PEFT' in WARNINGS[name]:  # less the dead rows
    assert config_of(tmp_path / 'back') == {**config, 'num_transformer_submodules': 1}
    np.testing.assert_array_equal(stored(tmp_path / 'back'), stored(HF / name)[:5])
  else:
    assert config_of(tmp_path / 'back') == config
    assert (tmp_path / 'back' / peft.WEIGHTS).read_bytes() == (HF / name / peft.WEIGHTS).read_bytes()


def test_unknown_keys_come_back(copy, tmp_path):
  folder = copy('peft_gpt2_prefix', key_of_tomorrow=[1])
  peft.write_folder(tmp_path / 'back', tuned.load(folder), base_path='gpt2-medium')
  assert config_of(tmp_path / 'back') == {**config_of(folder), 'base_model_name_or_path': 'gpt2-medium'}


def test_a_prompt_of_ours(tmp_path):
  about = {'base_config': json.loads(json.dumps(dataclasses.asdict(CONFIG))), 'base_path': 'models/t5'}
  peft.write_folder(tmp_path / 'a', tuned.Tuned('prompt', PROMPT.tensors, about))
  assert config_of(tmp_path / 'a') == {
      'peft_type': 'PROMPT_TUNING', 'task_type': 'SEQ_2_SEQ_LM', 'base_model_name_or_path': 'models/t5',
      'revision': None, 'inference_mode': True, 'num_virtual_tokens': 3, 'token_dim': 4, 'num_layers': 2,
      'num_attention_heads': 3, 'num_transformer_submodules': 1, 'prompt_tuning_init': 'RANDOM'}
  np.testing.assert_array_equal(stored(tmp_path / 'a'), PROMPT.tensors['prompt/embedding'])
  peft.write_folder(tmp_path / 'b', PROMPT, base_config=CONFIG, base_path='x', peft_type='P_TUNING')
  config = config_of(tmp_path / 'b')
  assert (config['peft_type'], config['base_model_name_or_path']) == ('P_TUNING', 'x')
  assert (config['encoder_reparameterization_type'], config['encoder_hidden_size']) == ('MLP', 4)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']


@pytest.mark.parametrize(('family', 'stack', 'task_type', 'submodules'), [
    ('t5', 'decoder', 'SEQ_2_SEQ_LM', 2), ('bart', 'decoder', 'SEQ_2_SEQ_LM', 2), ('gpt2', 'decoder', 'CAUSAL_LM', 1),
    ('roberta', 'encoder', 'FEATURE_EXTRACTION', 1)])
def test_a_prefix_of_ours(tmp_path, family, stack, task_type, submodules):
  layers = {f'{stack}_layers': 2}
  config = dataclasses.replace(CONFIG, family=family, **{'encoder_layers': 0, 'decoder_layers': 0, **layers})
  small = tuned.Tuned('prefix', {name.replace('decoder', stack): x for name, x in PREFIX.tensors.items()})
  peft.write_folder(tmp_path / 'a', small, base_config=config)
  found = config_of(tmp_path / 'a')
  assert (found['task_type'], found['num_transformer_submodules']) == (task_type, submodules)
  assert (found['num_virtual_tokens'], found['num_layers'], found['token_dim'], found['num_attention_heads']) == (
      5, 2, 6, 3)
  assert stored(tmp_path / 'a').shape == (5, 2 * 2 * 6)
  again = tuned.load(tmp_path / 'a')
  for name, x in small.tensors.items():
    np.testing.assert_array_equal(again.tensors[name], x)


def test_a_p_tuning_prompt_as_a_plain_one(tmp_path):
  """Keys that only the other type has would be a warning in PEFT."""
  peft.write_folder(tmp_path / 'a', tuned.load(HF / 'peft_t5_v1_1_p_tuning'), peft_type='PROMPT_TUNING')
  assert config_of(tmp_path / 'a').keys() == config_of(HF / 'peft_t5_v1_1_prompt').keys() - {
      'prompt_tuning_init_text', 'tokenizer_kwargs', 'tokenizer_name_or_path'}


def test_exporting_warns_too(tmp_path):
  with pytest.warns(peft.UnsoundAdapterWarning, match='leaves half of these rows unused'):
    peft.write_folder(tmp_path / 'a', PREFIX, base_config=CONFIG)


@pytest.mark.parametrize(('small', 'options', 'message'), [
    (PROMPT, {}, 'nothing is known of it here; give base_config'),
    (PROMPT, {'base_config': CONFIG, 'peft_type': 'PREFIX_TUNING'}, "'PREFIX_TUNING' for a prompt; expected PROMPT"),
    (PROMPT, {'base_config': CONFIG, 'peft_type': 'LORA'}, "peft_type='LORA' for a prompt; expected PROMPT"),
    (PROMPT, {'base_config': dataclasses.replace(CONFIG, d_model=8)}, r'base of \[D\] = \[4\], but this one has \[8\]'),
    (PREFIX, {'base_config': dataclasses.replace(CONFIG, num_heads=4)},
     r'base of \[L, N, H\] = \[2, 3, 2\], but this one has \[2, 4, 2\]; name the base'),
    (tuned.Tuned('infix', {'infix/embedding': PROMPT.tensors['prompt/embedding'],
                           **{n.replace('prefix', 'infix'): x[:, :3] for n, x in PREFIX.tensors.items()}}),
     {'base_config': CONFIG}, 'PEFT has nothing like an infix; keep it as .safetensors'),
    (PROMPT, {'base_config': dataclasses.replace(CONFIG, family='mamba')}, "no task type for the family 'mamba'"),
    (tuned.Tuned('prefix', {n.replace('attn_kv', 'cross_attn_kv'): x for n, x in PREFIX.tensors.items()}),
     {'base_config': CONFIG}, 'PEFT has prefixes of prefix/decoder/attn_kv only; this one has .*cross_attn_kv'),
    (tuned.Tuned('prompt', {'prompt/embedding': np.full((3, 4), np.nan)}), {'base_config': CONFIG}, '12 of 12 values'),
])
def test_what_cannot_be_exported(tmp_path, small, options, message):
  with pytest.raises(ValueError, match=message):
    peft.write_folder(tmp_path / 'a', small, **options)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'mine').write_text('x')
  with pytest.raises(FileExistsError, match='already holds something'):
    peft.write_folder(tmp_path / 'a', PROMPT, base_config=CONFIG)
  assert [path.name for path in tmp_path.rglob('*')] == ['a', 'mine']
