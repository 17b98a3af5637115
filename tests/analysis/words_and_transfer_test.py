"""Selectivity of neurons for words, and overlap of prompts, by hand and against everything stored."""

import numpy as np
import pytest

from prompt_tuning.analysis import selectivity, transfer
from tests.analysis import oracle
from tests.analysis.oracle import ROWS

LAYERS = {'encoder/mlp_act': 2}




@pytest.mark.parametrize(('size', 'kernel'), [('t5_1_1_tiny', 'wi_0'), ('bart_tiny', 'wi')])
def test_key_vectors_and_their_words(size, kernel):
  frozen = oracle.case(size).frozen
  layers = {'decoder/mlp_act': 2, 'encoder/mlp_act': 2}
  keys = selectivity.key_vectors(frozen, layers, [(1, 5), (2, 7)])
  stacks = {stack: np.asarray(frozen[stack]['layers']['mlp'][kernel]['kernel']) for stack in ('encoder', 'decoder')}
  np.testing.assert_array_equal(keys, [stacks['encoder'][1][:, 5], stacks['decoder'][0][:, 7]])
  table = np.stack([2 * keys[0], np.zeros_like(keys[0]), -keys[0]])
  np.testing.assert_allclose(selectivity.cosines(table, keys[:1]), [[1, 0, -1]], atol=1e-6)


def test_extreme_words():
  scores = np.array([0.1, np.nan, 0.9, -0.5, 0.2])
  top, bottom = selectivity.extremes(scores, list('abcde'), count=2)
  assert top == [('c', 0.9), ('e', 0.2)]
  assert bottom == [('d', -0.5), ('a', 0.1)]
  top, _ = selectivity.extremes(scores, list('abcde'), count=9, allowed=np.array([1, 1, 0, 1, 1], bool))
  assert [word for word, _ in top] == ['e', 'a', 'd']


def test_mean_activation_by_word_is_that_of_everything_stored():
  case = oracle.case('bart_tiny')
  v, neurons = case.config.vocab_size, [(0, 3), (1, 8)]
  ids = np.where((case.tokens < v) & (case.tokens > case.config.eos_id), case.tokens, -1)
  means, counts = selectivity.word_means(case.read, case.batches(ids), LAYERS, neurons, v)
  stored = oracle.activations(case)['encoder/mlp_act']
  assert counts.sum() == (ids >= 0).sum()
  for row, (layer, neuron) in zip(means, neurons, strict=True):
    expected = [stored[layer, :, :, neuron][ids == word].mean() if (ids == word).any() else np.nan for word in range(v)]
    np.testing.assert_allclose(row, expected, atol=1e-5)
  with pytest.raises(ValueError, match=f'Word {v} of {v}; expected ids below'):
    selectivity.word_means(case.read, case.batches(np.full((ROWS, 13), v)), LAYERS, neurons, v)


def test_overlap_by_hand():
  a = np.array([[1.0, 2.0, -1.0, 0.0]])
  b = np.array([[0.5, -1.0, 3.0, 0.1]])
  np.testing.assert_allclose(transfer.overlap(a, b), 1 / np.sqrt(2 * 3))
  np.testing.assert_allclose(transfer.overlap(a, a), 1)
  np.testing.assert_allclose(transfer.overlap(a, b, np.array([[True, False, False, True]])), 1 / np.sqrt(2))
  assert transfer.overlap(a, -np.abs(b)) == 0


def test_overlaps_of_tasks():
  x = np.random.default_rng(0).standard_normal((3, 4, 50))
  everything = transfer.overlaps(x)
  np.testing.assert_allclose(np.diag(everything), 1)
  np.testing.assert_allclose(everything, everything.T)
  np.testing.assert_allclose(transfer.overlaps(x, layers=(1, 4))[0, 1], transfer.overlap(x[0, 1:], x[1, 1:]))
  preds = np.random.default_rng(1).random((3, 4, 50))
  skill = transfer.overlaps(x, preds, percent=20)
  for source in range(3):
    for target in range(3):
      best = preds[target] >= np.sort(preds[target], axis=1)[:, [-10]]  # 20% of 50: the target's
      np.testing.assert_allclose(skill[source, target], transfer.overlap(x[source], x[target], best))
  with pytest.raises(ValueError, match='Layers 4 to 5'):
    transfer.overlaps(x, layers=(4, 5))


def test_correlation_with_transfer_leaves_the_task_itself_out():
  overlaps = np.array([[1.0, 0.1, 0.9], [0.2, 1.0, 0.3], [0.8, 0.5, 1.0]])
  accuracies = np.array([[0.0, 0.6, 0.7], [0.5, 0.0, 0.9], [0.9, 0.8, 0.0]])  # the diagonal would spoil the order
  mean, each = transfer.correlation(overlaps, accuracies)
  np.testing.assert_allclose(each, [1, 1, -1])
  np.testing.assert_allclose(mean, 1 / 3)
  constant = accuracies.copy()
  constant[:, 2] = 0.5
  mean, each = transfer.correlation(overlaps, constant)
  np.testing.assert_allclose(mean, 1)  # a target whose sources all do equally well says nothing
  assert np.isnan(each[2])
  with pytest.raises(ValueError, match='2 tasks; expected three or more'):
    transfer.correlation(np.eye(2), np.eye(2))
