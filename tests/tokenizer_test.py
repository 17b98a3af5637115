"""The tokenizer without TensorFlow gives seqio's ids."""

import pytest

from prompt_tuning import tokenizer
from prompt_tuning.tasks import features

TEXTS = ['sentence: a gorgeous , witty , seductive movie .', '', ' two  spaces ', 'Grüße, 你好 ∑', 'hello</s>world',
         'positive', 'premise: It was 3.14 % — really?\ttab']


@pytest.fixture(scope='module')
def ours():
  return tokenizer.Tokenizer()


def test_ids_and_text_equal_seqios(ours):
  for text in TEXTS:
    ids = ours.encode(text)
    assert ids == list(features.VOCABULARY.encode(text)), text
    assert ours.decode([*ids, 1, 0, 0]) == features.VOCABULARY.decode([*ids, 1, 0, 0]), text


def test_decoding_stops_at_the_end_and_skips_what_is_no_piece(ours):
  good, movie = ours.encode('good movie')
  assert ours.decode([good, 1, movie]) == 'good'
  assert ours.decode([0, good, 32_099, 32_128 + 5, movie]) == 'good movie'


def test_names_of_pieces(ours):
  assert len(ours) == 32_000
  assert ours.piece(ours.encode('good')[0]) == ' good'
  assert ours.piece(32_099) == '<extra_id_0>'
  assert ours.piece(32_000) == '<extra_id_99>'
  assert ours.piece(32_100) == '<32100>'


def test_errors_name_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere: no such tokenizer'):
    tokenizer.Tokenizer(tmp_path / 'nowhere')
  (tmp_path / 'bad.model').write_bytes(b'not a model')
  with pytest.raises(ValueError, match='bad.model: not a SentencePiece model'):
    tokenizer.Tokenizer(tmp_path / 'bad.model')
