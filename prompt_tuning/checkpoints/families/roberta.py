"""RoBERTa in Hugging Face folders: BERT's layers (see `bert.py`) under other names, with positions that begin at 2.

Rows 0 to pad_id of the position table are no positions: Hugging Face counts the tokens that are not padding, from
pad_id + 1 on. Its masked-LM head computes the exact GELU whatever `hidden_act` is.
"""
from collections.abc import Mapping
from typing import Any

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import keys
from prompt_tuning.checkpoints.families import Found, bert, common, integer

MODEL_TYPES = ('roberta',)

_NAMES = bert.Names(
    prefix='roberta.',
    head={'dense': 'lm_head.dense', 'layer_norm': 'lm_head.layer_norm'},
    head_bias='lm_head.bias',
    decoder='lm_head.decoder',
    other_heads=r'(classifier|qa_outputs)\..*')


def key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  """Our paths -> the tensors of a Hugging Face `RobertaForMaskedLM`, or of its encoder alone."""
  return dict(bert.rows(config, _NAMES))


def find(settings: Mapping[str, Any], tensors: common.Tensors) -> Found:
  """What a Hugging Face RoBERTa folder holds: `RobertaForMaskedLM`, or one without such a head.

  Raises:
    ValueError: a missing key, or a variant of RoBERTa that the backbone does not compute.
  """
  pad = integer(settings, 'pad_token_id', 1)
  return bert.found(settings, tensors, _NAMES, family='roberta', pad_id=pad, position_offset=pad + 1,
                    eos_id=common.token_id(settings, 'eos_token_id', 2),
                    bos_id=common.token_id(settings, 'bos_token_id', 0))


def config_to_json(config: config_lib.BackboneConfig) -> dict[str, Any]:
  """The `config.json` from which transformers 4 and 5 build this RoBERTa.

  Raises:
    ValueError: Hugging Face's RoBERTa cannot compute this model.
  """
  return {'architectures': ['RobertaForMaskedLM' if config.mlm_head else 'RobertaModel'], 'model_type': 'roberta',
          **bert.settings_of(config)}
