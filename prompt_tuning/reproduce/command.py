"""`prompt-tuning reproduce <paper>/<table>`: expands a table of a paper into runs, runs them, and writes the table."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import difflib
import pathlib
import re
import shlex
import sys

from prompt_tuning import compiled, gin_utils
from prompt_tuning.reproduce import cost, report, results, runner, table


def tables() -> list[str]:
  """Names of all tables: 'lester2021/figure3a'."""
  root = gin_utils.config_folder() / 'papers'
  return sorted(f'{path.parent.parent.name}/{path.stem}' for path in root.glob('*/tables/*.gin')
                if not path.stem.startswith('_'))


def load(name: str, overrides: Sequence[str] = ()) -> table.Table:
  """The table called `name`.

  Args:
    name: '<paper>/<table>', or the path of a gin file.
    overrides: bindings (`NAME = VALUE`) of macros of the table's own file; others are of its runs.

  Raises:
    ValueError: there is no such table.
  """
  path = pathlib.Path(name)
  if path.suffix == '.gin' and not path.is_file():
    raise FileNotFoundError(f'{name}: no such file; expected a table as a gin file, or a name such as {tables()[0]}.')
  if path.suffix != '.gin' and name not in tables():
    near = difflib.get_close_matches(name, tables(), n=5, cutoff=0.4) or tables()
    raise ValueError(f'There is no table {name!r}. Nearest: {", ".join(near)}. All: `prompt-tuning reproduce --list`.')
  file = name if path.suffix == '.gin' else f'papers/{path.parent}/tables/{path.name}.gin'
  gin_utils.text([file], overrides)
  return gin_utils.configured(table.Table)()


def parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='prompt-tuning reproduce', description='Runs a table of a paper and writes it beside the paper\'s figures.',
      epilog='Run again, it goes on where it was: what is done is not repeated, what was killed is resumed. '
             '--gin.NAME=VALUE sets a macro of the table or of all its runs.')
  parser.add_argument('table', nargs='?', metavar='PAPER/TABLE',
                      help='such as lester2021/figure3a, --list shows all; or a gin file of your own')
  parser.add_argument('--list', action='store_true', help='show all tables and stop')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/reproduce'), metavar='FOLDER',
                      help='of all runs and tables (%(default)s); may be shared between machines')
  parser.add_argument('--sizes', metavar='A,B', help='model sizes; the same as --subset size=A,B')
  parser.add_argument('--seeds', metavar='N or A,B', help='how many seeds, or which')
  parser.add_argument('--subset', action='append', default=[], metavar='AXIS=A,B', help='some points of an axis alone')
  parser.add_argument('--dry_run', action='store_true', help='show the runs with parameters and costs, and stop')
  parser.add_argument('--shard', metavar='i/n', help='run the i-th of n shares (from 1), on a shared --out')
  parser.add_argument('--report_only', action='store_true', help='run nothing; write the table of what is done')
  parser.add_argument('--one_by_one', action='store_true', help='train seeds one after another, not as a population')
  parser.add_argument('--tflops', type=float, default=197.0, metavar='X',
                      help='peak of a device in --dry_run (%(default)s: TPU v5e, bfloat16)')
  parser.add_argument('--utilisation', type=float, default=0.4, metavar='X',
                      help='share of it that is reached (%(default)s)')
  return parser


def _wanted(flags: argparse.Namespace) -> dict[str, list[str]]:
  """Axis -> labels, of --sizes and --subset."""
  wanted = {'size': flags.sizes.split(',')} if flags.sizes else {}
  for subset in flags.subset:
    axis, equals, labels = subset.partition('=')
    if not (equals and labels):
      raise ValueError(f'--subset={subset}: expected AXIS=LABEL,LABEL, such as task=boolq,cb.')
    wanted[axis] = labels.split(',')
  return wanted


def _narrowed(shown: table.Table, wanted: Mapping[str, Sequence[str]]) -> list[str]:
  """Notes on means that are not over all that the paper's are."""
  axes = {axis: None for part in shown.parts for axis in part.mean_over if axis in wanted}
  return [f'Means are over {axis} {", ".join(wanted[axis])} alone.' for axis in axes]


def _seeds(text: str) -> list[str]:
  """Bindings for --seeds: '3' -> seeds 0 to 2, '4,7' -> these; '4,' -> 4 alone."""
  if not all(part.strip().isdigit() for part in text.strip(',').split(',')):
    raise ValueError(f'--seeds={text}: expected how many, such as 3, or which, such as 0,4.')
  seeds = [int(seed) for seed in text.strip(',').split(',')] if ',' in text else list(range(int(text)))
  return [f'table.Table.seeds = {tuple(seeds)!r}']


def _dry_run(steps: Sequence[table.Step], runs: runner.Runner, hours: Callable[[float], float]) -> str:
  """One line a run, with what it trains and costs, and a line of totals."""
  lines = [('run', 'command', 'trained', 'kept', 'total', 'PFLOP', 'device hours', '')]
  total, unknown, known = 0.0, 0, {}
  for step in steps:
    # Seeds, and what comes from other steps, cost the same: each kind is configured once.
    kind = (step.command, step.files, tuple(b for b in step.bindings if not re.match('RANDOM_SEED|CHECKPOINT_PATH', b)))
    if kind not in known:
      runs.settings(step)
      known[kind] = cost.estimate(step.command)
    found = known[kind]
    state = 'done' if runs.done(step) else found.note
    numbers = ['' if n is None else f'{n:,}' for n in (found.trained, found.kept, found.total)]
    price = ['', ''] if found.flops is None else [f'{found.flops / 1e15:,.3g}', f'{hours(found.flops):,.3g}']
    lines.append((step.folder, step.command, *numbers, *price, state))
    total += 0 if found.flops is None or runs.done(step) else found.flops
    unknown += found.flops is None
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  text = '\n'.join('  '.join(
      cell.ljust(width) if i in (0, 1, 7) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines)
  more = f', and {unknown} runs without an estimate' if unknown else ''
  return (f'{text}\n{len(steps)} runs, {sum(map(runs.done, steps))} of them done; to do: {total / 1e15:,.3g} PFLOP, '
          f'{hours(total):,.3g} device hours{more}')


def reproduce(argv: Sequence[str]) -> int:
  """The command; returns the exit code: 1 if something could not be run."""
  others, bindings = gin_utils.split_bindings(argv)
  flags = parser().parse_args(others)
  if flags.list:
    for name in tables():
      print(f'{name:32}{load(name).source}: {load(name).title}')
    return 0
  if not flags.table:
    raise ValueError('No table. Name one, such as lester2021/figure3a; `prompt-tuning reproduce --list` shows all.')

  wanted = _wanted(flags)
  load(flags.table)
  own = set(gin_utils.macros())
  of_table = [binding for binding in bindings if binding.split(' = ')[0] in own]
  shown = load(flags.table, [*of_table, *(_seeds(flags.seeds) if flags.seeds else [])]).narrowed(wanted)
  paper, name = ('own', path.stem) if (path := pathlib.Path(flags.table)).suffix == '.gin' else path.parts
  runs = runner.Runner(flags.out / 'runs' / paper, [b for b in bindings if b not in of_table], not flags.one_by_one)
  steps = [step for part in shown.parts for step in table.steps_of(part, str(runs.root)).values()]
  steps = list({step.folder: step for step in steps}.values())
  if flags.dry_run:
    print(_dry_run(steps, runs, lambda flops: cost.device_hours(flops, flags.tflops, flags.utilisation)))
    return 0

  failed = 0
  if not flags.report_only:
    settings = runs.check(steps)
    units = runs.units(steps, settings)
    compiled.keep()  # most runs of a table are the same program
    runner.log(f'{flags.table}: {len(steps)} runs, {sum(map(runs.done, steps))} of them done before')
    failed = runs.run(runner.shard(units, flags.shard) if flags.shard else units, settings, runner.log)
  written = report.write(report.Report(
      title=shown.title, source=shown.source, row_heads=tuple(shown.rows), cells=results.cells(shown, runs),
      notes=(*shown.notes, *_narrowed(shown, wanted)),
      command='prompt-tuning reproduce ' + shlex.join(word for word in argv if word != '--report_only'),
      plot=report.Plot(**shown.figure) if shown.figure else None), flags.out / 'tables' / paper / name)
  print('\n'.join(str(path) for path in written))
  if failed:
    print(f'prompt-tuning reproduce: {failed} of the runs could not be run; the table says why.', file=sys.stderr)
  return 1 if failed else 0
