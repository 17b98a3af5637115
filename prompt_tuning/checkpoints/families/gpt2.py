"""GPT-2 in Hugging Face folders: `config.json` and tensor names.

Differs from Hugging Face in that the joined kernel of query, key and value is three here. Its kernels are (in, out)
already (Conv1D). Dropout rates are not kept: they belong to a training run, not to a model.
"""
from collections.abc import Iterator, Mapping
import re
from typing import Any

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import keys
from prompt_tuning.checkpoints.families import Found, common, integer

MODEL_TYPES = ('gpt2',)

# --- tensors ---

_PREFIX = 'transformer.'
_INSIDE = r'(wte|wpe|h|ln_f)\.'  # what it stands in front of
_EMBEDDING, _HEAD = 'transformer.wte.weight', 'lm_head.weight'
_LAYER = {  # within a layer: our module -> Hugging Face's and the part of it that is ours
    'pre_self_attention_layer_norm': ('ln_1', (0, 1)),
    'self_attention/query': ('attn.c_attn', (0, 3)),
    'self_attention/key': ('attn.c_attn', (1, 3)),
    'self_attention/value': ('attn.c_attn', (2, 3)),
    'self_attention/out': ('attn.c_proj', (0, 1)),
    'pre_mlp_layer_norm': ('ln_2', (0, 1)),
    'mlp/wi': ('mlp.c_fc', (0, 1)),
    'mlp/wo': ('mlp.c_proj', (0, 1)),
}
# Causal masks that older files hold, the tied head, and heads of other tasks.
_IGNORED = re.compile(r'transformer\.h\.\d+\.attn\.(masked_)?bias|lm_head\.weight|(score|multiple_choice_head)\..*')


def _rows(config: config_lib.BackboneConfig) -> Iterator[tuple[str, keys.Entry]]:
  yield 'token_embedder/embedding', keys.per_layer(_EMBEDDING, 0)
  yield 'position_embedder/embedding', keys.per_layer(f'{_PREFIX}wpe.weight', 0)
  for ours, (theirs, part) in _LAYER.items():
    yield from common.weight_and_bias(
        f'decoder/layers/{ours}', f'{_PREFIX}h.{{i}}.{theirs}', config.decoder_layers, transpose=False, part=part)
  yield from common.weight_and_bias('decoder/decoder_norm', f'{_PREFIX}ln_f')


def key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  """Our paths -> the tensors of a Hugging Face `GPT2LMHeadModel`."""
  return dict(_rows(config))


# --- Hugging Face's config.json ---


def find(settings: Mapping[str, Any], tensors: common.Tensors) -> Found:
  """What a Hugging Face GPT-2 folder holds: `GPT2LMHeadModel`, or `GPT2Model` (the first releases).

  Raises:
    ValueError: a missing key, or a variant of GPT-2 that the backbone does not compute.
  """
  common.require(settings, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
  known = common.with_prefix(tensors, _PREFIX, _INSIDE)
  stored = {ours: theirs for theirs, ours in known.items()}
  common.check_copies(tensors, stored.get(_EMBEDDING, _EMBEDDING), [_HEAD])
  common.check_head(settings, tensors, _HEAD)
  return Found(_config_from_json(settings), stored, lambda name: bool(_IGNORED.fullmatch(known.get(name, name))))


def _config_from_json(settings: Mapping[str, Any]) -> config_lib.BackboneConfig:
  width, heads = integer(settings, 'n_embd'), integer(settings, 'n_head')
  eos = integer(settings, 'eos_token_id', 50256)
  return config_lib.BackboneConfig(
      family='gpt2',
      vocab_size=integer(settings, 'vocab_size'),
      d_model=width,
      num_heads=heads,
      head_dim=common.head_dim(width, heads),
      d_ff=integer(settings, 'n_inner', 4 * width),
      encoder_layers=0,
      decoder_layers=integer(settings, 'n_layer'),
      mlp_activations=common.activation(settings, 'activation_function', 'gelu_new'),
      layer_norm_epsilon=common.epsilon(settings, 'layer_norm_epsilon', 1e-5),
      tied_embeddings=True,
      max_positions=integer(settings, 'n_positions'),
      pad_id=integer(settings, 'pad_token_id', eos),  # GPT-2 has none, and is padded with eos when it must be
      eos_id=eos,
      bos_id=common.token_id(settings, 'bos_token_id', 50256))


def config_to_json(config: config_lib.BackboneConfig) -> dict[str, Any]:
  """The `config.json` from which transformers 4 and 5 build this GPT-2.

  Raises:
    ValueError: Hugging Face's GPT-2 cannot compute this model.
  """
  return {
      'architectures': ['GPT2LMHeadModel'],
      'model_type': 'gpt2',
      'vocab_size': config.vocab_size,
      'n_positions': config.max_positions,
      'n_embd': config.d_model,
      'n_layer': config.decoder_layers,
      'n_head': config.num_heads,
      'n_inner': None if config.d_ff == 4 * config.d_model else config.d_ff,
      'activation_function': common.activation_name(config),
      'layer_norm_epsilon': config.layer_norm_epsilon,
      'tie_word_embeddings': True,
      'bos_token_id': config.bos_id,
      'eos_token_id': config.eos_id,
      'pad_token_id': config.pad_id,
  }
