"""Reading comprehension: text equal to T5's, answers, JSON files, and what is shifted to."""

import json

import pytest
import tensorflow as tf

from prompt_tuning import tasks
from prompt_tuning.tasks import builders, pipeline, question_answering
from tests.tasks import tfds_rows

GOLDEN = tfds_rows.GOLDENS['squad']
CONTEXT = 'In 1891 (or  so) François moved\nto the U.S.'


@pytest.fixture(autouse=True)
def rows(monkeypatch):
  tfds_rows.serve(monkeypatch)


def squad_file(path, rows):
  """SQuAD's JSON: (context, [(question, answers)])."""
  paragraphs = [{'context': context, 'qas': [
      {'id': question, 'question': question, 'answers': [{'text': text, 'answer_start': 0} for text in answers]}
      for question, answers in questions]} for context, questions in rows]
  path.write_text(json.dumps({'version': '1.1', 'data': [{'title': 'a', 'paragraphs': paragraphs}]}))
  return path


@pytest.mark.parametrize('name', ['squad_v010_allanswers', 'mrqa_race_v001'])
def test_the_text_is_that_of_t5(name):
  task = tasks.load(name)
  found = list(pipeline.as_text(task, 'validation').as_numpy_iterator())
  assert [[row['inputs'].decode(), row['targets'].decode()] for row in found] == GOLDEN['texts']
  targets = [task.postprocess_fn('', example=row, is_target=True) for row in found]
  (metric,) = task.predict_metric_fns
  assert metric(targets, [task.postprocess_fn(f' {texts[0]}') for texts in targets]) == {'em': 1.0, 'f1': 1.0}
  assert metric(targets, ['', 'nothing']) == {'em': 0.0, 'f1': 0.0}


def test_the_six_domains_are_validated_on_their_test_splits():
  for name in question_answering.MRQA:
    task = tasks.load(f'mrqa_{name}_v001')
    assert list(task.splits) == ['validation']
    assert task.source.tfds_dataset._map_split('validation') == 'test'
    assert task.source.tfds_dataset.name.startswith('mrqa/')


def test_punctuation_stands_alone_and_letters_with_accents_do_not():
  padded = question_answering.pad_punctuation(tf.constant([CONTEXT, '"what?"', ''])).numpy().tolist()
  assert [text.decode() for text in padded] == [
      'In 1891 ( or so ) François moved to the U . S .', '" what ? "', '']


def test_a_file_is_split_by_paragraph_and_whole_to_test_on(tmp_path):
  rows = [(f'Context {i}.', [(f'Who, {i}?', ['A man', 'a man.']), (f'When, {i}?', ['now'])]) for i in range(40)]
  task = question_answering.local_task('qa_of_a_file', squad_file(tmp_path / 'own.json', rows))
  found = {split: list(pipeline.as_text(task, split).as_numpy_iterator()) for split in task.splits}
  context = {split: {row['inputs'].decode().split(' context: ')[1] for row in rows} for split, rows in found.items()}
  assert len(found['test']) == 80
  assert found['test'][0]['inputs'] == b'question: Who , 0 ? context: Context 0 .'
  assert found['test'][0]['targets'] == b'A man'
  assert found['test'][0]['references'].tolist() == [b'A man', b'a man .']
  assert 2 <= len(context['validation']) <= 16
  assert context['train'] | context['validation'] == context['test']
  assert not context['train'] & context['validation']
  example = next(task.get_dataset({'inputs': 32, 'targets': 8}, 'test', shuffle=True, seed=1).as_numpy_iterator())
  assert example['targets'][-1] == 1
  assert task.postprocess_fn('', example=example, is_target=True) in (['A man', 'a man .'], ['now'])


@pytest.mark.parametrize(('content', 'message'), [
    ('{"data": [{"paragraphs": [{"qas": []}]}]}', 'no questions'),
    ('{"data": [{"context": ""}]}', r"not in the form of SQuAD v1\.1 .*KeyError\('paragraphs'\)"),
    ('[]', r'not in the form of SQuAD v1\.1'),
    ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}]}]}',
     r"question 1, 'q', has no answer\. Expected SQuAD v1\.1, not 2\.0"),
    ('{', 'malformed JSON')])
def test_a_file_of_another_form_is_named(tmp_path, content, message):
  path = tmp_path / 'bad.json'
  path.write_text(content)
  with pytest.raises(ValueError, match=rf'bad\.json: {message}'):
    question_answering.read_squad(path)


def test_shifted_files_are_manual_downloads(tmp_path, monkeypatch):
  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path))
  task = tasks.load('xquad_en')
  with pytest.raises(FileNotFoundError, match=rf'xquad_en: no file {tmp_path}/qa/xquad.en.json. Get it from https'):
    task.source.get_dataset('test')
  (tmp_path / 'qa').mkdir()
  squad_file(tmp_path / 'qa' / 'xquad.en.json', [('Context.', [('Who?', ['Me'])])])
  assert len(list(task.source.get_dataset('test'))) == 1
