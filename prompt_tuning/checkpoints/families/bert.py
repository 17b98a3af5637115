"""BERT in Hugging Face folders: `config.json` and tensor names, and what RoBERTa shares with it (`roberta.py`).

The masked-LM head is optional, because encoders are often released without (`BertModel`, sentence encoders): without
it, hidden states are the output. Poolers and the next-sentence head are left out: no method here uses them. Dropout
rates are not kept: they belong to a training run, not to a model.
"""
from collections.abc import Iterator, Mapping
import re
from typing import Any, NamedTuple

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import keys
from prompt_tuning.checkpoints.families import Found, common, integer

MODEL_TYPES = ('bert',)

# --- tensors ---


class Names(NamedTuple):
  """What BERT and RoBERTa call differently."""

  prefix: str  # of the encoder's tensors in a model with a head
  head: Mapping[str, str]  # our layers of the masked-LM head -> Hugging Face's
  head_bias: str  # [V], what is added to the logits
  decoder: str  # the layer that is the embedding table and that bias once more
  other_heads: str  # pattern of the names of heads of other tasks


_NAMES = Names(
    prefix='bert.',
    head={'dense': 'cls.predictions.transform.dense', 'layer_norm': 'cls.predictions.transform.LayerNorm'},
    head_bias='cls.predictions.bias',
    decoder='cls.predictions.decoder',
    other_heads=r'(cls\.seq_relationship|classifier|qa_outputs)\..*')

_INSIDE = r'(embeddings|encoder|pooler)\.'  # what the prefix stands in front of
_EMBEDDING = 'embeddings.word_embeddings.weight'
_LEFTOVERS = r'(pooler\..*|embeddings\.(position_ids|token_type_ids))'  # behind the prefix
_LAYER = {  # within a layer: our module -> Hugging Face's
    'attention/query': 'attention.self.query',
    'attention/key': 'attention.self.key',
    'attention/value': 'attention.self.value',
    'attention/out': 'attention.output.dense',
    'post_attention_layer_norm': 'attention.output.LayerNorm',
    'mlp/wi': 'intermediate.dense',
    'mlp/wo': 'output.dense',
    'post_mlp_layer_norm': 'output.LayerNorm',
}


def rows(config: config_lib.BackboneConfig, names: Names) -> Iterator[tuple[str, keys.Entry]]:
  """The key table of a BERT with those names."""
  yield 'token_embedder/embedding', keys.per_layer(f'{names.prefix}{_EMBEDDING}', 0)
  for ours in ('position', 'token_type'):
    yield f'{ours}_embedder/embedding', keys.per_layer(f'{names.prefix}embeddings.{ours}_embeddings.weight', 0)
  yield from common.weight_and_bias('encoder/embedding_norm', f'{names.prefix}embeddings.LayerNorm')
  for ours, theirs in _LAYER.items():
    yield from common.weight_and_bias(
        f'encoder/layers/{ours}', f'{names.prefix}encoder.layer.{{i}}.{theirs}', config.encoder_layers)
  if config.mlm_head:
    for ours, theirs in names.head.items():
      yield from common.weight_and_bias(f'mlm_head/{ours}', theirs)
    yield 'mlm_head/bias', keys.per_layer(names.head_bias, 0)


def key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  """Our paths -> the tensors of a Hugging Face `BertForMaskedLM`, or of its encoder alone."""
  return dict(rows(config, _NAMES))


# --- Hugging Face's config.json ---


def find(settings: Mapping[str, Any], tensors: common.Tensors) -> Found:
  """What a Hugging Face BERT folder holds: `BertForMaskedLM`, `BertForPreTraining`, or one without such a head.

  Raises:
    ValueError: a missing key, or a variant of BERT that the backbone does not compute.
  """
  pad = integer(settings, 'pad_token_id', 0)
  return found(settings, tensors, _NAMES, family='bert', pad_id=pad, position_offset=0,
               eos_id=common.token_id(settings, 'eos_token_id'), bos_id=common.token_id(settings, 'bos_token_id'))


def found(settings: Mapping[str, Any], tensors: common.Tensors, names: Names, **fields: Any) -> Found:
  """What the folder of a BERT with those names holds; `fields` of its config are RoBERTa's or BERT's own."""
  common.require(settings, is_decoder=False, add_cross_attention=False, position_embedding_type='absolute')
  known = {
      name: re.sub(r'\bLayerNorm\.(gamma|beta)$', lambda old: _NEW_NAMES[old[0]], ours)  # the first releases of BERT
      for name, ours in common.with_prefix(tensors, names.prefix, _INSIDE).items()
  }
  stored = {ours: theirs for theirs, ours in known.items()}
  decoder = {kind: f'{names.decoder}.{kind}' for kind in ('weight', 'bias')}
  if names.head_bias not in tensors and decoder['bias'] in tensors:  # of the two, one is enough
    stored[names.head_bias] = decoder['bias']
  mlm_head = names.head_bias in stored or any(f'{layer}.weight' in stored for layer in names.head.values())
  if mlm_head:
    embedding = f'{names.prefix}{_EMBEDDING}'
    common.check_copies(tensors, stored.get(embedding, embedding), [decoder['weight']])
    common.check_copies(tensors, names.head_bias, [decoder['bias']])
    common.check_head(settings, tensors, decoder['weight'])
  ignored = re.compile(f'{re.escape(names.prefix)}{_LEFTOVERS}|{re.escape(names.decoder)}\\..*|{names.other_heads}')
  config = _config_from_json(settings, mlm_head=mlm_head, **fields)
  return Found(config, stored, lambda name: bool(ignored.fullmatch(known.get(name, name))))


_NEW_NAMES = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}


def _config_from_json(settings: Mapping[str, Any], position_offset: int, **fields: Any) -> config_lib.BackboneConfig:
  width, heads = integer(settings, 'hidden_size'), integer(settings, 'num_attention_heads')
  return config_lib.BackboneConfig(
      vocab_size=integer(settings, 'vocab_size'),
      d_model=width,
      num_heads=heads,
      head_dim=common.head_dim(width, heads),
      d_ff=integer(settings, 'intermediate_size'),
      encoder_layers=integer(settings, 'num_hidden_layers'),
      decoder_layers=0,
      mlp_activations=common.activation(settings, 'hidden_act', 'gelu'),
      layer_norm_epsilon=common.epsilon(settings, 'layer_norm_eps', 1e-12),
      tied_embeddings=True,
      max_positions=integer(settings, 'max_position_embeddings') - position_offset,
      position_offset=position_offset,
      token_types=integer(settings, 'type_vocab_size', 2),
      **fields)


def config_to_json(config: config_lib.BackboneConfig) -> dict[str, Any]:
  """The `config.json` from which transformers 4 and 5 build this BERT.

  Raises:
    ValueError: Hugging Face's BERT cannot compute this model.
  """
  return {'architectures': ['BertForMaskedLM' if config.mlm_head else 'BertModel'], 'model_type': 'bert',
          **settings_of(config)}


def settings_of(config: config_lib.BackboneConfig) -> dict[str, Any]:
  """What the `config.json` of BERT and RoBERTa have in common."""
  return {
      'vocab_size': config.vocab_size,
      'hidden_size': config.d_model,
      'num_hidden_layers': config.encoder_layers,
      'num_attention_heads': config.num_heads,
      'intermediate_size': config.d_ff,
      'hidden_act': common.activation_name(config),
      'layer_norm_eps': config.layer_norm_epsilon,
      'max_position_embeddings': config.max_positions + config.position_offset,
      'type_vocab_size': config.token_types,
      'tie_word_embeddings': True,
      'pad_token_id': config.pad_id,
      'bos_token_id': config.bos_id,
      'eos_token_id': config.eos_id,
  }
