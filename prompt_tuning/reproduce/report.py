"""A paper's table as measured here, beside the paper's own figures: Markdown, CSV, LaTeX and a plot.

A cell is the mean and the *sample* standard deviation (n - 1) of its runs; the papers do not say which of the two they
print. What was not run shows a dash and a footnote with the reason, never a number from elsewhere.
"""

from collections.abc import Callable, Iterable, Sequence
import csv as csv_lib
import dataclasses
import io
import math
import os
import pathlib
import re
import statistics

TAGS = {  # how a paper's figure is known
    'V:LO': "read in the text of Lester et al. 2021 (arXiv v2)",
    'V:PO': "read in the text of Li & Liang 2021 (arXiv v1)",
    'V:repo': 'read in the released code or its documents',
    'V:issue': 'read in an issue of the released code',
    'V:seed': 'read in notes on the paper',
    'I': 'by our own arithmetic',
    'M': 'from memory, unverified',
    'L': 'of low trust, second hand',
}
_COLORS = ('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377')
_MARKERS = 'osD^vP'
_NO_REASON = 'no value, and no reason was given'
_UNITS = {'': 1.0, 'k': 1e3, 'm': 1e6, 'b': 1e9, '%': 1.0}
_NUMBER = re.compile(r'([-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+)\s*([kKMB%]?)(?:\s*±.*)?')
_LATEX = {
    '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}',
    '>': r'\textgreater{}', '|': r'\textbar{}', '"': r'\textquotedbl{}', '±': r'$\pm$', '×': r'$\times$',
    '→': r'$\rightarrow$', '≤': r'$\leq$', '≥': r'$\geq$', '−': r'$-$', 'σ': r'$\sigma$', '…': r'\dots{}',
    **{character: f'\\{character}' for character in '&%$#_{}'}}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One place of a table.

  Attributes:
    row: its row, a part for each of `Report.row_heads`.
    column: its column, in one or several parts.
    values: what was measured, one a seed or subset, in the units of `paper`.
    missing: why there is no value, or why there are fewer than asked.
    paper: the paper's figure as printed, such as '71.8' or '94.9±0.2'.
    tag: how that is known, a key of `TAGS`.
    digits: behind the decimal point.
    text: shown instead of values, where the cell is no number.
  """

  row: tuple[str, ...]
  column: tuple[str, ...]
  values: tuple[float, ...] = ()
  missing: str = ''
  paper: str = ''
  tag: str = ''
  digits: int = 1
  text: str = ''

  @property
  def mean(self) -> float | None:
    return math.fsum(self.values) / len(self.values) if self.values else None

  @property
  def sd(self) -> float | None:
    """The sample standard deviation; None of fewer than two values."""
    if len(self.values) < 2:
      return None
    return statistics.stdev(self.values) if all(map(math.isfinite, self.values)) else math.nan


@dataclasses.dataclass(frozen=True)
class Plot:
  """How a table is drawn: columns are lines, and rows that differ in other parts than x.

  Attributes:
    x: the row head along the x axis; '': the first. In order of the rows if it is not numbers throughout.
    log_x, log_y: logarithmic axes.
  """

  x: str = ''
  log_x: bool = False
  log_y: bool = False
  x_label: str = ''
  y_label: str = ''


@dataclasses.dataclass(frozen=True)
class Report:
  """A table to be written.

  Attributes:
    source: of the paper's figures, such as 'Lester et al. 2021, figure 3a'.
    row_heads: names of the parts of a row.
    cells: in any order; rows and columns come in the order of their first cells.
    notes: on how to read it.
    command: that makes it.

  Raises:
    ValueError: two cells at one place, or a row with more or fewer parts than there are heads.
  """

  title: str
  source: str
  row_heads: tuple[str, ...]
  cells: Sequence[Cell]
  notes: Sequence[str] = ()
  command: str = ''
  plot: Plot | None = None

  def __post_init__(self):
    places = set()
    for cell in self.cells:
      if len(cell.row) != len(self.row_heads):
        raise ValueError(f'{self.title}: the row {cell.row} has {len(cell.row)} parts; expected '
                         f'{len(self.row_heads)}, one for each of row_heads={self.row_heads}.')
      if (cell.row, cell.column) in places:
        raise ValueError(f'{self.title}: two cells at row {cell.row}, column {cell.column}; expected one.')
      places.add((cell.row, cell.column))
    if self.plot and self.plot.x and self.plot.x not in self.row_heads:
      raise ValueError(f'{self.title}: Plot.x={self.plot.x!r}; expected one of row_heads={self.row_heads}.')


def markdown(report: Report) -> str:
  """The table with its plot, footnotes, notes and command, as GitHub shows it."""
  table = _Grid(report, _escape_markdown, '±', '<sup>{}</sup>')
  line = lambda cells: f'| {" | ".join(cells)} |'
  parts = [
      f'# {_escape_markdown(report.title)}',
      ' '.join([f'{_escape_markdown(report.source)}.' if report.source else '', *table.legend()]).strip(),
      '\n'.join([line(table.head), line('---' for _ in table.head), *map(line, table.body)]),
      f'![{_escape_markdown(report.title)}](plot.png)' if _drawn(report) else '',
      '\n'.join(f'{i}. {_escape_markdown(reason)}' for i, reason in enumerate(table.reasons, 1)),
      '\n'.join(f'- {_escape_markdown(note)}' for note in report.notes),
      f'```\n{report.command}\n```' if report.command else '']
  return '\n\n'.join(filter(None, parts)) + '\n'


def latex(report: Report) -> str:
  """The same as a LaTeX table; it needs `\\usepackage{booktabs}` and fonts in T1."""
  table = _Grid(report, _escape_latex, r'$\pm$', r'\textsuperscript{{{}}}')
  line = lambda cells: f'    {" & ".join(cells)} \\\\'
  below = [*(f'\\textsuperscript{{{i}}} {_escape_latex(reason)}' for i, reason in enumerate(table.reasons, 1)),
           *map(_escape_latex, report.notes)]
  lines = [
      *(f'% {line}' for line in report.command.splitlines()),
      r'\begin{table}', r'  \centering',
      f'  \\caption{{{_escape_latex(report.title)}. '
      f'{" ".join([_escape_latex(report.source) + ".", *table.legend()])}}}',
      f'  \\begin{{tabular}}{{{("l" * len(report.row_heads)).ljust(len(table.head), "r")}}}',
      r'    \toprule', line(table.head), r'    \midrule', *map(line, table.body), r'    \bottomrule',
      r'  \end{tabular}', *(f'  \\par\\footnotesize {text}' for text in below), r'\end{table}']
  return '\n'.join(lines) + '\n'


def csv(report: Report) -> str:
  """One line a cell, numbers in full."""
  file = io.StringIO()
  writer = csv_lib.writer(file, lineterminator='\n')
  writer.writerow([*report.row_heads, 'column', 'n', 'mean', 'sd', 'values', 'text', 'paper', 'tag', 'missing'])
  for cell in report.cells:
    writer.writerow([
        *cell.row, ' / '.join(cell.column), len(cell.values), cell.mean, cell.sd, ' '.join(map(str, cell.values)),
        cell.text, cell.paper, cell.tag, cell.missing or ('' if cell.values or cell.text else _NO_REASON)])
  return file.getvalue()


def plot(report: Report, path: str | os.PathLike) -> None:
  """Draws means with error bars of one sample standard deviation, and the paper's figures as hollow markers (PNG).

  Raises:
    ValueError: the report has no `plot`, or nothing that is a number.
  """
  if not _drawn(report):
    raise ValueError(f'{report.title}: nothing to draw; expected Report.plot and at least one number.')
  from matplotlib.figure import Figure  # without pyplot: no window, no global state
  p, lines = report.plot, _lines(report)
  names = _unique(x for points in lines.values() for x, _ in points)
  numbers = [_number(name) for name in names]
  numeric = None not in numbers
  at = dict(zip(names, numbers if numeric else range(len(names)), strict=True))
  axes = Figure(figsize=(7.0, 4.4), dpi=110, layout='constrained').subplots()
  for i, (label, points) in enumerate(lines.items()):
    style = {'color': _COLORS[i % len(_COLORS)], 'marker': _MARKERS[i // len(_COLORS) % len(_MARKERS)]}
    ours = sorted((at[x], cell.mean, cell.sd or 0.0) for x, cell in points if cell.values)
    paper = [(at[x], number) for x, cell in points if (number := _number(cell.paper)) is not None]
    if ours:
      x, y, sd = zip(*ours, strict=True)
      axes.errorbar(x, y, sd, capsize=3, markersize=4, linewidth=1.2, label=label, **style)
    if paper:
      axes.plot(*zip(*paper, strict=True), linestyle='none', fillstyle='none', markersize=8, label=f'{label} (paper)',
                **style)
  if p.log_x and numeric:
    least = min((number for number in numbers if number > 0), default=1.0)
    axes.set_xscale('symlog', linthresh=least)  # logarithmic from there on, and has a place for 0
  if not numeric or (p.log_x and len(names) <= 12):
    axes.set_xticks(list(at.values()), names, parse_math=False)
    axes.minorticks_off()
  axes.set_yscale('log' if p.log_y else 'linear')
  axes.set_title(report.title, parse_math=False, wrap=True)
  axes.set(xlabel=p.x_label or p.x or report.row_heads[0], ylabel=p.y_label)
  for text in axes.legend(fontsize=8).get_texts():
    text.set_parse_math(False)
  data = io.BytesIO()
  axes.figure.savefig(data, format='png', metadata={'Software': None})
  _write(pathlib.Path(path), data.getvalue())


def write(report: Report, folder: str | os.PathLike) -> list[pathlib.Path]:
  """Writes table.md, table.csv, table.tex and, of a report with something to draw, plot.png; returns their paths."""
  folder, paths = pathlib.Path(folder), []
  for name, make in (('table.md', markdown), ('table.csv', csv), ('table.tex', latex)):
    paths.append(folder / name)
    _write(paths[-1], make(report).encode())
  if _drawn(report):
    paths.append(folder / 'plot.png')
    plot(report, paths[-1])
  return paths


class _Grid:
  """The escaped texts of a table: `head`, `body`, and the `reasons` of its numbered footnotes."""

  def __init__(self, report: Report, escape: Callable[[str], str], plus_minus: str, raised: str):
    self._escape, self._plus_minus, self._raised, self.reasons = escape, plus_minus, raised, []
    columns = _unique(cell.column for cell in report.cells)
    self._cells = {(cell.row, cell.column): cell for cell in report.cells}
    self.head = [*map(escape, report.row_heads), *(escape(' / '.join(column)) for column in columns)]
    self.body = [[*map(escape, row), *(self._text(self._cells.get((row, column))) for column in columns)]
                 for row in _unique(cell.row for cell in report.cells)]

  def _text(self, cell: Cell | None) -> str:
    if cell is None:
      return ''
    if cell.text:
      ours, reason = self._escape(cell.text), cell.missing
    elif cell.values:
      number = lambda value: f'{value:,.{cell.digits}f}'
      spread = '' if cell.sd is None else f' {self._plus_minus} {number(cell.sd)} (n={len(cell.values)})'
      ours, reason = f'{number(cell.mean)}{spread}', cell.missing
    else:
      ours, reason = '-', cell.missing or _NO_REASON
    if reason and reason not in self.reasons:
      self.reasons.append(reason)
    foot = self._raised.format(self.reasons.index(reason) + 1) if reason else ''
    tag = f' [{self._escape(cell.tag)}]' if cell.tag else ''
    return f'{ours}{foot}' + (f' (paper: {self._escape(cell.paper)}{tag})' if cell.paper else '')

  def legend(self) -> list[str]:
    """What the numbers are, and what the tags in the table mean."""
    cells = self._cells.values()
    means = ['Mean and sample standard deviation of n runs; a number alone is of one.']
    tags = [tag for tag in _unique(cell.tag for cell in cells if cell.paper) if tag in TAGS]
    return [*(means if any(cell.sd is not None for cell in cells) else []),
            *(f'[{self._escape(tag)}]: {self._escape(TAGS[tag])}.' for tag in tags)]


def _lines(report: Report) -> dict[str, list[tuple[str, Cell]]]:
  """Label -> (x, cell) of each line of the plot; a label says what tells the lines apart."""
  x = report.row_heads.index(report.plot.x) if report.plot.x else 0
  parts = {(cell.row, cell.column): (*cell.row[:x], *cell.row[x + 1:], *cell.column) for cell in report.cells}
  width = max(map(len, parts.values()), default=0)
  varied = [i for i in range(width) if len({part[i:i + 1] for part in parts.values()}) > 1] or [width - 1]
  lines = {}
  for cell in report.cells:
    part = parts[cell.row, cell.column]
    lines.setdefault(' / '.join(part[i] for i in varied if i < len(part)), []).append((cell.row[x], cell))
  return lines


def _drawn(report: Report) -> bool:
  return bool(report.plot) and any(cell.values or _number(cell.paper) is not None for cell in report.cells)


def _number(text: str) -> float | None:
  """Of '71.8', '94.9±0.2', '10K', '1,000' and '5%'; None of what is no number."""
  match = _NUMBER.fullmatch(text.strip())
  return match and float(match[1].replace(',', '')) * _UNITS[match[2].lower()]


def _unique(items: Iterable) -> list:
  return list(dict.fromkeys(items))


def _escape_markdown(text: str) -> str:
  return re.sub(r'([\\`*_\[\]<>|~$&])', r'\\\1', ' '.join(text.split()))


def _escape_latex(text: str) -> str:
  return ''.join(_LATEX.get(character, character) for character in ' '.join(text.split()))


def _write(path: pathlib.Path, data: bytes) -> None:
  """Writes a file that appears whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_bytes(data)
  os.replace(temporary, path)
