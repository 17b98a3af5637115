"""What a task's examples are: how many, how long in tokens, which labels. Numbers, text and a picture of them."""

import collections
from collections.abc import Callable, Mapping, Sequence
import io
import os
import pathlib
from typing import Any

import numpy as np
import seqio

from prompt_tuning import features
from prompt_tuning.progress import Progress
from prompt_tuning.tokenizer import AnyTokenizer, open_tokenizer

FEATURES = ('inputs', 'targets')
PERCENTILES = (50, 90, 95, 99, 100)
MOST_LABELS = 32  # different targets; more, or hardly fewer than there are examples, are no label words
BINS = 12
BAR = 40  # characters
_COLORS = ('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377')

Encode = Callable[[Mapping], Mapping]


def encoder(path: str) -> tuple[AnyTokenizer, Encode]:
  """A tokenizer (T5's, GPT-2's, BART's and RoBERTa's, BERT's) and how it makes ids of an example's text.

  Raises:
    FileNotFoundError, ValueError: there is none of these at `path`.
  """
  errors = {}
  for family in ('t5', 'bert', 'bart', 'gpt2'):
    try:
      tokenizer = open_tokenizer(path, family)
    except (OSError, ValueError, RuntimeError) as error:
      errors[family] = error
      continue
    return tokenizer, _encode(tokenizer, family)
  reasons = '\n'.join(f'  {family}: {error}' for family, error in errors.items())
  raise ValueError(f'--tokenizer={path}: no tokenizer that is known here.\n{reasons}')


def _encode(tokenizer: AnyTokenizer, family: str) -> Encode:
  bos, eos = (getattr(tokenizer, name) for name in ('bos_id', 'eos_id'))
  layout = {
      't5': features.Layout(closing=(eos,), target_closing=(eos,)),
      'gpt2': features.Layout((), (), (), (eos,), spaces=True),
  }.get(family, features.Layout((bos,), (eos,), (bos,), (eos,)))

  def encode(example: Mapping) -> Mapping:
    texts = [example.get(f'{name}_pretokenized') for name in FEATURES]
    if None in texts:
      raise ValueError('--tokenizer: this task keeps no text that another tokenizer could encode.')
    return layout.encode(tokenizer, *(text.decode() for text in texts))

  return encode


def measure(
    task: seqio.Task, split: str, limits: Mapping[str, int], encode: Encode | None = None,
    limit: int | None = None) -> dict[str, Any]:
  """Reads a split, as the model sees it but not cut.

  Args:
    task: the task.
    split: one of its splits.
    limits: TASK_FEATURE_LENGTHS.
    encode: see `encoder`; None: the task's own tokens.
    limit: at most so many examples.

  Returns:
    `examples`; `inputs` and `targets`, each with `limit`, `longer` (examples that would be cut), `mean`, `percentiles`
    and, for `histogram`, `counts` of tokens; `labels` with `count` and `share`, where targets are label words; and the
    first example as text, `example`. Raises what the source raises.
  """
  found = {name: collections.Counter() for name in FEATURES}
  labels, first, examples = collections.Counter(), {}, 0
  progress = Progress(every=10, unit='example')
  data = task.get_dataset(sequence_length=None, split=split, shuffle=False, try_in_mem_cache=False)
  for example in data.take(-1 if limit is None else limit).as_numpy_iterator():
    ids = encode(example) if encode else example
    for name in FEATURES:
      found[name][len(ids.get(name, ()))] += 1
    first = first or {name: _text(task, example, name) for name in FEATURES}
    if len(labels) <= MOST_LABELS:
      labels[_text(task, example, 'targets')] += 1
    examples += 1
    progress.show(examples, {})
  result = {'examples': examples, **{name: _summary(found[name], limits[name]) for name in FEATURES if examples}}
  if 0 < len(labels) <= min(MOST_LABELS, max(examples // 2, 1)):
    result['labels'] = {word: {'count': n, 'share': n / examples} for word, n in sorted(labels.items())}
  return {**result, 'example': first}


def _text(task: seqio.Task, example: Mapping, name: str) -> str:
  """A feature as text: that before the tokens, or what the tokens say."""
  text = example.get(f'{name}_pretokenized')
  if text is not None:
    return text.decode()
  if name not in example:
    return ''
  return task.output_features[name].vocabulary.decode(np.asarray(example[name]).tolist())


def _summary(counts: Mapping[int, int], limit: int) -> dict[str, Any]:
  sizes = np.array(sorted(counts))
  each = np.array([counts[n] for n in sizes.tolist()])
  total, longer = int(each.sum()), int(each[sizes > limit].sum())
  ranks = np.searchsorted(np.cumsum(each), np.array(PERCENTILES) / 100 * total - 1e-9)
  return {'limit': limit, 'longer': longer, 'longer_share': longer / total, 'mean': float(sizes @ each / total),
          'percentiles': {str(p): int(n) for p, n in zip(PERCENTILES, sizes[ranks], strict=True)},
          'counts': {str(n): int(m) for n, m in zip(sizes, each, strict=True)}}


def histogram(counts: Mapping[str, int], bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
  """(edges [n + 1], examples [n]) of about `bins` equal bins of lengths; a bin ends before its upper edge."""
  sizes = np.array(list(map(int, counts)))
  width = -(-(sizes.max() + 1 - sizes.min()) // bins)
  edges = np.arange(sizes.min() // width * width, sizes.max() + width + 1, width)
  return edges, np.histogram(sizes, edges, weights=list(counts.values()))[0].astype(int)


def together(splits: Mapping[str, Mapping], name: str) -> dict[str, int]:
  """The length counts of all splits that were read."""
  total = collections.Counter()
  for split in splits.values():
    total.update(split[name]['counts'] if name in split else {})
  return dict(total)


def bars(counts: Mapping[str, int], limit: int) -> list[str]:
  """A histogram as lines of text; a bin with lengths beyond the limit is marked."""
  edges, examples = histogram(counts)
  width = len(f'{edges[-1] - 1}')
  return [f'{low:>{width}}-{high - 1:<{width}} {"!" if high - 1 > limit else " "} '
          f'{"#" * -(-BAR * n // examples.max()):<{BAR}} {n:,}'
          for low, high, n in zip(edges[:-1].tolist(), edges[1:].tolist(), examples.tolist(), strict=True)]


def draw(path: str | os.PathLike, found: Mapping[str, Mapping]) -> None:
  """A PNG: a row for each task, inputs and targets, a line for each split as a share of it; dashed: the limit."""
  from matplotlib.figure import Figure
  rows = {name: task['splits'] for name, task in found.items() if together(task['splits'], 'inputs')}
  if not rows:
    return
  figure = Figure(figsize=(10, 2.8 * len(rows)), dpi=110, layout='constrained')
  for axes, (name, splits) in zip(figure.subplots(len(rows), 2, squeeze=False), rows.items(), strict=True):
    for axis, feature in zip(axes, FEATURES, strict=True):
      _draw(axis, {split: values[feature] for split, values in splits.items() if feature in values},
            histogram(together(splits, feature), bins=40)[0])
      axis.set_title(f'{name}: {feature}', parse_math=False, fontsize=9)
      axis.set_xlabel('tokens')
      axis.set_ylabel('share of the split')
  data = io.BytesIO()
  figure.savefig(data, format='png', metadata={'Software': None})
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.write_bytes(data.getvalue())
  os.replace(temporary, path)


def _draw(axis, splits: Mapping[str, Mapping], edges: np.ndarray) -> None:
  for i, (split, values) in enumerate(splits.items()):
    shown = np.histogram(list(map(int, values['counts'])), edges, weights=list(values['counts'].values()))[0]
    axis.stairs(shown / shown.sum(), edges, color=_COLORS[i % len(_COLORS)], label=split)
    limit = values['limit']
  if limit <= 2 * edges[-1]:  # else it would take the picture's room
    axis.axvline(limit + 0.5, color='black', linestyle='--', linewidth=1, label=f'limit {limit}')
  axis.legend(fontsize=7)


def percentiles(splits: Mapping[str, Mapping]) -> Sequence[tuple[str, ...]]:
  """A table: a line for each split and feature."""
  lines = [('split', 'examples', 'tokens of', 'mean', *(f'{p}%' for p in PERCENTILES), 'longer than')]
  for split, values in splits.items():
    for name in (feature for feature in FEATURES if feature in values):
      of = values[name]
      lines.append((split, f'{values["examples"]:,}', name, f'{of["mean"]:.1f}', *map(str, of['percentiles'].values()),
                    f'{of["limit"]}: {of["longer"]:,} ({of["longer_share"]:.2%})'))
  return lines
