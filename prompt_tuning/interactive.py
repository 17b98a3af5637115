"""A prompted model to talk to from Python: text in, text out; no gin, no seqio, no TensorFlow."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from prompt_tuning import decoding, features, loading
from prompt_tuning.analysis import interpret
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.types import Trainable


class Prediction(NamedTuple):
  """What a model says to a text."""

  text: str
  log_prob: float  # of its tokens and the end of sequence
  score: float  # what ranks it: `log_prob`, of beams with their length penalty


def _bucket(length: int, step: int = 16) -> int:
  """Lengths are rounded up, to compile few shapes."""
  return max(step, -(-length // step) * step)


class PromptedModel:
  """A frozen base with a trained prompt or prefix.

    model = PromptedModel.load('models/t5', 'runs/sst2')
    model.predict(['sentence: a gorgeous , witty , seductive movie .'])
  """

  def __init__(self, loaded: loading.Loaded, trainable: Trainable, batch_size: int = 32):
    """`load` is the usual way here."""
    self._loaded, self.trainable, self._batch_size = loaded, trainable, batch_size
    self._layout = features.layout_of(loaded.config, loaded.tokenizer)
    everywhere = loaded.partitioner.replicated
    self._generate = jax.jit(
        loaded.model.generate, static_argnames=('length', 'decoder'), out_shardings=everywhere)
    self._score = jax.jit(loaded.model.score, out_shardings=everywhere)

  @classmethod
  def load(
      cls, base: str, prompt: str, *, backbone: loading.Backbone | None = None,
      partitioner: Partitioner | None = None, batch_size: int = 32) -> 'PromptedModel':
    """Loads a base checkpoint (Hugging Face folder or T5X) and what was trained, as `finished.load` reads it.

    A prompt that says that it was trained on another base gets a `tuned.OtherBaseWarning`.

    Raises:
      FileNotFoundError, ValueError: a path that is wrong, or a prompt that does not fit the base.
    """
    backbone = backbone or loading.Backbone()
    backbone = dataclasses.replace(backbone, readout=finished.readout(prompt, backbone.readout))
    loaded = loading.load(base, finished.load(prompt), backbone, partitioner)
    loaded.partitioner.check_batch(batch_size, 'batch_size')
    return cls(loaded, loaded.new_trainable(0), batch_size)

  def predict(self, texts: Sequence[str], max_length: int = 64, decoder: decoding.Decoder | None = None) -> list[str]:
    """The (best) prediction for each text; `texts` are inputs in the task's format, such as 'sentence: ...'."""
    return [best.text for best, *_ in self.decode(texts, max_length, decoder)]

  def decode(
      self, texts: Sequence[str], max_length: int = 64, decoder: decoding.Decoder | None = None, *,
      first: int = 0) -> list[list[Prediction]]:
    """Predictions for each text: as many as the decoder returns, best first (samples: as drawn).

    Args:
      decoder: `decoding.Greedy()` if None, `decoding.Beam(...)` or `decoding.Sampling(...)`.
      first: number of the first text; samples depend on a text's number, not on its neighbours.

    Raises:
      ValueError: a text is empty, or too long for the model's learned positions.
    """
    for i, text in enumerate(texts):
      try:
        self.check(text, max_length)
      except ValueError as error:
        raise ValueError(f'Text {first + i}: {error}') from error
    limit = self._loaded.model.source_limit(self.trainable, max_length)
    rows = self._by_length(
        texts, None, limit,
        lambda batch, numbers: self._generate(
            self.trainable, self._loaded.frozen, batch, length=max_length, decoder=decoder,
            keys=decoding.example_keys(first + numbers)))
    readout = self._loaded.model.readout
    text_of = readout.decode
    if readout.length is None:
      text_of = lambda ids, source: self._layout.decode(self._loaded.tokenizer, ids)
    return [[Prediction(text_of(tokens, source), float(log_prob), float(score))
             for tokens, log_prob, score in zip(*row, strict=True)] for source, *row in rows]

  def check(self, text: str, max_length: int = 64) -> None:
    """Raises ValueError if `text` is empty, or too long to decode `max_length` tokens for it."""
    if not text.strip():
      raise ValueError('it is empty; expected an input in the format of the task.')
    limit = self._loaded.model.source_limit(self.trainable, max_length)
    tokens = len(self._layout.encode(self._loaded.tokenizer, text)['inputs'])
    if limit is not None and tokens + self._loaded.model.placed > limit:
      raise ValueError(
          f'it has {tokens} tokens, but the model has positions for {limit - self._loaded.model.placed} '
          f'if {max_length} are to be decoded. Shorten it, or lower MAX_DECODE_LENGTH.')

  def score(self, texts: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Log-probability of each target given its text (summed over tokens and the end of sequence).

    Raises:
      ValueError: not as many targets as texts.
    """
    if len(texts) != len(targets):
      raise ValueError(f'{len(texts)} texts but {len(targets)} targets; expected one target a text.')
    rows = self._by_length(
        texts, targets, None, lambda batch, _: (self._score(self.trainable, self._loaded.frozen, batch),))
    return [float(score) for _, score in rows]

  def nearest_words(self, k: int = 5) -> list[list[tuple[str, float]]]:
    """The `k` vocabulary pieces nearest to each virtual token by cosine (Lester et al. 2021, section 7).

    Raises:
      ValueError: what was trained is no prompt.
    """
    if 'prompt' not in self.trainable:
      raise ValueError(f'Nearest words are those of a prompt; this is a {", ".join(self.trainable)}.')
    pieces = min(len(self._loaded.tokenizer), self._loaded.config.vocab_size)
    table = self._loaded.base().embeddings(range(pieces))
    prompt = np.asarray(self._loaded.model.export(self.trainable)[tuned.PROMPT])
    return interpret.words(*interpret.nearest(prompt, table, k), self._loaded.tokenizer.piece)

  def _rows(self, n: int) -> int:
    """Rows are rounded up to a power of two for each data-parallel device, to compile few shapes."""
    devices = self._loaded.partitioner.mesh.shape['data']
    return min(self._batch_size, devices * (1 << max(0, -(-n // devices) - 1).bit_length()))

  def _by_length(self, texts, targets, limit, run) -> list[tuple]:
    """Runs batches of texts of similar length, and their numbers, through `run`.

    Returns:
      In the order given: the ids of each text and the row of it in all that `run` returns.
    """
    tokenizer, model = self._loaded.tokenizer, self._loaded.model
    label = None if model.readout.length is None else model.readout.encode
    examples = [self._layout.encode(tokenizer, text) for text in texts]
    for example, target in zip(examples, targets or [''] * len(texts), strict=True):
      if label is None:
        example |= self._layout.encode(tokenizer, None, target)
      elif targets is not None:
        example |= {'targets': [0] * model.readout.length, 'targets_pretokenized': target}
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]['inputs']))
    rows: list[tuple] = [()] * len(examples)
    for begin in range(0, len(order), self._batch_size):
      chosen = order[begin:begin + self._batch_size]
      some = [examples[i] for i in chosen]
      lengths = {name: _bucket(max(len(e.get(name, ())) for e in some)) for name in ('inputs', 'targets')}
      if limit is not None:
        lengths['inputs'] = min(lengths['inputs'], limit - model.placed)
      if label is not None:
        lengths['targets'] = model.readout.length
      convert = features.Converter(
          lengths, model.place, model.placed, self._loaded.config.vocab_size, self._layout, label=label)
      batch = convert(some, self._rows(len(some)))
      numbers = np.resize(chosen, self._rows(len(some)))
      found = run(self._loaded.partitioner.place_batch(batch), numbers)
      columns = [np.asarray(x) for x in (batch['encoder_input_tokens'], *found)]
      for row, i in enumerate(chosen):
        rows[i] = tuple(column[row] for column in columns)
    return rows
