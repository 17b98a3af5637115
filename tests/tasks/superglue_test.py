"""SuperGLUE and DPR: text equal to T5's, scores of what T5 would score, and the mixture."""

import functools

import gin
import pytest
import tensorflow as tf

from prompt_tuning import gin_utils, tasks
from prompt_tuning.tasks import metrics, pipeline, superglue
from tests.tasks import tfds_rows

LENGTHS = {'inputs': 512, 'targets': 32}
NAMES = {f'super_glue_{task}_v102': 'super_glue/wsc.fixed' if task == 'wsc' else f'super_glue/{task}'
         for task in superglue.RATES}


@pytest.fixture(autouse=True)
def rows(monkeypatch):
  tfds_rows.serve(monkeypatch)


@functools.cache
def examples(name, split='validation'):
  """As text: tokens take long."""
  return list(pipeline.as_text(tasks.load(name), split).as_numpy_iterator())


def texts(found):
  return [[example[name].decode() for name in ('inputs', 'targets')] for example in found]


def from_rows(step, *rows):
  return list(step(tfds_rows.dataset(list(rows))).as_numpy_iterator())


@pytest.mark.parametrize('name', NAMES)
def test_the_text_is_that_of_t5_with_and_without_its_task_name(name):
  golden = tfds_rows.GOLDENS[NAMES[name]]['texts']
  named, taskless = examples(name), examples(f'taskless_{name}')
  assert [[inputs.strip(), targets] for inputs, targets in texts(named)] == golden
  assert [[inputs.strip(), targets] for inputs, targets in texts(taskless)] == [
      [inputs.split(' ', 1)[1], targets] for inputs, targets in golden]


@pytest.mark.parametrize('name', [f'taskless_super_glue_{task}_v102' for task in superglue.RATES] + [
    f'taskless_super_glue_{task}_v102_sentinel' for task in ('cb', 'multirc', 'record', 'wsc')])
def test_gold_predictions_are_perfect(name):
  task, found = tasks.load(name), examples(name)
  golden = [text for _, text in texts(found)]
  assert all(text.startswith('<extra_id_0> ') == ('sentinel' in name) for text in golden)
  predictions = golden
  if 'wsc' in name:  # where the target may be the wrong noun
    predictions = [text if e['label'] else 'nobody' for text, e in zip(golden, found, strict=True)]
  targets, predictions = (
      [task.postprocess_fn(f'{text} ', example=example, is_target=is_target)
       for text, example in zip(some, found, strict=True)]
      for some, is_target in ((golden, True), (predictions, False)))
  scores = {key: value for fn in task.predict_metric_fns for key, value in fn(targets, predictions).items()}
  assert len(scores) == {'cb': 3, 'multirc': 3, 'record': 2, 'wsc': 1}.get(name.split('_')[3], 2)
  assert set(scores.values()) == {1.0}


def test_what_is_scored_with_is_still_there_beside_the_tokens():
  task = tasks.load('taskless_super_glue_record_v102_sentinel')
  found = list(task.get_dataset(LENGTHS, 'validation', shuffle=False).as_numpy_iterator())
  assert [e['answers'].tolist() for e in found] == [
      e['answers'].tolist() for e in examples('taskless_super_glue_record_v102')]
  assert found[0]['group'] == examples('taskless_super_glue_record_v102')[0]['group']
  vocabulary = task.output_features['targets'].vocabulary
  for example in found:
    sentinel, *targets = example['targets'].tolist()
    assert sentinel == vocabulary.vocab_size - 1
    assert targets == [*vocabulary.encode(example['targets_pretokenized'].decode().split(' ', 1)[1]), 1]


def test_multirc_has_no_html_and_a_group_a_question():
  row = {'paragraph': '<b>Sent 1: </b>It rained.<br><b>Sent 2: </b>It stopped.', 'question': 'Did it rain?',
         'answer': 'Yes', 'label': -1, 'idx': {'paragraph': 3, 'question': 8, 'answer': 2}}
  assert from_rows(superglue.multirc_to_text, row) == [{
      'inputs': b'question: Did it rain? answer: Yes paragraph: Sent 1: It rained. Sent 2: It stopped.',
      'targets': b'<unk>', 'group': b'3 8'}]
  assert len({e['group'] for e in examples('super_glue_multirc_v102')}) == 2  # of three answers


def test_record_has_a_row_for_each_gold_answer_and_is_scored_once_a_query():
  row = {'passage': 'One!\n@highlight\ntwo\n@highlight\nthree', 'query': '@placeholder won',
         'entities': ['Ann', 'Bo', 'C'], 'answers': ['Ann', 'Bo'], 'idx': {'passage': 1, 'query': 2}}
  found = from_rows(superglue.record_to_text, row, {**row, 'answers': []}, {**row, 'answers': ['C', 'Ann', 'Bo']})
  assert [e['targets'] for e in found] == [b'Ann', b'Bo', b'<unk>', b'C', b'Ann', b'Bo']  # 2 + 1 + 3
  assert {e['inputs'] for e in found} == {b'query: @placeholder won entities: Ann, Bo, C passage: One! two. three'}
  target = superglue.record_answer('Ann', example=found[1], is_target=True)
  assert target == metrics.Grouped('1 2', ['Ann', 'Bo'])
  with pytest.raises(ValueError, match="lost its 'group'"):
    superglue.record_answer('Ann', example={}, is_target=True)


def test_wsc_trains_on_right_nouns_only_and_evaluates_on_all():
  labels = [row['label'] for row in tfds_rows.ROWS['super_glue/wsc.fixed']]
  train, validation = (examples('taskless_super_glue_wsc_v102', split) for split in ('train', 'validation'))
  assert [e['label'] for e in validation] == labels
  assert [e['label'] for e in train] == [1] * sum(labels)
  assert 0 < sum(labels) < len(labels)


@pytest.mark.parametrize(('text', 'pronoun', 'index', 'marked'), [
    ('Tom asked if he could sit where he sat .', 'he', 3, 'Tom asked if *he* could sit where he sat .'),
    ('Tom asked if he could sit where he sat .', 'he', 7, 'Tom asked if he could sit where *he* sat .'),
    ('It is where it was.', 'it', 0, '*It* is where it was.'),  # another case
    ('He said "Good for him," and left.', 'him', 4, 'He said "Good for *him* ," and left.'),  # punctuation
    ('Let us use it , or not', 'it', 2, 'Let us use *it* , or not'),  # the next word
    ('Two  spaces and it', 'it', 3, 'Two  spaces and *it*'),
])
def test_the_marked_pronoun(text, pronoun, index, marked):
  assert superglue.mark_pronoun(tf.constant(text), tf.constant(pronoun), tf.constant(index)).numpy().decode() == marked


def test_a_pronoun_that_is_not_there_is_an_error():
  with pytest.raises(tf.errors.InvalidArgumentError, match='no such word'):
    superglue.mark_pronoun(tf.constant('It rains'), tf.constant('she'), tf.constant(0))


@pytest.mark.parametrize(('prediction', 'noun', 'answer'), [
    ('The Bunny', 'a bunny', 'True'), ('fuzzy bunny', 'the bunny', 'True'), ('bunny', 'his fuzzy bunny', 'True'),
    ('the bear', 'the bunny', 'False'), ("Bob's", 'Bob', 'False'), ('Bob', "Bob's hat", 'False'),
    ("bob's hat", "Bob's hat", 'True'), ('', 'Bob', ''), (' the ', 'Bob', '')])
def test_whether_a_prediction_names_the_noun(prediction, noun, answer):
  assert superglue.wsc_answer(prediction, example={'referent': noun.encode(), 'label': 0}) == answer


def test_an_empty_prediction_of_wsc_is_wrong_whatever_the_label():
  found = examples('taskless_super_glue_wsc_v102')
  targets = [superglue.wsc_answer('', example=example, is_target=True) for example in found]
  assert set(targets) == {'True', 'False'}
  predictions = [superglue.wsc_answer('', example=example) for example in found]
  assert metrics.accuracy(targets, predictions) == {'accuracy': 0.0}
  assert superglue.wsc_answer('', example={'label': -1}, is_target=True) == metrics.UNLABELLED


def test_dpr_marks_the_first_pronoun():
  inputs = 'The theremin rode in the van because *it* was heavy, and it hummed.'
  assert texts(examples('taskless_dpr_v001_simple')) == [[inputs, 'The theremin']]
  assert texts(examples('dpr_v001_simple')) == [[f'wsc: {inputs}', 'The theremin']]


def test_the_mixture_has_the_rates_of_the_paper_and_every_task():
  mixture = tasks.load('super_glue_v102_proportional')
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {
      'super_glue_wsc_v102': 259, 'super_glue_boolq_v102': 9427, 'super_glue_cb_v102': 250, 'super_glue_copa_v102': 400,
      'super_glue_multirc_v102': 27243, 'super_glue_record_v102': 138854, 'super_glue_rte_v102': 2490,
      'super_glue_wic_v102': 5428, 'dpr_v001_simple': 1322}


def test_the_multi_task_run_is_evaluated_on_each_task():
  gin.clear_config()
  gin_utils.parse(
      ['models/t5.gin', 'methods/full.gin', 'runs/train.gin', 'papers/lester2021/recipe.gin',
       'papers/lester2021/superglue_multitask.gin'], ["INITIAL_CHECKPOINT_PATH = 'base'", "MODEL_DIR = 'run'"], '')
  datasets = [reference.scoped_configurable_fn() for reference in gin.query_parameter('loop.train.eval_datasets')]
  gin.clear_config()
  assert {dataset.mixture_or_task_name for dataset in datasets} == set(NAMES)
  assert {(dataset.split, dataset.shuffle, dataset.batch_size) for dataset in datasets} == {('validation', False, 128)}
