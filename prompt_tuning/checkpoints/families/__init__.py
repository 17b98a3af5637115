"""One module a family of models: its Hugging Face `config.json` and where each tensor of it lies in our tree.

Each has `MODEL_TYPES`, `find(settings, tensors) -> Found`, `key_table(config)` and `config_to_json(config)`.
"""
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prompt_tuning.backbones import config as config_lib


class Found(NamedTuple):
  """What a Hugging Face folder holds.

  Attributes:
    config: the model's dimensions.
    stored: name in the key table -> name in the file, where they differ.
    ignored: names in the file that no model needs (duplicates, leftovers, heads of other tasks).
  """

  config: config_lib.BackboneConfig
  stored: Mapping[str, str]
  ignored: Callable[[str], bool]


def integer(settings: Mapping[str, Any], key: str, default: Any = None) -> int:
  """The whole number at `key` of a `config.json`; transformers' own `default` for keys that older files lack.

  Raises:
    ValueError: there is none.
  """
  value = settings.get(key)
  value = default if value is None else value
  if not isinstance(value, int) or isinstance(value, bool):
    raise ValueError(f'{key} is {value!r}; expected a whole number.')
  return value
