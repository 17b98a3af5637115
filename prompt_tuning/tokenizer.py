"""SentencePiece without TensorFlow: text <-> token ids, for everything outside `tasks/`."""

from collections.abc import Iterable
import pathlib

import sentencepiece

T5_VOCABULARY = pathlib.Path(__file__).parent / 'assets' / 't5.spiece.model'
"""T5's vocabulary: 32,000 pieces. Models round it up with 100 sentinels (`<extra_id_0>` = 32099) and padding."""


class Tokenizer:
  """A SentencePiece model file. Ids outside its pieces decode to nothing."""

  def __init__(self, path: str | pathlib.Path = T5_VOCABULARY):
    """Raises FileNotFoundError or ValueError if `path` is no SentencePiece model."""
    if not pathlib.Path(path).is_file():
      raise FileNotFoundError(f'{path}: no such tokenizer; expected a SentencePiece model (spiece.model).')
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
      raise ValueError(f'{path}: not a SentencePiece model ({error}).') from error

  def __len__(self) -> int:
    return self._model.get_piece_size()

  def encode(self, text: str) -> list[int]:
    """Token ids, without end of sequence."""
    return self._model.encode(text)

  def decode(self, ids: Iterable[int]) -> str:
    """Text up to the first end of sequence; padding and ids beyond the pieces are left out."""
    pieces = []
    for i in map(int, ids):
      if i == self._model.eos_id():
        break
      if 0 < i < len(self):
        pieces.append(i)
    return self._model.decode(pieces)

  def piece(self, i: int) -> str:
    """The piece of one id as a word: '▁good' -> ' good'; '<extra_id_k>' or '<i>' beyond the pieces."""
    if i < len(self):
      return self._model.id_to_piece(i).replace('▁', ' ')
    return f'<extra_id_{len(self) + 99 - i}>' if i < len(self) + 100 else f'<{i}>'
