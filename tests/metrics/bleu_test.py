"""BLEU and NIST against the official values of E2E's example, and on cases worked out by hand."""

import math

import pytest

from prompt_tuning.metrics import bleu
from tests.metrics import examples


def test_official_values():
  outputs, references = examples.e2e()
  assert f'{bleu.bleu(outputs, references):.4f}' == '0.7203'
  assert f'{bleu.nist(outputs, references):.4f}' == '7.8212'


def test_nist_by_hand():
  # Information: a log2(4/2) = 1, b and c log2(4/1) = 2, `a b` and `a c` log2(2/1) = 1.
  value = bleu.nist(['a b'], [['a b', 'a c']])
  assert value == pytest.approx((1 + 2) / 2 + 1)


def test_nist_penalty_counts_missing_references_as_mteval_does():
  references = [['a b c d', 'a b c d'], ['e f g h']]
  whole = bleu.nist(['a b c d', 'e f g h'], references)
  short = bleu.nist(['a b c d', ''], references)
  ratio = 4 * 2 / 12  # output words by reference words over the larger number of references
  penalty = math.exp(math.log(0.5) / math.log(1.5)**2 * math.log(ratio)**2)
  first = [math.log2(12 / 2)] * 4  # of the other output's words nothing is left
  assert short == pytest.approx(penalty * sum(first) / 4)
  assert whole > short


def test_mteval_tokens():
  assert bleu.tokenize_mteval('It costs £20-25, "OK"? 3.5 stars. ÉTÉ') == 'it costs £20 - 25 , " ok " ? 3.5 stars . ÉtÉ'


def test_multi_bleu_lets_an_empty_reference_be_the_closest():
  outputs = ['a b c d e f g h', 'x']
  references = [['a b c d e f g h', 'a b c d e f g h'], ['x y z']]
  # The closest reference of `x` is the missing second one, of length 0: no brevity penalty.
  assert bleu.multi_bleu(outputs, references) == pytest.approx(1.0)
  assert bleu.multi_bleu(outputs, [texts[:1] for texts in references]) == pytest.approx(math.exp(1 - 11 / 9))


def test_without_a_match():
  assert bleu.multi_bleu(['a b c d'], [['e f g h']]) == 0
  assert 0 < bleu.bleu(['a b c d'], [['a f g h']]) < 0.5  # smoothed
  assert bleu.bleu([''], [['a']]) == bleu.nist([''], [['a']]) == bleu.multi_bleu([''], [['a']]) == 0
