"""What a table of a paper is: axes, the jobs that every choice of points on them needs, and which numbers are shown.

A table is a gin file `configs/papers/<paper>/tables/<name>.gin` that binds `Table` and its `Part`s. It expands into
`Step`s: one command of `prompt-tuning` with its configuration and its folder. The folder's name is made of the points
(`small-boolq-length20-seed0/train`), without those that are a part's defaults, so that two tables that need the same
run share it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

SEED = 'seed'  # the axis that --seeds sets
FOLDERS = {  # command -> the macro that names its folder
    'train': 'MODEL_DIR',
    'eval': 'EVAL_OUTPUT_DIR',
    'ensemble': 'EVAL_OUTPUT_DIR',
    'infer': 'INFER_OUTPUT_DIR',
    'probe': 'PROBE_OUTPUT_DIR',
    'prune': 'PRUNED_DIR',
    'interpret': 'OUTPUT_DIR',
    'params': None,
    'tasks': None,
}
Points = Mapping[str, str]  # axis -> label of the point on it


@dataclasses.dataclass(frozen=True)
class Job:
  """One command, run for every choice of points on the axes that it sees.

  Attributes:
    command: a key of `FOLDERS`. `tasks` has no configuration: its args are those of the command line.
    args: gin files, by their names' ending, and bindings (`NAME = VALUE`), maybe in nested tuples. The points' come
      behind, and all bindings behind all files; later ones win. So a point with a method's file is set back by that
      file, and what a job sets beside it must be a binding. `{name}` in a binding is the folder of another job of the
      part at the same points, as a quoted string; of a job that sees more axes it is the tuple of all its folders
      there. `{axis}` is the label of the point on an axis.
    over: names of the axes that it sees; None: all.
  """

  command: str
  args: Sequence[str] = ()
  over: Sequence[str] | None = None

  def __post_init__(self):
    if self.command not in FOLDERS:
      raise ValueError(f'A job has the command {self.command!r}; expected one of {", ".join(FOLDERS)}.')


@dataclasses.dataclass(frozen=True)
class Measure:
  """A number: which of the numbers that a job leaves (see `results.read`), times `scale`."""

  job: str
  key: str
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows or columns that are made in one way.

  Attributes:
    jobs: name -> `Job`, or a dict of its fields, in the order in which they run.
    measures: heading -> (job, key, scale) or (job, key).
    axes: name -> {label: args}; args as of a job, put behind those of every job that sees the axis. The axis 'seed' is
      added from the table's seeds unless it is given.
    defaults: axis -> label that is left out of the names of folders.
    labels: row or column heading -> what stands there, for headings that are no axis of this part.
    mean_over: axes over which a measure is averaged first (the tasks of SuperGLUE).
    repeats: axes of which each choice is one value of the mean and standard deviation.
    seeds: False for jobs that have none, such as counting.
    on_request: labels of points that are left out where nobody asks for them (--sizes, --subset).
  """

  jobs: Mapping[str, Any]
  measures: Mapping[str, Sequence[Any]]
  axes: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
  labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
  mean_over: Sequence[str] = ()
  repeats: Sequence[str] = (SEED,)
  seeds: bool = True
  on_request: Sequence[str] = ()

  def __post_init__(self):
    jobs = {name: job if isinstance(job, Job) else Job(**job) for name, job in self.jobs.items()}
    object.__setattr__(self, 'jobs', jobs)
    object.__setattr__(self, 'measures', {name: Measure(*measure) for name, measure in self.measures.items()})
    for name, measure in self.measures.items():
      if measure.job not in jobs:
        raise ValueError(f'The measure {name!r} is of a job {measure.job!r}; expected one of {", ".join(jobs)}.')

  def sees(self, job: str) -> list[str]:
    """The axes of a job, in the order of the part's."""
    over = self.jobs[job].over
    unknown = set(over or ()) - set(self.axes)
    if unknown:
      raise ValueError(f'The job {job!r} is over {sorted(unknown)}; expected some of {", ".join(self.axes)}.')
    return [axis for axis in self.axes if over is None or axis in over]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table or figure.

  Attributes:
    title, source: what it shows; where the paper has it ('Lester et al. 2021, figure 3a').
    parts: what it is made of.
    rows, columns: headings: axes or `labels` of the parts. Several measures are columns of their own.
    seeds: of every part that has some.
    paper: 'row/column' -> the paper's figure, as a string or (string, tag); labels are joined by '/'.
    published: the same, for cells that are not run here (other people's models): shown with the reason `unrun`.
    tag: how well the paper's figures are verified, where they do not say ('V:LO': see docs/reproduce.md).
    digits: behind the point.
    figure: settings of `report.Plot`, where the paper has a figure.
    notes: lines under the table.
  """

  title: str
  source: str
  parts: Sequence[Part]
  rows: Sequence[str]
  columns: Sequence[str] = ()
  seeds: Sequence[int] = (0, 1, 2)
  paper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  unrun: str = 'a published figure, not run here'
  tag: str = ''
  digits: int = 1
  figure: Mapping[str, Any] | None = None
  notes: Sequence[str] = ()

  def __post_init__(self):
    with_seeds = []
    for part in self.parts:
      axes = dict(part.axes)
      if part.seeds and SEED not in axes:
        axes[SEED] = {str(seed): (f'RANDOM_SEED = {seed}',) for seed in self.seeds}
      with_seeds.append(dataclasses.replace(part, axes=axes, jobs=dict(part.jobs), measures={
          name: dataclasses.astuple(measure) for name, measure in part.measures.items()},
          repeats=[axis for axis in part.repeats if axis in axes]))
    object.__setattr__(self, 'parts', tuple(with_seeds))

  def narrowed(self, wanted: Mapping[str, Sequence[str]]) -> 'Table':
    """The table with some points of some axes alone; of the other axes with all but those that are on request.

    Raises:
      ValueError: no part has the axis, or none of those that have it has the point.
    """
    for axis, labels in wanted.items():
      known = {label: None for part in self.parts for label in part.axes.get(axis, ())}
      if not known:
        axes = {name: None for part in self.parts for name in part.axes}
        raise ValueError(f'This table has no axis {axis!r}; it has {", ".join(axes)}.')
      if unknown := [label for label in labels if label not in known]:
        raise ValueError(f'There is no {axis} {", ".join(unknown)} in this table; there are {", ".join(known)}.')
    parts = []
    for part in self.parts:
      axes = {axis: {label: args for label, args in points.items()
                     if (label in wanted[axis] if axis in wanted else label not in part.on_request)}
              for axis, points in part.axes.items()}
      if all(axes.values()):
        parts.append(dataclasses.replace(part, axes=axes, measures={
            name: dataclasses.astuple(measure) for name, measure in part.measures.items()}))
    return dataclasses.replace(self, parts=parts)


@dataclasses.dataclass(frozen=True)
class Step:
  """A job at a choice of points.

  Attributes:
    job, command: of the part, of `prompt-tuning`.
    points: axis -> label, of the axes it sees.
    folder: where its results go, below the folder of all runs.
    files, bindings: its configuration, without the folder.
    needs: folders of the steps that must be done before.
  """

  job: str
  command: str
  points: Points
  folder: str
  files: tuple[str, ...]
  bindings: tuple[str, ...]
  needs: tuple[str, ...] = ()


def choices(axes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
  """Every choice of one point on each axis."""
  return [dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values())]


def folder_of(part: Part, job: str, points: Points) -> str:
  """`small-boolq-length20-seed0/train`: the points without the defaults; numbers have their axis in front."""
  names = [f'{axis}{label}' if label[:1].isdigit() else label for axis, label in points.items()
           if part.defaults.get(axis) != label]
  return f'{"-".join(names).replace(" ", "_").replace("/", "_") or "default"}/{job}'


def steps_of(part: Part, root: str) -> dict[tuple[str, tuple[str, ...]], Step]:
  """The steps of a part by (job, labels of the points it sees), in an order in which they can run.

  Args:
    part: of a table.
    root: the folder of all runs, which is in front of the folders that bindings name.
  """
  found = {}
  for name, job in part.jobs.items():
    sees = part.sees(name)
    for points in choices({axis: part.axes[axis] for axis in sees}):
      args = _flat([job.args, *(part.axes[axis][label] for axis, label in points.items())])
      needs: list[str] = []
      filled = [arg if arg.endswith('.gin') else _fill(arg, part, found, points, root, needs) for arg in args]
      found[name, tuple(points.values())] = Step(
          name, job.command, points, folder_of(part, name, points),
          tuple(arg for arg in filled if arg.endswith('.gin')),
          tuple(arg for arg in filled if not arg.endswith('.gin')), tuple(dict.fromkeys(needs)))
  return found


def _flat(args) -> list[str]:
  """Args in one list: a macro in a tuple of args may be a tuple itself."""
  return [args] if isinstance(args, str) else [arg for each in args for arg in _flat(each)]


def _fill(binding: str, part: Part, found, points: Points, root: str, needs: list[str]) -> str:
  """A binding with `{axis}` and `{job}` filled in; adds the folders of the jobs to `needs`."""
  for axis, label in points.items():
    binding = binding.replace('{' + axis + '}', label)
  for other in part.jobs:
    if '{' + other + '}' not in binding:
      continue
    folders = [step.folder for (job, _), step in found.items() if job == other
               and all(points.get(axis, label) == label for axis, label in step.points.items())]
    if not folders:
      raise ValueError(f'{binding}: there is no job {other!r} in front of the one that needs it.')
    needs += folders
    paths = tuple(f'{root}/{folder}' for folder in folders)
    binding = binding.replace('{' + other + '}', repr(paths if set(part.sees(other)) - set(points) else paths[0]))
  return binding
