"""The seven tasks of skill neurons: what they read, how they are split, in which words they answer."""

import collections
import pathlib
import shutil
import zlib

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning import tasks
from prompt_tuning.tasks import builders, classification_builders, metrics, skill_neurons, tfds_source

DATA = pathlib.Path(__file__).parents[1] / 'goldens' / 'data'
SPLITS = ('train', 'validation', 'test')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """Where the builders have prepared the files of tests/goldens/data; nothing is downloaded."""
  folder = tmp_path_factory.mktemp('tfds')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(builders.MANUAL_DIR, str(DATA))
    seqio.set_tfds_data_dir_override(str(folder))
    yield folder
    seqio.set_tfds_data_dir_override(None)


def rows(name, split):
  examples = tasks.load(name).source.get_dataset(split, shuffle=False).as_numpy_iterator()
  return [(e['inputs'].decode(), e['targets'].decode()) for e in examples]


# Some row of each split, as the files of tests/goldens/data have it, and how many of each word there are.
GOLDENS = [
    ('wang_sst2', 'train', ('comes from the brave , uninhibited performances', 'positive'), (8, 4)),
    ('wang_sst2', 'test', ('something like scrubbing the toilet .', 'negative'), (2, 2)),
    ('wang_imdb', 'test', (
        'I have seen "Chasing the Dragon" several times and have enjoyed it each time. The acting was superb. This '
        'movie really makes you realize how one bad choice at a weak moment can change your life.',
        'positive'), (2, 2)),
    ('wang_tweet', 'validation', ("I don't have the money for this NINTENDO STOP IT", 'negative'), (2, 2, 2)),
    ('wang_tweet', 'test', ("Twitter's #ThankYouObama Shows Heartfelt Gratitude To POTUS", 'positive'), (1, 1, 1)),
    ('wang_mnli', 'train', (
        'The wrestlers also enact crucifixions, sadomasochism, and prostitution. The wrestlers act out weddings.',
        'positive'), (3, 3, 3)),
    ('wang_mnli', 'test', ('Entertainment : 2 stars. Two stars for entertainment by critics.', 'neutral'), (1, 1, 1)),
    ('wang_qnli', 'train', (
        'What kind of climate does Southampton have? As with the rest of the UK, Southampton experiences an oceanic '
        'climate (Köppen Cfb).', 'negative'), (3, 3)),
    ('wang_qnli', 'test', (
        'What are those from Jacksonville sometimes called? People from Jacksonville may be called "Jacksonvillians" '
        'or "Jaxsons" (also spelled "Jaxons").', 'negative'), (2, 1)),
    ('wang_agnews', 'train', ('Plus: Experts fear Check 21 could lead to massive bank fraud.', 'positive'), (3,) * 4),
    ('wang_agnews', 'test', (
        'Jones Buys Barneys in \\$400 Million Deal A company with a middle-brow reputation announced a deal today to '
        'buy the singularly trendy clothing chain.', 'neutral'), (1, 1, 1, 1)),
    ('wang_dbpedia', 'train', ('Wang Daxie (1860–1929) was a Chinese politician.', 'OfficeHolder'),
     (2, 2, 2, 2, 2, 3, *[2] * 8)),
    ('wang_dbpedia', 'test', ('Hamrångeån is a river in Sweden.', 'NaturalPlace'), (1,) * 14),
]


@pytest.mark.parametrize(('name', 'split', 'row', 'counts'), GOLDENS)
def test_goldens(prepared, name, split, row, counts):
  found = rows(name, split)
  if split == 'train' and name != 'wang_tweet':
    found += rows(name, 'validation')  # all that the files of the official split have
  assert row in found
  words = collections.Counter(word for _, word in found)
  assert [words[word] for word in skill_neurons.TASKS[name].words] == list(counts)
  assert sum(counts) == len(found)


@pytest.mark.parametrize(('name', 'whole', 'kept'), [
    ('wang_mnli_2', 'wang_mnli', ('negative', 'positive')),
    ('wang_agnews_2', 'wang_agnews', ('negative', 'positive')),
    ('wang_dbpedia_2', 'wang_dbpedia', ('Company', 'OfficeHolder'))])
def test_two_classes_are_those_rows_of_the_whole(prepared, name, whole, kept):
  new = dict(zip(kept, ('negative', 'positive'), strict=True))
  for split in SPLITS:
    assert rows(name, split) == [(text, new[word]) for text, word in rows(whole, split) if word in new]
  assert {word for _, word in rows(name, 'test')} == {'negative', 'positive'}


def test_tweets_of_two_classes_keep_their_words(prepared):
  assert rows('wang_tweet_2', 'validation') == [row for row in rows('wang_tweet', 'validation') if row[1] != 'neutral']
  with pytest.raises(FileNotFoundError, match=r"tweet_eval_sentiment has no split 'train'.*Put sentiment/train_\*"):
    rows('wang_tweet', 'train')


def test_words_by_number_of_classes():
  words = {name: corpus.words for name, corpus in skill_neurons.TASKS.items()}
  assert words['wang_mnli'] == words['wang_tweet'] == ('negative', 'neutral', 'positive')
  assert words['wang_agnews'] == ('conflict', 'negative', 'neutral', 'positive')
  assert len(set(words.pop('wang_dbpedia'))) == 14
  assert {len(x) for x in words.values()} == {2, 3, 4}
  assert all(x == ('negative', 'positive') for x in words.values() if len(x) == 2)


def test_the_bundled_sample_is_split_in_two_and_the_dev_set():
  train, validation, test = (rows('wang_sst2_sample', split) for split in SPLITS)
  assert (len(train), len(validation), len(test)) == (4785, 1215, 872)
  assert len({text for text, _ in train} | {text for text, _ in validation}) == 6000
  assert test[0] == (
      'majidi is an unconventional storyteller , capable of finding beauty in the most depressing places .', 'positive')
  assert collections.Counter(word for _, word in test) == {'negative': 428, 'positive': 444}


def test_every_seed_is_another_split_in_four_fifths():
  train, validation = rows('wang_sst2_sample', 'train'), rows('wang_sst2_sample', 'validation')
  texts = tf.constant([text for text, _ in train + validation])
  drawn = [set(np.flatnonzero(skill_neurons.in_validation(texts, seed))) for seed in range(10)]
  assert drawn[0] == set(range(len(train), 6000))
  assert all(abs(len(x) - 1200) < 3.5 * 31 for x in drawn)  # the standard deviation of a draw of 6,000 is 31
  assert all(180 < len(x & y) < 300 for i, x in enumerate(drawn) for y in drawn[:i])  # 240 expected


def test_a_split_is_the_same_in_every_process_and_release():
  texts = [text for text, _ in rows('wang_sst2_sample_s7', 'validation')]
  assert (len(texts), zlib.crc32('\n'.join(texts).encode())) == (1185, 1558697825)


def test_a_split_depends_on_seed_and_text_alone():
  texts = tf.constant(['a', 'b', 'ü', 'a longer text .', 'a'] * 3)
  drawn = skill_neurons.in_validation(texts, 3).numpy()
  assert drawn.tolist() == skill_neurons.in_validation(texts[::-1], 3).numpy()[::-1].tolist()
  assert drawn[0] == drawn[4]


def test_examples_keep_their_text_and_are_scored_by_accuracy():
  task = tasks.load('wang_sst2_sample')
  example = next(task.get_dataset(None, 'test', shuffle=False).as_numpy_iterator())
  assert example['targets_pretokenized'] == b'positive'
  assert example['inputs_pretokenized'].startswith(b'majidi is')
  assert example['inputs'][-1] == 1
  scores = [fn(['positive', 'negative'], ['positive', 'neutral']) for fn in task.metric_fns]
  assert scores == [{'accuracy': 0.5}, {'legal_label_rate': 0.5}]
  assert task.metric_fns[0] is metrics.accuracy


def test_two_hosts_see_every_row_once_and_shuffling_follows_the_seed():
  source = tasks.load('wang_sst2_sample').source
  shards = [source.get_dataset('test', shuffle=False, shard_info=seqio.ShardInfo(host, 2)) for host in (0, 1)]
  assert sum(len(list(shard.as_numpy_iterator())) for shard in shards) == 872
  orders = [[e['inputs'] for e in source.get_dataset('test', seed=seed).as_numpy_iterator()] for seed in (0, 0, 1)]
  assert orders[0] == orders[1] != orders[2]
  assert sorted(orders[0]) == sorted(orders[2])


@pytest.mark.parametrize(('name', 'message'), [
    ('wang_tweet_s2', 'wang_tweet has its own validation split, of which there is one: leave out _s2'),
    ('wang_sst2_s0', "expected a seed from 1 .* seed 0 is 'wang_sst2'"),
    ('wang_sst_s1', "There is no task or mixture 'wang_sst_s1'. Nearest: .*wang_sst2"),
])
def test_a_name_that_is_none(name, message):
  with pytest.raises(ValueError, match=message):
    tasks.load(name)
  with pytest.raises(ValueError, match="no split 'dev'; the task has train, validation, test"):
    tasks.load('wang_sst2').source.get_dataset('dev')


def _tfds(name, splits, rows_):
  """A TFDS data set with these rows, whatever its split."""
  def get_dataset(self, split, shuffle):
    assert (self.tfds_dataset.name, self.splits, shuffle) == (name, splits, False)
    return tf.data.Dataset.from_tensor_slices(rows_)
  return get_dataset


@pytest.mark.parametrize(('builder_class', 'fields', 'text'), [
    (classification_builders.GlueSst2, {'sentence': ['a fine film ']}, 'a fine film'),
    (classification_builders.GlueMnli, {'premise': ['It rains.'], 'hypothesis': [' Rain.']}, 'It rains. Rain.'),
    (classification_builders.AgNews, {'title': ['T'], 'description': ['D']}, 'T D'),
])
def test_without_a_folder_tfds_is_read(tmp_path, monkeypatch, builder_class, fields, text):
  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path))
  monkeypatch.setattr(tfds_source.TfdsSource, 'get_dataset', _tfds(
      builder_class.TFDS, tuple(builder_class.TFDS_SPLITS), {**fields, 'label': [1], 'idx': [0]}))
  dataset = classification_builders.official(builder_class, 'test')
  assert list(dataset.as_numpy_iterator()) == [{'text': text.encode(), 'label': 1}]


def test_what_tfds_cannot_download_is_explained(tmp_path, monkeypatch):
  def fail(self, split, shuffle):
    raise OSError('imdb_reviews: no network in tests.')

  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path))
  monkeypatch.setattr(tfds_source.TfdsSource, 'get_dataset', fail)
  with pytest.raises(ConnectionError, match=r'imdb_reviews.*no network.*no folder .*/imdb yet\. Put train/\[np\]'):
    classification_builders.official(classification_builders.ImdbReviews, 'train')


def test_classes_are_those_of_tfds():
  found = {}
  for builder_class in (classification_builders.GlueSst2, classification_builders.GlueMnli,
                        classification_builders.GlueQnli, classification_builders.ImdbReviews,
                        classification_builders.AgNews):
    features = classification_builders.tfds.builder(builder_class.TFDS).info.features
    assert set(builder_class.TFDS_FIELDS) < set(features)
    found[builder_class.name] = tuple(features['label'].names) == builder_class.CLASSES
  assert found == dict.fromkeys(found, True)


def test_tweets_are_downloaded_as_pairs_of_files(tmp_path, monkeypatch):
  def fetched(self, urls):
    assert urls['validation'][1].endswith('/tweeteval/main/datasets/sentiment/val_text.txt')
    return {split: tuple(builders.epath.Path(DATA / 'tweeteval' / 'sentiment' / url.rsplit('/', 1)[1]) for url in pair)
            for split, pair in urls.items() if split != 'train'}

  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path))
  monkeypatch.setattr(builders.tfds.download.DownloadManager, 'download_and_extract', fetched)
  builder = builders.prepared(classification_builders.TweetSentiment, 'validation', str(tmp_path / 'tfds'))
  assert builder.info.splits['validation'].num_examples == 6


def test_the_files_of_aclimdb(tmp_path, monkeypatch):
  for kind, text in (('pos', 'A joy.'), ('neg', 'A bore.<br />Truly.'), ('unsup', 'Who knows.')):
    path = tmp_path / 'imdb' / 'train' / kind / '0_1.txt'
    path.parent.mkdir(parents=True)
    path.write_text(text)
  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path))
  builder = builders.prepared(classification_builders.ImdbReviews, 'train', str(tmp_path / 'tfds'))
  found = {(row['text'].decode(), int(row['label'])) for row in builder.as_dataset(split='train').as_numpy_iterator()}
  assert found == {('A joy.', 1), ('A bore.<br />Truly.', 0)}


@pytest.mark.parametrize(('file', 'content', 'builder', 'message'), [
    ('glue/SST-2/train.tsv', 'text\tlabel\nfine\t1\n', 'GlueSst2',
     r'train\.tsv, row 1: expected the columns sentence, label or content, label; found .*text'),
    ('glue/SST-2/train.tsv', 'sentence\tlabel\nfine\t2\n', 'GlueSst2',
     r"row 1: label '2'; expected one of \['negative', 'positive'\] or 0 to 1"),
    ('glue/SST-2/train.tsv', 'sentence\tlabel\nfine\t1\n \t1\n', 'GlueSst2', 'row 2: the text is empty'),
    ('glue/SST-2/train.tsv', 'sentence\tlabel\nfine\t1\t1\n', 'GlueSst2', 'row 1: expected the columns'),
    ('agnews/train.csv', '"0","Title","Text"\n', 'AgNews', r"label '0'; expected one of \['World', .* or 1 to 4"),
    ('agnews/train.csv', '"1","Title\n', 'AgNews', r'train\.csv: malformed CSV'),
    ('imdb/train.json', '[1]', 'ImdbReviews', 'expected a list of objects'),
    ('tweeteval/sentiment/test_labels.txt', '1\n', 'TweetSentiment', r'has 3 lines and .*test_labels\.txt 1;'),
    ('dbpedia/rlprompt_x_train.tsv', 'text\tlabel\nno label\n', 'Dbpedia14', 'line 2: the text is empty'),
])
def test_a_bad_file_is_explained(tmp_path, monkeypatch, file, content, builder, message):
  path = pathlib.Path(shutil.copytree(DATA, tmp_path / 'manual')) / file
  shutil.rmtree(path.parent) if 'tweet' not in file else None
  path.parent.mkdir(exist_ok=True)
  path.write_text(content)
  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path / 'manual'))
  with pytest.raises(ValueError, match=message):
    builders.prepared(getattr(classification_builders, builder), 'train', str(tmp_path / 'tfds'))
  assert not list((tmp_path / 'tfds').rglob('*.tfrecord*'))
