"""What is read from a model: its text, the label whose word is likeliest, a trained classifier's label, or a span.

A readout is a `Method` of its own: what it trains lives in the collection `head`, and it puts a content at a site. All
but `TextToText` tell classes apart: `decoder_target_tokens` hold class numbers, and logits are [B, T, classes]. So
losses, scores, evaluation and prediction need no code for any of them.

An encoder-only model reads at its first mask token, or at index 0 where a row has none; others in front of the first
token that they would decode.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.types import Array, Trainable

MAX_ANSWER = 30  # tokens of a span


class Readout(Method):
  """Base class."""

  collection = 'head'
  packs = True  # it can be trained on rows of several examples

  @property
  def length(self) -> int | None:
    """T, what is predicted for an example; None: a text of any length."""
    return 1

  def read(self, logits: Array) -> Array:
    """The model's logits -> those of the classes."""
    return logits

  def choose(self, logits: Array) -> Array:
    """Logits [B, T, classes] -> predicted classes [B, T]."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def encode(self, text: str, source: np.ndarray) -> list[int]:
    """A target's text -> classes [T]; `source` are the ids of its row, virtual ones in place.

    Raises:
      ValueError: it is no class.
    """
    raise NotImplementedError

  def decode(self, classes: Sequence[int], source: np.ndarray) -> str:
    """Inverse of `encode`."""
    raise NotImplementedError

  def settings(self) -> dict[str, Any]:
    """JSON from which `from_settings` makes the same readout, but for what it has learned."""
    return {'kind': type(self).__name__}

  def __call__(self, base: Base | None = None) -> Patch:
    del base
    return Patch()


class TextToText(Readout):
  """The text that the decoder generates."""

  @property
  def length(self) -> None:
    return None


class _Labels(Readout):
  """Classes with names: the texts that a task has as targets.

  Attributes:
    labels: the targets, by class.
  """

  labels: tuple[str, ...] = ()

  def encode(self, text: str, source: np.ndarray) -> list[int]:
    del source
    if text not in self.labels:
      raise ValueError(f'The target {text!r} is none of LABELS={tuple(self.labels)}. Set LABELS to all targets of the '
                       'task, in any order.')
    return [self.labels.index(text)]

  def decode(self, classes: Sequence[int], source: np.ndarray) -> str:
    del source
    return self.labels[classes[0]]

  def _check(self) -> None:
    if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
      raise ValueError(f'LABELS={tuple(self.labels)}; expected two or more different targets of the task, such as '
                       "('negative', 'positive').")

  def settings(self) -> dict[str, Any]:
    return super().settings() | {'labels': list(self.labels)}


class Verbalizer(_Labels):
  """The label whose word is likeliest (Wang et al. 2022; Schick and Schuetze 2021): no logit but theirs counts.

  A word that splits stands for its first piece, as in the released code of Wang et al.

  Attributes:
    words: of the labels; None: the labels themselves.
    mask: a mask token is put in front of the row, if the model has one and the method's template places none (Wang et
      al.: [MASK] PROMPT <s> x </s>); False reads index 0 (their adapters and BitFit: `<s>`).
    seed: words are drawn at random from the vocabulary (Wang et al., random label words); None: they are not.
    ids, mask_id: found by `bind`.
  """

  words: tuple[str, ...] | None = None
  mask: bool = True
  seed: int | None = None
  ids: tuple[int, ...] = ()
  mask_id: int | None = None

  def bind(self, config: BackboneConfig, tokenizer: Any) -> 'Verbalizer':
    """Finds the ids of the words.

    Raises:
      ValueError: not a word a label, an unknown word, or two whose first pieces are the same.
    """
    self._check()
    words = self.labels if self.words is None else self.words
    if len(words) != len(self.labels):
      raise ValueError(f'VERBALIZER={tuple(words)} has {len(words)} words for the {len(self.labels)} LABELS '
                       f'{tuple(self.labels)}; expected one a label, in their order.')
    if self.seed is not None:
      ids = np.random.default_rng(self.seed).choice(config.vocab_size, len(words), replace=False).tolist()
    elif tokenizer is None:
      raise ValueError(f'The words {tuple(words)} need the tokenizer of the {config.family}; name it by TOKENIZER.')
    else:
      ids = [self._first(word, config, tokenizer) for word in words]
    if len(set(ids)) < len(ids):
      pieces = [tokenizer.piece(i) for i in ids]
      raise ValueError(f'The words {tuple(words)} begin with the pieces {pieces}, of which two are the same: what is '
                       'read could not tell them apart. Set VERBALIZER to other words.')
    mask_id = config.mask_id if self.mask and config.encoder_only else None
    return self.clone(ids=tuple(ids), mask_id=mask_id)

  @staticmethod
  def _first(word: str, config: BackboneConfig, tokenizer: Any) -> int:
    pieces = tokenizer.encode(f' {word}' if config.family == 'gpt2' else word)  # behind a space, as its targets are
    if not pieces or pieces[0] == tokenizer.unk_id:
      raise ValueError(f'The label word {word!r} is not in the vocabulary of this {config.family}; set VERBALIZER to '
                       'words that are.')
    return pieces[0]

  @property
  def virtual_tokens(self) -> int:
    return int(self.mask_id is not None)

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The mask token, then the row; one that has a mask already stays as it is."""
    del vocab_size
    if self.mask_id is None or self.mask_id in tokens:
      return tokens
    return np.concatenate([np.asarray([self.mask_id], tokens.dtype), tokens])

  def read(self, logits: Array) -> Array:
    """[B, T, V] -> [B, T, C]."""
    return logits[..., jnp.asarray(self.ids)]

  def settings(self) -> dict[str, Any]:
    words = None if self.words is None else list(self.words)
    return super().settings() | {'words': words, 'mask': self.mask, 'seed': self.seed}


class Linear(struct.PyTreeNode):
  """Content of the site `states`: a linear classifier of the states that are read."""

  kernel: Array  # [D, C]
  bias: Array | None  # [C]

  def __call__(self, states: Array, positions: Array | None, visible: Array | None) -> Array:
    """States [B, S, D], read at `positions` [B, T] (None: all) -> logits, float32 [B, T, C]."""
    del visible
    if positions is not None:
      states = jnp.take_along_axis(states, positions[..., None], axis=1)
    logits = states.astype(jnp.float32) @ self.kernel
    return logits if self.bias is None else logits + self.bias


class SpanLinear(Linear):
  """The same for the first and last token of a span: classes are positions."""

  def __call__(self, states: Array, positions: Array | None, visible: Array | None) -> Array:
    """States [B, S, D] -> logits, float32 [B, 2, S], none of them of padding."""
    logits = super().__call__(states, None, None).swapaxes(1, 2)
    return logits if visible is None else jnp.where(visible[:, None], logits, -1e10)


def _head(module: Method, base: Base | None, classes: int, use_bias: bool, initial: Mapping[str, np.ndarray] | None):
  """The classifier's variables {'kernel': [D, classes], 'bias': [classes]}, made where `base` is given."""
  if base is not None:
    shape = (base.config.d_model, classes)
    values = initial or {'kernel': 0.02 * jax.random.normal(module.make_rng('head'), shape), 'bias': jnp.zeros(classes)}
    if np.shape(values['kernel']) != shape:
      raise ValueError(f'The head should be {list(shape)} (width of the base x classes) but what it begins from is '
                       f'{list(np.shape(values["kernel"]))}. Use one made for this base and its LABELS.')
    for name in ('kernel', 'bias')[:1 + use_bias]:
      module.variable('head', name, lambda name=name: jnp.asarray(values[name], jnp.float32))
  return module.variables['head']


class Head(_Labels):
  """A trained linear classifier of one state (P-tuning v2, BitFit, adapters; with a mask and no bias: WARP).

  Attributes:
    use_bias: it has one.
    initial: what it begins as, {'kernel', 'bias'}; None: N(0, 0.02) and 0.
  """

  use_bias: bool = True
  initial: Mapping[str, np.ndarray] | None = None

  def bind(self, config: BackboneConfig, tokenizer: Any) -> 'Head':
    del config, tokenizer
    self._check()
    return self

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    head = _head(self, base, len(self.labels), self.use_bias, self.initial)
    return Patch(sites={'states': Linear(head['kernel'], head.get('bias'))})

  def export(self, trainable: Trainable) -> dict[str, Array]:
    return {f'head/{name}': x for name, x in trainable['head'].items()}

  def settings(self) -> dict[str, Any]:
    return super().settings() | {'use_bias': self.use_bias}


class Span(Readout):
  """The first and last token of an answer in the source, by a trained linear head (encoder-only models).

  The target of an example is its answer's text; the first place where the source has its tokens is the span. An answer
  that the source does not hold (it was cut) has no loss.
  """

  initial: Mapping[str, np.ndarray] | None = None
  tokenizer: Any = None

  packs = False  # its classes are places

  @property
  def length(self) -> int:
    return 2

  def bind(self, config: BackboneConfig, tokenizer: Any) -> 'Span':
    if not config.encoder_only:
      raise ValueError(f'READOUT = @readouts.Span() reads spans from an encoder; a {config.family} generates its '
                       'answers: use READOUT = @readouts.TextToText().')
    return self.clone(tokenizer=tokenizer)

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    head = _head(self, base, 2, True, self.initial)
    return Patch(sites={'states': SpanLinear(head['kernel'], head['bias'])})

  def export(self, trainable: Trainable) -> dict[str, Array]:
    return {f'head/{name}': x for name, x in trainable['head'].items()}

  def encode(self, text: str, source: np.ndarray) -> list[int]:
    for answer in (self.tokenizer.encode(f' {text}'), self.tokenizer.encode(text)):
      for first in range(len(source) - len(answer) + 1 if answer else 0):
        if source[first:first + len(answer)].tolist() == list(answer):
          return [first, first + len(answer) - 1]
    return []

  def choose(self, logits: Array) -> Array:
    """The likeliest first and last token, in this order and at most `MAX_ANSWER` apart: [B, 2, S] -> [B, 2]."""
    size = logits.shape[-1]
    distance = jnp.arange(size)[None, :] - jnp.arange(size)[:, None]
    both = logits[:, 0, :, None] + logits[:, 1, None, :]
    both = jnp.where((distance >= 0) & (distance < MAX_ANSWER), both, -jnp.inf)
    best = jnp.argmax(both.reshape(len(both), -1), axis=-1)
    return jnp.stack([best // size, best % size], axis=-1).astype(jnp.int32)

  def decode(self, classes: Sequence[int], source: np.ndarray) -> str:
    return self.tokenizer.decode([int(i) for i in source[classes[0]:classes[1] + 1]]).strip()


def from_settings(settings: Mapping[str, Any], initial: Mapping[str, np.ndarray] | None = None) -> Readout:
  """The readout whose `settings()` these are; `initial`: what it has learned, {'kernel', 'bias'}.

  Raises:
    ValueError: of no kind that is known here, or other fields than the kind has.
  """
  kinds: dict[str, Callable[..., Readout]] = {kind.__name__: kind for kind in (TextToText, Verbalizer, Head, Span)}
  fields = {name: tuple(x) if isinstance(x, list) else x for name, x in settings.items() if name != 'kind'}
  kind = kinds.get(settings.get('kind', ''))
  if kind is None or set(fields) - {field.name for field in dataclasses.fields(kind)}:
    raise ValueError(f'The readout {dict(settings)} is of no kind that is known here ({", ".join(kinds)}).')
  return kind(**fields, **({} if initial is None else {'initial': initial}))
