"""Which tensors something finished has, by method: what a file of it may hold, and how it is called.

| collection | tensors |
|---|---|
| `prompt` | `prompt/embedding` [P, D] |
| `prefix` | `prefix/<site>/key` and `.../value` [L, P, N, H] for each site, such as `decoder/attn_kv` |
| `infix` | `infix/embedding` [P, D], and for its one site `.../key` and `.../value` [L, P, N, H] |
| `adapter` | `adapter/<site>/down/kernel` [L, D, b], `.../down/bias` [L, b], `.../up/kernel` [L, b, D], `.../up/bias` [L, D], with a norm `.../norm/scale` and `.../norm/bias` [L, D]; `adapter/norms/<path of the base>` |
| `bias` | `bias/params/<path of the base>`, or `bias/sites/<site>` [L, D] |
| `top`, `full` | `top/<path of the base>`, those of layers [k, ...]; `full/<path of the base>` |
| `head` | `head/kernel` [D, C] and, if it has one, `head/bias` [C] |

What was trained together is called by all of them, in this order, such as `prompt+head`.
"""  # noqa: E501

from collections.abc import Iterable, Mapping
import os
import re
from typing import Any

import ml_dtypes
import numpy as np

from prompt_tuning import trees

METHODS = ('prompt', 'prefix', 'infix', 'adapter', 'bias', 'top', 'full', 'head')
PROMPT = 'prompt/embedding'  # path of the one tensor of a prompt, [P, D]
NAME = rf'(?:{"|".join(METHODS)})(?:\+(?:{"|".join(METHODS)}))*'  # pattern of what is trained together

_DENSE = ('down/kernel', 'down/bias', 'up/kernel', 'up/bias')
_BASE = {'adapter': 'adapter/norms/', 'bias': 'bias/params/', 'top': 'top/', 'full': 'full/'}  # paths of the base
_AXES = (  # pattern -> axes, the first that matches
    (r'\w+/embedding', '[P, D]'),
    (r'(prefix|infix)/.+', '[L, P, N, H]'),
    (r'(adapter/norms|bias/params|top|full)/.+', '[...]'),
    (r'adapter/.+/(down|up)/kernel', '[L, in, out]'),
    (r'adapter/.+|bias/sites/.+', '[L, D]'),
    (r'head/kernel', '[D, C]'),
    (r'head/bias', '[C]'),
)


def method_of(tensors: Iterable[str]) -> str:
  """What tensors of those names are called together, such as 'prompt+head'."""
  found = {name.partition('/')[0] for name in tensors}
  return '+'.join(sorted(found, key=lambda name: (METHODS.index(name) if name in METHODS else -1, name)))


def checked(origin: str | os.PathLike, method: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors of a method as float32, if they are what the method has.

  Args:
    origin: the file, for messages.

  Raises:
    ValueError: unknown method; a tensor that is missing, unknown, of the wrong axes, no float or not finite.
  """
  parts = str(method).split('+')
  if set(parts) - set(METHODS) or len(set(parts)) < len(parts):
    raise ValueError(f'{origin}: of method {method!r}; expected {", ".join(METHODS[:-1])} or {METHODS[-1]}, or some of '
                     "them joined by '+'.")
  _check_names(origin, set().union(*[_expected(part, tensors) for part in parts]), tensors)
  arrays = {}
  for name, tensor in tensors.items():
    value = np.asarray(tensor)
    one = 'one float array' if name == PROMPT else f'{name}: a float array'
    axes = next(axes for pattern, axes in _AXES if re.fullmatch(pattern, name))
    wrong = value.ndim < 1 if axes == '[...]' else value.ndim != axes.count(',') + 1
    if wrong or not value.size or not is_float(value.dtype):
      raise ValueError(f'{origin}: expected {one} {axes}, found {value.shape} {value.dtype}.')
    with np.errstate(over='ignore'):  # beyond float32 is infinite, and said to be below
      arrays[name] = value.astype(np.float32)
    if bad := int((~np.isfinite(arrays[name])).sum()):
      raise ValueError(f'{origin}: {bad} of {value.size} values are NaN or infinite; use an earlier {method}.')
  for part in parts:
    _check_lengths(origin, {name: x for name, x in arrays.items() if name.startswith(f'{part}/')})
  return arrays


def _expected(part: str, tensors: Mapping[str, Any]) -> set[str]:
  """Names that a collection must have, given those that there are."""
  names = {name for name in tensors if name.startswith(f'{part}/')}
  if part == 'prompt':
    return {PROMPT}
  if part in ('prefix', 'infix'):
    sites = _sites(rf'{part}/(.+)/(?:key|value)', names) or ['decoder/attn_kv']
    sites, rows = (sites[:1], {'infix/embedding'}) if part == 'infix' else (sites, set())  # an infix has one
    return rows | {f'{part}/{site}/{x}' for site in sites for x in ('key', 'value')}
  if part == 'head':
    return {'head/kernel', *(names & {'head/bias'})}
  own = {name for name in names if name.startswith(_BASE[part])}
  if part == 'adapter':
    sites = _sites(r'adapter/((?:encoder|decoder)/\w+)/(?:down|up|norm)/\w+', names) or ['decoder/mlp_out']
    normed = _sites(r'adapter/((?:encoder|decoder)/\w+)/norm/\w+', names)
    return own | {f'adapter/{site}/{x}' for site in sites for x in _DENSE} | {
        f'adapter/{site}/norm/{x}' for site in normed for x in ('scale', 'bias')}
  added = {name for name in names if part == 'bias' and name.startswith('bias/sites/')}
  return own | added or {f'{_BASE[part]}<path of the base>'}


def _sites(pattern: str, names: Iterable[str]) -> list[str]:
  return sorted({match[1] for name in names if (match := re.fullmatch(pattern, name))})


def _check_names(origin, expected: set[str], found: Mapping[str, Any]) -> None:
  lines = [*(f'- {name}' for name in sorted(expected - set(found))),
           *(f'+ {name}' for name in sorted(set(found) - expected))]
  if lines:
    raise ValueError(f'{origin}: other tensors than expected (- missing, + unknown):\n  {trees.shorten(lines)}')


def _length(name: str, tensor: np.ndarray) -> int:
  """P of [P, D] or [L, P, N, H]."""
  return tensor.shape[0 if name.endswith('/embedding') else 1]


def _check_lengths(origin, arrays: Mapping[str, np.ndarray]) -> None:
  """Of the tensors of one collection."""
  virtual = {name: x for name, x in arrays.items() if name.startswith(('prompt/', 'prefix/', 'infix/'))}
  for name in sorted(virtual):
    key = re.sub('/value$', '/key', name)
    if arrays[name].shape != arrays[key].shape:
      raise ValueError(f'{origin}: {name} is {arrays[name].shape} but its keys are {arrays[key].shape}; '
                       'expected the same shape.')
  if len(lengths := {_length(*item) for item in virtual.items()}) > 1:
    raise ValueError(f'{origin}: prefixes of lengths {sorted(lengths)}; expected one P at all sites.')


def is_float(dtype: np.dtype) -> bool:
  """Whether numbers of this type are read."""
  return dtype.kind == 'f' or dtype == ml_dtypes.bfloat16


def virtual_tokens(tensors: Mapping[str, np.ndarray], settings: Any) -> dict[str, Any]:
  """How many virtual tokens there are, and where they go; `settings` are those of the method, if it has any."""
  templated = isinstance(settings, dict) and 'template' in settings
  places = {'prompt': {'place': 'template' if templated else 'front of inputs'}, 'infix': {'place': 'end of inputs'},
            'prefix': {}}
  for part, place in places.items():
    if own := {name: x for name, x in tensors.items() if name.startswith(f'{part}/')}:
      sites = _sites(rf'{part}/(.+)/key', own)
      return {'count': _length(*next(iter(own.items()))), **place, **({'sites': sites} if sites else {})}
  return {'count': 0}
