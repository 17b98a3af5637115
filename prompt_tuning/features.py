"""From text or token ids to padded model features, in numpy: the last stop before the device.

Every family of models has one batch format (`types.Batch`). For a decoder-only model the source stands in
`encoder_input_tokens` as an encoder's would, and `decoder_input_tokens` begins with the BOS that separates source and
target; the backbone puts the two together.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning import batching as batching_lib

Example = Mapping[str, Any]
Place = Callable[[np.ndarray, int], np.ndarray]


class Ids(NamedTuple):
  """An example's placed source [n] and its target [m]; None: it has none."""

  source: np.ndarray
  target: Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class Layout:
  """What stands around a text, and what fills up a row. The defaults are T5's: x </s>, y </s>, padding 0.

  Attributes:
    opening, closing: ids in front of and behind a source.
    target_opening, target_closing: the same of a target.
    spaces: a text gets a space in front and one behind (GPT-2: Li & Liang 2021's format, ' x ' BOS ' y ' EOS).
    start_id: first decoder input.
    pad_id, source_pad_id: fill up targets and sources.
  """

  opening: tuple[int, ...] = ()
  closing: tuple[int, ...] = (1,)
  target_opening: tuple[int, ...] = ()
  target_closing: tuple[int, ...] = (1,)
  spaces: bool = False
  start_id: int = 0
  pad_id: int = 0
  source_pad_id: int = 0

  def encode(self, tokenizer, inputs: str | None, targets: str | None = None) -> dict[str, list[int]]:
    """Text -> the ids of an example. An empty source has nothing but the layout's ids, and no space."""
    ids = lambda text: tokenizer.encode(f' {text} ' if self.spaces else text)
    example = {}
    if inputs is not None:
      example['inputs'] = [*self.opening, *(ids(inputs) if inputs.strip() else ()), *self.closing]
    if targets is not None:
      example['targets'] = [*self.target_opening, *ids(targets), *self.target_closing]
    return example

  def decode(self, tokenizer, ids: Sequence[int]) -> str:
    """The text of a target's ids, without what the layout put around it."""
    text = tokenizer.decode(ids)
    return text.removeprefix(' ').removesuffix(' ') if self.spaces else text


def layout_of(config, tokenizer=None) -> Layout:
  """The layout of a model's family.

  Args:
    config: its `BackboneConfig`.
    tokenizer: its tokenizer, which is checked against it; needed for BERT, whose configuration has no special ids.

  Raises:
    ValueError: tokenizer and model do not belong together, or a special id is unknown.
  """
  ids = {name: getattr(config, name) for name in ('bos_id', 'eos_id')}
  if tokenizer is not None:
    if len(tokenizer) > config.vocab_size:
      raise ValueError(f'The tokenizer has {len(tokenizer)} ids but the model embeds {config.vocab_size}; use the '
                       "tokenizer of this model (Backbone.tokenizer, or the files in the model's folder).")
    for name, ours in ids.items():
      theirs = getattr(tokenizer, name)
      if None not in (ours, theirs) and ours != theirs:
        raise ValueError(f'{name} of the tokenizer is {theirs} but that of the model {ours}; use the tokenizer of this '
                         "model (Backbone.tokenizer, or the files in the model's folder).")
      ids[name] = theirs if ours is None else ours
  bos, eos = ids.values()
  rows = dict(start_id=config.start_id, pad_id=config.pad_id, source_pad_id=config.source_pad_id)
  bracketed = config.family in ('bart', 'roberta', 'bert')
  if eos is None or (bos is None and bracketed):
    raise ValueError(f'What begins and ends a text of this {config.family} model is unknown: bos_id {bos}, eos_id '
                     f'{eos}. Name its tokenizer (Backbone.tokenizer, or the files in its folder).')
  if bracketed:
    return Layout((bos,), (eos,), (bos,), (eos,), **rows)
  if config.family == 'gpt2':
    return Layout((), (), (), (eos,), spaces=True, **rows)
  return Layout(closing=(eos,), target_closing=(eos,), **rows)


@dataclasses.dataclass
class Converter:
  """Pads examples {'inputs': ids [n], 'targets': ids [m]} into a `types.Batch` of numpy arrays.

  Virtual tokens come on top of `lengths['inputs']`: with 512 and a prompt of 100, S is 612 (Lester et al. 2021
  allow 512 tokens of text). The loss is on targets alone, each weighing 1 up to its true length. An example without
  'inputs' has no source by intent (language modelling); one whose 'inputs' hold no text is an error.

  Attributes:
    lengths: TASK_FEATURE_LENGTHS, {'inputs': int, 'targets': int}.
    place: where a method puts its virtual tokens, `Method.place`.
    virtual_tokens: how many it adds.
    vocab_size: V of the base, the first virtual id.
    layout: of the base; its closing ids stay when an input or target has to be cut.
    on_truncation: 'count' or 'error'.
    label: the text of a target and the ids of its placed source -> class numbers, where a readout tells classes apart.
    encode: example -> ids, where examples come with ids of another tokenizer.
    batching: how examples stand in rows, see `batching.py`.
    row_multiple: rows are a multiple of this.
    truncated: examples cut so far, by feature.
    seen: examples converted so far.
  """

  lengths: Mapping[str, int]
  place: Place
  virtual_tokens: int
  vocab_size: int
  layout: Layout = Layout()  # noqa: RUF009 (frozen)
  on_truncation: str = 'count'
  encode: Callable[[Example], Example] | None = None
  label: Callable[[str, np.ndarray], Sequence[int]] | None = None
  batching: batching_lib.Batching = batching_lib.Padded()  # noqa: RUF009 (frozen)
  row_multiple: int = 1
  truncated: dict[str, int] = dataclasses.field(default_factory=lambda: {'inputs': 0, 'targets': 0})
  seen: int = 0

  def __post_init__(self):
    if missing := {'inputs', 'targets'} - set(self.lengths):
      raise ValueError(
          f'TASK_FEATURE_LENGTHS={dict(self.lengths)} lacks {", ".join(sorted(missing))}; '
          "expected such as {'inputs': 512, 'targets': 16}.")
    if min(self.lengths['inputs'], self.lengths['targets']) < 1:
      raise ValueError(f'TASK_FEATURE_LENGTHS={dict(self.lengths)}; expected at least one token of each.')
    if self.on_truncation not in ('count', 'error'):
      raise ValueError(f"on_truncation={self.on_truncation!r}; expected 'count' or 'error'.")

  def _fit(self, ids: np.ndarray, feature: str, closing: tuple[int, ...]) -> np.ndarray:
    limit = self.lengths[feature]
    if len(ids) <= limit:
      return ids
    self.truncated[feature] += 1
    if self.on_truncation == 'error':
      raise ValueError(
          f'Example {self.seen}: {feature} has {len(ids)} tokens, more than TASK_FEATURE_LENGTHS[{feature!r}] = '
          f"{limit}. Raise it, or set ON_TRUNCATION = 'count' to cut such examples.")
    return np.append(ids[:limit - len(closing)], closing).astype(np.int32)

  def _source(self, example: Example) -> np.ndarray:
    around = (*self.layout.opening, *self.layout.closing)
    ids = np.asarray(example.get('inputs', around), np.int32)
    if 'inputs' in example and np.isin(ids, around).all():
      raise ValueError(f'Example {self.seen}: empty source. Remove such examples, or leave "inputs" out of the task '
                       'if it has none.')
    return self.place(self._fit(ids, 'inputs', self.layout.closing), self.vocab_size)

  def _target(self, example: Example, source: np.ndarray) -> Sequence[int]:
    if self.label is None:
      return self._fit(np.asarray(example['targets'], np.int32), 'targets', self.layout.target_closing)
    if (text := example.get('targets_pretokenized')) is None:
      raise ValueError(f'Example {self.seen}: its label is needed as text (targets_pretokenized), which the task does '
                       'not keep; let it keep it, as seqio.preprocessors.tokenize does.')
    return self.label(text if isinstance(text, str) else text.decode(), source)

  def ids(self, example: Example) -> Ids:
    """What is to stand in a row: cut, and with virtual tokens in place."""
    if self.encode is not None:
      example = {**example, **self.encode(example)}
    source = self._source(example)
    target = self._target(example, source) if 'targets' in example else None
    self.seen += 1
    return Ids(source, target)

  def __call__(
      self, examples: Sequence[Example], rows: int | None = None
  ) -> dict[str, np.ndarray] | tuple[dict[str, np.ndarray], ...]:
    """Up to `rows` examples -> features [rows, ...]; rows without an example are padding of weight 0.

    Packed rows are other than examples in number. Where `batching` makes pieces of a batch, they are a tuple.
    """
    return self.features([self.ids(example) for example in examples], rows)

  def features(
      self, ids: Sequence[Ids], rows: int | None = None) -> dict[str, np.ndarray] | tuple[dict[str, np.ndarray], ...]:
    """The same for examples whose ids are known."""
    room = batching_lib.Room(rows or len(ids), *self.shape, self.virtual_tokens, self.row_multiple)
    found = self.batching([len(x.source) for x in ids], [0 if x.target is None else len(x.target) for x in ids], room)
    pieces = tuple(self._piece(ids, piece) for piece in found)
    return pieces if self.batching.pieces > 1 else pieces[0]

  @property
  def shape(self) -> tuple[int, int]:
    """S and T of a padded row, the most that an example has of each."""
    return self.lengths['inputs'] + self.virtual_tokens, self.lengths['targets']

  def _piece(self, ids: Sequence[Ids], piece: batching_lib.Piece) -> dict[str, np.ndarray]:
    layout = self.layout
    encoder = np.full((piece.rows, piece.source), layout.source_pad_id, np.int32)
    targets = np.full((piece.rows, piece.target), 0 if self.label else layout.pad_id, np.int32)
    weights = np.zeros(targets.shape, np.float32)
    segments = np.zeros(encoder.shape, np.int32), np.zeros(targets.shape, np.int32)
    count = np.zeros(piece.rows, np.int32)
    for i, row, first, first_target in piece.places:
      source, target = ids[i]
      encoder[row, first:first + len(source)] = source
      count[row] += 1
      segments[0][row, first:first + len(source)] = count[row]
      if target is not None:
        slots = slice(first_target, first_target + len(target))
        targets[row, slots] = target
        weights[row, slots] = 1
        segments[1][row, slots] = count[row]
    found = {
        'encoder_input_tokens': encoder,
        'decoder_input_tokens': np.pad(targets, [(0, 0), (1, 0)], constant_values=layout.start_id)[:, :-1],
        'decoder_target_tokens': targets,
        'decoder_loss_weights': weights,
    }
    if piece.packed:
      begins = np.diff(segments[1], axis=1, prepend=0) != 0
      found['decoder_input_tokens'] = np.where(begins, layout.start_id, found['decoder_input_tokens'])
      found |= {'encoder_segment_ids': segments[0], 'decoder_segment_ids': segments[1]}
    return found

  def report(self) -> str:
    """One sentence on truncation; empty if nothing was cut."""
    cut = [f'{n} {feature} (limit {self.lengths[feature]})' for feature, n in self.truncated.items() if n]
    return f'of {self.seen} examples cut: {", ".join(cut)}' if cut else ''
