"""What was trained before, as a method to use: a prompt, prefix or infix from any form that `tuned.load` reads."""

import os

from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods.base import Base, Method
from prompt_tuning.methods.infix import Infix
from prompt_tuning.methods.prefix import Prefix, keys_and_values
from prompt_tuning.methods.prompt import Prompt


def load(path: str | os.PathLike) -> Method:
  """The method that the file is of; its length and sites are the file's.

  Where the file knows the base that it was trained on, another one at `init` gets a `tuned.OtherBaseWarning`.

  Args:
    path: a file, a run folder (its best), a PEFT folder or a T5X checkpoint, see `tuned.load`.
  """
  finished = tuned.load(path)
  tensors = finished.tensors

  def check(base: Base) -> None:
    if base.fingerprint is not None:
      tuned.warn_if_other_base(path, finished, base.path, base.fingerprint)

  def table(key, shape, base):
    del key, shape
    check(base)
    return tensors[f'{finished.method}/embedding']

  if finished.method == 'prompt':
    return Prompt(length=len(tensors[tuned.PROMPT]), initializer=table)
  given = keys_and_values(tensors)
  length = next(iter(given.values()))[0].shape[1]
  if finished.method == 'infix':
    return Infix(length=length, initializer=table, reparameterization=None, offsets=lambda base, length: given)

  def prefix(base, length):
    del length
    check(base)
    return given

  return Prefix(length=length, sites=tuple(given), reparameterization=None, initializer=prefix)
