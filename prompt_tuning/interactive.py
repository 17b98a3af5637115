"""A prompted model to talk to from Python: text in, text out; no gin, no seqio, no TensorFlow."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import features, loading
from prompt_tuning.methods import prompt as prompt_lib
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.types import Trainable


def _bucket(length: int, step: int = 16) -> int:
  """Lengths are rounded up, to compile few shapes."""
  return max(step, -(-length // step) * step)


class PromptedModel:
  """A frozen base with a trained prompt.

    model = PromptedModel.load('models/t5', 'runs/sst2')
    model.predict(['sentence: a gorgeous , witty , seductive movie .'])
  """

  def __init__(self, loaded: loading.Loaded, trainable: Trainable, batch_size: int = 32):
    """`load` is the usual way here."""
    self._loaded, self.trainable, self._batch_size = loaded, trainable, batch_size
    everywhere = loaded.partitioner.replicated
    self._generate = jax.jit(loaded.model.generate, static_argnums=3, out_shardings=everywhere)
    self._score = jax.jit(loaded.model.score, out_shardings=everywhere)

  @classmethod
  def load(
      cls, base: str, prompt: str, *, backbone: loading.Backbone | None = None,
      partitioner: Partitioner | None = None, batch_size: int = 32) -> 'PromptedModel':
    """Loads a base checkpoint (Hugging Face folder or T5X) and a prompt in any form that `tuned.load` reads.

    A prompt that says that it was trained on another base gets a `tuned.OtherBaseWarning`.

    Raises:
      FileNotFoundError, ValueError: a path that is wrong, or a prompt that does not fit the base.
    """
    loaded = loading.load(base, prompt_lib.load(prompt), backbone, partitioner)
    loaded.partitioner.check_batch(batch_size, 'batch_size')
    return cls(loaded, loaded.new_trainable(0), batch_size)

  def predict(self, texts: Sequence[str], max_length: int = 64) -> list[str]:
    """Greedy predictions; `texts` are inputs in the task's format, such as 'sentence: ...'."""
    return self.predict_with_scores(texts, max_length)[0]

  def predict_with_scores(self, texts: Sequence[str], max_length: int = 64) -> tuple[list[str], list[float]]:
    """Greedy predictions and their log-probabilities."""
    decoded = self._by_length(
        texts, [''] * len(texts),
        lambda batch: self._generate(self.trainable, self._loaded.frozen, batch, max_length))
    decode = self._loaded.tokenizer.decode
    return [decode(tokens) for tokens, _ in decoded], [float(score) for _, score in decoded]

  def score(self, texts: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Log-probability of each target given its text (summed over tokens and the end of sequence).

    Raises:
      ValueError: not as many targets as texts.
    """
    if len(texts) != len(targets):
      raise ValueError(f'{len(texts)} texts but {len(targets)} targets; expected one target a text.')
    rows = self._by_length(
        texts, targets, lambda batch: (self._score(self.trainable, self._loaded.frozen, batch),))
    return [float(score) for (score,) in rows]

  def nearest_words(self, k: int = 5) -> list[list[tuple[str, float]]]:
    """The `k` vocabulary pieces nearest to each virtual token by cosine (Lester et al. 2021, section 7)."""
    table = jnp.asarray(self._loaded.frozen['token_embedder']['embedding'], jnp.float32)
    prompt = self.trainable['prompt']['embedding']
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)
    words = len(self._loaded.tokenizer)
    cosine, ids = jax.lax.top_k(unit(prompt) @ unit(table[:words]).T, k)
    piece = self._loaded.tokenizer.piece
    return [[(piece(int(i)), float(c)) for i, c in zip(row, values, strict=True)]
            for row, values in zip(np.asarray(ids), np.asarray(cosine), strict=True)]

  def _rows(self, n: int) -> int:
    """Rows are rounded up to a power of two for each data-parallel device, to compile few shapes."""
    devices = self._loaded.partitioner.mesh.shape['data']
    return min(self._batch_size, devices * (1 << max(0, -(-n // devices) - 1).bit_length()))

  def _by_length(self, texts, targets, run) -> list[tuple]:
    """Runs batches of texts of similar length through `run` and returns its rows in the order given."""
    encode, config = self._loaded.tokenizer.encode, self._loaded.config
    method = self._loaded.model.method
    ids = lambda text: np.array([*encode(text), config.eos_id])
    examples = [{'inputs': ids(text), 'targets': ids(target)} for text, target in zip(texts, targets, strict=True)]
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]['inputs']))
    rows: list[tuple] = [()] * len(examples)
    for begin in range(0, len(order), self._batch_size):
      chosen = order[begin:begin + self._batch_size]
      some = [examples[i] for i in chosen]
      lengths = {name: _bucket(max(len(e[name]) for e in some)) for name in ('inputs', 'targets')}
      convert = features.Converter(lengths, method.place, method.virtual_tokens, config.vocab_size, config.eos_id)
      batch = self._loaded.partitioner.place_batch(convert(some, self._rows(len(some))))
      columns = [np.asarray(x) for x in run(batch)]
      for row, i in enumerate(chosen):
        rows[i] = tuple(column[row] for column in columns)
    return rows
