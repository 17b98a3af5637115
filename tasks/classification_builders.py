"""TFDS builders of the skill-neuron corpora (Wang et al. 2022) from files: text and class, in a random order.

`official` gives a split of one of them: from the files of its manual folder where there is one (see `builders`), else
from the data set that TFDS has of the same name, else from a download.
"""

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.tasks import builders, classification_files, tfds_source


class Labelled(builders.Builder, skip_registration=True):
  """What the seven share. A subclass names its classes, its columns and what TFDS has."""

  CLASSES: tuple[str, ...]
  COLUMNS: tuple[tuple[str, ...], ...] = ()
  TFDS: str | None = None  # name and version
  TFDS_SPLITS = {'train': 'train', 'test': 'test'}
  TFDS_FIELDS: tuple[str, ...] = ('text',)

  def read(self, path, split):
    return classification_files.read_table(path, self.COLUMNS, self.CLASSES)

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self, description=__doc__, homepage=self.HOMEPAGE, license=self.LICENSE,
        metadata=tfds.core.MetadataDict(),
        features=tfds.features.FeaturesDict(
            {'text': tfds.features.Text(), 'label': tfds.features.ClassLabel(names=self.CLASSES)}))

  def _rows(self, paths, split):
    for path in paths:
      yield from self.read(path, split)

  def _generate_examples(self, split, paths):
    for key, (text, label) in enumerate(self._rows(paths, split)):
      yield key, {'text': text, 'label': label}


class _Glue(Labelled, skip_registration=True):
  TFDS_SPLITS = {'train': 'train', 'test': 'validation'}
  HOMEPAGE = 'https://gluebenchmark.com'
  LICENSE = 'that of the task, see the homepage'


class GlueSst2(_Glue):
  """SST-2 (Socher et al. 2013); `test` is GLUE's labelled dev.tsv, as it is of all tasks of GLUE here."""

  name = 'glue_sst2_files'
  FOLDER = 'glue/SST-2'
  FILES = {'train': ('train.tsv', 'glue_train.tsv'), 'test': ('dev.tsv', 'glue_dev.tsv')}
  CLASSES = ('negative', 'positive')
  COLUMNS = (('sentence', 'label'), ('content', 'label'))
  TFDS = 'glue/sst2:2.0.0'
  TFDS_FIELDS = ('sentence',)


class GlueMnli(_Glue):
  """MNLI (Williams et al. 2018), matched; a sample `train.json` has its columns as text_a and text_b."""

  name = 'glue_mnli_files'
  FOLDER = 'glue/MNLI'
  FILES = {'train': ('train.tsv', 'train.json'), 'test': ('dev_matched.tsv',)}
  CLASSES = ('entailment', 'neutral', 'contradiction')
  COLUMNS = (('sentence1', 'sentence2', 'gold_label'), ('text_a', 'text_b', 'label'))
  TFDS = 'glue/mnli:2.0.0'
  TFDS_SPLITS = {'train': 'train', 'test': 'validation_matched'}
  TFDS_FIELDS = ('premise', 'hypothesis')


class GlueQnli(_Glue):
  """QNLI (Rajpurkar et al. 2016; GLUE); `kshot_*_test.tsv` is GLUE's dev set under the name that LM-BFF gives it."""

  name = 'glue_qnli_files'
  FOLDER = 'glue/QNLI'
  FILES = {'train': ('train.tsv', 'train.json'), 'test': ('dev.tsv', 'kshot_*_test.tsv')}
  CLASSES = ('entailment', 'not_entailment')
  COLUMNS = (('question', 'sentence', 'label'), ('text_a', 'text_b', 'label'))
  TFDS = 'glue/qnli:2.0.0'
  TFDS_FIELDS = ('question', 'sentence')


class ImdbReviews(Labelled):
  """IMDB (Maas et al. 2011): the files of aclImdb, or samples of it as JSON, whose labels are the other way round."""

  name = 'imdb_files'
  FOLDER = 'imdb'
  FILES = {'train': ('train/[np]*/*.txt', 'train.json', 'dev.json'), 'test': ('test/[np]*/*.txt', 'test.json')}
  CLASSES = ('neg', 'pos')
  COLUMNS = (('ori', 'label'),)
  TFDS = 'imdb_reviews/plain_text:1.0.0'
  HOMEPAGE = 'https://ai.stanford.edu/~amaas/data/sentiment'
  LICENSE = 'none stated; cite the paper'

  def read(self, path, split):
    if path.suffix == '.txt':
      return [classification_files.read_whole(path, self.CLASSES)]
    # In these samples (of the repository PowerfulPromptFT) the texts of class 0 praise and those of class 1 blame.
    return ((text, 1 - label) for text, label in super().read(path, split))


class AgNews(Labelled):
  """AG News (Zhang et al. 2015): title and description; a sample (`alps_*.tsv`, Yuan et al. 2020) has descriptions."""

  name = 'ag_news_files'
  FOLDER = 'agnews'
  FILES = {'train': ('train.csv', 'alps_*.tsv'), 'test': ('test.csv',)}
  CLASSES = ('World', 'Sports', 'Business', 'Sci/Tech')
  COLUMNS = (('title', 'description', 'class'),)
  TFDS = 'ag_news_subset:1.0.0'
  TFDS_FIELDS = ('title', 'description')
  HOMEPAGE = 'https://github.com/mhjabreel/CharCnn_Keras'
  LICENSE = 'for non-commercial use'

  def read(self, path, split):
    if path.suffix == '.tsv':
      return classification_files.read_text_tab_label(path, self.CLASSES)
    return classification_files.read_table(
        path, self.COLUMNS, self.CLASSES, first=1, header=('class', 'title', 'description'))


class Dbpedia14(Labelled):
  """DBpedia (Zhang et al. 2015): the content without its title; samples are of RLPrompt (Deng et al. 2022)."""

  name = 'dbpedia_14_files'
  FOLDER = 'dbpedia'
  FILES = {'train': ('train.csv', 'rlprompt_*_train.tsv'), 'test': ('test.csv', 'rlprompt_*_dev.tsv')}
  URL = 'https://s3.amazonaws.com/fast-ai-nlp/dbpedia_csv.tgz'
  ARCHIVE_ROOT = 'dbpedia_csv'
  CLASSES = ('Company', 'EducationalInstitution', 'Artist', 'Athlete', 'OfficeHolder', 'MeanOfTransportation',
             'Building', 'NaturalPlace', 'Village', 'Animal', 'Plant', 'Album', 'Film', 'WrittenWork')
  COLUMNS = (('content', 'class'),)
  HOMEPAGE = 'https://github.com/zhangxiangxiao/Crepe'
  LICENSE = 'CC BY-SA 3.0'

  def read(self, path, split):
    if path.suffix == '.tsv':
      return classification_files.read_text_tab_label(path, self.CLASSES)
    return classification_files.read_table(
        path, self.COLUMNS, self.CLASSES, first=1, header=('class', 'title', 'content'))


class TweetSentiment(Labelled):
  """TweetEval's sentiment task (Barbieri et al. 2020; SemEval 2017), with a validation split of its own."""

  name = 'tweet_eval_sentiment'
  FOLDER = 'tweeteval'
  FILES = {split: (f'sentiment/{name}_*.txt',)
           for split, name in (('train', 'train'), ('validation', 'val'), ('test', 'test'))}
  URL = {split: tuple('https://raw.githubusercontent.com/cardiffnlp/tweeteval/main/datasets/'
                      + names[0].replace('*', kind) for kind in ('labels', 'text'))
         for split, names in FILES.items()}
  CLASSES = ('negative', 'neutral', 'positive')
  HOMEPAGE = 'https://github.com/cardiffnlp/tweeteval'
  LICENSE = 'that of SemEval 2017, see the homepage'

  def _rows(self, paths, split):
    if len(paths) == 2:  # labels and text; a split without either is absent
      labels, texts = paths
      yield from classification_files.read_aligned(texts, labels, self.CLASSES)


def official(builder_class: type[Labelled], split: str) -> tf.data.Dataset:
  """An official split: {'text': string, 'label': int64}, in the same order each time.

  Args:
    builder_class: one of this module's.
    split: 'train' or 'test', of TweetEval also 'validation'.

  Raises:
    FileNotFoundError: a manual folder lacks the split's files; the message names them.
    ConnectionError: there is no manual folder, and nothing could be downloaded.
    ValueError: a file is malformed.
  """
  data_dir = seqio.LazyTfdsLoader(f'{builder_class.name}:{builder_class.VERSION}').data_dir
  builder = builder_class(data_dir=data_dir)
  if builder_class.TFDS is None or builder.manual_folder.exists():
    builder = builders.prepared(builder_class, split, data_dir)
    return builder.as_dataset(split=split, read_config=tfds.ReadConfig(try_autocache=False))
  try:
    source = tfds_source.TfdsSource(builder_class.TFDS, splits=builder_class.TFDS_SPLITS)
    dataset = source.get_dataset(split, shuffle=False)
  except (OSError, tfds.download.DownloadError) as error:
    raise ConnectionError(f'{error} Or read files of your own: there is no folder {builder.manual_folder} yet. '
                          f'{builder.advice(split)}') from error
  join = lambda row: tf.strings.join([tf.strings.strip(row[name]) for name in builder_class.TFDS_FIELDS], ' ')
  return dataset.map(lambda row: {'text': join(row), 'label': row['label']}, num_parallel_calls=tf.data.AUTOTUNE)
