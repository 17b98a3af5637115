"""A plan: the programs of a configured job, compiled for devices, and what would make them fit."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax

from prompt_tuning import gin_utils
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.plan import compiling, programs, suggest, table, targets
from prompt_tuning.plan.devices import Device, Target
from prompt_tuning.plan.estimate import Estimate, estimate

STAND_INS = {  # of macros that a job requires and a plan does not
    'MODEL_DIR': 'plan', 'INITIAL_CHECKPOINT_PATH': None, 'MIXTURE_OR_TASK_NAME': 'plan', 'TRAIN_STEPS': 1000,
    'EVAL_OUTPUT_DIR': 'plan', 'INFER_OUTPUT_DIR': 'plan', 'INPUT_FILE': 'plan'}
SUGGESTIONS, ATTEMPTS = 3, 6


class Configuration:
  """The gin files and bindings of a job, to be read with some macros set otherwise."""

  def __init__(self, files: Sequence[str], bindings: Sequence[str], search_paths: str = ''):
    self._files, self._bindings, self._search_paths = files, bindings, search_paths

  def read(self, macros: Mapping[str, object] | None = None) -> None:
    """Into gin."""
    more = [f'{name} = {value!r}' for name, value in (macros or {}).items()]
    gin_utils.read(self._files, [*self._bindings, *more], self._search_paths, STAND_INS)

  def job(self, target: Target, job: str | None = None, macros: Mapping[str, object] | None = None) -> 'Job':
    """The job on these devices; `job` is what is to be planned if it is not what is configured.

    Raises:
      ValueError: nothing that can be planned is configured, or the settings do not fit each other or the devices.
    """
    self.read(macros)
    configured = next((name for name, selector in programs.JOBS.items() if gin_utils.sets(selector)), None)
    if configured is None:
      raise ValueError('Nothing to plan is configured; expected one of runs/train.gin, runs/eval.gin and '
                       'runs/infer.gin among --gin_file.')
    there = targets.devices(target)
    settings = gin_utils.settings(programs.JOBS[configured], {'partitioner': {'devices': there}})
    settings.setdefault('partitioner', Partitioner(devices=there))
    name = job or configured
    return Job(name, settings['backbone'].dtype, settings['partitioner'], gin_utils.macros(),
               programs.build(name, settings, settings['partitioner']))


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to be compiled: the programs of one of `programs.JOBS`, and how it is configured."""

  name: str
  dtype: str
  partitioner: Partitioner
  macros: Mapping[str, object]
  programs: Sequence[programs.Program]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Figures of all programs of a job on a target."""

  job: str
  target: Target
  dtype: str
  mesh: Mapping[str, int]
  programs: tuple[Estimate, ...]

  @property
  def fits(self) -> bool:
    return all(found.fits for found in self.programs)

  def json(self) -> dict[str, Any]:
    """Plain values."""
    return {'job': self.job, 'devices': str(self.target), 'count': self.target.count, 'mesh': dict(self.mesh),
            'dtype': self.dtype, 'fits': self.fits, 'programs': [found.json() for found in self.programs]}


def planned(configuration: Configuration, target: Target, job: str | None, device: Device, quick: bool = False,
            macros: Mapping[str, object] | None = None) -> Plan:
  """Compiles a configured job for a target.

  Args:
    device: peaks of one device of the target.
    quick: see `compiling.compile_program`.
    macros: to set on top of the configuration.
  """
  found = configuration.job(target, job, macros)
  platform = target.device.platform
  estimates = [
      estimate(program, compiling.compile_program(program, platform, quick), device, target.count, found.dtype)
      for program in found.programs]
  return Plan(found.name, target, found.dtype, dict(found.partitioner.mesh.shape), tuple(estimates))


def suggestions(configuration: Configuration, plan: Plan, device: Device, quick: bool = False) -> list[tuple[str, int]]:
  """(flags, bytes at the peak) of the first few settings with which a job that does not fit does; each was compiled."""
  job = configuration.job(plan.target, plan.job)
  worst = max(plan.programs, key=lambda found: found.peak)
  program = next(one for one in job.programs if one.name == worst.program)
  found, attempts = [], 0
  for rung in suggest.rungs(plan.job, job.macros, program.rows, program.heads, plan.target.count):
    if len(found) == SUGGESTIONS or attempts == ATTEMPTS:
      break
    if rung.expected(worst) > worst.usable:
      continue
    try:
      tried = planned(configuration, plan.target, plan.job, device, quick, rung.macros)
    except ValueError:  # settings that do not go together
      continue
    attempts += 1
    if tried.fits:
      found.append((rung.flags(), max(one.peak for one in tried.programs)))
  return found


def text(plan: Plan) -> str:
  """The plan for people."""
  mesh = ' x '.join(f'{name} {n}' for name, n in plan.mesh.items())
  kind = plan.target.device.platform
  compiler = {'tpu': 'the TPU compiler', 'gpu': "the GPU compiler, without choosing kernels by timing them",
              'cpu': 'simulated devices; peaks are measured on this machine and shared equally'}[kind]
  head = f'{plan.job} on {plan.target} (mesh {mesh}), activations {plan.dtype}, jax {jax.__version__}: {compiler}'
  parts = [head, *(table.of_program(found, plan.target.count) for found in plan.programs)]
  if kind == 'gpu' and plan.fits and max(found.peak for found in plan.programs) > 0.75 * plan.target.device.memory:
    parts.append('JAX takes three quarters of a GPU at its start: launch with XLA_CLIENT_MEM_FRACTION=.95')
  return '\n\n'.join(parts)
