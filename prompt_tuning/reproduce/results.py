"""From the folders of a table's steps to the cells of its report."""

from collections.abc import Mapping, Sequence
import itertools
import json
import math
import pathlib

import numpy as np

from prompt_tuning.reproduce import report
from prompt_tuning.reproduce.runner import Runner
from prompt_tuning.reproduce.table import Part, Step, Table, choices, steps_of
from prompt_tuning.tasks import metrics as task_metrics

SAMPLES = 3


def read(folder: pathlib.Path, command: str, result: Mapping) -> dict[str, float | str]:
  """The numbers and short texts that a step left, flat.

  Of a training: the metrics of its best evaluation by name (of several tasks `task/name`), their mean as `score` as
  Lester et al. 2021 average (over metrics, then tasks), `best_step`, `steps`, `seconds`, and `steps_to_1%` and
  `seconds_to_1%`: the first evaluation within 1% of the best score (their table 5). Of an evaluation: its metrics and
  `score`, and `seconds`. Both have the first outputs as texts, `sample/0/prediction` and `sample/0/input` (of several
  tasks those of the first). Of anything else: every number and text of what the command returned, as 'a/b/c'.

  Args:
    folder: of the step.
    command: of the step.
    result: what the command returned.
  """
  if command == 'train':
    return _training(folder, result)
  if command in ('eval', 'ensemble'):
    tasks = {task: metrics for task, metrics in result.items() if isinstance(metrics, Mapping)}
    return {**_metrics(tasks), 'seconds': result.get('seconds', math.nan),
            **_samples(folder / f'{next(iter(tasks))}.jsonl')}
  return dict(_flat(result))


def _training(folder: pathlib.Path, summary: Mapping) -> dict[str, float | str]:
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  evaluations: dict[int, dict[str, dict[str, float]]] = {}
  for line in lines:
    if line['split'].startswith('inference_eval/'):
      values = {name: x for name, x in line.items() if name not in ('step', 'split')}
      evaluations.setdefault(line['step'], {})[line['split'].split('/', 1)[1]] = values
  found = {'steps': summary['step'], 'seconds': summary['train_seconds']}
  for name in ('trainable_bytes', 'frozen_bytes'):
    found[name] = summary[name]
  if summary.get('metrics_before'):
    found |= {f'before/{name}': x for name, x in _metrics(summary['metrics_before']).items()}
  if (best := summary['best_step']) in evaluations:
    found |= {**_metrics(evaluations[best]), 'best_step': best}
    scores = {step: _metrics(tasks)['score'] for step, tasks in evaluations.items() if step}
    near = min(step for step, score in scores.items() if score >= 0.99 * max(scores.values()))
    found |= {'steps_to_1%': near, 'seconds_to_1%': summary['train_seconds'] * near / summary['step']}
    found |= _samples(folder / 'inference_eval' / f'{next(iter(evaluations[best]))}-{best}.jsonl')
  return found


def _samples(path: pathlib.Path) -> dict[str, str]:
  if not path.exists():
    return {}
  with path.open(encoding='utf-8') as lines:
    rows = [json.loads(line) for line in itertools.islice(lines, SAMPLES)]
  return {f'sample/{i}/{name}': row[name] for i, row in enumerate(rows) for name in ('input', 'prediction')
          if name in row}


def _metrics(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  score = np.mean([task_metrics.task_score(metrics) for metrics in tasks.values()])
  names = {(f'{task}/{name}' if len(tasks) > 1 else name): x
           for task, metrics in tasks.items() for name, x in metrics.items()}
  return {'score': float(score), **names}


def _flat(value, path: str = ''):
  if isinstance(value, Mapping | list | tuple):
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, one in items:
      yield from _flat(one, f'{path}/{name}' if path else str(name))
  elif isinstance(value, bool | int | float):
    yield path, float(value)
  elif isinstance(value, str):
    yield path, value


def cells(table: Table, runner: Runner) -> list[report.Cell]:
  """The cells of a table as far as its steps are done, with the paper's figures."""
  found: dict[tuple, report.Cell] = {}
  for part in table.parts:
    steps = steps_of(part, str(runner.root))
    for heading, measure in part.measures.items():
      shown = [axis for axis in part.sees(measure.job) if axis not in (*part.repeats, *part.mean_over)]
      for points in choices({axis: part.axes[axis] for axis in shown}):
        values, missing = _values(part, steps, runner, points, measure)
        row = tuple(str(points.get(head, part.labels.get(head, ''))) for head in table.rows)
        column = tuple(str(points.get(head, part.labels.get(head, ''))) for head in table.columns)
        column += (heading,) if len(part.measures) > 1 or not column else ()
        if (row, column) in found:
          raise ValueError(f'Two choices of points, the second {points}, are in the cell {"/".join((*row, *column))}. '
                           'Name more axes in rows or columns, or take one point (--subset).')
        figure, tag = _figure(table.paper.get('/'.join((*row, *column)), ''), table.tag)
        texts = [value for value in values if isinstance(value, str)]
        found[row, column] = report.Cell(
            row, column, () if texts else tuple(values), missing=missing, paper=figure, tag=tag, digits=table.digits,
            text=' / '.join(texts))
  for name, value in table.published.items():
    labels = tuple(name.split('/'))
    row, column = labels[:len(table.rows)], labels[len(table.rows):]
    figure, tag = _figure(value, table.tag)
    found.setdefault((row, column), report.Cell(
        row, column, (), missing=table.unrun, paper=figure, tag=tag, digits=table.digits))
  return list(found.values())


def _figure(value, tag: str) -> tuple[str, str]:
  """(figure, tag) of what `Table.paper` holds."""
  if not value:
    return '', ''
  return (str(value), tag) if isinstance(value, str | int | float) else (str(value[0]), value[1])


def _values(
    part: Part, steps: Mapping[tuple, Step], runner: Runner, points: Mapping[str, str],
    measure) -> tuple[list[float | str], str]:
  """One value for each choice on the axes that repeat, each a mean over `mean_over`; and why some are not there."""
  values, reasons = [], {}  # reason -> where, of those that are averaged
  sees = part.sees(measure.job)
  repeats = {axis: part.axes[axis] for axis in part.repeats if axis in sees}
  averaged = {axis: part.axes[axis] for axis in part.mean_over if axis in sees}
  for repeat in choices(repeats):
    each = []
    for averaging in choices(averaged):
      here = {**points, **repeat, **averaging}
      step = steps[measure.job, tuple(here[axis] for axis in sees)]
      if not runner.done(step):
        reasons.setdefault(runner.why_not(step), {})[' '.join(averaging.values())] = None
        continue
      numbers = read(runner.root / step.folder, step.command, runner.result(step))
      if isinstance(number := numbers.get(measure.key), str):
        each.append(number)
      elif number is not None:
        each.append(number * measure.scale)
      else:
        reasons.setdefault(f'{step.folder} has no {measure.key}', {})[' '.join(averaging.values())] = None
    if len(each) == len(choices(averaged)):
      values.append(each[0] if isinstance(each[0], str) else float(np.mean(each)))
  parts = [f'{", ".join(where)}: {reason}' if averaged else reason for reason, where in reasons.items()]
  return values, '; '.join(parts)


def unknown_figures(table: Table, found: Sequence[report.Cell]) -> list[str]:
  """Keys of `Table.paper` that name no cell."""
  names = {'/'.join((*cell.row, *cell.column)) for cell in found}
  return [name for name in table.paper if name not in names]
