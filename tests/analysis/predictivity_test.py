"""Predictivity, aggregation, top neurons, sub-tasks, regression and correlations, worked out by hand."""

import numpy as np
import pytest

from prompt_tuning.analysis import predictivity
from prompt_tuning.analysis.predictivity import SubTask


def test_predictivity_by_hand():
  # Activations of 2 neurons at 1 place, 5 rows; baselines 1.0 and 0.5.
  activations = np.array([[0.0, 2.0], [2.0, 0.0], [3.0, 0.0], [1.0, 1.0], [4.0, 0.0]])
  labels = np.array([0, 1, 1, 0, 0])
  above = activations > [1.0, 0.5]
  counts = np.array([[3, 2]])
  totals = np.stack([above[labels == label].sum(0) for label in (0, 1)])[None, None, :, None]  # [L, K, 2, P, F]
  acc = predictivity.accuracy(totals, counts)
  np.testing.assert_allclose(acc, [[[[4 / 5, 1 / 5]]]])  # right: all but row 4; all wrong but row 4
  np.testing.assert_allclose(predictivity.predictivity(acc), [[[[0.8, 0.8]]]])
  test = np.array([0.7, 0.4])
  np.testing.assert_allclose(predictivity.on_test(acc[0, 0, 0], test), [0.7, 0.6])
  assert predictivity.best(predictivity.predictivity(acc)[0]) == (0, 0, 0)
  assert predictivity.best(np.array([[[0.5, 0.6]], [[0.7, 0.9]]])) == (1, 0, 1)
  for one_class in (np.array([[5, 0]]), np.array([[0, 5]])):
    with pytest.raises(ValueError, match='Sub-task 0 has 5 rows of label . and none of label .; predictivity needs'):
      predictivity.accuracy(totals, one_class)


def test_aggregation_takes_the_best_place_and_the_mean_trial():
  trials = [np.array([[[0.5, 0.9], [0.7, 0.6]]]), np.array([[[0.6, 0.5], [0.5, 0.5]]])]  # R = 2 of [L, P, F]
  np.testing.assert_allclose(predictivity.aggregate(trials), [[0.65, 0.7]])
  np.testing.assert_allclose(predictivity.aggregate(trials, 'min'), [[0.6, 0.5]])
  np.testing.assert_allclose(predictivity.aggregate([t[None] for t in trials]), [[[0.65, 0.7]]])
  with pytest.raises(ValueError, match="over_trials='max'; expected mean or min"):
    predictivity.aggregate(trials, 'max')


# --- top ---


def test_top_of_each_layer_or_of_all():
  pred = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.55, 0.65, 0.51]])
  np.testing.assert_array_equal(predictivity.top(pred, 25), [[1, 0, 0, 0], [0, 0, 1, 0]])
  np.testing.assert_array_equal(predictivity.top(pred, 50, per_layer=False), [[1, 1, 1, 0], [0, 0, 1, 0]])
  np.testing.assert_array_equal(predictivity.top(pred, 49), predictivity.top(pred, count=1))  # rounded down
  np.testing.assert_array_equal(predictivity.top(pred, 50, layers=(1, 2)), [[0] * 4, [0, 1, 1, 0]])
  first = predictivity.top(pred, count=3, per_layer=False, layers=(0, 1))
  np.testing.assert_array_equal(first, [[1, 1, 1, 0], [0] * 4])
  np.testing.assert_array_equal(predictivity.top(np.full((1, 4), 0.5), 50), [[1, 1, 0, 0]])  # ties: the first
  assert not predictivity.top(pred, 0).any()
  assert predictivity.top(pred, 100).all()


def test_percentages_of_the_paper_round_as_its_code():
  pred = np.random.default_rng(0).random((1, 3072))
  for percent in range(21):
    assert predictivity.top(pred, percent).sum() == int(percent / 100 * 3072)
  assert predictivity.top(np.zeros((1, 100)), 29).sum() == 29  # where int(0.29 * 100) is 28


def test_sub_tasks_share_what_is_chosen():
  pn, neu = np.random.default_rng(0).random((2, 12, 3072))
  chosen = predictivity.top(np.stack([pn, neu]), 2)
  assert set(chosen.sum(1)) == {61}
  from_pn = predictivity.top(pn, count=30)
  assert (chosen & from_pn).sum() == 12 * 30
  for layer in range(12):
    rest = chosen[layer] & ~from_pn[layer]
    others = ~chosen[layer]
    assert rest.sum() == 31
    assert neu[layer][rest].min() > neu[layer][others].max()
  same = predictivity.top(np.stack([pn, pn]), count=10)  # the second finds the first's taken
  np.testing.assert_array_equal(same, predictivity.top(pn, count=10))
  five = np.eye(5)[:, None].repeat(2, axis=1)  # each of five sub-tasks has a best neuron of its own
  np.testing.assert_array_equal(predictivity.top(five, 100), np.ones((2, 5)))


@pytest.mark.parametrize(('kwargs', 'said'), [
    ({'percent': 101}, 'percent=101 of the neurons; expected 0 to 100'),
    ({'percent': -1}, 'percent=-1'),
    ({'percent': float('nan')}, 'percent=nan'),
    ({'count': 5}, 'count=5 neurons; expected 0 to 4'),
    ({'count': -1}, 'count=-1'),
    ({}, 'percent=None and count=None; expected one of the two'),
    ({'percent': 1, 'count': 1}, 'expected one of the two'),
    ({'percent': 1, 'layers': (2, 3)}, r'Layers 2 to 3 .* of 2 select nothing'),
    ({'percent': 1, 'layers': (1, 1)}, r'Layers 1 to 1 .* of 2 select nothing'),
])
def test_bad_choices_of_neurons_are_named(kwargs, said):
  with pytest.raises(ValueError, match=said):
    predictivity.top(np.zeros((2, 4)), **kwargs)


# --- more than two classes ---


def test_how_tasks_are_split():
  assert predictivity.sub_tasks(2) == (SubTask((0,), (1,)),)
  assert predictivity.sub_tasks(3) == (SubTask((0,), (2,)), SubTask((0, 2), (1,)))
  assert predictivity.sub_tasks(4) == (SubTask((1,), (3,)), SubTask((0, 1, 3), (2,)))
  assert predictivity.sub_tasks(3, one_against_rest=True)[2] == SubTask((0, 1), (2,))
  assert [t.positive for t in predictivity.sub_tasks(14)] == [(c,) for c in range(14)]
  with pytest.raises(ValueError, match='1 classes; expected two or more'):
    predictivity.sub_tasks(1)


def test_sub_tasks_are_balanced_in_the_order_of_the_data():
  labels = np.array([0, 0, 2, 1, 0, 2, 1, -1, 0])
  np.testing.assert_array_equal(predictivity.labels_of(labels, predictivity.sub_tasks(3)).T, [
      [0, 0, 1, -1, -1, 1, -1, -1, -1],  # two of class 2, so the first two of class 0
      [0, 0, -1, 1, -1, -1, 1, -1, -1]])  # two of class 1, so the first two of the others
  binary = predictivity.labels_of(np.array([0, 1, 1, -1]), predictivity.sub_tasks(2))
  np.testing.assert_array_equal(binary.T, [[0, 1, 1, -1]])  # nothing to balance
  with pytest.raises(ValueError, match=r'Labels \[2\] in the data; expected \[0, 1\]'):
    predictivity.labels_of(np.array([0, 2]), predictivity.sub_tasks(2))


def log_loss_slope(fit, x, labels, ridge):
  logits = fit.logits(x)
  probs = np.exp(logits - logits.max(1, keepdims=True))
  probs /= probs.sum(1, keepdims=True)
  inputs = np.insert((x - fit.mean) / fit.sd, 0, 1, axis=1)
  return inputs.T @ (probs - np.eye(probs.shape[1])[labels]) / len(x) + ridge * fit.weights


def test_regression_ends_where_the_slope_is_zero():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 200)
  x = rng.standard_normal((200, 2)) * [1, 1e-3] + np.eye(3)[labels][:, :2] * [2, 1e-3]
  fit = predictivity.regression(x, labels, 3)
  assert np.abs(log_loss_slope(fit, x, labels, 1e-6)[:, 1:]).max() < 1e-6
  assert not fit.weights[:, 0].any()
  again = predictivity.regression(x, labels, 3)
  np.testing.assert_array_equal(fit.weights, again.weights)
  assert 0.5 < fit.accuracy(x, labels) < 0.9


def test_regression_of_shares_by_hand():
  labels = np.array([0, 1, 1, 1, 0, 0, 0, 1])
  x = np.array([0.0, 0, 0, 0, 1, 1, 1, 1])[:, None]  # label 1: three in four at 0, one in four at 1
  fit = predictivity.regression(x, labels, 2)
  odds = fit.logits(np.array([[0.0], [1.0]]))[:, 1]
  np.testing.assert_allclose(odds, [np.log(3), -np.log(3)], rtol=1e-4)
  assert fit.accuracy(x, labels) == 0.75


def test_regression_of_separable_and_of_dead_neurons_stays_finite():
  labels = np.arange(30) % 3
  x = np.stack([labels * 1.0, np.zeros(30)], axis=1)
  fit = predictivity.regression(x, labels, 3)
  assert np.isfinite(fit.weights).all()
  assert fit.accuracy(x, labels) == 1
  with pytest.raises(ValueError, match=r'All 30 rows are of class \[1\]; a regression needs two'):
    predictivity.regression(x, np.ones(30, int), 3)


# --- correlations ---


def test_spearman_by_hand():
  np.testing.assert_allclose(predictivity.spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 40, 30])), 0.8)
  # With ties: ranks (1.5, 1.5, 3) against (1, 2, 3).
  np.testing.assert_allclose(predictivity.spearman(np.array([1, 1, 2]), np.array([1, 2, 3])), np.sqrt(3) / 2)
  assert np.isnan(predictivity.spearman(np.ones(3), np.arange(3)))


def test_cross_task_matrices():
  rng = np.random.default_rng(0)
  a = rng.random((3, 50))
  overall, by_layer = predictivity.cross_task([a, a**3, -a, rng.random((3, 50))])
  np.testing.assert_allclose(overall[:3, :3], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
  assert by_layer.shape == (3, 4, 4)
  np.testing.assert_allclose(overall, overall.T)
  np.testing.assert_allclose(by_layer[:, 0, 2], -1)
  assert np.abs(by_layer[:, 0, 3]).max() < 0.5
