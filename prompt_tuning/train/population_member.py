"""One of the trainings of a population: its settings, its folder and its best, as a run has them."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np

from prompt_tuning import loading
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods.base import Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.train import writers


@dataclasses.dataclass(frozen=True)
class Member:
  """One of the trainings.

  Attributes:
    seed: fixes initialisation, data order and dropout, RANDOM_SEED of its own run.
    length: virtual tokens; None: as the method says.
    learning_rate_factor: what the schedule is multiplied with.
  """

  seed: int = 0
  length: int | None = None
  learning_rate_factor: float = 1.0


def members_of(given: Sequence[Mapping[str, Any] | Member]) -> list[Member]:
  """Members from dicts, as gin has them.

  Raises:
    ValueError: there are none, or one has a field that there is not.
  """
  fields = [field.name for field in dataclasses.fields(Member)]
  for i, member in enumerate(given):
    if not isinstance(member, Member) and (unknown := sorted(set(member) - set(fields))):
      raise ValueError(f'MEMBERS[{i}] has {", ".join(unknown)}; expected some of {", ".join(fields)}.')
  if not given:
    raise ValueError("MEMBERS is empty; expected one dict a training, such as ({'seed': 0}, {'seed': 1}).")
  return [member if isinstance(member, Member) else Member(**member) for member in given]


def method_of(method: Method, member: Member) -> Method:
  """The member's method.

  Raises:
    ValueError: the method has no length to set.
  """
  if member.length is None:
    return method
  if 'length' not in {field.name for field in dataclasses.fields(method)}:
    raise ValueError(f'A {type(method).__name__} has no length that MEMBERS could set; leave "length" out.')
  return method.clone(length=member.length)


class Trained:
  """What becomes of a member: its folder, its best, and whether it still goes on.

  Attributes:
    status: best metric and its step, evaluations waited since, the step at which it was stopped or diverged, and the
      metrics of its last evaluation by task.
  """

  def __init__(self, folder: pathlib.Path, loaded: loading.Loaded, partitioner: Partitioner, start: int, first: bool):
    self.folder, self.loaded, self._first = folder, loaded, first
    self.writer = writers.MetricsWriter(str(folder), start, enabled=first)
    self._export = jax.jit(loaded.model.export, out_shardings=partitioner.replicated)
    self.status: dict[str, Any] = {'best': -math.inf, 'best_step': None, 'waited': 0, 'stopped': None, 'diverged': None,
                                   'metrics': {}}
    for step, file in tuned.step_files(folder / 'prompts') if first and (folder / 'prompts').is_dir() else ():
      if step > start:  # of steps that are run again
        file.unlink()

  @property
  def active(self) -> bool:
    return self.status['stopped'] is None and self.status['diverged'] is None

  def summary(self) -> dict[str, Any]:
    """What is said of it when the population is done."""
    return {name: self.status[name] for name in ('best_step', 'stopped', 'diverged', 'metrics')}

  def judge(self, step: int, metric: float, patience: int | None) -> None:
    """Takes a dev metric into account."""
    waited = 0 if metric > self.status['best'] else self.status['waited'] + 1
    self.status['waited'] = waited
    if metric >= self.status['best']:  # the newest of equals, as of a run
      self.status |= {'best': metric, 'best_step': step}
    if patience is not None and waited >= patience:
      self.status['stopped'] = step

  def save(self, step: int, trainable, about: Mapping[str, Any], keep: int) -> None:
    """Writes what is finished to `prompts/`, as `checkpoints.run` does for a run; keeps the newest and the best."""
    tensors = jax.device_get(self._export(trainable))
    if not all(np.isfinite(x).all() for x in tensors.values()):
      self.status['diverged'] = step
    if not tensors or not self._first or not self.active and self.status['stopped'] != step:
      return
    finished = tuned.Tuned('+'.join(dict.fromkeys(path.partition('/')[0] for path in tensors)), tensors, about)
    folder = self.folder / 'prompts'
    file = folder / f'{finished.method}_{step}'
    tuned.save_safetensors(file.with_suffix('.safetensors'), finished)
    if finished.method == 'prompt':
      tuned.save_npy(file.with_suffix('.npy'), finished)
    files = tuned.step_files(folder)
    kept = {*sorted({step for step, _ in files})[-keep:], self.status['best_step']}
    for at, path in reversed(files):
      if at not in kept:
        path.unlink()
      elif at == self.status['best_step']:
        tuned.write_bytes(folder / f'best{path.suffix}', path.read_bytes())
