"""BLEU and NIST as the official scripts of E2E, WebNLG and DART compute them.

BLEU (Papineni et al. 2002) is sacrebleu's; what the scripts differ in is tokenisation, smoothing and references that
some examples lack. NIST (Doddington 2002) is our own: no kept library follows mteval-v13a.pl, whose brevity penalty
divides by the largest number of references of an example, also where others have fewer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import functools
import itertools
import math
import string

from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # all that mteval lower-cases
_MAX_NGRAM = 5


@functools.lru_cache(maxsize=2**16)
def tokenize_mteval(text: str) -> str:
  """mteval-v13a's tokens (not its international ones), lower-cased, with spaces between."""
  return Tokenizer13a()(text.translate(_LOWER))


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """BLEU-4 of mteval-v13a.pl in [0, 1]: no case, closest reference length, orders without match count 1/2, 1/4, ..."""
  hypotheses = [tokenize_mteval(text) for text in hypotheses]
  references = [[tokenize_mteval(text) for text in texts] for texts in references]
  metric = BLEU(tokenize='none', smooth_method='exp', force=True)
  return metric.corpus_score(hypotheses, columns(references, None)).score / 100


def multi_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """BLEU-4 of Moses' `multi-bleu.perl -lc` in [0, 1]: words are what stands between spaces; no smoothing.

  An example with fewer references than others has empty ones in the files that the script reads. Those are of length
  0, which can be the closest: for sacrebleu they are a space, since it would leave out an empty text.
  """
  metric = BLEU(lowercase=True, tokenize='none', smooth_method='none', force=True)
  return metric.corpus_score(list(hypotheses), columns(references, ' ')).score / 100


def columns(references: Sequence[Sequence[str]], filler: str | None) -> list[tuple[str | None, ...]]:
  """From the references of each example to first references, second references, ..."""
  return list(itertools.zip_longest(*references, fillvalue=filler))


def nist(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """NIST-5 of mteval-v13a.pl: matched n-grams weighted by their information in all references; about 0 to 10."""
  hypotheses = [tokenize_mteval(text).split() for text in hypotheses]
  references = [[tokenize_mteval(text).split() for text in texts] for texts in references]
  counts = Counter(ngram for texts in references for words in texts for ngram in _ngrams(words))
  words_in_references = sum(len(words) for texts in references for words in texts)

  def information(ngram):
    history = ngram[:-1]
    seen = counts[history] if history and history != ('0',) else words_in_references  # in Perl '0' is false
    return math.log2(seen / counts[ngram])

  matched, total = [0.0] * _MAX_NGRAM, [0] * _MAX_NGRAM
  for words, texts in zip(hypotheses, references, strict=True):
    clip = functools.reduce(Counter.__or__, (Counter(_ngrams(text)) for text in texts))
    for ngram, count in Counter(_ngrams(words)).items():
      total[len(ngram) - 1] += count
      if ngram in clip:
        matched[len(ngram) - 1] += min(count, clip[ngram]) * information(ngram)
  ratio = total[0] * max(map(len, references)) / words_in_references if words_in_references else 0
  if not ratio:
    return 0.0
  penalty = math.exp(math.log(0.5) / math.log(1.5)**2 * math.log(min(ratio, 1))**2)
  return penalty * sum(m / max(t, 1) for m, t in zip(matched, total, strict=True))


def _ngrams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
  for n in range(1, _MAX_NGRAM + 1):
    for start in range(len(words) - n + 1):
      yield tuple(words[start:start + n])
