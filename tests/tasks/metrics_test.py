"""Metrics against values worked out by hand."""

import pytest
import seqio

from prompt_tuning import tasks
from prompt_tuning.tasks import metrics

LABELS = ('entailment', 'contradiction', 'neutral')
E, C, N = LABELS
TARGETS = [E, E, C, C, N]
PREDICTIONS = [E, C, C, 'contra', E]


def test_accuracy():
  assert metrics.accuracy(TARGETS, PREDICTIONS) == {'accuracy': 2 / 5}


def test_legal_label_rate():
  assert metrics.legal_label_rate(LABELS)(TARGETS, PREDICTIONS) == {'legal_label_rate': 4 / 5}


def test_macro_f1():
  # entailment: 1 hit, 2 targets, 2 predictions: 2/4. contradiction: the same. neutral: no hit: 0.
  assert metrics.mean_macro_f1(LABELS)(TARGETS, PREDICTIONS) == {'mean_3class_f1': (0.5 + 0.5 + 0) / 3}


def test_macro_f1_of_all_right_and_of_all_illegal():
  f1 = metrics.mean_macro_f1(LABELS)
  assert f1(TARGETS, TARGETS) == {'mean_3class_f1': 1.0}
  assert f1(TARGETS, [''] * 5) == {'mean_3class_f1': 0.0}


def test_an_illegal_prediction_costs_recall_only():
  # entailment: precision 1, recall 1/2, F1 2/3. contradiction: untouched, 1.
  f1 = metrics.mean_macro_f1((E, C))([E, E, C], [E, 'maybe', C])
  assert f1['mean_2class_f1'] == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_found_nowhere_counts_as_zero():
  assert metrics.mean_macro_f1(LABELS)([E, C], [E, C]) == {'mean_3class_f1': 2 / 3}


@pytest.mark.parametrize('metric', [
    metrics.accuracy, metrics.legal_label_rate(LABELS), metrics.mean_macro_f1(LABELS)])
def test_what_cannot_be_scored_is_refused(metric):
  with pytest.raises(ValueError, match='got 1 predictions for 2 targets'):
    metric([E, C], [E])
  with pytest.raises(ValueError, match='got 0 predictions for 0 targets'):
    metric([], [])
  with pytest.raises(ValueError, match='no label.*validation'):
    metric([E, '<unk>'], [E, E])


def test_seqio_runs_a_tasks_metrics_on_decoded_text():
  task = tasks.load('taskless_super_glue_cb_v102')
  targets, predictions = (
      [task.postprocess_fn(text, example={}, is_target=is_target) for text in texts]
      for texts, is_target in ((TARGETS, True), ([' entailment ', C, C, 'Contradiction', E], False)))
  assert task.predict_metric_fns == task.metric_fns  # seqio has understood their signatures
  scores = {k: v for metric in task.metric_fns for k, v in metric(targets, predictions).items()}
  assert scores == {'accuracy': 2 / 5, 'legal_label_rate': 4 / 5, 'mean_3class_f1': 1 / 3}
  assert 'mean_macro_f1' not in [m.__name__ for m in seqio.get_mixture_or_task('sst2_sample').metric_fns]
