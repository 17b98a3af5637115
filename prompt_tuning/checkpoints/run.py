"""Checkpoints of a run: trainables, optimizer state, step, data position and the fingerprint of the base.

Never the base itself: a prompt of 100 x 768 with Adafactor is well under 1 MB. Orbax writes in the background and
commits by renaming, so that a run killed at any moment finds its last whole checkpoint. A checkpoint that was damaged
since is told by checksums, as most of its bytes are not guarded otherwise, and the one before is used. Beside the
newest checkpoints the one best by the dev metric is kept. Each kept step also leaves
`prompts/<method>_<step>.safetensors` with what is used of it from then on (of a prefix not the MLP that made it), which
knows what it was trained on, and of a prompt the same rows as `.npy`, which everything reads.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import gc
import logging
import os
import pathlib
import sys
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from prompt_tuning import trees
from prompt_tuning.checkpoints import checksums, tuned
from prompt_tuning.checkpoints.tuned import Tuned
from prompt_tuning.types import PyTree


class ResumeError(ValueError):
  """What is asked for does not continue what the checkpoint holds."""


class CheckpointWriteError(OSError):
  """A checkpoint could not be written, most likely for lack of space."""


class DamagedError(ValueError):
  """A checkpoint is not what was written."""


class Resumed(NamedTuple):
  """What a run goes on from: the step, what was said about it, and the state."""

  step: int
  about: dict[str, Any]
  state: PyTree


def _not_raised_as_well(record: logging.LogRecord) -> bool:
  """Orbax's threads log the errors that they then raise; `CheckpointWriteError` says it once."""
  return record.levelno < logging.ERROR or 'orbax' not in record.pathname


class RunCheckpoints:
  """The `checkpoints/` and `prompts/` of one MODEL_DIR."""

  def __init__(self, model_dir: str, keep: int = 2):
    """Args:
      model_dir: the run's folder.
      keep: how many of the newest checkpoints stay, besides the best.
    """
    self._root = pathlib.Path(model_dir).absolute()
    self._prompts = self._root / 'prompts'
    logging.getLogger('absl').setLevel(logging.WARNING)  # Orbax tells its whole life at INFO
    logging.getLogger('absl').addFilter(_not_raised_as_well)
    self._keep = keep
    self._manager = ocp.CheckpointManager(
        self._root / 'checkpoints', options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True))
    self._damaged, self._metrics = {}, {}
    for step in self.steps:
      try:
        self._metrics[step] = self.about(step).get('metric')
      except DamagedError as error:
        self._damaged[step] = error
    self._whole = self.latest

  @property
  def latest(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def last_words(self) -> str:
    """How to go on from here, for a process that has to end."""
    folder = self._root / 'checkpoints'
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]  # others are being written
    found = f'The last checkpoint in {self._root} is of step {max(steps)}' if steps else 'There is no checkpoint yet'
    return f'{found}; start all processes again with the same flags to go on.'

  @property
  def steps(self) -> list[int]:
    """Steps that are kept."""
    return sorted(self._manager.all_steps())

  def save(
      self, step: int, state: PyTree, about: Mapping[str, Any], finished: Tuned | None = None,
      metric: float | None = None) -> None:
    """Writes a checkpoint in the background.

    Args:
      state: arrays (trainables, optimizer state).
      about: JSON-able facts that `restore` checks or returns: `description(state)`, fingerprint, data position.
      finished: the prompt or prefix for `prompts/`.
      metric: dev metric of this step, larger is better.

    Raises:
      ValueError: what is finished is not finite; nothing was written.
      CheckpointWriteError: it could not be written, or the one before it could not.
    """
    if finished is not None:
      file = self._prompts / f'{finished.method}_{step}'
      tuned.checked(file, finished.method, finished.tensors)
    self.finish()
    about = {**about, 'metric': metric, _STATE_SUM: checksums.of_state(state)}
    about[_SUM] = checksums.of_facts(about, _SUM)
    self._metrics[step] = metric
    with self._writing(step):
      self._manager.save(
          step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)))
      if finished is not None and jax.process_index() == 0:
        tuned.save_safetensors(file.with_suffix('.safetensors'), finished)
        if finished.method == 'prompt':
          tuned.save_npy(file.with_suffix('.npy'), finished)

  def about(self, step: int) -> dict[str, Any]:
    """What was said `about` a checkpoint.

    Raises:
      DamagedError: it cannot be read.
    """
    def read() -> dict[str, Any]:
      about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))['about']
      if about.get(_SUM, found := checksums.of_facts(about, _SUM)) != found:  # those of earlier versions have none
        raise ValueError('about/metadata is not what was written')
      return about

    return self._read(step, read)

  def restore(self, step: int, abstract: PyTree) -> PyTree:
    """The state of a checkpoint, shaped and sharded like `abstract`.

    Raises:
      DamagedError: it cannot be read, or is not what was written.
    """
    expected = self.about(step).get(_STATE_SUM)

    def read() -> PyTree:
      args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      state = self._manager.restore(step, args=args)['state']
      if expected not in (None, checksums.of_state(state)):
        raise ValueError('values in state/ are not those that were written')
      return state

    return self._read(step, read)

  def resume(self, now: Mapping[str, Any], abstract: PyTree, tell: Callable[[str], None]) -> Resumed | None:
    """The newest checkpoint that is whole; damaged ones after it are moved to `damaged/`, and that is told.

    Args:
      now: facts of the run that wants to go on, for `check_resumable`.
      abstract: as of `restore`.

    Returns:
      None where there is no checkpoint.

    Raises:
      ResumeError: the checkpoint is of another run.
      DamagedError: there are checkpoints, and none is whole; they are left where they are.
    """
    damaged = {}
    for step in reversed(self.steps):
      try:
        about = self.about(step)
        check_resumable(about, now, str(self._root))
        found = Resumed(step, about, self.restore(step, abstract))
        break
      except DamagedError as error:
        damaged[step] = error
    else:
      if not damaged:
        return None
      raise DamagedError(
          '\n'.join(map(str, damaged.values())) + f'\nNo checkpoint in {self._root} is whole. Put one back from a '
          f'copy, or delete {self._manager.directory} to begin anew; what is in {self._prompts} can be used as it is.')
    damaged |= self._damaged  # also an older one, whose metric is not known
    for step, error in damaged.items():
      tell(f'{error} It is now {self._put_aside(step)}; going on from step {found.step}.')
    if damaged:
      if jax.process_count() > 1:
        multihost_utils.sync_global_devices('damaged checkpoints are put aside')
      self._manager.reload()
      self._damaged = {}
      self._tidy()
    return found

  def _put_aside(self, step: int) -> pathlib.Path:
    """Moves a checkpoint to where Orbax does not look."""
    aside = self._root / 'damaged' / str(step)
    if jax.process_index() == 0:
      aside.parent.mkdir(exist_ok=True)
      while aside.exists():
        aside = aside.with_name(f'{aside.name}_again')
      os.rename(self._manager.directory / str(step), aside)
    self._metrics.pop(step, None)
    return aside

  @property
  def best(self) -> int | None:
    """Step of the best dev metric among those kept (the newest of equals), None if there is none."""
    scored = [(metric, step) for step, metric in self._metrics.items() if metric is not None]
    return max(scored)[1] if scored else None

  def finish(self) -> None:
    """Waits for what is being written, then deletes checkpoints and prompts that need not be kept.

    Raises:
      CheckpointWriteError: the previous checkpoint is then still whole.
    """
    with self._writing(max(self._metrics, default=None)):
      self._manager.wait_until_finished()
    self._whole = self._manager.latest_step()
    self._tidy()

  def _tidy(self) -> None:
    """Deletes checkpoints and prompts that need not be kept, and prompts without a checkpoint."""
    keep = {*self.steps[-self._keep:], self.best}
    for step in set(self.steps) - keep - self._damaged.keys():
      self._manager.delete(step)
      self._metrics.pop(step, None)
    if jax.process_index() or not self._prompts.is_dir():
      return
    for step, file in reversed(tuned.step_files(self._prompts)):  # the better first, should this be cut short
      if step not in keep:
        file.unlink()
      elif step == self.best:
        tuned.write_bytes(self._prompts / f'best{file.suffix}', file.read_bytes())

  @contextlib.contextmanager
  def _writing(self, step: int | None) -> Iterator[None]:
    """Makes one message of whatever Orbax raises."""
    try:
      yield
    except Exception as error:
      left = 'there is none before it' if self._whole is None else f'that of step {self._whole} is whole'
      raise CheckpointWriteError(
          f'The checkpoint of step {step} could not be written to {self._root} ({str(error).splitlines()[0][:200]}). '
          f'Free some space there and start again with the same flags: {left}.') from error

  def _read(self, step: int, function: Callable[[], Any]) -> Any:
    """What `function` reads; makes one message of whatever Orbax raises."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # what Orbax leaves half read fails once more, later
    try:
      return function()
    except MemoryError:
      raise
    except Exception as error:
      reason = (str(error.__cause__ or error) or repr(error)).splitlines()[0][:200]
      del error  # and all that hangs on it
      gc.collect()
    finally:
      sys.unraisablehook = hook
    raise DamagedError(f'The checkpoint {self._manager.directory / str(step)} is damaged ({reason}).')

  def close(self) -> None:
    """Finishes and gives the manager's threads back."""
    try:
      self.finish()
    finally:
      self._manager.close()


_STATE_SUM, _SUM = 'state_checksum', 'checksum'  # of the arrays; of the other facts


def description(state: PyTree) -> dict[str, list[int]]:
  """{path: shape} of a state, to compare runs by."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): list(np.shape(x))
          for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}


def check_resumable(about: Mapping[str, Any], now: Mapping[str, Any], model_dir: str) -> None:
  """Compares a checkpoint's facts with those of the run that wants to go on from it.

  Raises:
    ResumeError: another base, other trainables or another optimizer; the message shows both sides.
  """
  way_out = f'To continue, ask for what {model_dir} was started with; for a new run choose another MODEL_DIR.'
  if about['base_fingerprint'] != now['base_fingerprint']:
    raise ResumeError(
        f'{model_dir} was trained on a base with fingerprint {about["base_fingerprint"]} '
        f'({about["base_path"]}); this one has {now["base_fingerprint"]} ({now["base_path"]}). {way_out}')
  for what in ('trainable', 'opt_state'):
    shapes = [{k: np.empty(v) for k, v in facts['state'].items() if k.split('/')[0] == what} for facts in (now, about)]
    if lines := trees.diff(*shapes):
      name = {'trainable': 'trainables', 'opt_state': 'optimizer state'}[what]
      raise ResumeError(
          f'The checkpoint in {model_dir} holds other {name} (- asked for now, + in the checkpoint):\n  '
          + trees.shorten(lines) + f'\n{way_out}')
  if about['optimizer'] != now['optimizer'] or about['seed'] != now['seed']:
    raise ResumeError(
        f'The checkpoint in {model_dir} was made with optimizer {about["optimizer"]} and seed {about["seed"]}, asked '
        f'for now: {now["optimizer"]} and seed {now["seed"]}. {way_out}')
  was, is_now = ({name: x.get(name, 0) for name in ('initial_step', 'restore_optimizer')} for x in (about, now))
  if was != is_now:
    say = lambda x: f'INITIAL_STEP={x["initial_step"]}, RESTORE_OPTIMIZER={bool(x["restore_optimizer"])}'
    raise ResumeError(f'The run in {model_dir} began with {say(was)}; asked for now: {say(is_now)}. {way_out}')
