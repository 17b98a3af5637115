"""`TfdsSource`: seqio's source, and what it says where there are no data."""

import pathlib

import pytest
import requests
import tensorflow_datasets as tfds

from prompt_tuning.tasks import import_data, tfds_source

RAW = pathlib.Path(__file__).parents[1] / 'goldens' / 'raw'


@pytest.fixture
def offline(monkeypatch):
  monkeypatch.setattr(tfds_source, 'online', lambda: False)


def test_what_is_missing_and_how_to_get_it_then_reads_it(offline, tmp_path):
  source = tfds_source.TfdsSource('glue/rte:1.0.0', str(tmp_path), splits={'train': 'train', 'dev': 'validation[:1]'})
  for ask in (source.get_dataset, source.num_input_examples, source.list_shards):
    with pytest.raises(FileNotFoundError, match=(
        rf'glue/rte:1\.0\.0 is not prepared, .*Looked in {tmp_path}\. Get its raw files from https.*/RTE\.zip, and '
        rf'import them: prompt-tuning import-data glue/rte:1\.0\.0 --raw_dir=FOLDER --tfds_data_dir={tmp_path}')):
      ask('train')
  tfds.disable_progress_bar()
  import_data.import_dataset('glue/rte:1.0.0', RAW / 'glue/RTE', tmp_path)
  assert len(list(source.get_dataset('train', shuffle=False))) == source.num_input_examples('train') == 3
  assert len(list(source.get_dataset('dev'))) == source.num_input_examples('dev') == 1
  assert len(source.list_shards('train')) == 1
  whole = tfds_source.TfdsSource('glue/rte:1.0.0', str(tmp_path), splits=('train', 'test'))
  with pytest.raises(FileNotFoundError, match="has no split 'test', only train, validation"):
    whole.get_dataset('test')


@pytest.mark.parametrize(('name', 'message'), [
    ('squad/v1.1:2.0.0', r'no code for it.*Prepare it with TFDS where there is a network'),
    ('nothing_such:1.0.0', r'no code for it.*Prepare it with TFDS where there is a network')])
def test_what_tfds_does_not_know(offline, tmp_path, name, message):
  with pytest.raises(FileNotFoundError, match=message):
    tfds_source.TfdsSource(name, str(tmp_path), splits=('train',)).get_dataset('train')


def test_a_download_that_fails(monkeypatch, tmp_path):
  monkeypatch.setattr(tfds_source, 'online', lambda: True)
  def fail(self, url):
    raise tfds.download.DownloadError('gone')
  monkeypatch.setattr(tfds.download.DownloadManager, 'download_and_extract', fail)
  with pytest.raises(FileNotFoundError, match=r'could not be downloaded .*gone.*import-data glue/rte:2\.0\.0'):
    tfds_source.TfdsSource('glue/rte:2.0.0', str(tmp_path), splits=('train',)).get_dataset('train')


def test_online_is_found_out_in_seconds(monkeypatch):
  def refuse(url, timeout):
    assert timeout == tfds_source.PROBE_SECONDS
    raise requests.ConnectionError
  monkeypatch.setattr(tfds_source.requests, 'head', refuse)
  assert not tfds_source.online()
  monkeypatch.setattr(tfds_source.requests, 'head', lambda url, timeout: None)
  assert tfds_source.online()
