"""TER by hand, and its fast distances against sacrebleu's search."""

import random

import pytest
import sacrebleu

from prompt_tuning.metrics import ter


@pytest.mark.parametrize(('output', 'references', 'value'), [
    ('a b c d', ['A b C d'], 0),
    ('c d a b', ['a b c d'], 1 / 4),  # one shift of two words
    ('a b x d', ['a b c d', 'a b x d e f'], 1 / 5),  # fewest edits over the mean length
    ('', ['a b'], 1),
    ('a b c', ['d'], 3),
])
def test_by_hand(output, references, value):
  assert ter.ter([output], [references]) == pytest.approx(value)


def test_corpus_sums_edits_and_lengths():
  assert ter.ter(['a', 'x y z'], [['b'], ['x y z']]) == 1 / 4


def test_equals_sacrebleu():
  draw = random.Random(0)
  for _ in range(150):
    output, reference = (' '.join(draw.choices('abcdefgh', k=draw.randrange(1, 15))) for _ in range(2))
    expected = sacrebleu.metrics.TER().corpus_score([output], [[reference]]).score / 100
    assert ter.ter([output], [[reference]]) == pytest.approx(expected), (output, reference)
