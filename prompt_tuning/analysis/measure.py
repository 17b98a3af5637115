"""One prompt's neurons, measured on data in memory: what the probe job repeats for each prompt and control."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.analysis import intervene, predictivity, readings, record
from prompt_tuning.analysis.predictivity import SubTask
from prompt_tuning.analysis.record import Address
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.types import Array, Batch, Params, Trainable

HOW = ('noise', 'zero', 'mean')  # what can be done to a neuron


@dataclasses.dataclass(frozen=True)
class Split:
  """Batches of one shape, [B, ...] each, the last one filled up, and the classes of all rows [n B], -1 for filling."""

  batches: Sequence[Batch]
  classes: np.ndarray

  def labelled(self, labels: np.ndarray | None = None):
    """(batch, labels of its rows), by default their classes."""
    labels = self.classes if labels is None else labels
    return zip(self.batches, np.split(labels, len(self.batches)), strict=True)


@dataclasses.dataclass(frozen=True)
class Programs:
  """What is compiled once for all that is trained on a model in one form."""

  prompted: Prompted
  partitioner: Partitioner

  @functools.cached_property
  def read(self) -> Callable:
    """(trainable, frozen, batch, sites) -> what the sites read; no more of the model runs than that needs."""
    return jax.jit(lambda *args: self.prompted.read(*args)[1], out_shardings=self.partitioner.replicated)

  @functools.cached_property
  def classes(self) -> Callable:
    """(trainable, frozen, batch, sites) -> classes [B]."""
    prompted = self.prompted
    choose = lambda trainable, frozen, batch, sites: prompted.readout.choose(
        prompted.logits(trainable, frozen, batch, sites=sites))[:, 0]
    return jax.jit(choose, out_shardings=self.partitioner.replicated)


@dataclasses.dataclass(frozen=True)
class Model:
  """A frozen model with one thing trained on it."""

  programs: Programs
  trainable: Trainable
  frozen: Params

  def read(self, batch: Batch, sites: sites_lib.Sites) -> Mapping[str, Array]:
    """See `record.Read`."""
    return self.programs.read(self.trainable, self.frozen, self.programs.partitioner.place_batch(batch), sites)

  def accuracy(self, split: Split, sites: Callable[[int], sites_lib.Sites] | None = None) -> float:
    """How many rows of a split get the right class; `sites`: number of the batch -> interventions."""
    found = [self.programs.classes(self.trainable, self.frozen, self.programs.partitioner.place_batch(batch),
                                   sites(i) if sites else {}) for i, batch in enumerate(split.batches)]
    rows = split.classes >= 0
    return float(np.mean(np.concatenate([np.asarray(x) for x in found])[rows] == split.classes[rows]))

  def under(self, split: Split, layers: Mapping[str, int], mask: np.ndarray, how: str, alpha: float, seed: int,
            mean: np.ndarray | None = None) -> float:
    """Accuracy with an intervention on the neurons of a mask [L, F]: 'noise', 'zero' or 'mean' (of theirs, [L, F])."""
    key = jax.random.key(seed)

    def sites(i):
      if how == 'noise':
        content = intervene.noise(mask, alpha, jax.random.fold_in(key, i))
      elif how == 'zero':
        content = intervene.Zero(jnp.asarray(mask))
      else:
        content = intervene.Mean(jnp.asarray(mask), jnp.asarray(mean, jnp.float32))
      return record.split(content, layers)

    return self.accuracy(split, sites)


@dataclasses.dataclass(frozen=True)
class Trial:
  """Predictivities of one prompt; K sub-tasks, L layers, P places, F neurons.

  Attributes:
    baseline: [K, L, P, F], means over the training data.
    dev, test: accuracies of "above the baseline", [K, L, P, F].
  """

  baseline: np.ndarray
  dev: np.ndarray
  test: np.ndarray

  @property
  def pred(self) -> np.ndarray:
    """On dev data, the finder: [K, L, P, F]."""
    return predictivity.predictivity(self.dev)

  def at(self, place: int) -> 'Trial':
    """The same of one place alone."""
    return Trial(*(x[:, :, [place]] for x in (self.baseline, self.dev, self.test)))

  @property
  def best(self) -> list[Address]:
    """The best neuron and place of each sub-task."""
    return [predictivity.best(pred) for pred in self.pred]

  @property
  def test_of_best(self) -> list[float]:
    """Test predictivity of each."""
    on_test = predictivity.on_test(self.dev, self.test)
    return [float(on_test[k][address]) for k, address in enumerate(self.best)]


def trial(model: Model, splits: Mapping[str, Split], looks: readings.Looks, tasks: Sequence[SubTask]) -> Trial:
  """Three passes: baselines on `train`, accuracies on `dev` and on `test`.

  Raises:
    ValueError: a split has rows of one class only.
  """
  labels = {name: predictivity.labels_of(split.classes, tasks) for name, split in splits.items()}
  mean = record.mean(record.baseline(model.read, splits['train'].labelled(labels['train']), looks))
  found = {}
  for name in ('dev', 'test'):
    totals = record.hits(model.read, splits[name].labelled(labels[name]), looks, mean)
    found[name] = predictivity.accuracy(totals.joined, totals.counts)
  return Trial(np.moveaxis(record.join(mean), 1, 0), found['dev'], found['test'])


def neuron_accuracy(model: Model, splits: Mapping[str, Split], looks: readings.Looks, of: Trial, classes: int) -> float:
  """Test accuracy of the best neurons alone: by the baseline, or a regression on those of several sub-tasks."""
  if len(of.best) == 1:
    return of.test_of_best[0]
  x, labels = record.values(model.read, splits['train'].labelled(), looks, of.best)
  fit = predictivity.regression(x, labels, classes)
  return fit.accuracy(*record.values(model.read, splits['test'].labelled(), looks, of.best))


def activated(model: Model, batch: Batch, looks: readings.Looks) -> np.ndarray:
  """Activations at the first place looked at, [L, F], of a batch with one row that counts (an empty text)."""
  rows = np.full(len(batch['encoder_input_tokens']), -1)
  rows[0] = 0
  totals = record.baseline(model.read, [(batch, rows)], looks)
  return totals.joined[:, 0, 0, 0]
