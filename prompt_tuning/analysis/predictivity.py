"""Which neurons tell the label: predictivity, its aggregation, and the top neurons (Wang et al. 2022, section 3).

A neuron predicts label 1 where its activation is above its baseline, the mean over the training data. Acc is how often
that is right on other data and Pred = max(Acc, 1 - Acc). The paper ranks all neurons together, its code those of each
layer; both are here, and the code's way, which pruning needs, is the default. The paper speaks of a regression on the
sub-tasks' top neurons where a task has more than two classes; ours is logistic and solved by Newton's method, so that
nothing is drawn.

Shapes: K sub-tasks, L layers, P places, F neurons; R trials (seeds of the prompt).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from prompt_tuning.analysis.record import Address


def accuracy(above: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """How often "above the baseline" is the label: [K, L, P, F] in [0, 1].

  Args:
    above: rows above the baseline by sub-task and label, [L, K, 2, P, F] (`record.Totals.joined`).
    counts: rows there are, [K, 2].

  Raises:
    ValueError: all rows have one label.
  """
  if (counts == 0).any():
    k, label = np.argwhere(counts == 0)[0]
    raise ValueError(f'Sub-task {k} has {counts[k, 1 - label]} rows of label {1 - label} and none of label {label}; '
                     'predictivity needs both: use a split that has both classes, or more rows.')
  rows = counts[:, :, None, None]
  right = above[:, :, 1] + (rows[:, 0] - above[:, :, 0])
  return np.moveaxis(right / rows.sum(1), 1, 0)


def predictivity(acc: np.ndarray) -> np.ndarray:
  """Pred = max(Acc, 1 - Acc): a neuron that is below its baseline for label 1 is as good."""
  return np.maximum(acc, 1 - acc)


def on_test(dev: np.ndarray, test: np.ndarray) -> np.ndarray:
  """Predictivity on test data: its accuracy, reversed where it is below one half on the dev data."""
  return np.where(dev < 0.5, 1 - test, test)


def aggregate(trials: Sequence[np.ndarray], over_trials: str = 'mean') -> np.ndarray:
  """Pred(N): the maximum over places, then the mean over trials (or the minimum, as the paper's code may do).

  Args:
    trials: R arrays [..., P, F], such as [K, L, P, F].

  Returns:
    [..., F].

  Raises:
    ValueError: an unknown `over_trials`.
  """
  over = {'mean': np.mean, 'min': np.min}
  if over_trials not in over:
    raise ValueError(f'over_trials={over_trials!r}; expected mean or min.')
  return over[over_trials]([np.max(trial, axis=-2) for trial in trials], axis=0)


def best(pred: np.ndarray) -> Address:
  """The neuron and place of the highest predictivity of one sub-task [L, P, F]; the first one where several tie."""
  return Address(*map(int, np.unravel_index(np.argmax(pred), pred.shape)))


# --- the top neurons ---


def top(
    pred: np.ndarray, percent: float | None = None, count: int | None = None, per_layer: bool = True,
    layers: tuple[int, int] | None = None) -> np.ndarray:
  """The most predictive neurons, so many percent or a count of them, as a mask [L, F].

  Of several sub-tasks each gives an equal share of what is chosen, in their order: its best that are not chosen yet;
  the last one fills up (2% of 3072 neurons by two sub-tasks: 30 and 31). Of neurons that tie the first ones come first.

  Args:
    pred: [L, F] or, of sub-tasks, [K, L, F].
    percent: 0 to 100 of the neurons of each layer, rounded down; without `per_layer` of all neurons of `layers`.
    count: the same as a number; give one of the two.
    layers: the first layer and the one behind the last; None: all.

  Raises:
    ValueError: `percent` or `count` is out of range, both or neither are given, or there is no layer in `layers`.
  """
  pred = pred if pred.ndim == 3 else pred[None]
  part = layer_range(layers, pred.shape[1])
  if (percent is None) == (count is None):
    raise ValueError(f'percent={percent} and count={count}; expected one of the two.')
  if percent is not None and not 0 <= percent <= 100:
    raise ValueError(f'percent={percent} of the neurons; expected 0 to 100.')
  mask = np.zeros(pred.shape[1:], bool)
  ranked = pred[:, part]
  ranked = ranked if per_layer else ranked.reshape(len(pred), 1, -1)
  neurons = ranked.shape[2]
  count = int(percent * neurons / 100 + 1e-9) if count is None else count
  if not 0 <= count <= neurons:
    raise ValueError(f'count={count} neurons; expected 0 to {neurons}.')
  chosen = np.stack([_shares(ranked[:, row], count) for row in range(ranked.shape[1])])
  mask[part] = chosen.reshape(mask[part].shape)
  return mask


def layer_range(layers: tuple[int, int] | None, count: int) -> slice:
  """(first, behind the last) of `count` layers as a slice; None: all.

  Raises:
    ValueError: they are none of the layers there are, or none at all.
  """
  first, stop = layers or (0, count)
  if not 0 <= first < stop <= count:
    raise ValueError(f'Layers {first} to {stop} (the last one excluded) of {count} select nothing or what is not '
                     f'there; expected 0 <= first < last <= {count}.')
  return slice(first, stop)


def _shares(pred: np.ndarray, count: int) -> np.ndarray:
  """`count` of n neurons, ranked by K sub-tasks [K, n], as a mask [n]."""
  chosen = np.zeros(pred.shape[1], bool)
  for k, values in enumerate(pred):
    order = np.argsort(-values, kind='stable')
    order = order[~chosen[order]]
    chosen[order[:(k + 1) * count // len(pred) - chosen.sum()]] = True
  return chosen


# --- more than two classes ---


@dataclasses.dataclass(frozen=True)
class SubTask:
  """Two groups of classes, told apart by a neuron: those of label 0 and of label 1."""

  negative: tuple[int, ...]
  positive: tuple[int, ...]


def sub_tasks(classes: int, one_against_rest: bool = False) -> tuple[SubTask, ...]:
  """How a task of so many classes is split, keeping its prompt.

  Three classes (negative, neutral, positive): 2 against 0, and 1 against the rest. Four (conflict, negative, neutral,
  positive): 3 against 1, and 2 against the rest. More, or with `one_against_rest`: each class against the rest.

  Raises:
    ValueError: fewer than two classes.
  """
  if classes < 2:
    raise ValueError(f'{classes} classes; expected two or more.')
  if classes == 2:
    return (SubTask((0,), (1,)),)
  against_rest = lambda c: SubTask(tuple(other for other in range(classes) if other != c), (c,))
  if classes > 4 or one_against_rest:
    return tuple(map(against_rest, range(classes)))
  return SubTask((classes - 3,), (classes - 1,)), against_rest(classes - 2)


def labels_of(labels: np.ndarray, tasks: Sequence[SubTask]) -> np.ndarray:
  """Classes [N] of a split, in its order -> labels of sub-tasks [N, K]: 0, 1 or, of no interest, -1.

  Of several sub-tasks each is balanced: of the larger group the first rows count, as many as the smaller one has.

  Raises:
    ValueError: a class that the sub-tasks do not name.
  """
  known = {c for task in tasks for c in (*task.negative, *task.positive)}
  if unknown := sorted(set(np.unique(labels[labels >= 0]).tolist()) - known):
    raise ValueError(f'Labels {unknown} in the data; expected {sorted(known)}.')
  found = np.full((len(labels), len(tasks)), -1, np.int8)
  for k, task in enumerate(tasks):
    groups = [np.flatnonzero(np.isin(labels, group)) for group in (task.negative, task.positive)]
    most = min(map(len, groups)) if len(tasks) > 1 else None
    for label, rows in enumerate(groups):
      found[rows[:most], k] = label
  return found


@dataclasses.dataclass(frozen=True)
class Regression:
  """Classes from the activations of K neurons: logits `[1, (x - mean) / sd] @ weights`."""

  weights: np.ndarray  # [1 + K, C]; the first class has zeros
  mean: np.ndarray  # [K]
  sd: np.ndarray  # [K]

  def logits(self, x: np.ndarray) -> np.ndarray:
    """Activations [N, K] -> [N, C]."""
    return np.insert((x - self.mean) / self.sd, 0, 1, axis=1) @ self.weights

  def accuracy(self, x: np.ndarray, labels: np.ndarray) -> float:
    """How many classes [N] are right."""
    return float(np.mean(np.argmax(self.logits(x), axis=1) == labels))


def regression(x: np.ndarray, labels: np.ndarray, classes: int, ridge: float = 1e-6, steps: int = 100) -> Regression:
  """Fits multinomial logistic regression by Newton's method: the accuracy of a task's neurons is its accuracy.

  Args:
    x: activations of the sub-tasks' best neurons [N, K].
    labels: classes [N].
    ridge: times half the squared weights, beside the mean log loss; it keeps separable data finite.

  Raises:
    ValueError: all rows are of one class.
  """
  if len(np.unique(labels)) < 2:
    raise ValueError(f'All {len(labels)} rows are of class {sorted(set(np.asarray(labels).tolist()))}; a regression '
                     'needs two or more.')
  x = np.asarray(x, np.float64)
  mean, sd = x.mean(0), x.std(0)
  fit = Regression(np.zeros((1 + x.shape[1], classes)), mean, np.where(sd > 0, sd, 1))
  inputs, wanted = np.insert((x - mean) / fit.sd, 0, 1, axis=1), np.eye(classes)[labels]
  size = inputs.shape[1]

  def loss_of(weights):
    logits = inputs @ weights
    shifted = logits - logits.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -np.mean((log_probs * wanted).sum(1)) + ridge / 2 * np.sum(weights**2), np.exp(log_probs)

  weights = fit.weights
  loss, probs = loss_of(weights)
  for _ in range(steps):
    slope = (inputs.T @ (probs - wanted) / len(x) + ridge * weights)[:, 1:]  # [1 + K, C - 1]
    curvature = np.zeros((classes - 1, size, classes - 1, size))
    for a in range(1, classes):
      for b in range(1, classes):
        spread = probs[:, a] * ((a == b) - probs[:, b])
        curvature[a - 1, :, b - 1] = (inputs * spread[:, None]).T @ inputs / len(x) + ridge * (a == b) * np.eye(size)
    step = np.linalg.solve(curvature.reshape((classes - 1) * size, -1), slope.T.reshape(-1))
    step = np.insert(step.reshape(classes - 1, size).T, 0, 0, axis=1)  # [1 + K, C]
    for halving in 0.5**np.arange(30):
      new_loss, new_probs = loss_of(weights - halving * step)
      if new_loss < loss:
        break
    else:
      break  # no step is better: converged
    weights, loss, probs = weights - halving * step, new_loss, new_probs
  return dataclasses.replace(fit, weights=weights)


# --- orders of neurons compared ---


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Spearman's correlation along the last axis, ties sharing their mean rank; NaN where a side is constant."""
  from scipy import stats  # comes with jax
  a, b = (stats.rankdata(x, axis=-1) for x in (a, b))
  a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
  scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
  return np.divide((a * b).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def cross_task(preds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Spearman of the predictivities [L, F] of each two of n tasks: over all neurons [n, n], and by layer [L, n, n]."""
  preds = np.stack(preds)
  flat = preds.reshape(len(preds), -1)
  overall = np.stack([spearman(flat, one) for one in flat])
  by_layer = np.stack([spearman(preds, one) for one in preds])  # [n, n, L]
  return overall, np.moveaxis(by_layer, -1, 0)
