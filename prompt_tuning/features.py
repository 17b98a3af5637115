"""From tokenised examples to padded model features, in numpy: the last stop before the device."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import numpy as np

Place = Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass
class Converter:
  """Pads examples {'inputs': ids [n], 'targets': ids [m]} into a `types.Batch` of numpy arrays.

  Virtual tokens come on top of `lengths['inputs']`: with 512 and a prompt of 100, S is 612 (Lester et al. 2021
  allow 512 tokens of text).

  Attributes:
    lengths: TASK_FEATURE_LENGTHS, {'inputs': int, 'targets': int}.
    place: where a method puts its virtual tokens, `Method.place`.
    virtual_tokens: how many it adds.
    vocab_size: V of the base, the first virtual id.
    eos_id: closes an input or target that had to be cut.
    on_truncation: 'count' or 'error'.
    truncated: examples cut so far, by feature.
    seen: examples converted so far.
  """

  lengths: Mapping[str, int]
  place: Place
  virtual_tokens: int
  vocab_size: int
  eos_id: int = 1
  on_truncation: str = 'count'
  truncated: dict[str, int] = dataclasses.field(default_factory=lambda: {'inputs': 0, 'targets': 0})
  seen: int = 0

  def __post_init__(self):
    if missing := {'inputs', 'targets'} - set(self.lengths):
      raise ValueError(
          f'TASK_FEATURE_LENGTHS={dict(self.lengths)} lacks {", ".join(sorted(missing))}; '
          "expected such as {'inputs': 512, 'targets': 16}.")
    if self.on_truncation not in ('count', 'error'):
      raise ValueError(f"on_truncation={self.on_truncation!r}; expected 'count' or 'error'.")

  def _fit(self, ids: np.ndarray, feature: str) -> np.ndarray:
    limit = self.lengths[feature]
    if len(ids) <= limit:
      return ids
    self.truncated[feature] += 1
    if self.on_truncation == 'error':
      raise ValueError(
          f'Example {self.seen}: {feature} has {len(ids)} tokens, more than TASK_FEATURE_LENGTHS[{feature!r}] = '
          f"{limit}. Raise it, or set ON_TRUNCATION = 'count' to cut such examples.")
    return np.append(ids[:limit - 1], self.eos_id)

  def __call__(self, examples: Sequence[Mapping[str, np.ndarray]], rows: int | None = None) -> dict[str, np.ndarray]:
    """Up to `rows` examples -> features [rows, ...]; rows without an example are padding of weight 0."""
    rows = rows or len(examples)
    encoder = np.zeros((rows, self.lengths['inputs'] + self.virtual_tokens), np.int32)
    targets = np.zeros((rows, self.lengths['targets']), np.int32)
    for row, example in enumerate(examples):
      ids = self.place(self._fit(np.asarray(example['inputs'], np.int32), 'inputs'), self.vocab_size)
      encoder[row, :len(ids)] = ids
      if 'targets' in example:
        ids = self._fit(np.asarray(example['targets'], np.int32), 'targets')
        targets[row, :len(ids)] = ids
      self.seen += 1
    return {
        'encoder_input_tokens': encoder,
        'decoder_input_tokens': np.pad(targets, [(0, 0), (1, 0)])[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': (targets > 0).astype(np.float32),
    }

  def report(self) -> str:
    """One sentence on truncation; empty if nothing was cut."""
    cut = [f'{n} {feature} (limit {self.lengths[feature]})' for feature, n in self.truncated.items() if n]
    return f'of {self.seen} examples cut: {", ".join(cut)}' if cut else ''
