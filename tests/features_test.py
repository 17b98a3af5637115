"""Padding, virtual tokens, shifting and cutting of examples."""

import numpy as np
import pytest

from prompt_tuning import features
from prompt_tuning.methods.prompt import Prompt

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
  convert([{'inputs': [1], 'targets': [1]}])
  with pytest.raises(ValueError, match=r"Example 1: targets has 4 tokens.*\['targets'\] = 3"):
    convert([{'inputs': [1], 'targets': [2, 3, 4, 1]}])


def test_examples_without_targets():
  batch = converter()([{'inputs': [3, 1]}])
  assert not batch['decoder_loss_weights'].any()


@pytest.mark.parametrize(('change', 'message'), [
    ({'lengths': {'inputs': 5}}, "TASK_FEATURE_LENGTHS={'inputs': 5} lacks targets"),
    ({'on_truncation': 'drop'}, "on_truncation='drop'; expected 'count' or 'error'"),
])
def test_wrong_options(change, message):
  with pytest.raises(ValueError, match=message):
    converter(**change)
