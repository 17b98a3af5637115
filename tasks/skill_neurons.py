"""The seven tasks of Wang et al. 2022 (skill neurons), with two and with all classes.

| task | classes | text |
|---|---|---|
| `wang_sst2`, `wang_sst2_sample` (bundled, `data/`) | 2 | sentence |
| `wang_imdb` | 2 | review |
| `wang_tweet`; `wang_tweet_2` | 3; negative, positive | tweet |
| `wang_mnli`; `wang_mnli_2` | 3; entailment, contradiction | premise, hypothesis |
| `wang_qnli` | 2 | question, sentence |
| `wang_agnews`; `wang_agnews_2` | 4; Sports, Sci/Tech | title, description |
| `wang_dbpedia`; `wang_dbpedia_2` | 14; Company, OfficeHolder | content |

Inputs are the plain text, without names of fields; of a pair both texts with a space between (the released code has
none there). Targets are words that stand for class numbers, as in the released code, whatever they mean: entailment is
`negative`. Fourteen classes have their own names. The paper's accuracies on AG News and DBpedia are those of two
classes. Which two of AG News is not known: here those that the code calls negative and positive when there are four.

`test` is the second official split. One example in five of the first, drawn by a seed, is `validation` and the others
are `train`: `wang_sst2` is seed 0, `wang_sst2_s3` is seed 3. Where an example goes depends on the seed and its text
alone (a fingerprint of both; the released code permutes rows by a seed that differs between processes), not on the
order of rows, the kind of files or the classes that are kept; and equal texts go together. So a probe of a task sees
the split that a prompt of that task was trained on. TweetEval has its own validation split and no seeds.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import re

import seqio
import tensorflow as tf

from prompt_tuning.tasks import builders, classification_builders, classification_files, features, metrics, text_to_text

WORDS = {
    2: ('negative', 'positive'),
    3: ('negative', 'neutral', 'positive'),
    4: ('conflict', 'negative', 'neutral', 'positive'),
    14: classification_builders.Dbpedia14.CLASSES,
}
VALIDATION_SHARE = 5  # one in five
SHUFFLE_BUFFER = 65_536  # examples; rows of the large corpora are in a random order as they come
READ_BATCH = 1024  # rows that are looked at at once
_DATA = pathlib.Path(__file__).parent / 'data'
_NAME = re.compile(r'(wang_\w+?)_s(\d+)')


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Where a task's examples come from.

  Attributes:
    read: official split, 'train' or 'test' -> {'text': string, 'label': class number}.
    classes: how many it has.
    own_validation: it has a third split, 'validation'.
    kept: classes that the task keeps; None: all.
  """

  read: Callable[[str], tf.data.Dataset]
  classes: int
  own_validation: bool = False
  kept: tuple[int, ...] | None = None

  @property
  def words(self) -> tuple[str, ...]:
    """The targets, in the order of the classes."""
    return WORDS[len(self.kept or range(self.classes))]


def _read_sample(split: str) -> tf.data.Dataset:
  name = {'train': 'sst2_sample_train.tsv', 'test': 'sst2_dev.tsv'}[split]
  rows = classification_files.read_table(_DATA / name, (('sentence', 'label'),), WORDS[2])
  texts, labels = zip(*rows, strict=True)
  return tf.data.Dataset.from_tensor_slices({'text': list(texts), 'label': tf.constant(labels, tf.int64)})


def _corpus(builder_class: type[classification_builders.Labelled], **more) -> Corpus:
  read = functools.partial(classification_builders.official, builder_class)
  return Corpus(read, len(builder_class.CLASSES), 'validation' in builder_class.FILES, **more)


TASKS: dict[str, Corpus] = {
    'wang_sst2': _corpus(classification_builders.GlueSst2),
    'wang_sst2_sample': Corpus(_read_sample, 2),
    'wang_imdb': _corpus(classification_builders.ImdbReviews),
    'wang_tweet': _corpus(classification_builders.TweetSentiment),
    'wang_tweet_2': _corpus(classification_builders.TweetSentiment, kept=(0, 2)),
    'wang_mnli': _corpus(classification_builders.GlueMnli),
    'wang_mnli_2': _corpus(classification_builders.GlueMnli, kept=(0, 2)),
    'wang_qnli': _corpus(classification_builders.GlueQnli),
    'wang_agnews': _corpus(classification_builders.AgNews),
    'wang_agnews_2': _corpus(classification_builders.AgNews, kept=(1, 3)),
    'wang_dbpedia': _corpus(classification_builders.Dbpedia14),
    'wang_dbpedia_2': _corpus(classification_builders.Dbpedia14, kept=(0, 4)),
}


def in_validation(text: tf.Tensor, seed: int) -> tf.Tensor:
  """Whether a training example with this text is drawn to validate: [n] strings -> [n] bool."""
  return tf.strings.to_hash_bucket_fast(tf.strings.join([f'{seed} ', text]), VALIDATION_SHARE) == 0


class Source(seqio.DataSource):
  """Texts and words of a corpus, `{'inputs': string, 'targets': string}`, split by a seed."""

  supports_arbitrary_sharding = True

  def __init__(self, corpus: Corpus, seed: int):
    """Makes the source; nothing is read yet."""
    super().__init__(splits=builders.SPLITS)
    self._corpus, self._seed = corpus, seed

  def list_shards(self, split: str) -> list[str]:
    return [split]

  def read(self, split: str) -> tf.data.Dataset:
    """The examples of a split, in the order of the corpus."""
    corpus, drawn = self._corpus, split != 'test' and not self._corpus.own_validation
    kept = list(range(corpus.classes) if corpus.kept is None else corpus.kept)
    words = tf.constant([corpus.words[kept.index(i)] if i in kept else '' for i in range(corpus.classes)])

    def select(rows):
      targets = tf.gather(words, rows['label'])
      wanted = targets != ''
      if drawn:
        wanted &= in_validation(rows['text'], self._seed) == (split == 'validation')
      return {'inputs': tf.boolean_mask(rows['text'], wanted), 'targets': tf.boolean_mask(targets, wanted)}

    return corpus.read('train' if drawn else split).batch(READ_BATCH).map(select).unbatch()

  def get_dataset(self, split='train', shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """Reads a split, as `seqio.DataSource.get_dataset` says."""
    if split not in self.splits:
      raise ValueError(f'There is no split {split!r}; the task has {", ".join(self.splits)}.')
    dataset = self.read(split)
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset.shuffle(SHUFFLE_BUFFER, seed=seed) if shuffle else dataset


def _register(name: str, corpus: Corpus, seed: int) -> None:
  seqio.TaskRegistry.add(
      name,
      source=Source(corpus, seed),
      preprocessors=[
          seqio.preprocessors.tokenize,
          seqio.CacheDatasetPlaceholder(),
          seqio.preprocessors.append_eos_after_trim,
      ],
      output_features=features.OUTPUT_FEATURES,
      postprocess_fn=metrics.strip,
      metric_fns=text_to_text.Format(('text',), corpus.words).metric_fns(),
  )


def define(name: str) -> bool:
  """Registers `<task>_s<seed>` of a task above, if `name` is one; tells whether it is.

  Raises:
    ValueError: the task has its own validation split, or the seed is 0, which has no suffix.
  """
  match = _NAME.fullmatch(name)
  if not match or match[1] not in TASKS:
    return False
  corpus, seed = TASKS[match[1]], int(match[2])
  if corpus.own_validation:
    raise ValueError(f'{name!r}: {match[1]} has its own validation split, of which there is one: leave out _s{seed}.')
  if not 0 < seed < 2**31:
    raise ValueError(f'{name!r}: expected a seed from 1 to {2**31 - 1}; seed 0 is {match[1]!r}.')
  _register(name, corpus, seed)
  return True


for _task, _corpus_of_task in TASKS.items():
  _register(_task, _corpus_of_task, seed=0)
