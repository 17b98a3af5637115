"""GPT-2, BART, RoBERTa and BERT written as Hugging Face folders: the same bits, the same model in `config.json`."""
import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.checkpoints import base, huggingface
from prompt_tuning.checkpoints.families import gpt2
from prompt_tuning.checkpoints.source import TensorInfo
from tests.checkpoints.folders import CONFIGS, FAMILIES, load, raw, shapes


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shard_bytes', [huggingface.SHARD_BYTES, 40_000])
@pytest.mark.parametrize('family', FAMILIES)
def test_written_folders_hold_the_same_bits(goldens, tmp_path, family, shard_bytes, dtype):
  config, params = load(goldens / 'hf' / family, dtype)
  leaves = {path: np.asarray(x) for path, x in trees.flatten(params).items()}
  infos = {path: TensorInfo(x.shape, x.dtype) for path, x in leaves.items()}
  with huggingface.writing(tmp_path / 'model', config, infos, shard_bytes=shard_bytes) as writer:
    for path, x in leaves.items():
      writer.write(path, x)
  files = [file for file in (tmp_path / 'model').iterdir() if file.suffix == '.safetensors']
  assert (len(files) > 1) == (shard_bytes == 40_000)
  written = base.open_base(tmp_path / 'model')
  stored = raw(goldens / 'hf' / family)
  assert written.tensors.keys() == stored.keys()
  for name, x in stored.items():
    assert written.read(name, ()).tobytes() == x.astype(dtype).tobytes(), name
  assert written.config == config
  assert base.fingerprint(base.load_params(written, shapes(written, dtype))) == base.fingerprint(params)


# Keys that say what the model computes; of the others (dropout, initialisation, other heads) nothing is kept.
KEPT = {
    'gpt2': ('vocab_size', 'n_positions', 'n_embd', 'n_layer', 'n_head', 'n_inner', 'activation_function',
             'layer_norm_epsilon', 'bos_token_id', 'eos_token_id', 'pad_token_id'),
    'bart': ('vocab_size', 'max_position_embeddings', 'd_model', 'encoder_layers', 'encoder_ffn_dim',
             'encoder_attention_heads', 'decoder_layers', 'decoder_ffn_dim', 'decoder_attention_heads',
             'activation_function', 'scale_embedding', 'is_encoder_decoder', 'pad_token_id', 'bos_token_id',
             'eos_token_id', 'decoder_start_token_id', 'forced_eos_token_id'),
    'roberta': ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size',
                'hidden_act', 'max_position_embeddings', 'type_vocab_size', 'layer_norm_eps', 'pad_token_id',
                'bos_token_id', 'eos_token_id'),
}
KEPT['bert'] = KEPT['roberta']


@pytest.mark.parametrize(('family', 'changes'), [
    *((family, {}) for family in FAMILIES),
    ('gpt2', {'n_inner': 80, 'activation_function': 'gelu', 'layer_norm_epsilon': 1e-6, 'bos_token_id': None}),
    ('bart', {'scale_embedding': True, 'activation_function': 'relu', 'encoder_layers': 3, 'forced_eos_token_id': None,
              'decoder_start_token_id': 0, 'forced_bos_token_id': 0}),
    ('roberta', {'hidden_act': 'gelu_new', 'pad_token_id': 4, 'type_vocab_size': 3, 'layer_norm_eps': 1e-6}),
    ('bert', {'eos_token_id': 7, 'bos_token_id': 8, 'max_position_embeddings': 20}),
])
def test_config_json_there_and_back(goldens, family, changes):
  module = huggingface.FAMILIES[family]
  names = raw(goldens / 'hf' / family)
  settings = {**json.loads((goldens / 'hf' / family / 'config.json').read_text()), **changes}
  read = lambda settings: module.find(settings, dict.fromkeys(names)).config
  config = read(settings)
  written = module.config_to_json(config)
  kept = {*KEPT[family], 'model_type', 'architectures', 'tie_word_embeddings', *changes}
  assert {key: written[key] for key in kept} == {key: settings[key] for key in kept}
  assert read(json.loads(json.dumps(written))) == config


def test_what_hugging_face_has_no_place_for():
  config = dataclasses.replace(CONFIGS['gpt2'], mlp_activations=('gelu', 'linear'))
  with pytest.raises(ValueError, match=r"mlp_activations is \('gelu', 'linear'\); a Hugging Face gpt2 has one of"):
    gpt2.config_to_json(config)
