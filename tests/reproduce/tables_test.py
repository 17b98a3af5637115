"""Every table of every paper: it expands, its jobs can be configured, and the paper's figures stand beside cells."""

import functools
import inspect
import re

import gin
import pytest

from prompt_tuning import cli, gin_utils
from prompt_tuning.reproduce import command, report, results, table
from prompt_tuning.reproduce.runner import Runner

TABLES = command.tables()
CONFIGS = gin_utils.config_folder()
BINDING = re.compile(r'([\w./]+) = (.*)', re.DOTALL)


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


@functools.cache
def load(name: str) -> table.Table:
  return command.load(name)


def steps_of(part: table.Part) -> list[table.Step]:
  return list(table.steps_of(part, 'runs').values())


@functools.cache
def defines(file: str) -> frozenset[str]:
  """Macros that a gin file sets, or one that it includes."""
  text = (CONFIGS / file).read_text()
  names = re.findall(r'^([A-Z][A-Z0-9_]*) =', text, re.MULTILINE)
  return frozenset(names).union(*map(defines, re.findall(r"^include '(.*)'", text, re.MULTILINE)))


def settings(step: table.Step, tmp_path) -> str:
  """Reads the configuration of a step; returns it."""
  return Runner(tmp_path).settings(step)


def unbound(command_name: str) -> set[str]:
  """Parameters of a command that have no default and are not configured."""
  function = cli.function(cli.COMMANDS[command_name][0])
  needed = {name for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is inspect.Parameter.empty}
  for (_, selector), values in gin.config._CONFIG.items():
    if (match := gin.config._REGISTRY.get_match(selector)) and match.wrapped is function:
      needed -= set(values)
  return needed


@pytest.fixture(scope='module')
def read():
  """Kinds of steps that were configured already, by their command, files and what they bind: once is enough."""
  return set()


@pytest.mark.parametrize('name', TABLES)
def test_the_jobs_of_a_table_can_be_configured(name, read, tmp_path):
  for part in load(name).parts:
    first = set()  # jobs with their models and methods
    for step in steps_of(part):
      for binding in step.bindings if step.command != 'tasks' else ():
        assert BINDING.fullmatch(binding), f'{binding!r}: expected NAME = VALUE'
        assert not re.search(r'\{[a-z_]+\}', binding), f'{binding!r}: no axis or job has this name'
      kind = (step.command, step.files, *(binding.split(' = ')[0] for binding in step.bindings))
      refers = any('@' in binding for binding in step.bindings)
      form = (step.job, *(file for file in step.files if file.startswith(('models/', 'methods/'))))
      if step.command == 'tasks' or kind in read or (form in first and not refers):
        continue
      first.add(form)
      read.add(kind)
      text = settings(step, tmp_path)
      assert not unbound(step.command), f'{step.folder}: nothing sets {unbound(step.command)}'
      assert str(tmp_path / step.folder) in text or step.command == 'params'


@pytest.mark.parametrize('name', TABLES)
def test_every_macro_of_a_job_or_of_a_point_is_one(name):
  for part in load(name).parts:
    steps = [step for step in steps_of(part) if step.command != 'tasks']
    known = {}  # what binds -> macros that there are where it does
    for step in steps:
      macros = frozenset().union(*map(defines, step.files))
      args = [(step.job, arg) for arg in part.jobs[step.job].args]
      args += [(axis, arg) for axis, label in step.points.items() for arg in part.axes[axis][label]]
      for owner, arg in args:
        if (match := BINDING.fullmatch(arg)) and match[1].isupper():
          known.setdefault((owner, match[1]), set()).update(macros)
    for (owner, macro), macros in known.items():
      assert macro in macros, f'{name}: {owner} sets {macro}, which no gin file of a job that sees it has'


@pytest.mark.parametrize('name', TABLES)
def test_figures_of_the_paper_stand_beside_cells(name, tmp_path):
  shown = load(name)
  cells = results.cells(shown, Runner(tmp_path))
  assert cells
  assert results.unknown_figures(shown, cells) == []
  run = results.cells(shown.__class__(**{**vars(shown), 'published': {}}), Runner(tmp_path))
  both = {(cell.row, cell.column) for cell in run} & {
      (tuple(key.split('/')[:len(shown.rows)]), tuple(key.split('/')[len(shown.rows):])) for key in shown.published}
  assert not both, f'published and run: {both}'
  for cell in cells:
    assert cell.missing, 'nothing was run'
    assert not cell.paper or cell.tag in report.TAGS, f'{cell.row} {cell.column}: no tag, or one that nobody explains'
  written = report.markdown(report.Report(
      shown.title, shown.source, tuple(shown.rows), cells, tuple(shown.notes), '',
      report.Plot(**shown.figure) if shown.figure else None))
  assert all(report._escape_markdown(cell.paper) in written for cell in cells)


def test_tables_of_a_paper_share_runs_of_equal_settings_alone(tmp_path):
  """A folder means one configuration, whatever table asks for it."""
  found = {}
  for name in TABLES:
    for part in load(name).parts:
      for step in steps_of(part):
        other, there = found.setdefault((name.split('/')[0], step.folder), (name, step))
        if (there.command, there.files, there.bindings) != (step.command, step.files, step.bindings):
          assert settings(there, tmp_path) == settings(step, tmp_path), f'{other} and {name} share {step.folder}'


@pytest.mark.parametrize(('flags', 'runs'), [
    (['li2021/table2', '--subset=length=5'], {'prefix-XSum-length5-seed101/train': 'train', '/test': 'eval'}),
    (['wang2022/table4', '--subset=task=SST-2', '--seeds=1'], {
        'SST-2-seed0/train': 'train', 'SST-2/trials': 'probe', 'SST-2/prune': 'prune', 'SST-2-seed0/retrain': 'train',
        'SST-2-seed0/pruned': 'eval'}),
    (['relatives/warp', '--subset=task=RTE'], {'WARP-roberta_large-RTE-seed1/train': 'train'})])
def test_a_dry_run_shows_runs_parameters_and_costs(flags, runs, tmp_path, capsys):
  assert command.reproduce([*flags, '--dry_run', f'--out={tmp_path}']) == 0
  printed = capsys.readouterr().out
  for folder, what in runs.items():
    line = next(line for line in printed.splitlines() if f'{folder} ' in line)
    assert what in line.split()
    assert what != 'train' or re.search(r' [\d,]+ +[\d,]+ +[\d,]{9,} +[\d.e+]+ +[\d.e+-]+', line), line  # of millions
  assert re.search(r'\d+ runs, 0 of them done; to do: [\d.e+,]+ PFLOP, [\d.e+,-]+ device hours', printed)
  assert not list(tmp_path.iterdir())
