"""Padding, virtual tokens, shifting and cutting of examples."""

import dataclasses

import numpy as np
import pytest

from prompt_tuning import features, tokenizer
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.prompt import Prompt
from tests import models

PLACE = Prompt(length=2).place


def converter(**kwargs):
  given = dict(lengths={'inputs': 5, 'targets': 3}, place=PLACE, virtual_tokens=2, vocab_size=100)
  return features.Converter(**{**given, **kwargs})


def test_a_batch():
  batch = converter()([{'inputs': [7, 8, 1], 'targets': [9, 1]}, {'inputs': [6, 1], 'targets': [5, 4, 1]}], rows=3)
  np.testing.assert_array_equal(batch['encoder_input_tokens'], [
      [100, 101, 7, 8, 1, 0, 0], [100, 101, 6, 1, 0, 0, 0], [0] * 7])
  np.testing.assert_array_equal(batch['decoder_target_tokens'], [[9, 1, 0], [5, 4, 1], [0, 0, 0]])
  np.testing.assert_array_equal(batch['decoder_input_tokens'], [[0, 9, 1], [0, 5, 4], [0, 0, 0]])
  np.testing.assert_array_equal(batch['decoder_loss_weights'], [[1, 1, 0], [1, 1, 1], [0, 0, 0]])
  assert [batch[name].dtype for name in sorted(batch)] == [np.int32, np.float32, np.int32, np.int32]


def test_virtual_tokens_come_on_top_of_the_length():
  batch = converter()([{'inputs': [2, 3, 4, 5, 1], 'targets': [1]}])
  np.testing.assert_array_equal(batch['encoder_input_tokens'], [[100, 101, 2, 3, 4, 5, 1]])


def test_what_is_cut_is_closed_and_counted():
  convert = converter()
  assert convert.report() == ''
  batch = convert([{'inputs': [2, 3, 4, 5, 6, 7, 1], 'targets': [2, 3, 4, 1]}, {'inputs': [2, 1], 'targets': [1]}])
  np.testing.assert_array_equal(batch['encoder_input_tokens'][0], [100, 101, 2, 3, 4, 5, 1])
  np.testing.assert_array_equal(batch['decoder_target_tokens'][0], [2, 3, 1])
  assert convert.truncated == {'inputs': 1, 'targets': 1}
  assert convert.report() == 'of 2 examples cut: 1 inputs (limit 5), 1 targets (limit 3)'


def test_cutting_can_be_an_error():
  convert = converter(on_truncation='error')
  convert([{'inputs': [2, 1], 'targets': [1]}])
  with pytest.raises(ValueError, match=r"Example 1: targets has 4 tokens.*\['targets'\] = 3"):
    convert([{'inputs': [2, 1], 'targets': [2, 3, 4, 1]}])


def test_examples_without_targets():
  batch = converter()([{'inputs': [3, 1]}])
  assert not batch['decoder_loss_weights'].any()


@pytest.mark.parametrize(('change', 'message'), [
    ({'lengths': {'inputs': 5}}, "TASK_FEATURE_LENGTHS={'inputs': 5} lacks targets"),
    ({'lengths': {'inputs': 5, 'targets': 0}}, 'at least one token of each'),
    ({'on_truncation': 'drop'}, "on_truncation='drop'; expected 'count' or 'error'"),
])
def test_wrong_options(change, message):
  with pytest.raises(ValueError, match=message):
    converter(**change)


def test_an_empty_source_is_named_but_none_at_all_is_language_modelling():
  convert = converter()
  convert([{'inputs': [2, 1], 'targets': [3, 1]}])
  with pytest.raises(ValueError, match='Example 1: empty source. Remove such examples, or leave "inputs" out'):
    convert([{'inputs': [1], 'targets': [3, 1]}])
  batch = converter()([{'targets': [3, 1]}])
  np.testing.assert_array_equal(batch['encoder_input_tokens'], [[100, 101, 1, 0, 0, 0, 0]])


# --- other families ---


def of_family(family):
  """(tokenizer, layout) of a small model."""
  ours = tokenizer.open_tokenizer(models.GOLDENS / 'tokenizers' / family, family)
  size = {'gpt2': 'gpt2_tiny', 'bart': 'bart_tiny', 'bert': 'bart_tiny'}[family]
  config = dataclasses.replace(config_lib.from_size(size), family=family)
  if family == 'bert':
    config = dataclasses.replace(config, bos_id=None, eos_id=None, pad_id=0, decoder_start_id=None)
  return ours, features.layout_of(config, ours)


def test_gpt2_reads_source_bos_target_eos():
  ours, layout = of_family('gpt2')
  example = layout.encode(ours, 'the pub', 'is near')
  assert example == {'inputs': ours.encode(' the pub '), 'targets': [*ours.encode(' is near '), 0]}
  assert layout.decode(ours, example['targets']) == 'is near'
  convert = converter(vocab_size=1024, layout=layout, lengths={'inputs': 4, 'targets': 20})
  source, target = convert._fit(np.array(example['inputs']), 'inputs', ()), example['targets']
  n = len(target)
  batch = convert([example, {'inputs': [5]}], rows=3)
  np.testing.assert_array_equal(batch['encoder_input_tokens'], [
      [1024, 1025, *source, *[-1] * (4 - len(source))], [1024, 1025, 5, -1, -1, -1], [-1] * 6])
  np.testing.assert_array_equal(batch['decoder_input_tokens'][0], [0, *target, *[0] * (19 - n)])  # begins with BOS
  np.testing.assert_array_equal(batch['decoder_target_tokens'][0], [*target, *[0] * (20 - n)])
  # The end of sequence counts though it is the padding too.
  np.testing.assert_array_equal(batch['decoder_loss_weights'].sum(axis=1), [n, 0, 0])


def test_what_is_cut_of_gpt2():
  _, layout = of_family('gpt2')
  batch = converter(vocab_size=1024, layout=layout)([{'inputs': [*range(11, 18)], 'targets': [11, 12, 13, 0]}])
  np.testing.assert_array_equal(batch['encoder_input_tokens'], [[1024, 1025, 11, 12, 13, 14, 15]])
  np.testing.assert_array_equal(batch['decoder_target_tokens'], [[11, 12, 0]])
  np.testing.assert_array_equal(batch['decoder_loss_weights'], [[1, 1, 1]])


def test_bart_brackets_both_and_pads_with_one():
  ours, layout = of_family('bart')
  example = layout.encode(ours, 'the', 'pub')
  x, y = ours.encode('the'), ours.encode('pub')
  assert example == {'inputs': [0, *x, 2], 'targets': [0, *y, 2]}
  assert layout.decode(ours, [2, *example['targets'], 1, 1]) == 'pub'
  batch = converter(vocab_size=1024, layout=layout)([
      {'inputs': [0, 9, 2], 'targets': [0, 2]}, {'inputs': [0, 9, 9, 9, 9, 9, 2], 'targets': [0, 9, 9, 2]}])
  np.testing.assert_array_equal(batch['encoder_input_tokens'], [
      [1024, 1025, 0, 9, 2, 1, 1], [1024, 1025, 0, 9, 9, 9, 2]])
  np.testing.assert_array_equal(batch['decoder_input_tokens'], [[2, 0, 2], [2, 0, 9]])
  np.testing.assert_array_equal(batch['decoder_target_tokens'], [[0, 2, 1], [0, 9, 2]])
  np.testing.assert_array_equal(batch['decoder_loss_weights'], [[1, 1, 0], [1, 1, 1]])


def test_berts_brackets_are_its_tokenizers():
  ours, layout = of_family('bert')
  assert layout.encode(ours, 'the') == {'inputs': [2, *ours.encode('the'), 3]}
  with pytest.raises(ValueError, match='What begins and ends a text of this bert model is unknown: bos_id None'):
    features.layout_of(dataclasses.replace(config_lib.from_size('bart_tiny'), family='bert', bos_id=None))


@pytest.mark.parametrize('family', ['gpt2', 'bart'])
def test_an_empty_source_of_text(family):
  ours, layout = of_family(family)
  for text in ('', ' \n'):
    with pytest.raises(ValueError, match='Example 0: empty source'):
      converter(vocab_size=1024, layout=layout)([layout.encode(ours, text, 'x')])


def test_t5s_layout_is_the_default():
  assert features.layout_of(config_lib.from_size('t5_1_1_tiny'), tokenizer.Tokenizer()) == features.Layout()


@pytest.mark.parametrize(('change', 'message'), [
    ({'vocab_size': 999}, 'The tokenizer has 1000 ids but the model embeds 999'),
    ({'eos_id': 7}, 'eos_id of the tokenizer is 0 but that of the model 7'),
])
def test_a_tokenizer_of_another_model(change, message):
  config = dataclasses.replace(config_lib.from_size('gpt2_tiny'), **change)
  with pytest.raises(ValueError, match=message):
    features.layout_of(config, of_family('gpt2')[0])


def test_examples_can_be_encoded_again():
  batch = converter(encode=lambda example: {'inputs': [example['inputs'][0] + 1, 1]})([{'inputs': [7, 8, 1]}])
  np.testing.assert_array_equal(batch['encoder_input_tokens'], [[100, 101, 8, 1, 0, 0, 0]])
