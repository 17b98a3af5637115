"""Translation edit rate (Snover et al. 2006), as tercom 0.7.25 computes it.

sacrebleu holds a port of tercom's search for shifts; it spends minutes on WebNLG, nearly all in the edit distances of
shifts that it tries. Here those are bit-parallel, the whole ten times faster, and the search is sacrebleu's. Such
distances are exact, while tercom and sacrebleu look near the diagonal only: a difference needs very unlike lengths.
Like sacrebleu it tries at most 1,000 shifts an example.
"""

from collections.abc import Callable, Iterator, Sequence

from sacrebleu.metrics import lib_ter


def ter(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """Fewest edits to any reference over the mean length of the references, summed over examples; 0 is best.

  An edit inserts, deletes or replaces a word, or shifts a phrase. Words are what stands between spaces; case does not
  count (tercom's defaults).
  """
  edits = length = 0
  for hypothesis, texts in zip(hypotheses, references, strict=True):
    words, others = hypothesis.lower().split(), [text.lower().split() for text in texts]
    edits += min(_edits(words, other) for other in others)
    length += sum(map(len, others)) / len(others)
  return edits / length if length else float(edits > 0)


def _edits(hypothesis: list[str], reference: list[str]) -> int:
  """Shifts that lower the edit distance, the best first, and the distance that is left."""
  distance, shifts, tried = _Distance(reference), 0, 0
  while True:
    gain, shifted, tried = lib_ter._shift(hypothesis, reference, distance, tried)
    if gain <= 0 or tried >= lib_ter._MAX_SHIFT_CANDIDATES:
      return shifts + distance.of(hypothesis)
    hypothesis, shifts = shifted, shifts + 1


class _Distance:
  """Edit distances to one reference, in the form that sacrebleu's search asks for: `(distance, trace)`."""

  def __init__(self, reference: list[str]):
    self.of = edit_distance(reference)
    self._with_trace = lib_ter.BeamEditDistance(reference)

  def __call__(self, words: list[str]) -> '_Distance._Result':
    return self._Result(self, words)

  class _Result:
    """A pair whose second part, slow to get, is computed when the pair is unpacked."""

    def __init__(self, distance: '_Distance', words: list[str]):
      self._distance, self._words = distance, words

    def __getitem__(self, index: int) -> int:
      return (self._distance.of(self._words),)[index]

    def __iter__(self) -> Iterator:
      return iter(self._distance._with_trace(self._words))


def edit_distance(reference: Sequence[str]) -> Callable[[Sequence[str]], int]:
  """Levenshtein's distance of word sequences to a reference.

  A column of the table of distances is held as its steps up and down, the bits of two integers (Hyyro 2003).
  """
  places: dict[str, int] = {}
  for i, word in enumerate(reference):
    places[word] = places.get(word, 0) | 1 << i
  full = (1 << len(reference)) - 1
  last = 1 << len(reference) >> 1

  def distance(words: Sequence[str]) -> int:
    up, down, value = full, 0, len(reference)
    if not value:
      return len(words)
    for word in words:
      equal = places.get(word, 0)
      diagonal = ((equal & up) + up ^ up) | equal | down
      right_up = down | ~(diagonal | up) & full
      right_down = up & diagonal
      value += bool(right_up & last) - bool(right_down & last)
      right_up = right_up << 1 | 1
      up = (right_down << 1 | ~(equal | down | right_up)) & full
      down = right_up & (equal | down) & full
    return value

  return distance
