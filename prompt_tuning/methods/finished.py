"""What was trained before, as a method to use and a readout, from any form that `tuned.load` reads."""

from collections.abc import Callable, Mapping
import os
import re
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import adapter, readouts
from prompt_tuning.methods.adapter import Adapter
from prompt_tuning.methods.base import Base, Given, Method
from prompt_tuning.methods.bias import Bias
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.infix import Infix
from prompt_tuning.methods.p_tuning import PTuning
from prompt_tuning.methods.prefix import Prefix, keys_and_values
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.readouts import Readout
from prompt_tuning.methods.together import Together
from prompt_tuning.methods.top import Top

Tensors = Mapping[str, np.ndarray]


def load(path: str | os.PathLike) -> Method:
  """The method that the file is of; its length, sites and layers are the file's.

  Where the file knows the base that it was trained on, another one at `init` gets a `tuned.OtherBaseWarning`. What was
  trained together is a `Together`; of a file with nothing but a head it is empty.

  Args:
    path: a file, a run folder (its best), a PEFT folder or a T5X checkpoint, see `tuned.load`.

  Raises:
    FileNotFoundError, ValueError: as `tuned.load`; or the file lacks a fact that its method needs.
  """
  finished = tuned.load(path)
  settings = _facts(path, finished, 'settings') or {}

  def check(base: Base) -> None:
    if base.fingerprint is not None:
      tuned.warn_if_other_base(path, finished, base.path, base.fingerprint)

  def method(i: int, part: str) -> Method:
    own = {name: x for name, x in finished.tensors.items() if name.startswith(f'{part}/')}

    def given(base: Base) -> Tensors:
      if i == 0:  # one warning is enough
        check(base)
      return own

    try:
      return _METHODS[part](own, given, settings)
    except (TypeError, ValueError, AttributeError) as error:  # settings may be any JSON
      raise ValueError(f'{path}: the settings {settings} in its metadata are of no {part}: {error}') from error

  parts = [part for part in finished.method.split('+') if part != 'head']
  methods = [method(i, part) for i, part in enumerate(parts)]
  return methods[0] if len(methods) == 1 else Together(tuple(methods))


def readout(path: str | os.PathLike, default: Readout = readouts.TextToText()) -> Readout:  # noqa: B008 (frozen)
  """The readout that the file was trained with, its head as it was trained; `default` where the file names none.

  Raises:
    FileNotFoundError, ValueError: as `tuned.load`; or the file names a readout that is not known here.
  """
  finished = tuned.load(path)
  facts = _facts(path, finished, 'readout')
  head = {name.removeprefix('head/'): x for name, x in finished.tensors.items() if name.startswith('head/')}
  if facts is None:
    if head:
      raise ValueError(f'{path}: holds a head but no `readout` in its metadata that says what its classes are; save it '
                       'again with prompt_tuning.')
    return default
  try:
    return readouts.from_settings(facts, head or None)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{path}: {error}') from error


def _facts(path, finished: tuned.Tuned, name: str) -> dict[str, Any] | None:
  facts = finished.about.get(name)
  if facts is not None and not isinstance(facts, dict):
    raise ValueError(f'{path}: {name} in its metadata is {facts!r}; expected a JSON object.')
  return facts


# --- A method from its tensors, what gives them at `init`, and its settings ---


def _prompt(tensors: Tensors, given: Given, settings: Mapping[str, Any]) -> Method:
  table = lambda key, shape, base: given(base)[tuned.PROMPT]
  if 'template' in settings:
    return PTuning(settings['template'], initializer=table, reparameterization=None)
  return Prompt(length=len(tensors[tuned.PROMPT]), initializer=table)


def _prefix(tensors: Tensors, given: Given, _) -> Method:
  both = keys_and_values(tensors)
  length = next(iter(both.values()))[0].shape[1]
  return Prefix(length=length, sites=tuple(both), reparameterization=None,
                initializer=lambda base, length: keys_and_values(given(base)))


def _infix(tensors: Tensors, given: Given, _) -> Method:
  name = 'infix/embedding'
  return Infix(length=len(tensors[name]), initializer=lambda key, shape, base: given(base)[name],
               reparameterization=None, offsets=lambda base, length: keys_and_values(tensors))


def _adapter(tensors: Tensors, given: Given, settings: Mapping[str, Any]) -> Method:
  found = {part for name in tensors if re.match('adapter/(en|de)coder/', name) for part in name.split('/')}
  design = adapter.Design(
      sites=tuple(site for site in adapter.SITES if site in found), layer_norm='norm' in found,
      activation=settings.get('adapter_activation'),
      train_norms=any(name.startswith('adapter/norms/') for name in tensors))
  width = next(x.shape[-1] for name, x in tensors.items() if name.endswith('/down/kernel'))
  return Adapter(design, bottleneck=width, given=given)


def _top(tensors: Tensors, given: Given, _) -> Method:
  segments = {match[0]: len(x) for name, x in tensors.items() if (match := re.match(r'top/\w+/layers\w*/', name))}
  stacks = sorted({segment.split('/')[1] for segment in segments})
  layers = sum(n for segment, n in segments.items() if segment.startswith(f'top/{stacks[0]}/'))
  return Top(layers, tuple(stacks), embedding='top/token_embedder/embedding' in tensors, given=given)


_METHODS: dict[str, Callable[[Tensors, Given, Any], Method]] = {
    'prompt': _prompt, 'prefix': _prefix, 'infix': _infix, 'adapter': _adapter, 'top': _top,
    'bias': lambda tensors, given, _: Bias(given), 'full': lambda tensors, given, _: Full(given)}
