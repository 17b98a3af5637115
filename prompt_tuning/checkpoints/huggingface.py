"""Hugging Face folders (`config.json` + safetensors), read slice by slice and written.

What is particular to a family of models is in `families/`. A pruned model lies in such a folder too, under the names of
the model that it was made of: its `config.json` says how many neurons the layers have (`kept_ff`), and `model_type` is
`pruned_...`, which Hugging Face does not know and refuses.
"""
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import atomic, keys, safetensors_file
from prompt_tuning.checkpoints import source as source_lib
from prompt_tuning.checkpoints.families import bart, bert, gpt2, roberta, t5

FAMILIES = {'t5': t5, 'gpt2': gpt2, 'bart': bart, 'roberta': roberta, 'bert': bert}  # by BackboneConfig.family

CONFIG = 'config.json'
GENERATION_CONFIG = 'generation_config.json'
WEIGHTS = 'model.safetensors'
WEIGHTS_INDEX = 'model.safetensors.index.json'
SENTENCEPIECE = 'spiece.model'  # T5's tokenizer; the others' are several files:
TOKENIZER_FILES = ('tokenizer.json', 'vocab.json', 'merges.txt', 'encoder.json', 'vocab.bpe', 'dict.txt', 'vocab.txt')
TOKENIZER_OPTIONS = ('tokenizer_config.json', 'special_tokens_map.json')  # of use beside one of these only
PRUNED = 'pruned_'  # in front of the model_type of a pruned model
SHARD_BYTES = 5_000_000_000  # transformers writes files of at most this size

_Tensors = Mapping[str, safetensors_file.Tensor]


# --- reading ---


def open_folder(folder: pathlib.Path) -> source_lib.Source:
  """Opens a model folder with `config.json` and safetensors weights, in one file or sharded.

  Raises:
    FileNotFoundError: a shard is missing.
    ValueError: a broken or truncated file, or a model that no backbone computes.
  """
  tensors = _tensors(folder)
  settings = _settings(folder)
  kind = settings.get('model_type')
  pruned = isinstance(kind, str) and kind.startswith(PRUNED)
  known_kind = kind.removeprefix(PRUNED) if pruned else kind
  module = next((module for module in FAMILIES.values() if known_kind in module.MODEL_TYPES), None)
  if module is None:
    known = ', '.join(kind for module in FAMILIES.values() for kind in module.MODEL_TYPES)
    raise ValueError(f'{folder / CONFIG}: model_type is {kind!r}; expected one of {known}.')
  try:
    found = module.find(settings, tensors)
    config = dataclasses.replace(found.config, kept_ff=settings.get('kept_ff')) if pruned else found.config
  except ValueError as error:
    raise ValueError(f'{folder / CONFIG}: {error}') from error

  def key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
    return {
        path: entry._replace(names=tuple(found.stored.get(name, name) for name in entry.names))
        for path, entry in _key_table(config).items()
    }

  return source_lib.Source(
      path=str(folder),
      kind='Hugging Face',
      tensors={name: tensor.info for name, tensor in tensors.items()},
      config=config,
      read=lambda name, index: tensors[name].read(index),
      key_table=key_table,
      ignored=found.ignored,
      tokenizer_path=_tokenizer_path(folder, found.config.family))


def _key_table(config: config_lib.BackboneConfig) -> keys.KeyTable:
  return keys.in_segments(FAMILIES[config.family].key_table(config), config)


def _tokenizer_path(folder: pathlib.Path, family: str) -> str | None:
  if family == 't5':
    return str(folder / SENTENCEPIECE) if (folder / SENTENCEPIECE).is_file() else None
  return str(folder) if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def _settings(folder: pathlib.Path) -> dict[str, Any]:
  """`config.json`, with the token ids that transformers 5 keeps in `generation_config.json` instead."""
  settings = _read_json(folder / CONFIG)
  if (folder / GENERATION_CONFIG).is_file():
    for key, value in _read_json(folder / GENERATION_CONFIG).items():
      if key.endswith('_token_id') and settings.get(key) is None:
        settings[key] = value
  return settings


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


# --- writing ---


class Writer(NamedTuple):
  """Where the parameters of a model go, see `writing`."""

  table: keys.KeyTable
  files: Mapping[str, safetensors_file.Writer]  # by tensor

  def write(self, path: str, value: np.ndarray, first: int = 0) -> None:
    """Writes a parameter of ours; of one with a layer axis [L, ...], the layers from `first` on."""
    entry = self.table[path]
    layers = value if entry.stacked else [value]
    for name, x in zip(entry.names[first:], layers, strict=False):
      x = x.swapaxes(-1, -2) if entry.transpose else x
      i, n = entry.part
      columns = slice(i * x.shape[-1], (i + 1) * x.shape[-1]) if n > 1 else slice(None)
      self.files[name].write(name, x, columns)


@contextlib.contextmanager
def writing(
    path: str | os.PathLike, config: config_lib.BackboneConfig, parameters: Mapping[str, source_lib.TensorInfo],
    tokenizer: str | os.PathLike | None = None, shard_bytes: int = SHARD_BYTES) -> Iterator[Writer]:
  """A context in which a model is written as a Hugging Face folder, which appears whole when it is left.

  Args:
    path: the folder to write; it may exist only if it is empty.
    config: the model's dimensions.
    parameters: shape and type of every parameter, by our path.
    tokenizer: a SentencePiece model to copy to `spiece.model`, or a folder whose tokenizer files are copied.
    shard_bytes: what is more goes to a further file.

  Raises:
    FileExistsError: `path` holds something.
    ValueError: Hugging Face cannot compute this model, or a parameter was not written.
  """
  table, settings = _key_table(config), FAMILIES[config.family].config_to_json(config)
  if config.kept_ff:
    settings |= {'model_type': PRUNED + settings['model_type'], 'architectures': [], 'kept_ff': config.kept_ff}
  tensors = {
      name: source_lib.TensorInfo(entry.stored_shape(parameters[path].shape), parameters[path].dtype)
      for path, entry in table.items()
      for name in entry.names
  }
  settings['torch_dtype'] = max(tensors.values(), key=lambda info: info.nbytes).dtype.name
  shards = _shards(tensors, shard_bytes)
  with atomic.new_folder(path) as folder, contextlib.ExitStack() as stack:
    files = [
        stack.enter_context(safetensors_file.Writer(folder / file, {name: tensors[name] for name in names}))
        for file, names in shards.items()
    ]
    yield Writer(table, {name: file for file, names in zip(files, shards.values(), strict=True) for name in names})
    for file in files:
      file.check_complete()
    if len(shards) > 1:
      total = sum(info.nbytes for info in tensors.values())
      weight_map = {name: file for file, names in shards.items() for name in names}
      _write_json(folder / WEIGHTS_INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map})
    _write_json(folder / CONFIG, settings)
    if tokenizer and os.path.isdir(tokenizer):
      for name in filter((*TOKENIZER_FILES, *TOKENIZER_OPTIONS).__contains__, os.listdir(tokenizer)):
        shutil.copyfile(os.path.join(tokenizer, name), folder / name)
    elif tokenizer:
      shutil.copyfile(tokenizer, folder / SENTENCEPIECE)


def _shards(tensors: Mapping[str, source_lib.TensorInfo], most: int) -> dict[str, list[str]]:
  """File name -> names of the tensors in it, in order; a file has at most `most` bytes or one tensor."""
  shards, room = [[]], most
  for name, info in tensors.items():
    if info.nbytes > room and shards[-1]:
      shards.append([])
      room = most
    shards[-1].append(name)
    room -= info.nbytes
  n = len(shards)
  return {WEIGHTS if n == 1 else f'model-{i:05}-of-{n:05}.safetensors': shard for i, shard in enumerate(shards, 1)}


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', encoding='utf-8')
