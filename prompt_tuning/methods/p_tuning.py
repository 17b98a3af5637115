"""P-tuning (Liu et al. 2021): virtual tokens anywhere in a template around the text, made by an LSTM while trained.

A template is text with `{text}` where the input goes, `{mask}` for the model's mask token, and `<p*3>` for three
virtual tokens (`<p>`: one), such as '<p*3> {text} Question: <p> Answer: {mask} .' It stands inside what the model has
around a text: behind [CLS] or <s>, in front of [SEP] or </s>. Its words count against no TASK_FEATURE_LENGTHS.

Only the table that the network makes is kept (the paper: the LSTM is discarded), with the template in its file's
settings. The paper's few-shot experiments train the model as well: `together.Together((PTuning(...), Full()))` with
`optim.by_collection`. WARP (Hambardzumyan et al. 2021) is a template of 20 virtual tokens, `initializers.mask()`, no
network, and `readouts.Head(use_bias=False)`.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.methods import initializers
from prompt_tuning.methods.prompt import Table
from prompt_tuning.methods.reparameterization import LSTM, MLP

TEXT, MASK = '{text}', '{mask}'
_PART = re.compile(r'(<p(?:\*\d+)?>|\{text\}|\{mask\})')


@dataclasses.dataclass(frozen=True)
class Bound:
  """A template as ids. Virtual token i is -1 - i.

  Attributes:
    front, back: what stands in front of the text and behind it.
    opening, closing: the model's ids around a source, which stay outermost; None: it has none.
  """

  front: tuple[int, ...]
  back: tuple[int, ...]
  opening: int | None
  closing: int | None

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Ids [n] of a source -> the same with the template in it, virtual token i as `vocab_size` + i."""
    begin = int(len(tokens) > 0 and tokens[0] == self.opening)
    end = len(tokens) - int(len(tokens) > begin and tokens[-1] == self.closing)
    front, back = (np.array([vocab_size - 1 - i if i < 0 else i for i in ids], tokens.dtype)
                   for ids in (self.front, self.back))
    return np.concatenate([tokens[:begin], front, tokens[begin:end], back, tokens[end:]])


class PTuning(Table):
  """Virtual tokens in a template.

  Attributes:
    template: see above.
    initializer: of the table, as in `Prompt`; a network is then fitted to it. None: N(0, 1), or as the network begins.
    reparameterization: the prompt encoder, an `LSTM` (the paper's) or `MLP`; None: the table itself is trained.
    bound: found by `bind`.
  """

  template: str = '<p*3> {text} <p*3>'
  initializer: initializers.Initializer | None = None
  reparameterization: LSTM | MLP | None = LSTM()
  bound: Bound | None = None

  @property
  def length(self) -> int:
    """P, the virtual tokens of the template."""
    return sum(map(_virtual, _parts(self.template)))

  @property
  def virtual_tokens(self) -> int:
    """Words and masks of the template are placed too."""
    bound = self._bound()
    return len(bound.front) + len(bound.back)

  def bind(self, config: BackboneConfig, tokenizer: Any) -> 'PTuning':
    """Finds the ids of the template.

    A word has a space in front only where the template has one (byte-level BPE tells ' Answer' from 'Answer'); those
    behind it are dropped, as the next token brings its own.

    Raises:
      ValueError: the template has not one `{text}`, no virtual token, a `{mask}` that the model lacks, or words that
        no tokenizer is there for.
    """
    parts = _parts(self.template)
    mask = config.mask_id if config.mask_id is not None else getattr(tokenizer, 'mask_id', None)
    sides: list[list[int]] = [[]]
    count = 0
    for part in parts:
      if part == TEXT:
        sides.append([])
      elif part == MASK:
        if mask is None:
          raise ValueError(f'TEMPLATE={self.template!r} has a {MASK}, but this {config.family} has no mask token; '
                           'leave it out.')
        sides[-1].append(mask)
      elif n := _virtual(part):
        sides[-1] += range(-1 - count, -1 - count - n, -1)
        count += n
      else:
        if tokenizer is None:
          raise ValueError(f'The words {part!r} of TEMPLATE need the tokenizer of the {config.family}; name it by '
                           'TOKENIZER.')
        sides[-1] += tokenizer.encode(part)
    front, back = map(tuple, sides)
    around = (None, None)
    if not config.decoder_only:  # whose sources have nothing around them
      around = tuple(getattr(config, name) if getattr(config, name) is not None else getattr(tokenizer, name, None)
                     for name in ('bos_id', 'eos_id'))
    return self.clone(bound=Bound(front, back, *around))

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The template with the text in it: [n] -> [n + what the template has]."""
    return self._bound().place(tokens, vocab_size)

  def settings(self) -> dict[str, Any]:
    return {'template': self.template}

  def _bound(self) -> Bound:
    if self.bound is None:
      raise ValueError(f'TEMPLATE={self.template!r} is text as yet; call bind(config, tokenizer) first, as '
                       '`loading.load` does.')
    return self.bound


def _virtual(part: str) -> int:
  """How many virtual tokens a part of a template stands for."""
  return int(part[3:-1] or 1) if _PART.fullmatch(part) and part not in (TEXT, MASK) else 0


def _parts(template: str) -> list[str]:
  """Placeholders and words, in order.

  Raises:
    ValueError: not one `{text}`, no virtual token, or a placeholder that there is not.
  """
  right = "expected text with one {text}, any {mask}, and virtual tokens such as <p*3>: '<p*3> {text} <p*3>'."
  words = lambda part: ' ' * part[0].isspace() + ' '.join(part.split())
  parts = [part if _PART.fullmatch(part) else words(part) for part in _PART.split(template) if part.strip()]
  if (count := parts.count(TEXT)) != 1:
    raise ValueError(f'TEMPLATE={template!r} has {count} {TEXT}; {right}')
  for part in parts:
    if not _PART.fullmatch(part) and (wrong := re.search(r'<p\b[^ ]*|\{[^ ]*|\}', part)):
      raise ValueError(f'TEMPLATE={template!r}: {wrong[0]!r} is no placeholder; {right}')
  counts = [_virtual(part) for part in parts if _PART.fullmatch(part) and part not in (TEXT, MASK)]
  if not counts or 0 in counts:
    raise ValueError(f'TEMPLATE={template!r} has {"no virtual token" if not counts else "<p*0>"}; {right}')
  return parts
