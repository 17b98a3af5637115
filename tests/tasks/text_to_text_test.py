"""The text each task makes of real rows, and the pipeline around it."""

import pytest
import seqio
import tensorflow as tf

from prompt_tuning import tasks
from prompt_tuning.tasks import features, text_to_text

LENGTHS = {'inputs': 128, 'targets': 8}

# Task -> (row as TFDS gives it, inputs, targets). Rows of the official validation sets, save the unlabelled
# one; those of GLUE's RTE are SuperGLUE's with other field names.
_SKUNKS = 'Skunks as pets -- It is currently legal to keep skunks as pets in Britain without a license.'
_HOME = 'A Place to Call Home (TV series) -- The sixth and final season premiered on 19 August 2018.'
_ABOLISH = "A: Your turn. B: Okay. Uh, I don't think they should abolish it."
_SHIPMENT = "``Who knows? The point is, do we go with it or not?'' Do we assume there is a shipment?"
_KITTENS = ('B: and, you know, they just love kittens. A: Yeah. B: They just are fascinated. A: Oh, yeah. '
            "B: So she doesn't know that this is a cat yet.")
_GIRL, _TOWN = 'The girl was found in Drummondville.', 'Drummondville contains the girl.'
_ACTS, _IS = 'Capital punishment acts as a deterrent.', 'Capital punishment is a deterrent to crime.'
GOLDENS = {
    'taskless_super_glue_boolq_v102': [
        ({'question': 'can you own a skunk in the uk', 'passage': _SKUNKS, 'idx': 347, 'label': 1},
         f'passage: {_SKUNKS} question: can you own a skunk in the uk', 'True'),
        ({'question': 'is a place to call home finished for good', 'passage': _HOME, 'idx': 1827, 'label': 0},
         f'passage: {_HOME} question: is a place to call home finished for good', 'False'),
    ],
    'taskless_super_glue_cb_v102': [
        ({'premise': _ABOLISH, 'hypothesis': 'they should abolish it', 'idx': 14, 'label': 1},
         f'hypothesis: they should abolish it premise: {_ABOLISH}', 'contradiction'),
        ({'premise': _SHIPMENT, 'hypothesis': 'there is a shipment', 'idx': 1, 'label': 2},
         f'hypothesis: there is a shipment premise: {_SHIPMENT}', 'neutral'),
        ({'premise': _KITTENS, 'hypothesis': 'this is a cat', 'idx': 51, 'label': 0},
         f'hypothesis: this is a cat premise: {_KITTENS}', 'entailment'),
    ],
    'taskless_super_glue_rte_v102': [
        ({'premise': _GIRL, 'hypothesis': _TOWN, 'idx': 208, 'label': 1},
         f'hypothesis: {_TOWN} premise: {_GIRL}', 'not_entailment'),
        ({'premise': _ACTS, 'hypothesis': _IS, 'idx': 197, 'label': 0},
         f'hypothesis: {_IS} premise: {_ACTS}', 'entailment'),
    ],
    'taskless_glue_rte_v002': [
        ({'sentence1': _GIRL, 'sentence2': _TOWN, 'idx': 208, 'label': 1},
         f'sentence1: {_GIRL} sentence2: {_TOWN}', 'not_entailment'),
        ({'sentence1': _ACTS, 'sentence2': _IS, 'idx': 197, 'label': 0},
         f'sentence1: {_ACTS} sentence2: {_IS}', 'entailment'),
    ],
    'taskless_glue_sst2_v002': [
        ({'sentence': 'one long string of cliches .', 'idx': 0, 'label': 0},
         'sentence: one long string of cliches .', 'negative'),
        ({'sentence': "it 's a charming and often affecting journey .", 'idx': 1, 'label': 1},
         "sentence: it 's a charming and often affecting journey .", 'positive'),
        ({'sentence': 'a public test row has no label', 'idx': 2, 'label': -1},
         'sentence: a public test row has no label', '<unk>'),
    ],
}
GOLDENS |= {name.replace('v002', 'v200'): rows for name, rows in GOLDENS.items() if name.endswith('v002')}


def from_rows(rows):
  """A source of the same rows whatever the split."""
  columns = {key: [row[key] for row in rows] for key in rows[0]}
  return seqio.FunctionDataSource(
      lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(columns), splits=['validation'])


@pytest.mark.parametrize('name', GOLDENS)
def test_a_registered_task_makes_the_text_of_the_papers(name):
  rows, inputs, targets = zip(*GOLDENS[name], strict=True)
  task = tasks.load(name).replace(source=from_rows(rows))  # all of the task but TFDS
  examples = list(task.get_dataset(LENGTHS, 'validation', shuffle=False).as_numpy_iterator())
  assert [e['inputs_pretokenized'].decode() for e in examples] == list(inputs)
  assert [e['targets_pretokenized'].decode() for e in examples] == list(targets)
  for example in examples:
    assert set(example) == {'inputs', 'targets', 'inputs_pretokenized', 'targets_pretokenized'}
    assert example['inputs'][-1] == example['targets'][-1] == 1
  vocabulary = task.output_features['inputs'].vocabulary
  assert vocabulary.decode(examples[0]['targets'].tolist()) == targets[0]


def test_every_taskless_task_has_a_golden():
  tasks.load('sst2_sample')
  assert {name for name in seqio.TaskRegistry.names() if name.startswith('taskless_')} == set(GOLDENS)


def test_a_long_example_is_cut_and_still_ends_with_eos():
  rows = [GOLDENS['taskless_super_glue_boolq_v102'][0][0]]
  task = tasks.load('taskless_super_glue_boolq_v102').replace(source=from_rows(rows))
  dataset = task.get_dataset({'inputs': 10, 'targets': 8}, 'validation', shuffle=False)
  example = next(dataset.as_numpy_iterator())
  assert len(example['inputs']) == 10
  assert example['inputs'][-1] == 1


def test_the_rule_is_general():
  copa = text_to_text.Format(('premise', 'question', 'choice1', 'choice2'), ('choice1', 'choice2'))
  row = {'premise': 'The woman retired.', 'choice1': 'She received her pension.', 'idx': 2,
         'choice2': 'She paid off her mortgage.', 'question': 'effect', 'label': 0}
  dataset = text_to_text.to_text(from_rows([row]).get_dataset('validation', shuffle=False), copa)
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
