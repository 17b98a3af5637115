"""ROUGE-L, CIDEr and the words they count against the official values of E2E's example, and by hand."""

import random

import pytest

from prompt_tuning.metrics import coco, ptb
from tests.metrics import examples


def test_official_values():
  outputs, references = examples.e2e()
  assert f'{coco.rouge_l(outputs, references):.4f}' == '0.7910'
  assert f'{coco.cider(outputs, references):.4f}' == '2.3039'


def test_rouge_l_takes_precision_and_recall_from_different_references():
  # Precision 2/2 from the first, recall 1/1 from the second.
  assert coco.rouge_l(['a b'], [['a x b y', 'a']]) == pytest.approx(1.0)
  precision, recall = 1 / 2, 1 / 3
  f = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
  assert coco.rouge_l(['a b'], [['a x y']]) == pytest.approx(f)


def test_longest_common_subsequence():
  def slow(a, b):
    if not a or not b:
      return 0
    return 1 + slow(a[1:], b[1:]) if a[0] == b[0] else max(slow(a[1:], b), slow(a, b[1:]))

  draw = random.Random(0)
  for _ in range(300):
    a, b = (draw.choices('abc', k=draw.randrange(8)) for _ in range(2))
    assert coco.longest_common_subsequence(a, b) == slow(a, b), (a, b)


def test_cider_of_the_reference_itself():
  texts = ['one two three four five', 'six seven eight nine ten']
  assert coco.cider(texts, [[text] for text in texts]) == pytest.approx(10)
  assert coco.cider(texts[::-1], [[text] for text in texts]) == 0
  assert coco.cider(['a b c d'], [['a b c d']]) == 0  # one example: every word is everywhere


def test_empty_outputs_and_punctuation_alone():
  assert coco.rouge_l(['', '.'], [['a'], ['.']]) == 0
  assert coco.cider(['', '.'], [['a'], ['.']]) == 0


@pytest.mark.parametrize(('text', 'words'), [  # as CoreNLP 3.4.1 gave them
    ("It's a family-friendly pub, isn't it?", "it 's a family-friendly pub is n't it"),
    ('Range of 20£-25 or £20-25.', 'range of 20 # -25 or # 20-25'),
    ('The King’s Café (cheap) cannot open at 5 p.m. on St. Mary',
     "the king 's café -lrb- cheap -rrb- can not open at 5 p.m. on st. mary"),
    ('in the city center., has 1,000 or 3.5 "stars"... wow', 'in the city center. has 1,000 or 3.5 stars wow'),
    ('Albert B. White of Caterpillar Inc. rates 5/10', 'albert b. white of caterpillar inc. rates 5/10'),
    ('Polish–Soviet War', 'polish soviet war'),
])
def test_words(text, words):
  assert ' '.join(ptb.tokenize(text)) == words
