"""Adapter folders of Hugging Face's PEFT: prompts, prefixes and finished P-tuning prompts, read and written.

A folder holds `adapter_config.json` and `adapter_model.safetensors` with one tensor `prompt_embeddings`: of a prompt
[P, D], of a prefix [P, 2 L N H], which is [P, L, 2, N, H]: key, then value of each layer. P-tuning's LSTM or MLP is
applied before PEFT saves, so that its file is a prompt too.

Where PEFT 0.21 does not do what its files say (checked against it) we do what the files say, and warn once:
`UnsoundAdapterWarning`. PEFT itself gives an encoder-decoder's prefix to the decoder's self-attention alone, which is
the site where we put it, so that no trained number moves to where it never was.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any
import warnings

import numpy as np

from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.checkpoints import atomic, tuned_file
from prompt_tuning.checkpoints.tuned_file import PROMPT, Tuned

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'

_PICKLE = 'adapter_model.bin'
_TENSOR = 'prompt_embeddings'
_METHODS = {'PROMPT_TUNING': 'prompt', 'P_TUNING': 'prompt', 'PREFIX_TUNING': 'prefix'}
_TASK_TYPES = {'t5': 'SEQ_2_SEQ_LM', 'bart': 'SEQ_2_SEQ_LM', 'gpt2': 'CAUSAL_LM', 'roberta': 'FEATURE_EXTRACTION',
               'bert': 'FEATURE_EXTRACTION'}
_STACKS = {'SEQ_2_SEQ_LM': 'decoder', 'CAUSAL_LM': 'decoder', 'FEATURE_EXTRACTION': 'encoder'}  # of a prefix
_COMMON = ('auto_mapping', 'base_model_name_or_path', 'inference_mode', 'modules_to_save', 'num_attention_heads',
           'num_layers', 'num_transformer_submodules', 'num_virtual_tokens', 'peft_type', 'peft_version', 'revision',
           'task_type', 'token_dim')  # what the configurations of all types have


class UnsoundAdapterWarning(UserWarning):
  """PEFT does something else with this adapter than its file says."""


# --- reading ---


def read_folder(path: str | os.PathLike) -> Tuned:
  """Reads a PROMPT_TUNING, P_TUNING or PREFIX_TUNING adapter.

  `about` gets `peft_type`, `peft_config` (the whole configuration, for `write_folder`) and `base_path`.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: another type of adapter, a pickle, more than prompts, or numbers in the configuration that are not
      those of the tensor; the message names the file and the key.
  """
  folder = pathlib.Path(path)
  file = folder / CONFIG
  if not file.is_file():
    raise FileNotFoundError(f'{file} is missing beside the weights; copy the whole adapter folder.')
  try:
    config = json.loads(file.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file}: not JSON ({error}); copy it again.') from error
  if not isinstance(config, dict):
    raise ValueError(f'{file}: no JSON object; expected the configuration of a PEFT adapter.')
  _choice(file, config, 'peft_type', _METHODS)
  _choice(file, config, 'task_type', _STACKS)
  table = _read_table(folder)
  if _METHODS[config['peft_type']] == 'prompt':
    tensors = {PROMPT: _prompt(file, config, table)}
  else:
    tensors = _prefix(file, config, table)
  tensors = tuned_file.checked(folder / WEIGHTS, _METHODS[config['peft_type']], tensors)
  _warn_if_unsound(folder, config)
  about = {'peft_type': config['peft_type'], 'peft_config': config}
  if config.get('base_model_name_or_path'):
    about['base_path'] = config['base_model_name_or_path']
  return Tuned(_METHODS[config['peft_type']], tensors, about)


def _choice(file: pathlib.Path, config: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> None:
  if (value := config.get(key)) not in [*known]:
    raise ValueError(f'{file}: {key} is {value!r}, which is not read; expected one of {", ".join(known)}.')


def _number(file: pathlib.Path, config: Mapping[str, Any], key: str) -> int:
  value = config.get(key)
  if type(value) is not int or value < 1:
    raise ValueError(f'{file}: {key} is {value!r}; expected a positive number.')
  return value


def _read_table(folder: pathlib.Path) -> np.ndarray:
  file = folder / WEIGHTS
  if not file.is_file():
    if (folder / _PICKLE).exists():
      raise ValueError(f'{folder / _PICKLE}: is a pickle, which could run code when loaded and is not read; load the '
                       'adapter in PEFT, save it with save_pretrained(FOLDER, safe_serialization=True), name FOLDER.')
    raise FileNotFoundError(f'{file} is missing beside {CONFIG}; copy the whole adapter folder.')
  tensors, _ = tuned_file.open_safetensors(file)
  if extra := sorted(set(tensors) - {_TENSOR}):
    raise ValueError(f'{file}: holds {", ".join(extra)} besides {_TENSOR}; only prompts and prefixes are read: save '
                     'the adapter without modules_to_save.')
  if _TENSOR not in tensors:
    raise ValueError(f'{file}: holds no {_TENSOR}; expected that one tensor.')
  if len(shape := tensors[_TENSOR].info.shape) != 2:
    raise ValueError(f'{file}: {_TENSOR} is {list(shape)}; expected two axes.')
  return tensors[_TENSOR].read(())


def _submodules(file: pathlib.Path, config: Mapping[str, Any]) -> int:
  """How many times P rows a prompt has; PEFT's default for encoder-decoders is 2."""
  most = 2 if config['task_type'] == 'SEQ_2_SEQ_LM' else 1
  if config.get('num_transformer_submodules') is None:
    return most
  if (count := _number(file, config, 'num_transformer_submodules')) > most:
    raise ValueError(f'{file}: num_transformer_submodules is {count}; expected at most {most} for '
                     f'{config["task_type"]}.')
  return count


def _prompt(file: pathlib.Path, config: Mapping[str, Any], table: np.ndarray) -> np.ndarray:
  length, submodules = _number(file, config, 'num_virtual_tokens'), _submodules(file, config)
  if len(table) != length * submodules:
    raise ValueError(f'{file}: num_virtual_tokens is {length} and num_transformer_submodules {submodules}, but '
                     f'{_TENSOR} in {WEIGHTS} has {len(table)} rows; expected {length * submodules}.')
  if table.shape[1] != (width := _number(file, config, 'token_dim')):
    raise ValueError(f'{file}: token_dim is {width}, but {_TENSOR} in {WEIGHTS} is {table.shape[1]} wide.')
  return table[:length]


def _prefix(file: pathlib.Path, config: Mapping[str, Any], table: np.ndarray) -> dict[str, np.ndarray]:
  length, layers, heads, joined = (
      _number(file, config, key) for key in ('num_virtual_tokens', 'num_layers', 'num_attention_heads', 'token_dim'))
  _submodules(file, config)
  if joined % heads:
    raise ValueError(f'{file}: token_dim is {joined}; expected a multiple of num_attention_heads = {heads}.')
  if len(table) != length:
    raise ValueError(f'{file}: num_virtual_tokens is {length}, but {_TENSOR} in {WEIGHTS} has {len(table)} rows.')
  if table.shape[1] != 2 * layers * joined:
    raise ValueError(f'{file}: num_layers is {layers} and token_dim {joined}, but {_TENSOR} in {WEIGHTS} is '
                     f'{table.shape[1]} wide; expected 2 x num_layers x token_dim = {2 * layers * joined}.')
  split = table.reshape(length, layers, 2, heads, joined // heads)  # [P, L, 2, N, H]
  site = f'prefix/{_STACKS[config["task_type"]]}/attn_kv'
  return {f'{site}/key': split[:, :, 0].swapaxes(0, 1), f'{site}/value': split[:, :, 1].swapaxes(0, 1)}


def _warn_if_unsound(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
  method, task = _METHODS[config['peft_type']], config['task_type']
  if method == 'prefix' and task == 'SEQ_2_SEQ_LM':
    reason = ('PEFT gives the encoder and the cross-attention no prefix and leaves half of these rows unused, so that '
              'its outputs are not those of the prefix in this file, which are ours')
  elif method == 'prompt' and task == 'SEQ_2_SEQ_LM' and config.get('num_transformer_submodules') in (None, 2):
    reason = ('with num_transformer_submodules = 2 PEFT stores twice the prompt and never uses the second half, which '
              'is left out here')
  elif method == 'prompt' and task == 'CAUSAL_LM':
    reason = ('PEFT generates wrong text for the left-padded rows of a batch with this prompt; compare with it only '
              'where there is no padding')
  else:
    return
  warnings.warn(UnsoundAdapterWarning(f'{folder}: {reason}.'), stacklevel=3)


# --- writing ---


def write_folder(
    path: str | os.PathLike, tuned: Tuned, *, base_path: str | None = None,
    base_config: BackboneConfig | Mapping[str, Any] | None = None, peft_type: str | None = None) -> None:
  """Writes an adapter that `PeftModel.from_pretrained(base_model, path)` loads; the folder appears whole or not.

  What was read from PEFT goes back as it was, with unknown keys of its configuration, less dead rows.

  Args:
    tuned: a prompt, or a prefix at the one site that PEFT has.
    base_path: of the Hugging Face base; default: what is known about `tuned`.
    base_config: of the base; default: what is known about `tuned`.
    peft_type: 'PROMPT_TUNING' or 'P_TUNING' for a prompt; default: what it was, else PROMPT_TUNING.

  Raises:
    FileExistsError: the folder holds something.
    ValueError: not enough is known of the base, `tuned` does not fit it, or PEFT has nothing like it; nothing was
      written.
  """
  tensors = tuned_file.checked(path, tuned.method, tuned.tensors)
  if tuned.method not in _METHODS.values():
    raise ValueError(f'{path}: PEFT has nothing like an {tuned.method}; keep it as .safetensors.')
  original = tuned.about.get('peft_config') or {}
  type_ = peft_type or tuned.about.get('peft_type') or {'prompt': 'PROMPT_TUNING', 'prefix': 'PREFIX_TUNING'}[
      tuned.method]
  if _METHODS.get(type_) != tuned.method:
    fitting = ' or '.join(name for name, method in _METHODS.items() if method == tuned.method)
    raise ValueError(f'{path}: peft_type={type_!r} for a {tuned.method}; expected {fitting}.')
  if type_ != original.get('peft_type'):
    original = {key: value for key, value in original.items() if key in _COMMON}
  known = _of_base(path, base_config or tuned.about.get('base_config'), tensors)
  if not known and not original:
    raise ValueError(f'{path}: PEFT wants to know the base model, and nothing is known of it here; give base_config, '
                     'or export the .safetensors that a run left instead of its .npy.')
  config = {**_defaults(type_), **original, **known, 'peft_type': type_}
  config |= {'inference_mode': True, 'base_model_name_or_path': (
      base_path or tuned.about.get('base_path') or config.get('base_model_name_or_path'))}
  table, numbers = _table(path, tuned.method, config['task_type'], tensors)
  config |= numbers
  if type_ != 'PROMPT_TUNING':
    config.setdefault('encoder_hidden_size', config['token_dim'])
  with atomic.new_folder(path) as folder:
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    (folder / WEIGHTS).write_bytes(tuned_file.encode_safetensors({_TENSOR: table}, {'format': 'pt'}))
  _warn_if_unsound(pathlib.Path(path), config)


def _defaults(type_: str) -> dict[str, Any]:
  """Keys of a type; for training on only, as PEFT reads finished rows."""
  return {'revision': None, **{
      'PROMPT_TUNING': {'prompt_tuning_init': 'RANDOM'},
      'P_TUNING': {'encoder_reparameterization_type': 'MLP'},
      'PREFIX_TUNING': {'prefix_projection': False}}[type_]}


def _of_base(
    path, base: BackboneConfig | Mapping[str, Any] | None, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """What a base's dimensions say of the adapter, compared with its tensors."""
  if base is None:
    return {}
  base = base if isinstance(base, Mapping) else dataclasses.asdict(base)
  if base['family'] not in _TASK_TYPES:
    raise ValueError(f'{path}: PEFT has no task type for the family {base["family"]!r}; expected one of '
                     f'{", ".join(_TASK_TYPES)}.')
  encoder, decoder = base['encoder_layers'], base['decoder_layers']
  if PROMPT in tensors:
    found, expected, names = tensors[PROMPT].shape[1:], (base['d_model'],), '[D]'
  else:
    shape = next(iter(tensors.values())).shape
    found, names = (shape[0], *shape[2:]), '[L, N, H]'
    expected = (decoder or encoder, base['num_heads'], base['head_dim'])
  if found != expected:
    raise ValueError(f'{path}: made for a base of {names} = {list(found)}, but this one has {list(expected)}; name the '
                     'base that it was trained on.')
  return {'task_type': _TASK_TYPES[base['family']], 'num_layers': encoder or decoder,
          'num_attention_heads': base['num_heads']}


def _table(
    path, method: str, task_type: str, tensors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
  """The one tensor of a PEFT file, and the numbers of its configuration that it settles."""
  if method == 'prompt':
    table = tensors[PROMPT]
    return table, {'num_virtual_tokens': len(table), 'token_dim': table.shape[1], 'num_transformer_submodules': 1}
  site = f'prefix/{_STACKS[task_type]}/attn_kv'
  if set(tensors) != {f'{site}/key', f'{site}/value'}:
    raise ValueError(f'{path}: PEFT has prefixes of {site} only; this one has {", ".join(sorted(tensors))}: keep it as '
                     '.safetensors.')
  stacked = np.stack([tensors[f'{site}/key'], tensors[f'{site}/value']], axis=1)  # [L, 2, P, N, H]
  layers, _, length, heads, width = stacked.shape
  submodules = 2 if task_type == 'SEQ_2_SEQ_LM' else 1  # with 1, PEFT fails on encoder-decoders
  return stacked.transpose(2, 0, 1, 3, 4).reshape(length, -1), {
      'num_virtual_tokens': length, 'token_dim': heads * width, 'num_attention_heads': heads, 'num_layers': layers,
      'num_transformer_submodules': submodules}
