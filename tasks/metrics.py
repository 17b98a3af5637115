"""Metrics over words and texts, as seqio metric functions `(targets, predictions) -> {name: value}`.

Every value is a fraction in [0, 1]; T5 and the papers' tables print percent. Targets and predictions are
compared as words, not as class numbers: a prediction that is no label word equals no target, so it is simply
wrong. That is T5's rule too, and what pulls span-corruption models down in Lester et al. 2021, Fig. 3c.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import re
import string
from typing import Any, NamedTuple

UNLABELLED = '<unk>'  # the target of a row whose label is -1, as in GLUE's and SuperGLUE's public test splits

MetricFn = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


DIAGNOSTICS = ('legal_label_rate', 'perplexity')  # say how a model fails, or what another metric says already
SUPERGLUE = ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc')


class Grouped(NamedTuple):
  """A target that is scored together with, or instead of, others of its group."""

  group: str
  value: Any


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


def f1(labels: Sequence[str]) -> MetricFn:
  """Metric: F1 of the second of two labels. A prediction that is neither counts as the one that is wrong (T5)."""
  negative, positive = labels

  def f1(targets, predictions):
    _check(targets, predictions)
    wrong = {negative: positive, positive: negative}
    predictions = [p if p in labels else wrong[t] for t, p in zip(targets, predictions, strict=True)]
    hits = sum(t == p == positive for t, p in zip(targets, predictions, strict=True))
    seen = targets.count(positive) + predictions.count(positive)
    return {'f1': 2 * hits / seen if seen else 0.0}

  return f1


def multirc(targets: Sequence[Grouped], predictions: Sequence[str]) -> dict[str, float]:
  """F1 over all answers (`f1a`) and the share of questions, the groups, with every answer right (`em`)."""
  words = [target.value for target in targets]
  right: dict[str, bool] = {}
  for (group, word), prediction in zip(targets, predictions, strict=True):
    right[group] = right.get(group, True) and word == prediction
  return {'f1a': f1(('False', 'True'))(words, predictions)['f1'], 'em': sum(right.values()) / len(right)}


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Exact match (`em`) and F1 of words (`f1`), each the best over a question's answers, as SQuAD's script has them.

  Texts are compared in lower case, without punctuation and articles.
  """
  _check([answers or UNLABELLED for answers in targets], predictions)
  em = f1 = 0.0
  for answers, prediction in zip(targets, predictions, strict=True):
    words = _squad_words(prediction)
    answers = [_squad_words(answer) for answer in answers]
    em += words in answers
    f1 += max(_overlap(answer, words) for answer in answers)
  return {'em': em / len(targets), 'f1': f1 / len(targets)}


def record(targets: Sequence[Grouped], predictions: Sequence[str]) -> dict[str, float]:
  """`squad` over the first row of each query: the other rows of the group only repeat it for another answer."""
  rows: dict[str, tuple] = {}
  for (group, answers), prediction in zip(targets, predictions, strict=True):
    rows.setdefault(group, (answers, prediction))
  return squad(*zip(*rows.values(), strict=True))


def task_score(metrics: Mapping[str, float]) -> float:
  """One number for a task: the mean of its metrics (Lester et al. 2021, sec. 3), less those that only diagnose."""
  values = [value for name, value in metrics.items() if name not in DIAGNOSTICS]
  return sum(values) / len(values)


def superglue_score(results: Mapping[str, Mapping[str, float]]) -> float:
  """The SuperGLUE score: the mean over its eight tasks of each task's mean metric.

  Args:
    results: task -> metrics; a task is called `boolq` or has `super_glue_boolq_v102` in its name. Others are ignored.

  Raises:
    ValueError: a task is missing or there twice.
  """
  scores: dict[str, float] = {}
  for name, values in results.items():
    match = re.search(r'super_glue_([a-z]+)_v102', name)
    short = match[1] if match else name
    if short in SUPERGLUE:
      if short in scores:
        raise ValueError(f'{short} is there more than once among {", ".join(results)}; give one result a task.')
      scores[short] = task_score(values)
  if missing := [name for name in SUPERGLUE if name not in scores]:
    raise ValueError(f'The SuperGLUE score needs all eight tasks; missing: {", ".join(missing)}.')
  return sum(scores.values()) / len(scores)


def _squad_words(text: str) -> list[str]:
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return re.sub(r'\b(a|an|the)\b', ' ', text).split()


def _overlap(target: list[str], prediction: list[str]) -> float:
  common = (collections.Counter(target) & collections.Counter(prediction)).total()
  return 2 * common / (len(target) + len(prediction)) if common else 0.0


def _check(targets, predictions):
  if not targets or len(targets) != len(predictions):
    raise ValueError('A metric needs as many predictions as targets, and at least one: '
                     f'got {len(predictions)} predictions for {len(targets)} targets.')
  if UNLABELLED in targets:
    raise ValueError(f'Some targets have no label ({UNLABELLED!r}), as in the public test splits. Score a '
                     'labelled split such as `validation`.')
