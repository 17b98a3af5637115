"""Hugging Face T5 folders (`config.json` + safetensors), read slice by slice and written.

Whether the output head is tied to the embedding table is decided by the tensors rather than by the config,
because `tie_word_embeddings` means different things in transformers 4 and 5 (see `_output_head`).
"""
from collections.abc import Iterable, Mapping
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import safetensors_file, t5_keys
from prompt_tuning.checkpoints import source as source_lib

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
WEIGHTS_INDEX = 'model.safetensors.index.json'
TOKENIZER = 'spiece.model'

_ACTIVATIONS = {'relu': ('relu',), 'gated-gelu': ('gelu', 'linear'), 'gated-silu': ('silu', 'linear')}
# transformers has saved the embedding table under its aliases too, or under only one of them.
_EMBEDDING = 'shared.weight'
_EMBEDDING_ALIASES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_HEAD = 'lm_head.weight'
# In the first T5 releases, left over from a conversion: cross-attention has no position bias.
_LEFTOVER = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'

_Tensors = Mapping[str, safetensors_file.Tensor]


# --- reading ---


def open_folder(folder: pathlib.Path) -> source_lib.Source:
  """Opens a T5 folder with `config.json` and safetensors weights, in one file or sharded.

  Raises:
    FileNotFoundError: a shard is missing.
    ValueError: a broken or truncated file, or a model that is not a T5 the backbone computes.
  """
  tensors = _tensors(folder)
  settings = _read_json(folder / CONFIG)
  embedding = next((name for name in (_EMBEDDING, *_EMBEDDING_ALIASES) if name in tensors), _EMBEDDING)
  try:
    tied, head = _output_head(settings, tensors, embedding)
    config = config_from_json(settings, tied)
  except ValueError as error:
    raise ValueError(f'{folder / CONFIG}: {error}') from error
  stored = {_EMBEDDING: embedding, _HEAD: head}

  def key_table(config: config_lib.BackboneConfig) -> t5_keys.KeyTable:
    table = t5_keys.huggingface(config)
    return {
        path: entry._replace(names=tuple(stored.get(name, name) for name in entry.names))
        for path, entry in table.items()
    }

  unneeded = {*_EMBEDDING_ALIASES, _LEFTOVER, *([_HEAD] if tied else [])}
  tokenizer = folder / TOKENIZER
  return source_lib.Source(
      path=folder,
      kind='Hugging Face',
      tensors={name: tensor.info for name, tensor in tensors.items()},
      config=config,
      read=lambda name, index: tensors[name].read(index),
      key_table=key_table,
      ignored=unneeded.__contains__,
      tokenizer_path=tokenizer if tokenizer.is_file() else None)


def config_from_json(settings: Mapping[str, Any], tied_embeddings: bool) -> config_lib.BackboneConfig:
  """The dimensions in a Hugging Face T5 `config.json`.

  Args:
    settings: the content of `config.json`.
    tied_embeddings: whether logits go through the embedding table, scaled, which the tensors decide.

  Raises:
    ValueError: another architecture, a missing key, or a variant of T5 that the backbone does not compute.
  """
  if settings.get('model_type') not in ('t5', 'mt5'):
    raise ValueError(f'model_type is {settings.get("model_type")!r}; expected t5 or mt5.')
  defaults = {  # transformers' own, for keys that older files lack
      'num_decoder_layers': settings.get('num_layers'),
      'relative_attention_num_buckets': 32,
      'relative_attention_max_distance': 128,
      'pad_token_id': 0,
      'eos_token_id': 1,
  }

  def integer(key: str) -> int:
    value = settings.get(key)
    value = defaults.get(key) if value is None else value
    if not isinstance(value, int):
      raise ValueError(f'{key} is {value!r}; expected a whole number.')
    return value

  activation = settings.get('feed_forward_proj', 'relu')
  if activation not in _ACTIVATIONS:
    raise ValueError(f'feed_forward_proj is {activation!r}; expected one of {", ".join(_ACTIVATIONS)}.')
  if (epsilon := settings.get('layer_norm_epsilon', 1e-6)) != 1e-6:
    raise ValueError(f'layer_norm_epsilon is {epsilon}; the backbone computes with 1e-6.')
  return config_lib.BackboneConfig(
      family='t5',
      vocab_size=integer('vocab_size'),
      d_model=integer('d_model'),
      num_heads=integer('num_heads'),
      head_dim=integer('d_kv'),
      d_ff=integer('d_ff'),
      encoder_layers=integer('num_layers'),
      decoder_layers=integer('num_decoder_layers'),
      mlp_activations=_ACTIVATIONS[activation],
      tied_embeddings=tied_embeddings,
      relpos_buckets=integer('relative_attention_num_buckets'),
      relpos_max_distance=integer('relative_attention_max_distance'),
      pad_id=integer('pad_token_id'),
      eos_id=integer('eos_token_id'))


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file}: not valid JSON ({error}); download the file again.') from error
  if not isinstance(content, dict):
    raise ValueError(f'{file}: expected a JSON object; download the file again.')
  return content


def _tensors(folder: pathlib.Path) -> _Tensors:
  """The tensors of the one weights file, or of all the shards that the index names."""
  if (folder / WEIGHTS).is_file():
    return safetensors_file.open_file(folder / WEIGHTS)
  index_file = folder / WEIGHTS_INDEX
  weight_map = _read_json(index_file).get('weight_map')
  if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
    raise ValueError(f'{index_file}: has no "weight_map" of file names; download the file again.')
  tensors = {}
  for shard in sorted(set(weight_map.values())):
    if shard != os.path.basename(shard):
      raise ValueError(f'{index_file}: {shard!r} is not a file of this folder; expected a plain file name.')
    if not (folder / shard).is_file():
      raise FileNotFoundError(f'{folder / shard} is missing, though {WEIGHTS_INDEX} names it; download it.')
    tensors |= safetensors_file.open_file(folder / shard)
  if absent := sorted(set(weight_map) - set(tensors)):
    raise ValueError(
        f'{index_file}: {len(absent)} tensors are in no shard, such as {absent[0]}; download it again.')
  return tensors


def _output_head(settings: Mapping[str, Any], tensors: _Tensors, embedding: str) -> tuple[bool, str]:
  """Whether logits are `y @ embedding.T / sqrt(D)` (T5 1.0), and the tensor that is the head if they are not.

  transformers 4 writes `tie_word_embeddings: false` for T5 1.1. transformers 5 writes `true` for it, with
  `scale_decoder_outputs: false`, and unties on load if the file holds a head that differs from the embedding.
  A 1.1 model built from a config there has its head tied without the scale; frozen, that is an untied head
  with the embedding's values.
  """
  tie = settings.get('tie_word_embeddings', True)
  scaled = settings.get('scale_decoder_outputs')
  if _HEAD in tensors and not (embedding in tensors and _equal(tensors[_HEAD], tensors[embedding])):
    if scaled:
      raise ValueError(f'scale_decoder_outputs is set and {_HEAD} is not the embedding table; the backbone '
                       'computes scaled logits only with tied embeddings (T5 1.0).')
    return False, _HEAD
  if tie if scaled is None else scaled:
    return True, _HEAD
  return False, embedding if tie and _HEAD not in tensors else _HEAD


def _equal(a: safetensors_file.Tensor, b: safetensors_file.Tensor) -> bool:
  if a.info != b.info:
    return False
  rows = a.info.shape[0]
  step = max(1, rows // 64)  # a head of its own differs in the first block, and the rest is not read
  blocks = [(slice(i, i + step),) for i in range(0, rows, step)]
  return all(np.array_equal(a.read(block), b.read(block)) for block in blocks)


# --- writing ---


def config_to_json(config: config_lib.BackboneConfig, dtype: str) -> dict[str, Any]:
  """The `config.json` from which transformers 4 and 5 build this T5."""
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
      'torch_dtype': dtype,
  }


def write_folder(
    path: str | os.PathLike,
    config: config_lib.BackboneConfig,
    tensors: Iterable[tuple[str, np.ndarray]],
    tokenizer_file: str | os.PathLike | None = None,
) -> None:
  """Writes a T5 as a Hugging Face folder: all of it appears at `path` at once, or nothing does.

  Args:
    path: the folder to write; it may exist only if it is empty.
    config: the model's dimensions.
    tensors: (Hugging Face name, value) of every tensor of that model, in any order and all of one type; one
      of them is held at a time.
    tokenizer_file: a SentencePiece model to copy to `spiece.model`.

  Raises:
    FileExistsError: `path` holds something.
    ValueError: a tensor is missing, unknown, given twice, or of another type than the first.
  """
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise FileExistsError(f'{path} already holds something: remove it, or name another folder.')
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.tmp-{os.getpid()}')
  partial.mkdir()
  try:
    names = {name for entry in t5_keys.huggingface(config).values() for name in entry.names}
    dtype = safetensors_file.write_file(partial / WEIGHTS, tensors, names)
    if tokenizer_file:
      shutil.copyfile(tokenizer_file, partial / TOKENIZER)
    settings = json.dumps(config_to_json(config, dtype.name), indent=2, sort_keys=True)
    (partial / CONFIG).write_text(settings + '\n', encoding='utf-8')
    os.replace(partial, path)
  except BaseException:
    shutil.rmtree(partial)
    raise
