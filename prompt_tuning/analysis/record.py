"""Streaming statistics of FFN activations (Wang et al. 2022, section 3): what skill neurons are found with.

Contents of `mlp_act` sites reduce a batch inside each layer, so that [L, K, 2, P, F] leaves the device whatever B and
S are. Sums over a batch are float32 there, whatever the activations' dtype (counts are exact: B < 2^24), and batches
are added up in float64 on the host while the next one runs. K sub-tasks (`predictivity.py`; 1 where there are two
classes), with rows of label 0 and 1 apart: accuracies need no second statistic. Differs from the paper's code, which
keeps every activation of the data in memory.

Batches come as NumPy arrays with their labels: integers [B], or [B, K] for sub-tasks; negative: the row does not count
(padding). With several processes each has the same batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from prompt_tuning.analysis import readings
from prompt_tuning.analysis.readings import Looks
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.types import Array, Batch, Params, Trainable

Read = Callable[[Batch, sites_lib.Sites], Mapping[str, Array]]
Labelled = Iterable[tuple[Batch, np.ndarray]]


class Address(NamedTuple):
  """One neuron at one position; layers of several stacks are counted through, the encoder's first."""

  layer: int
  position: int  # among those looked at, not in the row
  neuron: int


@dataclasses.dataclass(frozen=True)
class Totals:
  """What was added up over some data.

  Attributes:
    by_site: float64 [L, K, 2, P, F], by sub-task and label.
    counts: rows, int64 [K, 2].
  """

  by_site: Mapping[str, np.ndarray]
  counts: np.ndarray

  @property
  def joined(self) -> np.ndarray:
    """All layers [L, K, 2, P, F], see `join`."""
    return join(self.by_site)


def join(by_site: Mapping[str, np.ndarray]) -> np.ndarray:
  """Arrays [L, ...] of the stacks as one, the encoder's layers first.

  Raises:
    ValueError: they differ in another axis.
  """
  arrays = [by_site[site] for site in sorted(by_site, reverse=True)]  # 'encoder/...' comes before 'decoder/...'
  if len({a.shape[1:] for a in arrays}) > 1:
    raise ValueError(f'The stacks differ: {", ".join(f"{site} {a.shape}" for site, a in by_site.items())}; expected '
                     'as many places in both. Aggregate over the places of each stack first, or look at one stack.')
  return np.concatenate(arrays)


def split(content, layers: Mapping[str, int]) -> dict:
  """A content (or an array) [sum of L, ...] as one for each site: the inverse of `join`."""
  parts, first = {}, 0
  for site in sorted(layers, reverse=True):
    part = slice(first, first + layers[site])
    parts[site] = jax.tree.map(lambda x, part=part: x[part], content)
    first = part.stop
  return parts


def reader(model: Prompted, trainable: Trainable, frozen: Params, partitioner: Partitioner) -> Read:
  """(batch, sites) -> what the contents of `sites` read, [L, ...] on every device.

  It is compiled once for batches of a shape and readings of a kind, and runs no more of the model than they need. The
  contents of `sites` lie behind the method's own; of two readings at one site the last one is kept.
  """
  run = jax.jit(lambda *args: model.read(*args)[1], out_shardings=partitioner.replicated)
  return lambda batch, sites: run(trainable, frozen, partitioner.place_batch(batch), sites)


def baseline(read: Read, batches: Labelled, looks: Looks) -> Totals:
  """Sums of activations over the data, of which `mean` makes the baselines (the training data's, in the paper)."""
  return _total(read, batches, looks, lambda site, places, rows: readings.Sum(places, rows))


def mean(totals: Totals) -> dict[str, np.ndarray]:
  """Mean activation over the rows of either label, float32 [L, K, P, F] for each site.

  Raises:
    ValueError: a sub-task without rows.
  """
  if not totals.counts.sum(1).all():
    raise ValueError(f'No rows to take a mean of in sub-task {int(np.argmin(totals.counts.sum(1)))}: expected labels 0 '
                     'and 1.')
  rows = totals.counts.sum(1)[:, None, None]
  return {site: (x.sum(2) / rows).astype(np.float32) for site, x in totals.by_site.items()}


def hits(read: Read, batches: Labelled, looks: Looks, thresholds: Mapping[str, np.ndarray]) -> Totals:
  """How many rows lie above the thresholds [L, K, P, F] of each site; `predictivity.accuracy` goes on from there."""
  return _total(read, batches, looks, lambda site, places, rows: readings.Hits(places, rows, thresholds[site]))


def values(
    read: Read, batches: Labelled, looks: Looks, addresses: Sequence[Address]) -> tuple[np.ndarray, np.ndarray]:
  """Activations of some neurons, float32 [rows, n], and the labels [rows] of these rows.

  Raises:
    ValueError: no rows, or an address that is outside the layers, places or neurons looked at.
  """
  found = list(_values(read, batches, looks, addresses))
  if not found:
    raise ValueError('No rows to read activations of: the data is empty.')
  return tuple(np.concatenate(each) for each in zip(*found, strict=True))


@dataclasses.dataclass(frozen=True)
class Histogram:
  """Activations of one neuron by label.

  Attributes:
    edges: of the bins [bins + 1]; what lies outside is counted in the first or the last one.
    counts: rows, int64 [classes, bins].
  """

  edges: np.ndarray
  counts: np.ndarray


def histograms(
    read: Read, batches: Labelled, looks: Looks, addresses: Sequence[Address], classes: int = 2,
    bins: int = 40) -> list[Histogram]:
  """One histogram an address, in one pass; the bins span twice the range that the first batch has.

  Raises:
    ValueError: no rows, a label that is none of 0 to `classes` - 1, or an address outside of what is looked at.
  """
  edges, counts = None, np.zeros((len(addresses), classes, bins), np.int64)
  for x, labels in _values(read, batches, looks, addresses):
    if labels.max(initial=0) >= classes:
      raise ValueError(f'Label {labels.max()}; expected 0 to {classes - 1}.')
    if edges is None and len(x):
      low, high = x.min(0), x.max(0)
      margin = np.maximum((high - low) / 2, 1e-6)
      edges = np.linspace(low - margin, high + margin, bins + 1, axis=1)
    for i in range(len(addresses) if len(x) else 0):
      inside = np.clip(np.searchsorted(edges[i], x[:, i], side='right') - 1, 0, bins - 1)
      np.add.at(counts[i], (labels, inside), 1)
  if edges is None:
    raise ValueError('No rows to make a histogram of: the data is empty.')
  return [Histogram(*each) for each in zip(edges, counts, strict=True)]


def stream(read: Read, batches: Labelled, contents: Callable) -> Iterator[tuple[Mapping[str, Array], np.ndarray]]:
  """What is read of each batch and its labels, one batch behind, so that the device has work meanwhile.

  Args:
    contents: (batch, labels) -> sites.
  """
  waiting = None
  for batch, labels in batches:
    labels = np.asarray(labels)
    new = read(batch, contents(batch, labels)), labels
    if waiting is not None:
      yield waiting
    waiting = new
  if waiting is not None:
    yield waiting


def members(labels: np.ndarray) -> np.ndarray:
  """Labels [B] or [B, K] -> float32 [B, K, 2]: 1 where a row has label 0, and 1; negative labels have neither.

  Raises:
    ValueError: a label above 1.
  """
  labels = labels.reshape(len(labels), -1)
  if labels.max(initial=0) > 1:
    raise ValueError(f'Label {labels.max()} in a probe of two classes; expected 0, 1 or, not to be counted, -1. Make '
                     'sub-tasks of more classes (predictivity.sub_tasks).')
  return (labels[..., None] == np.arange(2)).astype(np.float32)


def _total(read: Read, batches: Labelled, looks: Looks, reading: Callable) -> Totals:

  def contents(batch, labels):
    rows = members(labels)
    return {site: reading(site, look.places(batch), readings.tiled(rows, look.layers)) for site, look in looks.items()}

  total, counts = None, 0
  for found, labels in stream(read, batches, contents):
    if total is None:
      total = {site: np.zeros(x.shape, np.float64) for site, x in found.items()}
    for site, x in found.items():
      total[site] += np.asarray(x)
    counts += members(labels).sum(0).astype(np.int64)
  if total is None:
    raise ValueError('No rows to add up: the data is empty.')
  return Totals(total, counts)


def _values(read, batches, looks, addresses) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  layers = {site: look.layers for site, look in looks.items()}
  at, place, neuron = np.asarray(addresses, np.int32).reshape(-1, 3).T
  if len(at) and not 0 <= at.min() <= at.max() < sum(layers.values()):
    raise ValueError(f'Layers {sorted(set(at.tolist()))} of neurons; expected 0 to {sum(layers.values()) - 1}.')

  def contents(batch, labels):
    return {site: readings.Values(look.places(batch), *(readings.tiled(x, look.layers) for x in (place, neuron)))
            for site, look in looks.items()}

  for found, labels in stream(read, batches, contents):
    x = join({site: np.asarray(x) for site, x in found.items()})[at, :, np.arange(len(at))].T  # [B, n]
    if (wrong := np.isnan(x).any(0)).any():
      raise ValueError(f'{tuple(addresses[int(np.argmax(wrong))])} (layer, place, neuron) has no activation: it is '
                       'outside of the places or neurons looked at, or the model makes no number there.')
    yield x[labels >= 0], labels[labels >= 0]
