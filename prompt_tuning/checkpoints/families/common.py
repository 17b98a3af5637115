"""What the Hugging Face families other than T5 share: keys of `config.json`, and tensors stored under several names."""
from collections.abc import Iterable, Iterator, Mapping
import re
from typing import Any

import numpy as np

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import keys, safetensors_file

Tensors = Mapping[str, safetensors_file.Tensor]

# --- config.json ---

_ACTIVATIONS = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu'}


def activation(settings: Mapping[str, Any], key: str, default: str) -> tuple[str]:
  """Our `mlp_activations` for the activation at `key`.

  Raises:
    ValueError: an activation that no backbone computes.
  """
  name = settings.get(key) or default
  if not isinstance(name, str) or name not in _ACTIVATIONS:
    raise ValueError(f'{key} is {name!r}; expected one of {", ".join(_ACTIVATIONS)}.')
  return (_ACTIVATIONS[name],)


def activation_name(config: config_lib.BackboneConfig) -> str:
  """Hugging Face's name of the model's activation.

  Raises:
    ValueError: Hugging Face's models of this family have no such activation.
  """
  for name, ours in _ACTIVATIONS.items():
    if config.mlp_activations == (ours,):
      return name
  choices = ', '.join(repr(ours) for ours in dict.fromkeys(_ACTIVATIONS.values()))
  raise ValueError(f'mlp_activations is {config.mlp_activations}; a Hugging Face {config.family} has one of {choices}.')


def epsilon(settings: Mapping[str, Any], key: str, default: float) -> float:
  """The layer norms' epsilon at `key`.

  Raises:
    ValueError: not a positive number.
  """
  value = settings.get(key, default)
  if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
    raise ValueError(f'{key} is {value!r}; expected a positive number.')
  return float(value)


def flag(settings: Mapping[str, Any], key: str) -> bool:
  """The boolean at `key`, false for files without it.

  Raises:
    ValueError: neither true nor false.
  """
  value = settings.get(key, False)
  if not isinstance(value, bool):
    raise ValueError(f'{key} is {value!r}; expected true or false.')
  return value


def token_id(settings: Mapping[str, Any], key: str, default: int | None = None) -> int | None:
  """The token id at `key`; `default` is for files without the key, `null` there means none.

  Raises:
    ValueError: neither a token id nor null.
  """
  value = settings.get(key, default)
  if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
    raise ValueError(f'{key} is {value!r}; expected one token id or null.')
  return value


def head_dim(width: int, heads: int) -> int:
  """H, the width of a head.

  Raises:
    ValueError: the heads cannot share the model's width.
  """
  if heads < 1 or width % heads:
    raise ValueError(f'the width {width} does not divide over {heads} attention heads.')
  return width // heads


def require(settings: Mapping[str, Any], **expected: Any) -> None:
  """Raises ValueError if a key that is there asks for a variant that no backbone computes."""
  for key, value in expected.items():
    if settings.get(key, value) != value:
      raise ValueError(f'{key} is {settings[key]!r}; the backbone computes only {key} {value!r}.')


# --- tensors ---


def weight_and_bias(
    ours: str, theirs: str, layers: int = 0, transpose: bool = True, part: tuple[int, int] = (0, 1)
) -> Iterator[tuple[str, keys.Entry]]:
  """(our path, entry) of both parameters of a layer norm (`...norm`) or of a dense layer; see `keys.per_layer`."""
  norm = ours.endswith('norm')
  weight = f'{ours}/scale' if norm else f'{ours}/kernel'
  yield weight, keys.per_layer(f'{theirs}.weight', layers, transpose and not norm, part)
  yield f'{ours}/bias', keys.per_layer(f'{theirs}.bias', layers, part=part)


def with_prefix(tensors: Tensors, prefix: str, inside: str) -> dict[str, str]:
  """Name in a file -> name in the key table: adds `prefix` to names that match the pattern `inside`.

  A model without a head is saved without the prefix that it has as a part of a model with one.
  """
  return {name: f'{prefix}{name}' if re.match(inside, name) else name for name in tensors}


def check_copies(tensors: Tensors, name: str, copies: Iterable[str]) -> None:
  """Checks that what stands for one parameter in the model, tied, is one in the file too.

  Raises:
    ValueError: a tensor of `copies` that is in the file is not equal to the tensor `name`.
  """
  for copy in copies:
    if copy != name and copy in tensors and name in tensors and not equal(tensors[copy], tensors[name]):
      raise ValueError(f'{copy} is not equal to {name}; the backbone has one parameter for both (tied).')


def check_head(settings: Mapping[str, Any], tensors: Tensors, head: str) -> None:
  """Raises ValueError if the output head is not the embedding table but something that was not saved."""
  if not settings.get('tie_word_embeddings', True) and head not in tensors:
    raise ValueError(f'tie_word_embeddings is false and {head} is not in the file; the backbone computes logits '
                     'through the embedding table: set it to true if that is what the model does.')


def equal(a: safetensors_file.Tensor, b: safetensors_file.Tensor) -> bool:
  """Whether two tensors have the same values."""
  if a.info != b.info or not a.info.shape:
    return False
  rows = a.info.shape[0]
  step = max(1, rows // 64)  # tensors that differ do so in the first block, and the rest is not read
  return all(np.array_equal(a.read(block), b.read(block))
             for block in ((slice(i, i + step),) for i in range(0, rows, step)))
