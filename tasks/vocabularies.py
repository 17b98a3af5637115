"""seqio vocabularies of tokenizers that seqio has none for: GPT-2, BART, RoBERTa, BERT.

A task needs none of them to be used with such a model: the trainer encodes a task's text again for the base at hand.
They are for tasks whose ids matter by themselves (cached in a model's own ids, or read by other seqio users).
"""

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning import tokenizer as tokenizer_lib


class TokenizerVocabulary(seqio.Vocabulary):
  """One of our tokenizers as a seqio vocabulary. Two are equal if they give the same ids."""

  def __init__(self, tokenizer: tokenizer_lib.AnyTokenizer):
    """`tokenizer`: such as `prompt_tuning.tokenizer.open_tokenizer(folder, 'gpt2')`."""
    super().__init__()
    self.tokenizer = tokenizer

  @property
  def bos_id(self) -> int | None:
    return self.tokenizer.bos_id

  @property
  def eos_id(self) -> int | None:
    return self.tokenizer.eos_id

  @property
  def pad_id(self) -> int:
    """The end of sequence where there is no padding, as GPT-2's."""
    return self.tokenizer.eos_id if self.tokenizer.pad_id is None else self.tokenizer.pad_id

  @property
  def unk_id(self) -> int | None:
    return self.tokenizer.unk_id

  @property
  def _base_vocab_size(self) -> int:
    return len(self.tokenizer)

  def decode(self, ids) -> str:
    """As the tokenizer does; seqio's own would end at GPT-2's and BART's start token."""
    return self.tokenizer.decode(np.asarray(ids).tolist())

  def _encode(self, s: str) -> list[int]:
    return self.tokenizer.encode(s)

  def _decode(self, ids) -> str:
    return self.decode(ids)

  def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    """Ids [..., n] -> text [...]."""
    return self._decode_tf(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    encode = lambda text: np.asarray(self.tokenizer.encode(np.asarray(text).item().decode()), np.int32)
    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(rows):
      texts = [self.decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
      return np.asarray(texts, object).reshape(rows.shape[:-1])

    texts = tf.numpy_function(decode, [ids], tf.string)
    texts.set_shape(ids.shape[:-1])
    return texts

  def __eq__(self, other) -> bool:
    return isinstance(other, TokenizerVocabulary) and self.tokenizer.fingerprint == other.tokenizer.fingerprint

  def __str__(self) -> str:
    return f'TokenizerVocabulary(size={self.vocab_size}, fingerprint={self.tokenizer.fingerprint[:8]})'


def same_ids(vocabulary: seqio.Vocabulary, tokenizer: tokenizer_lib.AnyTokenizer) -> bool:
  """Whether ids of a vocabulary are the tokenizer's; seqio's extra ids behind them do not count."""
  if isinstance(vocabulary, TokenizerVocabulary):
    return vocabulary.tokenizer.fingerprint == tokenizer.fingerprint
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    pieces = tokenizer_lib.sentencepiece_fingerprint(vocabulary.tokenizer, vocabulary.extra_ids)
    return pieces == tokenizer.fingerprint
  return False
