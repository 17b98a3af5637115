"""Going on where pretraining ended: its step, and what its optimizer had gathered.

T5X's steps count on from pretraining always; here a run's begin at 0 unless INITIAL_STEP says otherwise, because a
prompt has no part in what came before. LM adaptation has (T5's goes from step 1,000,000 to 1,100,000): its learning
rate falls with the root of the whole step. Without RESTORE_OPTIMIZER the optimizer begins as new, its own clock at 0,
and only the schedule sees the whole step; with it, Adafactor's accumulators and clock are those of the checkpoint, as
in the model tuning of Lester et al. 2021 and in all of T5X's fine-tuning.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.checkpoints import base
from prompt_tuning.checkpoints.families import t5
from prompt_tuning.checkpoints.source import Source
from prompt_tuning.train.optim import AdafactorState, Schedule, Slots
from prompt_tuning.types import PyTree, Trainable


def first_step(initial_step: int | str, path: str | None) -> int:
  """The number of steps before a run's first.

  Args:
    initial_step: INITIAL_STEP: a number, or 'checkpoint' for what the T5X checkpoint at `path` says.

  Raises:
    ValueError: another value, or a checkpoint that says no step.
  """
  if initial_step != 'checkpoint':
    if not isinstance(initial_step, int) or initial_step < 0:
      raise ValueError(f"INITIAL_STEP={initial_step!r}; expected 'checkpoint' or a number of steps, 0 or more.")
    return initial_step
  state = _state(path, "INITIAL_STEP='checkpoint'")
  if 'step' not in state.tensors:
    raise ValueError(f"INITIAL_STEP='checkpoint', but {path} says no step; set INITIAL_STEP to the number.")
  return int(state.read('step', ()))


def from_step(schedule: Schedule, first: int, train_steps: int) -> Schedule:
  """The schedule as an optimizer with a new clock is to see it.

  Raises:
    ValueError: it is 0 throughout: it ended before the run begins.
  """
  if not first:
    return schedule
  if not any(float(schedule(jnp.int32(step))) for step in (first, first + train_steps - 1)):
    raise ValueError(f'SCHEDULE is 0 from step {first} to {first + train_steps}, the steps of this run: with '
                     'INITIAL_STEP a schedule sees them all. Use optim.rsqrt or optim.constant, or set '
                     f'optim.linear.total_steps to {first + train_steps} or more.')
  return lambda step: schedule(step + first)


def restored(new: PyTree, trainable: Trainable, path: str | None, config: BackboneConfig, first: int) -> AdafactorState:
  """Adafactor's state as a T5X checkpoint has it, whole arrays of the host.

  Args:
    new: the state of an optimizer that has done nothing, for shapes.
    trainable: what is trained: {'full': all parameters}.
    config: dimensions of the base.
    first: the step that the run begins with.

  Raises:
    ValueError: another method or optimizer, accumulators that are not there or of other shapes, or another step.
  """
  if set(trainable) != {'full'} or not isinstance(new, AdafactorState):
    raise ValueError('RESTORE_OPTIMIZER reads the accumulators of a whole model\'s Adafactor: use methods/full.gin and '
                     'OPTIMIZER = @optim.adafactor(), or leave it False.')
  state = _state(path, 'RESTORE_OPTIMIZER')
  if int(state.read('step', ())) != first:
    raise ValueError(f"RESTORE_OPTIMIZER takes the optimizer at step {int(state.read('step', ()))} of {path}, but the "
                     f"run begins at {first}: set INITIAL_STEP = 'checkpoint'.")
  slots = trees.flatten(new.slots['full'])
  lines, found = [], {}
  for path_, entry in t5.t5x_key_table(config).items():
    expected = slots[path_]
    shapes = {name: list(x.shape[1:] if entry.stacked else x.shape)
              for name, x in expected._asdict().items() if x is not None}
    for stored in entry.names:
      for name, shape in shapes.items():
        info = state.tensors.get(f'param_states/{stored}/{name}')
        if info is None or list(info.shape) != shape:
          lines.append(f'{stored}/{name} {shape}, there: {"nothing" if info is None else list(info.shape)}')
    found[path_] = expected, entry, shapes
  if lines:
    raise ValueError(f'RESTORE_OPTIMIZER: {path} does not hold the accumulators of this Adafactor for unrolled layers '
                     '(optim.adafactor.factored, .min_dim_size_to_factor):\n  ' + trees.shorten(lines))
  return AdafactorState(
      np.int32(first), {'full': trees.unflatten({path_: _read(state, *x) for path_, x in found.items()})})


def _read(state: Source, expected: Slots, entry, shapes: Mapping[str, list[int]]) -> Slots:
  stack: Callable = np.stack if entry.stacked else (lambda values: values[0])
  return expected._replace(**{
      name: stack([state.read(f'param_states/{stored}/{name}', ()) for stored in entry.names]).astype(np.float32)
      for name in shapes})


def _state(path: str | None, setting: str) -> Source:
  """The optimizer's part of a T5X checkpoint."""
  state = None if path is None else base.open_t5x(path, 'state')
  if state is None:
    raise ValueError(f'{setting} needs a T5X checkpoint (checkpoint_<step>) as INITIAL_CHECKPOINT_PATH, which keeps '
                     f'its step and optimizer; {path} is none. Set INITIAL_STEP to a number, RESTORE_OPTIMIZER to '
                     'False.')
  return state
