"""BART in Hugging Face folders: `config.json` and tensor names.

Position tables are as stored, with the two rows in front that no position uses. The bias on the logits is all zeros
in released models, and a file without it (`BartModel`) is a model without it. Dropout rates are not kept: they belong
to a training run, not to a model.
"""
from collections.abc import Iterator, Mapping
import re
from typing import Any

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import keys
from prompt_tuning.checkpoints.families import Found, common, integer

MODEL_TYPES = ('bart',)

# --- tensors ---

_PREFIX = 'model.'
_INSIDE = r'(shared|encoder|decoder)\.'  # what it stands in front of
_EMBEDDING, _HEAD = 'model.shared.weight', 'lm_head.weight'
# The embedding table is saved under its aliases too, or under only one of them.
_EMBEDDING_ALIASES = ('model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight', _HEAD)
_LOGITS_BIAS = 'final_logits_bias'
_OTHER_HEADS = re.compile(r'(classification_head|qa_outputs)\..*')
_POSITION_OFFSET = 2
_EPSILON = 1e-5  # of every layer norm; `config.json` does not say it

_ATTENTION = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'out': 'out_proj'}
_MLP = {'mlp/wi': 'fc1', 'mlp/wo': 'fc2', 'post_mlp_layer_norm': 'final_layer_norm'}


def _attention(ours: str, norm: str, theirs: str) -> dict[str, str]:
  kernels = {f'{ours}/{kernel}': f'{theirs}.{name}' for kernel, name in _ATTENTION.items()}
  return {**kernels, norm: f'{theirs}_layer_norm'}


_LAYER = {  # within a layer of a stack: our module -> Hugging Face's
    'encoder': _attention('attention', 'post_attention_layer_norm', 'self_attn') | _MLP,
    'decoder': (_attention('self_attention', 'post_self_attention_layer_norm', 'self_attn') |
                _attention('encoder_decoder_attention', 'post_cross_attention_layer_norm', 'encoder_attn') | _MLP),
}


def _rows(config: config_lib.BackboneConfig) -> Iterator[tuple[str, keys.Entry]]:
  yield 'token_embedder/embedding', keys.per_layer(_EMBEDDING, 0)
  for stack, layers in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    place = f'{_PREFIX}{stack}'
    yield f'{stack}/position_embedder/embedding', keys.per_layer(f'{place}.embed_positions.weight', 0)
    yield from common.weight_and_bias(f'{stack}/embedding_norm', f'{place}.layernorm_embedding')
    for ours, theirs in _LAYER[stack].items():
      yield from common.weight_and_bias(f'{stack}/layers/{ours}', f'{place}.layers.{{i}}.{theirs}', layers)
  if config.logits_bias:
    yield 'decoder/logits_bias', keys.per_layer(_LOGITS_BIAS, 0)


def key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  """Our paths -> the tensors of a Hugging Face `BartForConditionalGeneration`."""
  return dict(_rows(config))


# --- Hugging Face's config.json ---


def find(settings: Mapping[str, Any], tensors: common.Tensors) -> Found:
  """What a Hugging Face BART folder holds: `BartForConditionalGeneration` or `BartModel`.

  Raises:
    ValueError: a missing key, or a variant of BART that the backbone does not compute.
  """
  known = common.with_prefix(tensors, _PREFIX, _INSIDE)
  stored = {ours: theirs for theirs, ours in known.items()}
  embeddings = [stored[name] for name in (_EMBEDDING, *_EMBEDDING_ALIASES) if name in stored]
  if embeddings:
    stored[_EMBEDDING] = embeddings[0]
    common.check_copies(tensors, embeddings[0], embeddings[1:])
  common.check_head(settings, tensors, _HEAD)
  ignored = lambda name: known.get(name, name) in _EMBEDDING_ALIASES or bool(_OTHER_HEADS.fullmatch(name))
  return Found(_config_from_json(settings, _LOGITS_BIAS in tensors), stored, ignored)


def _config_from_json(settings: Mapping[str, Any], logits_bias: bool) -> config_lib.BackboneConfig:
  common.require(settings, is_encoder_decoder=True)
  for key in ('attention_heads', 'ffn_dim'):
    encoder, decoder = (integer(settings, f'{stack}_{key}') for stack in ('encoder', 'decoder'))
    if encoder != decoder:
      raise ValueError(f'encoder_{key} is {encoder} and decoder_{key} {decoder}; they must be equal.')
  width, heads = integer(settings, 'd_model'), integer(settings, 'encoder_attention_heads')
  return config_lib.BackboneConfig(
      family='bart',
      vocab_size=integer(settings, 'vocab_size'),
      d_model=width,
      num_heads=heads,
      head_dim=common.head_dim(width, heads),
      d_ff=integer(settings, 'encoder_ffn_dim'),
      encoder_layers=integer(settings, 'encoder_layers'),
      decoder_layers=integer(settings, 'decoder_layers'),
      mlp_activations=common.activation(settings, 'activation_function', 'gelu'),
      layer_norm_epsilon=_EPSILON,
      tied_embeddings=True,
      max_positions=integer(settings, 'max_position_embeddings'),
      position_offset=_POSITION_OFFSET,
      scale_embedding=common.flag(settings, 'scale_embedding'),
      logits_bias=logits_bias,
      pad_id=integer(settings, 'pad_token_id', 1),
      eos_id=integer(settings, 'eos_token_id', 2),
      bos_id=common.token_id(settings, 'bos_token_id', 0),
      decoder_start_id=common.token_id(settings, 'decoder_start_token_id', 2),
      forced_bos_id=common.token_id(settings, 'forced_bos_token_id'),
      forced_eos_id=common.token_id(settings, 'forced_eos_token_id', 2))


def config_to_json(config: config_lib.BackboneConfig) -> dict[str, Any]:
  """The `config.json` from which transformers 4 and 5 build this BART.

  Raises:
    ValueError: Hugging Face's BART cannot compute this model.
  """
  return {
      'architectures': ['BartForConditionalGeneration'],
      'model_type': 'bart',
      'vocab_size': config.vocab_size,
      'max_position_embeddings': config.max_positions,
      'd_model': config.d_model,
      'encoder_layers': config.encoder_layers,
      'decoder_layers': config.decoder_layers,
      'encoder_attention_heads': config.num_heads,
      'decoder_attention_heads': config.num_heads,
      'encoder_ffn_dim': config.d_ff,
      'decoder_ffn_dim': config.d_ff,
      'activation_function': common.activation_name(config),
      'scale_embedding': config.scale_embedding,
      'tie_word_embeddings': True,
      'is_encoder_decoder': True,
      'pad_token_id': config.pad_id,
      'bos_token_id': config.bos_id,
      'eos_token_id': config.eos_id,
      'decoder_start_token_id': config.decoder_start_id,
      'forced_bos_token_id': config.forced_bos_id,
      'forced_eos_token_id': config.forced_eos_id,
  }
