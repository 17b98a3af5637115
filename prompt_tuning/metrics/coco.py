"""ROUGE-L and CIDEr as in COCO's caption evaluation, which E2E takes over; on `ptb` words.

pycocoevalcap has both, behind a Java tokenizer and numpy loops; here they need neither and take a second for E2E.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import math

from prompt_tuning.metrics import ptb

_BETA = 1.2  # of ROUGE-L: weight of recall
_MAX_NGRAM = 4
_SIGMA = 6.0  # of CIDEr: how far lengths may differ, in bigrams


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """Mean F (beta 1.2) of the longest common subsequence, in [0, 1].

  Best precision and best recall over the references may come from different ones, as in COCO's code.
  """
  return sum(map(_rouge_l, hypotheses, references)) / len(hypotheses)


def _rouge_l(hypothesis: str, references: Sequence[str]) -> float:
  words = ptb.tokenize(hypothesis)
  others = [ptb.tokenize(text) for text in references]
  lengths = [longest_common_subsequence(words, other) for other in others]
  if not any(lengths):
    return 0.0
  precision = max(lengths) / len(words)
  recall = max(length / len(other) for length, other in zip(lengths, others, strict=True) if other)
  return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
  """Its length; a row of the table of lengths is held as the bits of one integer (Hyyro 2004)."""
  places: dict[str, int] = {}
  for i, word in enumerate(first):
    places[word] = places.get(word, 0) | 1 << i
  row = full = (1 << len(first)) - 1
  for word in second:
    kept = row & places.get(word, 0)
    row = (row + kept | row - kept) & full
  return len(first) - row.bit_count()


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """CIDEr-D (Vedantam et al. 2015, section 6), which COCO's code calls CIDEr: in [0, 10].

  Mean cosine of tf-idf vectors of 1- to 4-grams, times a Gaussian of the difference of lengths. The idf is that of the
  given references: one example alone scores 0, and values of different test sets do not compare.
  """
  all_references = [[Counter(_ngrams(ptb.tokenize(text))) for text in texts] for texts in references]
  frequency = Counter(ngram for texts in all_references for ngram in set().union(*texts))
  examples = math.log(len(references))
  idf = lambda ngram: examples - math.log(max(1, frequency[ngram]))

  def vectors(counts):
    """tf-idf by n, their norms, and the length (the number of bigrams)."""
    weights = [{} for _ in range(_MAX_NGRAM)]
    for ngram, count in counts.items():
      weights[len(ngram) - 1][ngram] = count * idf(ngram)
    norms = [math.sqrt(sum(w * w for w in by_n.values())) for by_n in weights]
    return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

  total = 0.0
  for text, others in zip(hypotheses, all_references, strict=True):
    hypothesis = vectors(Counter(_ngrams(ptb.tokenize(text))))
    total += sum(_similarity(hypothesis, vectors(other)) for other in others) / len(others)
  return 10 * total / len(hypotheses)


_Vectors = tuple[Sequence[Mapping[tuple, float]], Sequence[float], int]


def _similarity(hypothesis: _Vectors, reference: _Vectors) -> float:
  (ours, our_norms, our_length), (theirs, their_norms, their_length) = hypothesis, reference
  cosines = 0.0
  for a, b, a_norm, b_norm in zip(ours, theirs, our_norms, their_norms, strict=True):
    if a_norm and b_norm:
      cosines += sum(min(w, b[ngram]) * b[ngram] for ngram, w in a.items() if ngram in b) / (a_norm * b_norm)
  return cosines / _MAX_NGRAM * math.exp(-(our_length - their_length)**2 / (2 * _SIGMA**2))


def _ngrams(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
  return (tuple(words[i:i + n]) for n in range(1, _MAX_NGRAM + 1) for i in range(len(words) - n + 1))
