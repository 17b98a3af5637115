"""Which words a neuron answers to (Wang et al. 2022, section 4.3): by its weights, and by what it does on text."""

from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning import quantized
from prompt_tuning.analysis import readings
from prompt_tuning.analysis.record import Labelled, Read, join, stream
from prompt_tuning.types import Params


def key_vectors(params: Params, layers: Mapping[str, int], neurons: Sequence[tuple[int, int]]) -> np.ndarray:
  """Input weights of neurons: columns of the first FFN kernel [L, D, F], as float32 [n, D].

  A gated FFN has two such kernels; the one under the nonlinearity (`wi_0`) is taken, which says when a neuron is on.

  Args:
    params: of the backbone.
    layers: L of each `mlp_act` site looked at (`{'encoder/mlp_act': 12}`).
    neurons: (layer, neuron), layers of several stacks counted through.
  """
  where = [(site.split('/')[0], i) for site in sorted(layers, reverse=True) for i in range(layers[site])]
  vectors = []
  for layer, neuron in neurons:
    stack, i = where[layer]
    mlp = params[stack]['layers']['mlp']
    first = {name: x[i, ..., neuron:neuron + 1] for name, x in mlp['wi' if 'wi' in mlp else 'wi_0'].items()}
    vectors.append(np.asarray(quantized.dequantized(first)['kernel'][:, 0], np.float32))
  return np.stack(vectors)


def cosines(embeddings: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """Cosine of each word embedding [V, D] with each key vector [n, D]: [n, V]; 0 where a vector is 0."""
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
  return unit(np.asarray(keys, np.float32)) @ unit(np.asarray(embeddings, np.float32)).T


def word_means(
    read: Read, batches: Labelled, layers: Mapping[str, int], neurons: Sequence[tuple[int, int]],
    vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean activation of neurons on each word over all its occurrences in texts.

  Args:
    batches: batches, each with the ids [B, S] of the words at the stack's positions; negative: no word (padding,
      virtual tokens, special tokens).
    layers, neurons: as in `key_vectors`.

  Returns:
    Means, float64 [n, V], NaN for words that do not occur, and how often each word occurs, int64 [V].

  Raises:
    ValueError: an id of V or more: such tokens are no words.
  """
  at, neuron = np.asarray(neurons, np.int32).reshape(-1, 2).T
  contents = {site: readings.Everywhere(readings.tiled(neuron, count)) for site, count in layers.items()}
  sums, counts = np.zeros((len(at), vocab_size)), np.zeros(vocab_size, np.int64)
  for found, ids in stream(read, batches, lambda batch, ids: contents):
    if ids.max(initial=0) >= vocab_size:
      raise ValueError(f'Word {ids.max()} of {vocab_size}; expected ids below, or -1 for what is no word.')
    x = join({site: np.asarray(x) for site, x in found.items()})[at, :, :ids.shape[1], np.arange(len(at))]  # [n, B, S]
    words = ids[ids >= 0]
    for i in range(len(at)):
      sums[i] += np.bincount(words, x[i][ids >= 0], vocab_size)
    counts += np.bincount(words, minlength=vocab_size)
  return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0), counts


def extremes(
    scores: np.ndarray, words: Sequence[str], count: int = 10,
    allowed: np.ndarray | None = None) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
  """The words of the highest and of the lowest scores [V], each from the extreme on; NaN is no score.

  Args:
    allowed: which words may be named [V], such as those that occur often enough; None: all.
  """
  known = ~np.isnan(scores) if allowed is None else ~np.isnan(scores) & allowed
  ids = np.flatnonzero(known)
  order = ids[np.argsort(-scores[ids], kind='stable')]
  named = lambda chosen: [(words[i], float(scores[i])) for i in chosen]
  return named(order[:count]), named(order[::-1][:count])
