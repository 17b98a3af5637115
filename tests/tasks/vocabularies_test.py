"""Our tokenizers behind seqio's vocabulary interface."""

import pathlib

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning import tokenizer
from prompt_tuning.tasks import features, vocabularies

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens' / 'tokenizers'
TEXTS = ['name : Blue Spice', '', 'Grüße 😀\n', '<|endoftext|> </s>']


def vocabulary(family) -> vocabularies.TokenizerVocabulary:
  return vocabularies.TokenizerVocabulary(tokenizer.open_tokenizer(GOLDENS / family, family))


@pytest.mark.parametrize('family', ['gpt2', 'bart'])
def test_text_and_ids_in_python_and_tensorflow(family):
  ours = vocabulary(family)
  for text in TEXTS:
    ids = ours.encode(text)
    assert ids == ours.tokenizer.encode(text)
    np.testing.assert_array_equal(ours.encode_tf(tf.constant(text)), ids)
    assert ours.decode([ours.eos_id, *ids, ours.eos_id, ours.pad_id]) == text
    assert ours.decode_tf(tf.constant([*ids, ours.eos_id], tf.int32)).numpy().decode() == text


def test_batches_of_ids_in_tensorflow():
  ours = vocabulary('gpt2')
  a, b = ours.encode(' the'), ours.encode(' pub')
  texts = ours.decode_tf(tf.constant([[*a, *b, 0], [*b, 0, 0]]))
  assert texts.numpy().tolist() == [b' the pub', b' pub']


def test_ids_in_a_task():
  ours = vocabulary('bart')
  feature = seqio.Feature(ours, add_eos=True)
  data = tf.data.Dataset.from_tensor_slices({'inputs': TEXTS, 'targets': TEXTS})
  data = seqio.preprocessors.tokenize(data, {'inputs': feature, 'targets': feature})
  data = seqio.preprocessors.append_eos(data, {'inputs': feature, 'targets': feature})
  for text, row in zip(TEXTS, data.as_numpy_iterator(), strict=True):
    assert row['inputs'].tolist() == [*ours.encode(text), 2]
    assert row['inputs'].dtype == np.int32
    assert row['inputs_pretokenized'].decode() == text


def test_special_ids():
  gpt2, bart = vocabulary('gpt2'), vocabulary('bart')
  assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id, gpt2.pad_id, gpt2.unk_id) == (1000, 0, 0, 0, None)
  assert (bart.vocab_size, bart.bos_id, bart.eos_id, bart.pad_id, bart.unk_id) == (1005, 0, 2, 1, 3)
  assert str(bart).startswith('TokenizerVocabulary(size=1005, fingerprint=')


def test_which_give_the_same_ids():
  gpt2, bart, t5 = vocabulary('gpt2'), vocabulary('bart'), tokenizer.Tokenizer()
  assert gpt2 == vocabulary('gpt2')
  assert gpt2 != bart
  assert gpt2 != features.VOCABULARY
  assert vocabularies.same_ids(features.VOCABULARY, t5)
  assert vocabularies.same_ids(gpt2, gpt2.tokenizer)
  assert not vocabularies.same_ids(features.VOCABULARY, gpt2.tokenizer)
  assert not vocabularies.same_ids(seqio.ByteVocabulary(), t5)
