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


def test_f1_counts_an_illegal_prediction_as_the_wrong_label():
  # Positive: 1 hit, 2 targets; predictions: that one, and the illegal one of a negative target. F1 is 2 / (2 + 2).
  f1 = metrics.f1(('no', 'yes'))
  assert f1(['yes', 'yes', 'no', 'no'], ['yes', 'maybe', 'maybe', 'no']) == {'f1': 2 / 4}
  assert f1(['yes', 'no'], ['yes', 'no']) == {'f1': 1.0}
  assert f1(['no'], ['no']) == {'f1': 0.0}
  with pytest.raises(ValueError, match='no label'):
    f1(['<unk>'], ['no'])


def test_multirc_asks_for_all_answers_of_a_question():
  targets = [metrics.Grouped(group, word) for group, word in (
      ('a', 'True'), ('a', 'False'), ('b', 'True'), ('b', 'True'), ('c', 'False'))]
  # Three true answers, of which two are found, and one false one taken for true. Only question a is right.
  scores = metrics.multirc(targets, ['True', 'False', 'True', 'False', 'True'])
  assert scores == {'f1a': 2 * 2 / (3 + 3), 'em': 1 / 3}


@pytest.mark.parametrize(('answers', 'prediction', 'em', 'f1'), [
    (['The U.S.'], 'us', 1, 1),  # articles, punctuation, case
    (['a cat', 'a black cat'], 'black cats', 0, 0.5),  # the better: one of two words of each
    (['New York City'], 'york york', 0, 2 / 5),  # a word counts as often as both have it
    (['x'], '', 0, 0),
    (['the'], 'an', 1, 0),  # nothing is left of either: as in SQuAD's script
])
def test_squad_scores_the_best_of_the_answers(answers, prediction, em, f1):
  assert metrics.squad([answers], [prediction]) == {'em': em, 'f1': pytest.approx(f1)}


def test_record_counts_the_first_row_of_a_query():
  targets = [metrics.Grouped('1', ['Ann', 'Bo']), metrics.Grouped('1', ['Ann', 'Bo']), metrics.Grouped('2', ['Cy Li'])]
  assert metrics.record(targets, ['Bo', 'nobody', 'Li']) == {'em': 0.5, 'f1': (1 + 2 / 3) / 2}
  with pytest.raises(ValueError, match='no label'):
    metrics.record([metrics.Grouped('1', [])], ['Bo'])


@pytest.mark.parametrize(('cells', 'score'), [  # Lester et al. 2021, table 3: the mean of five prompts, their ensemble
    ('91.1 99.3/99.0 98.8 65.7/88.7 92.7/93.4 92.6 76.2 95.8', 90.5),
    ('91.7 100/100 100 67.1/89.4 93.2/93.9 93.5 77.4 96.2', 91.3)])
def test_the_superglue_score_is_that_of_the_paper(cells, score):
  results = {
      f'taskless_super_glue_{task}_v102': {
          'legal_label_rate': 1.0, **{f'm{i}': float(x) for i, x in enumerate(cell.split('/'))}}
      for task, cell in zip(metrics.SUPERGLUE, cells.split(), strict=True)}
  assert round(metrics.superglue_score({**results, 'dpr_v001_simple': {'accuracy': 0.0}}), 1) == score
  assert metrics.superglue_score({name.split('_')[3]: values for name, values in results.items()}) == pytest.approx(
      metrics.superglue_score(results))
  with pytest.raises(ValueError, match='boolq is there more than once'):
    metrics.superglue_score({**results, 'boolq': {'accuracy': 1.0}})
  del results['taskless_super_glue_wsc_v102']
  with pytest.raises(ValueError, match='missing: wsc'):
    metrics.superglue_score(results)
