"""Reading tasks from files of one's own."""

import json

import pytest
import seqio

from prompt_tuning import tasks
from prompt_tuning.tasks import local, text_to_text

SST2, BOOLQ = text_to_text.FORMATS['sst2'], text_to_text.FORMATS['boolq']


def test_tsv_with_columns_in_any_order_and_quotes_as_they_are(tmp_path):
  path = tmp_path / 'x.tsv'
  rows = ['sentence\tid\tlabel', '"the only word\t7\t1', 'naïve\t8\tnegative', 'unknown\t9\t-1']
  path.write_text('\n'.join(rows) + '\n', encoding='utf-8')
  assert local.read_columns(str(path), SST2) == {
      'sentence': ['"the only word', 'naïve', 'unknown'], 'label': [1, 0, -1]}


def test_official_superglue_jsonl(tmp_path):
  path = tmp_path / 'val.jsonl'
  rows = [{'question': 'is it', 'passage': 'It is.', 'idx': 0, 'label': True},
          {'question': 'was it', 'passage': 'It was not.', 'idx': 1, 'label': False},
          {'question': 'will it', 'passage': 'Who knows.', 'idx': 2}]
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  local.local_task('boolq_from_a_file', {'validation': path}, BOOLQ)
  try:
    dataset = tasks.load('boolq_from_a_file').get_dataset(None, 'validation', shuffle=False)
  finally:
    seqio.TaskRegistry.remove('boolq_from_a_file')
  examples = list(dataset.as_numpy_iterator())
  assert [e['targets_pretokenized'] for e in examples] == [b'True', b'False', b'<unk>']
  assert examples[0]['inputs_pretokenized'] == b'passage: It is. question: is it'


@pytest.mark.parametrize(('name', 'text', 'message'), [
    ('x.csv', 'a', r'x\.csv: expected a \.tsv'),
    ('x.tsv', 'sentence\tlabel\n', 'no rows'),
    ('x.tsv', 'text\tlabel\nfine\t1\n', r"row 1: no \['sentence'\]; expected .*, found \['text'"),
    ('x.tsv', 'label\tsentence\n1\tfine\n2\tfine\n', r"row 2: label '2'; expected one of \['negative'"),
    ('x.jsonl', '{"sentence": "fine", "label": "good"}\n', "row 1: label 'good'"),
])
def test_a_bad_file_is_explained(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    local.read_columns(str(tmp_path / name), SST2)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'gone\.tsv: no such file'):
    local.read_columns(str(tmp_path / 'gone.tsv'), SST2)
