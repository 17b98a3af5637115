"""The TFDS builders, really preparing small datasets from files in the official formats."""

import pathlib
import shutil

import pytest
import tensorflow_datasets as tfds

from prompt_tuning.tasks import builders

DATA = pathlib.Path(__file__).parents[1] / 'goldens' / 'data'


@pytest.fixture
def manual(tmp_path, monkeypatch):
  """A copy of the files, which the builders are told to read."""
  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path / 'manual'))
  monkeypatch.setattr(builders.tfds.download.DownloadManager, 'download_and_extract', _no_download)
  return pathlib.Path(shutil.copytree(DATA, tmp_path / 'manual'))


def _no_download(self, url):
  raise OSError('no network in tests')


def rows(builder_class, split, tmp_path):
  builder = builders.prepared(builder_class, split, tmp_path / 'tfds')
  return [(row['source'].decode(), [r.decode() for r in row['references']], row['group'].decode())
          for row in builder.as_dataset(split=split).as_numpy_iterator()]


def test_e2e(manual, tmp_path):
  assert builders.E2eNlg.name in tfds.list_builders()
  train = rows(builders.E2eNlg, 'train', tmp_path)
  assert len(train) == 20
  assert all(len(references) == 1 for _, references, _ in train)
  validation = rows(builders.E2eNlg, 'validation', tmp_path)
  assert [len(references) for _, references, _ in validation] == [3] * 10
  assert rows(builders.E2eNlg, 'test', tmp_path)[0][0] == 'name : Blue Spice | Type : coffee shop | area : city centre'


def test_webnlg(manual, tmp_path):
  assert rows(builders.Webnlg2017, 'train', tmp_path) == [
      (' | Fen_Field : cityServed : "Lower Marsh"', ['Fen Field serves Lower Marsh.'], 'Airport'),
      (' | Fen_Field : cityServed : "Lower Marsh"', ['The airport of Lower Marsh is Fen Field.'], 'Airport'),
      (' | Bean_pie : country : Norvia | Norvia : leader : Åse_Holm',
       ['Bean pie comes from Norvia, which Åse Holm leads.'], 'Food')]
  assert [len(references) for _, references, _ in rows(builders.Webnlg2017, 'validation', tmp_path)] == [2]
  assert [group for *_, group in rows(builders.Webnlg2017, 'test', tmp_path)] == ['Airport', 'Artist', 'City']


def test_dart_reads_json_or_xml(manual, tmp_path):
  assert [len(rows(builders.DartV111, split, tmp_path)) for split in builders.SPLITS] == [3, 1, 2]


def test_xsum_follows_the_official_split(manual, tmp_path, caplog):
  assert [len(rows(builders.XsumBbc, split, tmp_path)) for split in builders.SPLITS] == [3, 1, 2]
  assert '1 rows without document or summary left out' in caplog.text
  assert [group for *_, group in rows(builders.XsumBbc, 'train', tmp_path)] == ['news/uk', 'sport', 'news']


def test_a_missing_file_is_an_absent_split_until_it_comes(manual, tmp_path):
  (manual / 'e2e' / 'trainset.csv').rename(tmp_path / 'elsewhere.csv')
  assert len(rows(builders.E2eNlg, 'test', tmp_path)) == 6
  with pytest.raises(FileNotFoundError, match=r"has no split 'train': .*manual/e2e\. Put trainset\.csv there"):
    rows(builders.E2eNlg, 'train', tmp_path)
  (tmp_path / 'elsewhere.csv').rename(manual / 'e2e' / 'trainset.csv')
  assert len(rows(builders.E2eNlg, 'train', tmp_path)) == 20
  shutil.rmtree(manual)  # what is prepared stays
  assert len(rows(builders.E2eNlg, 'train', tmp_path)) == 20


def test_a_malformed_file_leaves_nothing_prepared(manual, tmp_path):
  with (manual / 'e2e' / 'devset.csv').open('a') as f:
    f.write('name Zizzi,Zizzi.\n')
  with pytest.raises(ValueError, match=r'devset\.csv, line 32: .* is no meaning representation'):
    rows(builders.E2eNlg, 'validation', tmp_path)
  assert not list((tmp_path / 'tfds').rglob('*.tfrecord*'))


@pytest.mark.parametrize(('builder_class', 'message'), [
    (builders.E2eNlg, r'no folder .*/e2e, and https.*v1\.0\.0\.zip could not be downloaded .no network.*trainset\.csv'),
    (builders.XsumBbc, r'no folder .*/xsum, and no official download\. Put \*\.jsonl or'),
])
def test_without_a_folder_or_network(manual, tmp_path, builder_class, message):
  shutil.rmtree(manual)
  with pytest.raises(OSError, match=message):
    rows(builder_class, 'test', tmp_path)


def test_an_empty_folder_and_a_missing_official_split(manual, tmp_path):
  for path in (manual / 'dart').iterdir():
    path.unlink()
  with pytest.raises(FileNotFoundError, match=r'/dart has none of its files\. Put dart-v1\.1\.1-full-train\.json or'):
    rows(builders.DartV111, 'test', tmp_path)
  (manual / 'xsum' / 'XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json').unlink()
  with pytest.raises(FileNotFoundError, match='/xsum has no XSum-TRAINING.*the official split'):
    rows(builders.XsumBbc, 'test', tmp_path)


def test_downloads_are_read_as_the_folder_is(manual, tmp_path, monkeypatch):
  def fetched(self, url):
    if isinstance(url, dict):
      return {split: tfds.core.Path(DATA / 'dart' / f'dart-v1.1.1-full-{name}')
              for split, name in (('train', 'train.json'), ('validation', 'dev.json'), ('test', 'test.xml'))}
    archive = tmp_path / 'archive'
    name = 'e2e-dataset-1.0.0' if 'e2e' in url else 'webnlg-dataset-master-x/webnlg_challenge_2017'
    shutil.copytree(DATA / ('e2e' if 'e2e' in url else 'webnlg'), archive / str('e2e' in url) / name)
    return tfds.core.Path(archive / str('e2e' in url))

  shutil.rmtree(manual)
  monkeypatch.setattr(tfds.download.DownloadManager, 'download_and_extract', fetched)
  counts = {c: [len(rows(c, split, tmp_path)) for split in builders.SPLITS]
            for c in (builders.E2eNlg, builders.Webnlg2017, builders.DartV111)}
  assert list(counts.values()) == [[20, 10, 6], [3, 1, 3], [3, 1, 2]]
