"""Whether a prompt will work on another task: which neurons it activates (Wang et al. 2022, section 5; Su et al.).

A neuron is activated by a prompt where its activation is above 0 at one position, with the prompt in front of an empty
text. ON of two prompts is the cosine of the two binary vectors, and is compared with how well the one's prompt does on
the other's task, unchanged. The papers do not say whether a task is its own source; here it is not, as that is no
transfer.
"""

from collections.abc import Sequence

import numpy as np

from prompt_tuning.analysis import predictivity


def overlap(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
  """ON: cosine of which neurons are activated by two prompts, [L, F] each; 0 where one activates none.

  Args:
    mask: the neurons that count [L, F]; None: all.
  """
  a, b = ((x > 0) & (True if mask is None else mask) for x in (a, b))
  both = np.sqrt(float(a.sum()) * float(b.sum()))
  return float((a & b).sum() / both) if both else 0.0


def overlaps(
    activations: Sequence[np.ndarray], preds: Sequence[np.ndarray] | None = None, percent: float = 20,
    layers: tuple[int, int] | None = None) -> np.ndarray:
  """ON of each prompt with each target's, [n, n] (source, target).

  Args:
    activations: of each of n tasks' prompts, [L, F].
    preds: predictivities of each task, [L, F] (or [K, L, F]): only the target's top neurons count; None: all do.
    percent: how many of each layer are the top neurons.
    layers: the first layer and the one behind the last, such as the last three of twelve (9, 12); None: all.

  Raises:
    ValueError: `percent` is out of range, or there is no layer in `layers`.
  """
  masks = []
  for i, x in enumerate(activations):
    mask = np.zeros(x.shape, bool)
    mask[predictivity.layer_range(layers, len(x))] = True
    masks.append(mask if preds is None else predictivity.top(preds[i], percent, layers=layers))
  return np.array([[overlap(a, b, mask) for b, mask in zip(activations, masks, strict=True)] for a in activations])


def correlation(overlaps: np.ndarray, accuracies: np.ndarray) -> tuple[float, np.ndarray]:
  """Spearman of overlap and zero-shot accuracy over the sources of each target: its mean over targets, and each [n].

  Args:
    overlaps, accuracies: [n, n] (source, target).

  Raises:
    ValueError: fewer than three tasks: two sources are needed for an order.
  """
  n = len(overlaps)
  if n < 3:
    raise ValueError(f'{n} tasks; expected three or more: the order of a target\'s sources is compared.')
  others = ~np.eye(n, dtype=bool)
  each = np.array([float(predictivity.spearman(overlaps[o, i], accuracies[o, i])) for i, o in enumerate(others)])
  known = each[~np.isnan(each)]
  return float(known.mean()) if len(known) else float('nan'), each
