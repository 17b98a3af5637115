"""Checksums of what a run's checkpoint holds, to tell a damaged one: TensorStore guards its index, not the values."""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax
import numpy as np

from prompt_tuning.types import PyTree


def of_state(state: PyTree) -> str:
  """16 hex digits of arrays with their paths, types and shapes; of one in pieces on several hosts not of its values."""
  found = hashlib.sha256()
  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): x
            for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}
  for path, x in sorted(leaves.items(), key=lambda item: item[0]):
    found.update(f'{path} {x.dtype} {np.shape(x)} '.encode())
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
  return found.hexdigest()[:16]


def of_facts(facts: Mapping[str, Any], left_out: str) -> str:
  """16 hex digits of what can be JSON, the same before and after it was; `left_out` is the name of the checksum."""
  known = {name: json.loads(json.dumps(x)) for name, x in facts.items() if name != left_out}
  return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
