"""Language modelling on any text: T5's prefix-LM objective (LM adaptation) and its span corruption (pretraining).

| tasks | text |
|---|---|
| `c4_{prefix_lm,span_corruption}`, `c4_v220_...` | TFDS `c4/en` 3.0.1, and 2.2.0, which T5 was trained on |
| `text_...` | your own: `train*.txt` and `valid*.txt` in the folder `text` of the manual downloads, see `TextFiles` |
| `wikitext_sample_...` | bundled in `data/`: a few articles of WikiText-2, for smoke runs |

Documents are tokenised (what `seqio_cache_tasks` keeps), 128 at a time joined, and cut into chunks of the length that
fills `TASK_FEATURE_LENGTHS['inputs']`. Prefix LM divides a chunk of n tokens at a point drawn from 1 ... n - 1: what is
left of it is the source, the rest the target (Lester et al. 2021, section 2.2). Span corruption puts sentinels in the
places of random spans, three tokens long on average and 15% of all, and the target says what was there (Raffel et al.
2020).

The draws are T5's: from the same seeds the same masks, bit for bit. Differences from T5's code: its prefix LM cuts
every document alone and leaves filling the rows to packing, which we do without; its choice of 65,536 tokens of a
longer document is left out, so such a document is used whole, and the seeds that follow are numbered otherwise; a chunk
of one token, which has no two sides, is dropped. A target of prefix LM longer than `TASK_FEATURE_LENGTHS['targets']`
is cut, as it was in T5's LM adaptation (1024 and 256).
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import itertools
import math
import os
import pathlib

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning.tasks import builders, features, tfds_source

NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0
SENTINELS = 100
DOCUMENTS = 128  # joined before they are cut
SPLITS = ('train', 'validation')
FOLDER = 'text'  # of the manual downloads

_DATA = pathlib.Path(__file__).parent / 'data'
_DEFAULT_LENGTHS = {'inputs': 512, 'targets': 512}  # where nobody says any
_SHUFFLE_BUFFER = 65_536  # documents

Lengths = Mapping[str, int]


# --- From documents to chunks ---


def join(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """{'targets': ids [n]} of documents -> those of `DOCUMENTS` of them end to end, as T5 without a mark between."""
  return dataset.ragged_batch(DOCUMENTS).map(lambda x: {'targets': x['targets'].flat_values})


def cut(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
  """{'targets': ids [n]} -> chunks of `length` tokens, and what is left (if that is more than one)."""

  def rows(x):
    ids = x['targets']
    return {'targets': tf.reshape(tf.pad(ids, [[0, -tf.size(ids) % length]]), [-1, length])}

  unpadded = lambda x: {'targets': tf.boolean_mask(x['targets'], x['targets'] != 0)}  # no text has the id 0
  chunks = dataset.map(rows, tf.data.AUTOTUNE).unbatch().map(unpadded, tf.data.AUTOTUNE)
  return chunks.filter(lambda x: tf.size(x['targets']) > 1)


# --- Objectives, as preprocessors ---


def prefix_lm(dataset: tf.data.Dataset, sequence_length: Lengths | None = None) -> tf.data.Dataset:
  """Documents -> chunks divided in two. Chunks have `sequence_length['inputs'] - 1` tokens: eos takes one."""
  length = (sequence_length or _DEFAULT_LENGTHS)['inputs']
  if length < 3:
    raise ValueError(f"TASK_FEATURE_LENGTHS['inputs'] = {length}; a prefix and a target need at least 3.")
  return divide(cut(join(dataset), length - 1))


def span_corruption(dataset: tf.data.Dataset, sequence_length: Lengths | None = None) -> tf.data.Dataset:
  """Documents -> chunks with spans taken out, of the length that makes `sequence_length['inputs']` of them.

  Raises:
    ValueError: the targets do not fit, or there are fewer sentinels than spans.
  """
  lengths = sequence_length or _DEFAULT_LENGTHS
  tokens, targets = span_corruption_lengths(lengths['inputs'])
  if lengths['targets'] < targets:
    raise ValueError(f'TASK_FEATURE_LENGTHS={dict(lengths)}: span corruption of {lengths["inputs"]} input tokens has '
                     f"targets of {targets}; set 'targets' to {targets} or more.")
  if (spans := _spans(tokens)[1]) > SENTINELS:
    raise ValueError(f"TASK_FEATURE_LENGTHS['inputs'] = {lengths['inputs']} would take {spans} sentinels; the "
                     f'vocabulary has {SENTINELS}. Use shorter inputs.')
  return corrupt(cut(join(dataset), tokens))


def span_corruption_lengths(inputs: int) -> tuple[int, int]:
  """(tokens of text, tokens of targets) that inputs of at most that length hold, ends of sequence included.

  512 inputs are made of 568 tokens, with targets of 114.
  """

  def made_of(tokens):
    noise, spans = _spans(tokens)
    return tokens - noise + spans + 1, noise + spans + 1

  if inputs < 3:
    raise ValueError(f"TASK_FEATURE_LENGTHS['inputs'] = {inputs}; span corruption needs at least 3.")
  tokens = inputs - 1
  while made_of(tokens + 1)[0] <= inputs:
    tokens += 1
  return tokens, made_of(tokens)[1]


def _spans(tokens: int) -> tuple[int, int]:
  """(tokens that are noise, spans of noise) in so many tokens."""
  noise = max(1, round(tokens * NOISE_DENSITY))
  return noise, max(1, round(noise / MEAN_SPAN_LENGTH))


@seqio.map_over_dataset(num_seeds=1)
def divide(x, seed):
  """{'targets': ids [n]} -> {'inputs': the first 1 ... n - 1, 'targets': the others}."""
  ids = x['targets']
  point = tf.random.stateless_uniform([], _two_seeds(seed)[0], 1, tf.size(ids), tf.int32)
  return {'inputs': ids[:point], 'targets': ids[point:]}


@seqio.map_over_dataset(num_seeds=1)
def corrupt(x, seed):
  """{'targets': ids [n]} -> {'inputs': sentinels for noise, 'targets': sentinels for all else}."""
  ids = x['targets']
  noise = noise_mask(tf.size(ids), _two_seeds(seed))
  return {'inputs': with_sentinels(ids, noise), 'targets': with_sentinels(ids, ~noise)}


def noise_mask(length: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
  """Which of `length` > 1 tokens are noise: spans of known number and total length, all ways equally likely.

  Spans of text and of noise take turns, text first.

  Args:
    seeds: [2, 2] int64, for the lengths of the spans of noise and of those of text.
  """
  share = lambda n, by: tf.cast(tf.round(tf.cast(n, tf.float32) * by), tf.int32)
  noise = tf.clip_by_value(share(length, NOISE_DENSITY), 1, length - 1)
  spans = tf.maximum(tf.cast(tf.round(tf.cast(noise, tf.float32) / MEAN_SPAN_LENGTH), tf.int32), 1)
  lengths = tf.stack([_parts(length - noise, spans, seeds[1]), _parts(noise, spans, seeds[0])], axis=1)
  return tf.repeat(tf.tile([False, True], [spans]), tf.reshape(lengths, [-1]))


def _parts(items: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Lengths [parts], each at least 1, that add up to `items`."""
  begins = seqio.stateless_shuffle(tf.cast(tf.range(items - 1) < parts - 1, tf.int32), seed)  # all but the first item
  return tf.math.bincount(tf.cumsum(tf.pad(begins, [[1, 0]])), minlength=parts)


def with_sentinels(ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
  """The ids [n] with each run under the mask [n] made one sentinel: the vocabulary's last id, then the one before."""
  first = mask & ~tf.pad(mask[:-1], [[1, 0]])
  sentinels = features.VOCABULARY.vocab_size - tf.cumsum(tf.cast(first, ids.dtype))
  return tf.boolean_mask(tf.where(first, sentinels, ids), first | ~mask)


def _two_seeds(seed) -> tf.Tensor:
  """The [2, 2] of the six seeds into which T5 splits an example's that its masks are drawn from."""
  return tf.random.experimental.stateless_split(tf.stack(seed), 6)[:2]


# --- Scores ---


def number_of_tokens(text: str, example=None, is_target: bool = False):
  """Postprocessor: of a target the number of its tokens, for `log_likelihood`."""
  return len(example['targets']) if is_target else text


def log_likelihood(targets, scores) -> dict[str, float]:
  """Metric: the mean log-probability of a target token in nats, larger is better; and the perplexity it means.

  Teacher-forced; the ends of sequence count as tokens.
  """
  mean = float(np.sum(scores) / np.sum(targets))
  return {'log_likelihood': mean, 'perplexity': math.exp(min(-mean, 700.0))}


# --- Text ---


def documents(path: str | os.PathLike) -> Iterator[bytes]:
  """The documents of a text file: what blank lines divide; in a file without, each line."""
  with tf.io.gfile.GFile(os.fspath(path), 'rb') as file:
    runs = (list(run) for filled, run in itertools.groupby(map(bytes.strip, file), bool) if filled)
    first, second = next(runs, []), next(runs, None)
    if second is None:
      yield from first
    else:
      yield from map(b'\n'.join, itertools.chain([first, second], runs))


class TextFiles(seqio.DataSource):
  """`{'text': document}` of text files in UTF-8 (see `documents`), shuffled by file, then in a window of documents."""

  supports_arbitrary_sharding = True

  def __init__(self, patterns: Mapping[str, str], folder: Callable[[], str | os.PathLike]):
    """Makes the source.

    Args:
      patterns: split -> files, such as {'train': 'train*.txt'}.
      folder: gives where they are, when they are read.
    """
    super().__init__(splits=tuple(patterns))
    self._patterns, self._folder = patterns, folder

  def list_shards(self, split: str) -> list[str]:
    """The files of a split.

    Raises:
      FileNotFoundError: there are none; the message says where they are looked for.
    """
    if split not in self._patterns:
      raise ValueError(f'There is no split {split!r}; the task has {", ".join(self.splits)}.')
    pattern = os.path.join(self._folder(), self._patterns[split])
    if not (files := sorted(tf.io.gfile.glob(pattern))):
      raise FileNotFoundError(
          f'{pattern}: there is no such file. Put text there, documents with blank lines between or one a line; the '
          f'environment variable {builders.MANUAL_DIR} names another folder than {pathlib.Path(pattern).parents[1]}.')
    return files

  def get_dataset(self, split='train', shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """Reads a split, as `seqio.DataSource.get_dataset` says."""
    files = self.list_shards(split)
    if shuffle:
      files = np.random.default_rng(seed).permutation(files).tolist()
    texts = lambda: itertools.chain.from_iterable(map(documents, files))
    dataset = tf.data.Dataset.from_generator(texts, output_signature=tf.TensorSpec([], tf.string))
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    dataset = dataset.map(lambda text: {'text': text})
    return dataset.shuffle(_SHUFFLE_BUFFER, seed=seed) if shuffle else dataset


def manual_folder() -> str:
  """The folder `text` among the manual downloads, as `builders` looks for its own."""
  data_dir = seqio.LazyTfdsLoader('c4/en:3.0.1').data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  root = os.environ.get(builders.MANUAL_DIR) or os.path.join(data_dir, 'downloads', 'manual')
  return os.path.join(os.path.expanduser(root), FOLDER)


def register(name: str, source: seqio.DataSource) -> list[seqio.Task]:
  """Registers `<name>_prefix_lm` and `<name>_span_corruption` of a source of `{'text': document}`."""
  alone = lambda dataset: dataset.map(lambda x: {'targets': x['text']}, tf.data.AUTOTUNE)
  return [
      seqio.TaskRegistry.add(
          f'{name}_{objective.__name__}',
          source=source,
          preprocessors=[
              alone,
              functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
              seqio.CacheDatasetPlaceholder(),
              objective,
              seqio.preprocessors.append_eos_after_trim,
          ],
          output_features=features.OUTPUT_FEATURES,
          postprocess_fn=number_of_tokens,
          metric_fns=[log_likelihood])
      for objective in (prefix_lm, span_corruption)]


register('c4', tfds_source.TfdsSource('c4/en:3.0.1', splits=SPLITS))
register('c4_v220', tfds_source.TfdsSource('c4/en:2.2.0', splits=SPLITS))
register('text', TextFiles({'train': 'train*.txt', 'validation': 'valid*.txt'}, manual_folder))
register('wikitext_sample', TextFiles(
    {split: f'wikitext_sample_{split}.txt' for split in SPLITS}, lambda: _DATA))
