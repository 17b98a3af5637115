"""SST-2's question asked of reviews and tweets, on small files in the official formats."""

import pathlib

import pytest
import seqio

from prompt_tuning import tasks
from prompt_tuning.tasks import builders, pipeline, sentiment

DATA = pathlib.Path(__file__).parents[1] / 'goldens' / 'data'


@pytest.mark.parametrize('name', sentiment.CORPORA)
def test_other_domains_are_asked_in_the_form_of_sst2(name, tmp_path, monkeypatch):
  monkeypatch.setenv(builders.MANUAL_DIR, str(DATA))
  seqio.set_tfds_data_dir_override(str(tmp_path))
  try:
    task = tasks.load(name)
    corpus = [(row['inputs'].decode(), row['targets']) for row in pipeline.as_text(
        tasks.load(sentiment.CORPORA[name]), 'test').as_numpy_iterator()]
    rows = [(row['inputs'].decode(), row['targets']) for row in pipeline.as_text(task, 'test').as_numpy_iterator()]
  finally:
    seqio.set_tfds_data_dir_override(None)
  assert list(task.splits) == ['test']
  assert [(f'sentence: {" ".join(text.replace("<br />", " ").split())}', word) for text, word in corpus] == rows
  assert {word for _, word in rows} == {b'negative', b'positive'}
  sst2 = tasks.load('sst2_sample')
  assert [fn.__name__ for fn in task.predict_metric_fns] == [fn.__name__ for fn in sst2.predict_metric_fns]
