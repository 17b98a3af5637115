"""T5 in other people's checkpoints: Hugging Face's `config.json` and tensor names, and T5X's.

Our tree is T5X's with the `layers_{i}` of a stack merged into one `layers` whose leaves carry a leading layer
axis [L, ...]. Kernels are (in, out) here and in T5X, (out, in) in Hugging Face (PyTorch); the relative
position table is [N, buckets] here and in T5X, [buckets, N] there.

Whether the output head is tied to the embedding table is decided by the tensors rather than by the config,
because `tie_word_embeddings` means different things in transformers 4 and 5 (see `_output_head`).
"""
from collections.abc import Iterator, Mapping
from typing import Any

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import keys, safetensors_file
from prompt_tuning.checkpoints.families import Found, integer
from prompt_tuning.checkpoints.families.common import equal

MODEL_TYPES = ('t5', 'mt5')

# --- tensors ---

_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_SUBLAYERS = {  # stack -> (our module, Hugging Face's, the norm before it), in the order of HF's `layer.{j}`
    'encoder': (
        ('attention', 'SelfAttention', 'pre_attention_layer_norm'),
        ('mlp', 'DenseReluDense', 'pre_mlp_layer_norm'),
    ),
    'decoder': (
        ('self_attention', 'SelfAttention', 'pre_self_attention_layer_norm'),
        ('encoder_decoder_attention', 'EncDecAttention', 'pre_cross_attention_layer_norm'),
        ('mlp', 'DenseReluDense', 'pre_mlp_layer_norm'),
    ),
}
_RELPOS = 'relpos_bias/rel_embedding'


def _rows(config: config_lib.BackboneConfig) -> Iterator[tuple[str, str, int, bool]]:
  """(our path, Hugging Face's name with `{i}` for the layer, layers (0: not stacked), transposed there)."""
  gated = len(config.mlp_activations) > 1
  mlp = {name: name for name in (('wi_0', 'wi_1', 'wo') if gated else ('wi', 'wo'))}
  yield 'token_embedder/embedding', 'shared.weight', 0, False
  for stack, layers in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    if config.relpos_per_layer:  # Hugging Face has no place for it
      yield f'{stack}/layers/{_RELPOS}', bias.replace('block.0', 'block.{i}'), layers, True
    else:
      yield f'{stack}/{_RELPOS}', bias, 0, True
    for j, (ours, theirs, norm) in enumerate(_SUBLAYERS[stack]):
      place = f'{stack}.block.{{i}}.layer.{j}'
      yield f'{stack}/layers/{norm}/scale', f'{place}.layer_norm.weight', layers, False
      for our_kernel, their_kernel in (mlp if ours == 'mlp' else _ATTENTION).items():
        name = f'{place}.{theirs}.{their_kernel}.weight'
        yield f'{stack}/layers/{ours}/{our_kernel}/kernel', name, layers, True
      if config.kept_ff and (stack, ours) == ('encoder', 'mlp'):  # Hugging Face has no place for it
        yield f'{stack}/layers/mlp/wo/bias', f'{place}.{theirs}.wo.bias', layers, False
    yield f'{stack}/{stack}_norm/scale', f'{stack}.final_layer_norm.weight', 0, False
  if not config.tied_embeddings:
    yield 'decoder/logits_dense/kernel', 'lm_head.weight', 0, True


def key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  """Our paths -> the tensors of a Hugging Face `T5ForConditionalGeneration`."""
  return {path: keys.per_layer(name, layers, transpose) for path, name, layers, transpose in _rows(config)}


def t5x_key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  """Our paths -> the '/'-joined leaves under T5X's `target`, layers unrolled."""
  return {
      path: keys.per_layer(path.replace('/layers/', '/layers_{i}/'), layers) for path, _, layers, _ in _rows(config)}


def t5x_scanned_key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  """Our paths -> the '/'-joined leaves under T5X's `target` where it scans layers, `encoder/encoder/...`."""
  return {path: keys.Entry((path.replace('/layers/', f'/{path[:7]}/'),)) for path, *_ in _rows(config)}


# --- Hugging Face's config.json ---

_ACTIVATIONS = {'relu': ('relu',), 'gated-gelu': ('gelu', 'linear'), 'gated-silu': ('silu', 'linear')}
# transformers has saved the embedding table under its aliases too, or under only one of them.
_EMBEDDING = 'shared.weight'
_EMBEDDING_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_HEAD = 'lm_head.weight'
# In the first T5 releases, left over from a conversion: cross-attention has no position bias.
_LEFTOVER = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'


def find(settings: Mapping[str, Any], tensors: Mapping[str, safetensors_file.Tensor]) -> Found:
  """What a Hugging Face T5 folder holds.

  Raises:
    ValueError: a missing key, or a variant of T5 that the backbone does not compute.
  """
  embedding = next((name for name in (_EMBEDDING, *_EMBEDDING_ALIASES) if name in tensors), _EMBEDDING)
  tied, head = _output_head(settings, tensors, embedding)
  unneeded = {*_EMBEDDING_ALIASES, _LEFTOVER, *([_HEAD] if tied else [])}
  return Found(config_from_json(settings, tied), {_EMBEDDING: embedding, _HEAD: head}, unneeded.__contains__)


def config_from_json(settings: Mapping[str, Any], tied_embeddings: bool) -> config_lib.BackboneConfig:
  """The dimensions in a Hugging Face T5 `config.json`.

  Args:
    settings: the content of `config.json`.
    tied_embeddings: whether logits go through the embedding table, scaled, which the tensors decide.

  Raises:
    ValueError: a missing key, or a variant of T5 that the backbone does not compute.
  """
  activation = settings.get('feed_forward_proj', 'relu')
  if activation not in _ACTIVATIONS:
    raise ValueError(f'feed_forward_proj is {activation!r}; expected one of {", ".join(_ACTIVATIONS)}.')
  if (epsilon := settings.get('layer_norm_epsilon', 1e-6)) != 1e-6:
    raise ValueError(f'layer_norm_epsilon is {epsilon}; the backbone computes with 1e-6.')
  return config_lib.BackboneConfig(
      family='t5',
      vocab_size=integer(settings, 'vocab_size'),
      d_model=integer(settings, 'd_model'),
      num_heads=integer(settings, 'num_heads'),
      head_dim=integer(settings, 'd_kv'),
      d_ff=integer(settings, 'd_ff'),
      encoder_layers=integer(settings, 'num_layers'),
      decoder_layers=integer(settings, 'num_decoder_layers', settings.get('num_layers')),
      mlp_activations=_ACTIVATIONS[activation],
      tied_embeddings=tied_embeddings,
      relpos_buckets=integer(settings, 'relative_attention_num_buckets', 32),
      relpos_max_distance=integer(settings, 'relative_attention_max_distance', 128),
      pad_id=integer(settings, 'pad_token_id', 0),
      eos_id=integer(settings, 'eos_token_id', 1))


def config_to_json(config: config_lib.BackboneConfig) -> dict[str, Any]:
  """The `config.json` from which transformers 4 and 5 build this T5.

  Raises:
    ValueError: Hugging Face's T5 cannot compute this model.
  """
  if config.relpos_per_layer:
    raise ValueError('This T5 has relative position tables of its own in each layer (T5X with scanned layers); '
                     'Hugging Face T5 has one a stack. Convert it to T5X only.')
  return {
      'architectures': ['T5ForConditionalGeneration'],
      'model_type': 't5',
      'vocab_size': config.vocab_size,
      'd_model': config.d_model,
      'd_kv': config.head_dim,
      'd_ff': config.d_ff,
      'num_heads': config.num_heads,
      'num_layers': config.encoder_layers,
      'num_decoder_layers': config.decoder_layers,
      'relative_attention_num_buckets': config.relpos_buckets,
      'relative_attention_max_distance': config.relpos_max_distance,
      'feed_forward_proj': next(k for k, v in _ACTIVATIONS.items() if v == config.mlp_activations),
      'layer_norm_epsilon': 1e-6,
      'dropout_rate': 0.1,
      'tie_word_embeddings': config.tied_embeddings,
      'scale_decoder_outputs': config.tied_embeddings,
      'is_encoder_decoder': True,
      'pad_token_id': config.pad_id,
      'eos_token_id': config.eos_id,
      'decoder_start_token_id': config.pad_id,
  }


def _output_head(
    settings: Mapping[str, Any], tensors: Mapping[str, safetensors_file.Tensor], embedding: str) -> tuple[bool, str]:
  """Whether logits are `y @ embedding.T / sqrt(D)` (T5 1.0), and the tensor that is the head if they are not.

  transformers 4 writes `tie_word_embeddings: false` for T5 1.1. transformers 5 writes `true` for it, with
  `scale_decoder_outputs: false`, and unties on load if the file holds a head that differs from the embedding.
  A 1.1 model built from a config there has its head tied without the scale; frozen, that is an untied head
  with the embedding's values.
  """
  tie = settings.get('tie_word_embeddings', True)
  scaled = settings.get('scale_decoder_outputs')
  if _HEAD in tensors and not (embedding in tensors and equal(tensors[_HEAD], tensors[embedding])):
    if scaled:
      raise ValueError(f'scale_decoder_outputs is set and {_HEAD} is not the embedding table; the backbone '
                       'computes scaled logits only with tied embeddings (T5 1.0).')
    return False, _HEAD
  if tie if scaled is None else scaled:
    return True, _HEAD
  return False, embedding if tie and _HEAD not in tensors else _HEAD
