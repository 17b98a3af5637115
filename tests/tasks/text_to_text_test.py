"""The text that each task of GLUE makes of real rows, and the pipeline around it."""

import pytest
import tensorflow as tf

from prompt_tuning import tasks
from prompt_tuning.tasks import features, glue, metrics, pipeline, text_to_text
from tests.tasks import tfds_rows

LENGTHS = {'inputs': 128, 'targets': 8}
GOLDENS = {f'taskless_glue_{task}_v002': f'glue/{config}' for task, (config, _, _) in glue.TASKS.items()}


@pytest.fixture(autouse=True)
def rows(monkeypatch):
  tfds_rows.serve(monkeypatch)


def as_text(name, split='validation'):
  found = list(pipeline.as_text(tasks.load(name), split).as_numpy_iterator())
  assert all(set(row) == {'inputs', 'targets'} for row in found)
  return [[row['inputs'].decode(), row['targets'].decode()] for row in found]


@pytest.mark.parametrize('name', GOLDENS)
def test_the_text_is_that_of_t5_without_its_task_name(name):
  golden = [[inputs.split(' ', 1)[1], targets] for inputs, targets in tfds_rows.GOLDENS[GOLDENS[name]]['texts']]
  assert as_text(name) == as_text(name.replace('v002', 'v200')) == golden
  task = tasks.load(name)
  words = [targets for _, targets in golden]
  for fn in task.predict_metric_fns:
    assert set(fn(words, [task.postprocess_fn(f' {word}') for word in words]).values()) == {1.0}
  pairs = {'mrpc', 'qqp'}
  assert len(task.predict_metric_fns) == 2 + any(pair in name for pair in pairs)  # F1 beside accuracy, legal labels


def test_mnli_validates_on_its_halves_as_t5_names_them():
  read = lambda task, split: tasks.load(f'taskless_glue_{task}_v002').source.tfds_dataset._map_split(split)
  assert read('mnli', 'train') == 'train'
  assert read('mnli', 'validation') == read('mnli_matched', 'validation') == 'validation_matched'
  assert read('mnli_mismatched', 'validation') == 'validation_mismatched'
  assert read('mnli_mismatched', 'test') == 'test_mismatched'


@pytest.mark.parametrize(('source', 'target'), glue.TRANSFERS)
def test_transfer_reads_the_target_and_translates_the_words_of_the_source(source, target):
  task = tasks.load(f'taskless_glue_{target}_from_{source}_v002')
  assert list(task.splits) == ['validation']
  golden = as_text(task.name)
  assert golden == as_text(f'taskless_glue_{target}_v002')
  formats = text_to_text.FORMATS
  assert [task.postprocess_fn(f'{word} ') for word in formats[source].labels] == list(formats[target].labels)
  assert task.postprocess_fn('not_dup') == 'not_dup'  # wrong
  targets = [task.postprocess_fn(text, is_target=True) for _, text in golden]
  assert targets == [text for _, text in golden]
  predictions = [task.postprocess_fn(formats[source].labels[formats[target].labels.index(text)]) for text in targets]
  scores = [fn(targets, predictions) for fn in task.predict_metric_fns]
  assert scores == [{'accuracy': 1.0}, {'legal_label_rate': 1.0}, {'f1': 1.0}]


def test_tokens_end_with_eos_and_spell_the_text():
  task = tasks.load('taskless_glue_sst2_v002')
  for example in task.get_dataset(LENGTHS, 'validation', shuffle=False).as_numpy_iterator():
    assert set(example) == {'inputs', 'targets', 'inputs_pretokenized', 'targets_pretokenized'}
    assert example['inputs'][-1] == example['targets'][-1] == 1
    vocabulary = task.output_features['inputs'].vocabulary
    assert vocabulary.decode(example['targets'].tolist()) == example['targets_pretokenized'].decode()


def test_an_unlabelled_row_is_marked(monkeypatch):
  tfds_rows.serve(monkeypatch, {'glue/sst2': [{'sentence': 'a public test row has no label', 'label': -1, 'idx': 2}]})
  assert as_text('taskless_glue_sst2_v002', 'test') == [
      ['sentence: a public test row has no label', metrics.UNLABELLED]]


def test_a_low_data_subset_of_a_benchmark_is_tested_on_its_validation_split(monkeypatch):
  # 60 sentences twice: copies of a training sentence do not validate.
  many = [{'sentence': f's{i % 60}', 'label': i % 2, 'idx': i} for i in range(400)]
  tfds_rows.serve(monkeypatch, {'glue/sst2': many})
  task = tasks.load('taskless_glue_sst2_v002_low50_s1')
  found = {split: [(row['inputs'], row['targets']) for row in task.source.get_dataset(
      split, shuffle=False).as_numpy_iterator()] for split in task.splits}
  assert {split: len(rows) for split, rows in found.items()} == {'train': 50, 'validation': 15, 'test': 400}
  assert not {text for text, _ in found['train']} & {text for text, _ in found['validation']}
  assert found['train'] != found['test'][:50]


def test_a_low_data_subset_of_the_sample_can_be_read_as_a_task():
  task = tasks.load('sst2_sample_low100_s3')
  example = next(task.get_dataset(LENGTHS, 'train', shuffle=True, seed=0).as_numpy_iterator())
  assert example['targets_pretokenized'] in (b'negative', b'positive')
  assert [fn.__name__ for fn in task.predict_metric_fns] == ['accuracy', 'legal_label_rate']


def test_a_long_example_is_cut_and_still_ends_with_eos():
  task = tasks.load('taskless_glue_mrpc_v002')
  dataset = task.get_dataset({'inputs': 10, 'targets': 8}, 'validation', shuffle=False)
  example = next(dataset.as_numpy_iterator())
  assert len(example['inputs']) == 10
  assert example['inputs'][-1] == 1


def test_the_rule_is_general():
  copa = text_to_text.Format(('premise', 'question', 'choice1', 'choice2'), ('choice1', 'choice2'))
  row = {'premise': 'The woman retired.', 'choice1': 'She received her pension.', 'idx': 2,
         'choice2': 'She paid off her mortgage.', 'question': 'effect', 'label': 0}
  dataset = text_to_text.to_text(tfds_rows.dataset([row]), copa)
  assert list(dataset.as_numpy_iterator()) == [{
      'inputs': b'choice1: She received her pension. choice2: She paid off her mortgage. '
                b'premise: The woman retired. question: effect',
      'targets': b'choice1'}]


def test_missing_fields_are_named():
  dataset = tf.data.Dataset.from_tensor_slices({'text': ['fine'], 'label': [1]})
  with pytest.raises(ValueError, match=r"lack \['sentence'\]: they have \['label', 'text'\].*rekey"):
    text_to_text.to_text(dataset, text_to_text.FORMATS['sst2'])


def test_the_vocabulary_is_that_of_t5():
  vocabulary = features.VOCABULARY
  assert vocabulary.vocab_size == 32100
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
  assert vocabulary.encode('<extra_id_0>') == [32099]
  # As the paper's authors list them for class-label initialisation.
  assert vocabulary.encode('not_equivalent') == [59, 834, 15, 1169, 15592]
  assert vocabulary.encode('equivalent') == [7072]
