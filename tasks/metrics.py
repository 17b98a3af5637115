"""Metrics over label words, as seqio metric functions `(targets, predictions) -> {name: value}`.

Every value is a fraction in [0, 1]; T5 and the papers' tables print percent. Targets and predictions are
compared as words, not as class numbers: a prediction that is no label word equals no target, so it is simply
wrong. That is T5's rule too, and what pulls span-corruption models down in Lester et al. 2021, Fig. 3c.
"""

from collections.abc import Callable, Sequence

UNLABELLED = '<unk>'  # the target of a row whose label is -1, as in GLUE's and SuperGLUE's public test splits

MetricFn = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def strip(text: str, **unused_kwargs) -> str:
  """Postprocessor: the word without surrounding space. Case counts: `true` is not boolq's label `True`."""
  return text.strip()


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Share of predictions equal to their target."""
  _check(targets, predictions)
  return {'accuracy': sum(map(str.__eq__, targets, predictions)) / len(targets)}


def legal_label_rate(labels: Sequence[str]) -> MetricFn:
  """Metric: share of predictions that are one of `labels`, right or wrong (Lester et al. 2021, Fig. 3c)."""

  def legal_label_rate(targets, predictions):
    _check(targets, predictions)
    return {'legal_label_rate': sum(p in labels for p in predictions) / len(predictions)}

  return legal_label_rate


def mean_macro_f1(labels: Sequence[str]) -> MetricFn:
  """Metric: F1 per class, averaged with equal weight over `labels`, as `mean_{number of classes}class_f1`.

  F1 of a class is 2 TP / (targets of that class + predictions of it). A prediction outside `labels` lowers
  the recall of its target's class and no precision. A class found in neither has F1 0, as in T5.
  """

  def mean_macro_f1(targets, predictions):
    _check(targets, predictions)
    f1 = []
    for label in labels:
      hits = sum(t == p == label for t, p in zip(targets, predictions, strict=True))
      seen = sum(t == label for t in targets) + sum(p == label for p in predictions)
      f1.append(2 * hits / seen if seen else 0.0)
    return {f'mean_{len(labels)}class_f1': sum(f1) / len(f1)}

  return mean_macro_f1


def _check(targets, predictions):
  if not targets or len(targets) != len(predictions):
    raise ValueError('A metric needs as many predictions as targets, and at least one: '
                     f'got {len(predictions)} predictions for {len(targets)} targets.')
  if UNLABELLED in targets:
    raise ValueError(f'Some targets have no label ({UNLABELLED!r}), as in the public test splits. Score a '
                     'labelled split such as `validation`.')
