"""Pictures of a probe: functions from arrays to a PNG, written under a temporary name and then renamed.

matplotlib is imported when something is drawn, without pyplot: no window, no global state.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import os
import warnings

import numpy as np

from prompt_tuning.analysis.record import Histogram
from prompt_tuning.checkpoints import atomic

_COLORS = ('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377')


def activations(
    path: str | os.PathLike, histogram: Histogram, baseline: float, labels: Sequence[str], title: str) -> None:
  """Histogram of a neuron's activation for each label, the baseline as a dashed line (the paper's Figures 1 and 2)."""
  with _figure(path, title, 'activation', 'share of the label\'s rows') as axes:
    for i, (label, counts) in enumerate(zip(labels, histogram.counts, strict=True)):
      share = counts / max(counts.sum(), 1)
      axes.stairs(share, histogram.edges, fill=True, alpha=0.45, color=_COLORS[i % len(_COLORS)], label=label)
    axes.axvline(baseline, color='black', linestyle='--', linewidth=1, label='baseline')
    _legend(axes)


def predictivity_by_layer(path: str | os.PathLike, preds: Mapping[str, np.ndarray], title: str) -> None:
  """How each finder's predictivities [L, F] are spread in each layer: quartiles, 1% to 99%, and the best neuron."""
  with _figure(path, title, 'layer', 'predictivity') as axes:
    width = 0.8 / len(preds)
    for i, (name, pred) in enumerate(preds.items()):
      at = np.arange(len(pred)) + (i - (len(preds) - 1) / 2) * width
      color = _COLORS[i % len(_COLORS)]
      least, low, middle, high, most = np.percentile(pred, (1, 25, 50, 75, 99), axis=1)
      axes.vlines(at, least, most, color=color, linewidth=1)
      axes.bar(at, high - low, width * 0.8, bottom=low, color=color, alpha=0.5)
      axes.plot(at, middle, '_', color='black')
      axes.plot(at, pred.max(1), 'o', markersize=4, color=color, label=f'{name}: best neuron')
    axes.set_xticks(range(len(pred)))
    axes.axhline(0.5, color='gray', linewidth=0.8)
    _legend(axes)


def perturbation(
    path: str | os.PathLike, percent: np.ndarray, curves: Mapping[str, np.ndarray], title: str,
    metric: str = 'accuracy') -> None:
  """Accuracies [n, seeds] against the percent of neurons touched [n]: means, and bands of one standard deviation."""
  with _figure(path, title, '% of neurons', metric) as axes:
    for i, (name, values) in enumerate(curves.items()):
      mean, sd, color = values.mean(1), values.std(1), _COLORS[i % len(_COLORS)]
      axes.plot(percent, mean, marker='o', markersize=3, color=color, label=name)
      axes.fill_between(percent, mean - sd, mean + sd, color=color, alpha=0.2, linewidth=0)
    _legend(axes)


def heatmap(
    path: str | os.PathLike, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str,
    xlabel: str = '', ylabel: str = '') -> None:
  """A matrix [len(rows), len(columns)] in colours, each cell with its number; NaN stays empty."""
  size = (2.5 + 0.8 * len(columns), 1.8 + 0.6 * len(rows))
  with _figure(path, title, xlabel, ylabel, size) as axes:
    image = axes.imshow(matrix, cmap='viridis', aspect='auto')
    axes.figure.colorbar(image)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha='right', parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    for row, column in np.argwhere(~np.isnan(matrix)):
      dark = image.norm(matrix[row, column]) < 0.6
      axes.text(column, row, f'{matrix[row, column]:.2f}', ha='center', va='center', fontsize=8,
                color='white' if dark else 'black')


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
  """Writes a file that appears whole or not at all."""
  path = atomic.on_disk(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_bytes(data)
  os.replace(temporary, path)


@contextlib.contextmanager
def _figure(path, title: str, xlabel: str, ylabel: str, size: tuple[float, float] = (6.4, 4.0)) -> Iterator:
  """Axes to draw on, which are saved at `path` when the block ends."""
  from matplotlib.figure import Figure
  figure = Figure(figsize=size, dpi=110, layout='constrained')
  axes = figure.subplots()
  axes.set_title(title, parse_math=False)  # names of tasks and words are no formulas
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  yield axes
  data = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', r'Glyph .* missing')  # words of any script; the report has them as text
    figure.savefig(data, format='png', metadata={'Software': None})
  write_bytes(path, data.getvalue())


def _legend(axes) -> None:
  for text in axes.legend(fontsize=8).get_texts():
    text.set_parse_math(False)
