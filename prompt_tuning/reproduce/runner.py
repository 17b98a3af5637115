"""Runs the steps of a table: reuses what is done, resumes what was killed, and trains seeds as one population.

Every step has a folder below the folder of all runs, with what its command leaves. Beside it are `<folder>.gin`, its
whole configuration (to run it alone: `prompt-tuning <command> --gin_file=<folder>.gin`), and `<folder>.done.json` when
it is done: the seconds it took and what the command returned. A step that could not be run leaves `<folder>.failed.txt`
with the reason, and is tried again the next time.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import json
import pathlib
import re
import sys
import time
import traceback

import jax

from prompt_tuning import cli, gin_utils
from prompt_tuning.progress import clock
from prompt_tuning.reproduce.table import FOLDERS, SEED, Step
from prompt_tuning.train import writers

DONE, FAILED, SETTINGS = '.done.json', '.failed.txt', '.gin'  # behind the name of a step's folder
_HEAVY = ('Full', 'Top', 'Together')  # methods of which several at once would not fit beside one base


class SettingsError(ValueError):
  """A folder was made with other settings."""


class Interrupted(RuntimeError):
  """SIGTERM came: what was running is saved and can be resumed."""


@dataclasses.dataclass(frozen=True)
class Unit:
  """Steps that run together: one, or the trainings of a population.

  Attributes:
    steps: in the order of the members.
    folder: of the population.
  """

  steps: tuple[Step, ...]
  folder: str


@dataclasses.dataclass(frozen=True)
class Runner:
  """Runs steps in `root`, the folder of all runs.

  Attributes:
    root: a folder, maybe shared with other machines.
    overrides: bindings that win over those of a step (`--gin.NAME=VALUE`).
    together: trainings that differ by their seeds alone are one population.
  """

  root: pathlib.Path
  overrides: Sequence[str] = ()
  together: bool = True

  def beside(self, folder: str, what: str) -> pathlib.Path:
    """The file beside a step's folder that is called as it and `what`."""
    return self.root / f'{folder}{what}'

  def done(self, step: Step) -> bool:
    return self.beside(step.folder, DONE).exists()

  def result(self, step: Step) -> dict:
    """What the command of a step that is done returned."""
    return json.loads(self.beside(step.folder, DONE).read_text())['result']

  def why_not(self, step: Step) -> str:
    """Why a step is not done."""
    path = self.beside(step.folder, FAILED)
    return path.read_text().strip() if path.exists() else 'not run yet'

  def settings(self, step: Step) -> str:
    """The whole configuration of a step, as a gin file. It is also what gin has read when this returns.

    Raises:
      gin_utils.ConfigError: it cannot be read.
    """
    if step.command == 'tasks':
      return ' '.join(step.bindings) + '\n'
    macro = FOLDERS[step.command]
    folder = [f'{macro} = {str(self.root / step.folder)!r}'] if macro else []
    return gin_utils.text(step.files, [*step.bindings, *self.overrides, *folder])

  def check(self, steps: Sequence[Step]) -> dict[str, str]:
    """The settings of all steps by folder, after checking them against the folders that are there.

    Raises:
      SettingsError: a folder was made with other settings, or two steps with different ones would share it.
    """
    found: dict[str, str] = {}
    for step in steps:
      text = self.settings(step)
      path = self.beside(step.folder, SETTINGS)
      before = found.get(step.folder) or (path.read_text() if path.exists() else text)
      if before != text:
        lines = difflib.unified_diff(before.splitlines(), text.splitlines(), 'there', 'asked for', lineterm='', n=0)
        raise SettingsError(
            f'{self.root / step.folder} holds a run with other settings (- there, + asked for):\n  '
            + '\n  '.join(line for line in lines if not line.startswith(('---', '+++', '@@')))
            + '\nName another folder by --out, or move this one away to run it again.')
      found[step.folder] = text
    return found

  def units(self, steps: Sequence[Step], settings: Mapping[str, str]) -> list[Unit]:
    """Steps that are not done, those that differ by their seed alone together, in the order of the first of each."""
    groups: dict[object, list[Step]] = {}
    for step in {step.folder: step for step in steps}.values():
      if self.done(step):
        continue
      # What a population shares: all but the seed, and the folder that is named after it.
      alike = re.sub(r'(?m)^(RANDOM_SEED|MODEL_DIR) = .*$', '', settings[step.folder])
      method = re.search(r'(?m)^METHOD = @(?:\w+[./])*(\w+)\(\)', alike)
      joins = (self.together and step.command == 'train' and SEED in step.points and method
               and method[1] not in _HEAVY and all(
                   re.search(rf'(?m)^{setting}$', alike) for setting in ('MICROBATCHES = 1', 'INITIAL_STEP = 0'))
               and not (self.root / step.folder).exists())  # there it is a run of its own that was killed
      groups.setdefault(alike if joins else step.folder, []).append(step)
    return [Unit(tuple(group), '+'.join([group[0].folder, *(step.points[SEED] for step in group[1:])]))
            for group in groups.values()]

  def run(self, units: Sequence[Unit], settings: Mapping[str, str], tell: Callable[[str], None]) -> int:
    """Runs units in order; returns how many could not be run. What one leaves is there when the next begins.

    Raises:
      Interrupted: SIGTERM came.
    """
    began, failed = time.monotonic(), 0
    for i, unit in enumerate(units):
      eta = f'  eta {clock((time.monotonic() - began) / i * (len(units) - i))}' if i else ''
      tell(f'[{i + 1}/{len(units)}] {unit.folder}{eta}')
      waits = [need for step in unit.steps for need in step.needs if not self.beside(need, DONE).exists()]
      try:
        if waits:
          raise ValueError(f'needs {waits[0]}, which is not done')
        self._run(unit, settings)
      except Interrupted:
        raise
      except Exception as error:
        if not cli.ours(error):
          traceback.print_exc()
        reason = re.split(r'\n\s*In call to configurable', str(error))[0]
        tell(f'  could not be run: {reason}')
        for step in unit.steps:
          writers.write_lines(self.beside(step.folder, FAILED), [reason or type(error).__name__])
        failed += 1
      jax.clear_caches()
    return failed

  def _run(self, unit: Unit, settings: Mapping[str, str]) -> None:
    began, step = time.monotonic(), unit.steps[0]
    for one in unit.steps:
      writers.write_lines(self.beside(one.folder, SETTINGS), settings[one.folder].splitlines())
    if step.command == 'tasks':
      path = self.root / step.folder / 'tasks.json'
      path.parent.mkdir(parents=True, exist_ok=True)
      if cli.main(['tasks', *step.bindings, f'--json={path}']):
        raise ValueError(f'`prompt-tuning tasks {" ".join(step.bindings)}` says why; see above')
      self._finish(step, began, json.loads(path.read_text()))
    elif len(unit.steps) == 1:
      self.settings(step)
      self._finish(step, began, _call(step.command))
    else:
      self._run_population(unit, began)

  def _run_population(self, unit: Unit, began: float) -> None:
    step, folder = unit.steps[0], self.root / unit.folder
    members = tuple({'seed': int(one.points[SEED])} for one in unit.steps)
    files = ['runs/population.gin' if file == 'runs/train.gin' else file for file in step.files]
    gin_utils.text(files, [*step.bindings, *self.overrides, f'MEMBERS = {members!r}', f'MODEL_DIR = {str(folder)!r}'])
    result = _call('population')
    for i, (one, member) in enumerate(zip(unit.steps, result['members'], strict=True)):
      if (folder / f'member_{i}').exists():  # and not where this was interrupted
        (folder / f'member_{i}').rename(self.root / one.folder)
      if member['diverged'] is not None:
        raise FloatingPointError(f'the loss is not finite in step {member["diverged"]}')
      self._finish(one, began, {**{name: value for name, value in result.items() if name != 'members'}, **member,
                                'population': len(members)})

  def _finish(self, step: Step, began: float, result) -> None:
    self.beside(step.folder, FAILED).unlink(missing_ok=True)
    writers.write_json(self.beside(step.folder, DONE), {
        'command': step.command, 'seconds': time.monotonic() - began, 'result': result})


def _call(command: str):
  """Runs a command as it is configured."""
  result = gin_utils.configured(cli.function(cli.COMMANDS[command][0]))()
  if isinstance(result, Mapping) and result.get('interrupted'):
    raise Interrupted('SIGTERM: what was running is saved; start again with the same flags to go on')
  return result


def shard(units: Sequence[Unit], part: str) -> list[Unit]:
  """The i-th of n shares of units, for `part` 'i/n' (from 1): what needs others goes with the first that it needs.

  Raises:
    ValueError: another form.
  """
  match = re.fullmatch(r'(\d+)/(\d+)', part)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise ValueError(f'--shard={part}: expected i/n with i from 1 to n, such as 1/4.')
  mine, n = int(match[1]) - 1, int(match[2])
  owner, free = {}, 0
  for unit in units:
    needs = [need for step in unit.steps for need in step.needs if need in owner]
    share = owner[needs[0]] if needs else free % n
    free += not needs
    owner |= {step.folder: share for step in unit.steps}
  return [unit for unit in units if owner[unit.steps[0].folder] == mine]


def log(text: str) -> None:
  """A line for whoever waits."""
  print(text, file=sys.stderr, flush=True)
