"""Beam search against a textbook one, against all sequences there are, and its invariants."""

import numpy as np
import pytest

from prompt_tuning import decoding
from tests.decoding import toy

PENALTIES = [('t5x', 0.6), ('t5x', -1.0), ('hf', 0.0), ('hf', 1.0), ('hf', -1.0)]
FORCED = toy.IDS._replace(forced_bos=5, forced_eos=toy.EOS)


def check(decoder, length, vocab, ids=toy.IDS):
  """Equals the textbook beam search, row by row."""
  decoded = toy.decode(decoder, length, vocab, ids)
  for row in range(toy.BATCH):
    expected = toy.beam(decoder, length, vocab, row, ids)[:decoder.returned]
    assert [toy.unpad(tokens) for tokens in decoded.tokens[row]] == [tokens for _, _, tokens in expected]
    np.testing.assert_allclose(decoded.scores[row], [score for score, _, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(decoded.log_probs[row], [total for _, total, _ in expected], rtol=1e-5)
  return decoded


@pytest.mark.parametrize('early_stopping', [False, True, 'never'])
@pytest.mark.parametrize(('penalty', 'alpha'), PENALTIES)
def test_equals_a_textbook_beam_search(penalty, alpha, early_stopping):
  decoder = decoding.Beam(3, length_penalty=penalty, alpha=alpha, early_stopping=early_stopping, returned=3)
  decoded = check(decoder, 8, 7)
  assert np.any(decoded.tokens[..., -1] == toy.PAD)  # some end before the limit


@pytest.mark.parametrize('penalty', ['t5x', 'hf'])
def test_rules(penalty):
  decoder = decoding.Beam(4, length_penalty=penalty, returned=4, min_length=3, banned=(2, 9))
  decoded = check(decoder, 8, 10)
  assert not np.isin(decoded.tokens, [2, 9]).any()
  assert not np.any(decoded.tokens[..., :3] == toy.EOS)
  assert np.any(decoded.tokens[..., 3:] == toy.EOS)


@pytest.mark.parametrize('penalty', ['t5x', 'hf'])
def test_forced_tokens_count_nothing(penalty):
  decoded = check(decoding.Beam(4, length_penalty=penalty, returned=4), 6, 10, FORCED)
  assert np.all(decoded.tokens[..., 0] == 5)
  assert np.all(np.any(decoded.tokens == toy.EOS, axis=-1))
  check(decoding.Beam(2, length_penalty=penalty), 1, 10, FORCED)  # the end, of both


@pytest.mark.parametrize('penalty', ['t5x', 'hf'])
@pytest.mark.parametrize('alpha', [0.0, 1.0, 3.0])
def test_with_room_for_everything_finds_the_best_of_all(penalty, alpha):
  length, vocab = 3, 4
  decoder = decoding.Beam(vocab**2, length_penalty=penalty, alpha=alpha)
  decoded = toy.decode(decoder, length, vocab)
  sequences = list(toy.all_sequences(length, vocab))
  for row in range(toy.BATCH):
    able = [s for s in sequences if penalty == 'hf' or s[-1] == toy.EOS]
    best = max(able, key=lambda s: toy.rescore(vocab, row, s) / toy.penalty(decoder, len(s)))
    assert toy.unpad(decoded.tokens[row, 0]) == best


def test_more_beams_than_sequences():
  """Every sequence comes out, once; what is left over is marked as nothing."""
  length, vocab = 2, 3
  sequences = list(toy.all_sequences(length, vocab))
  decoded = toy.decode(decoding.Beam(20, length_penalty='hf', returned=20), length, vocab)
  for row in range(toy.BATCH):
    found = [toy.unpad(tokens) for tokens, score in zip(decoded.tokens[row], decoded.scores[row], strict=True)
             if score > -np.inf]
    assert sorted(found) == sorted(sequences)
  assert np.all(np.isneginf(decoded.scores[:, len(sequences):]))


@pytest.mark.parametrize('penalty', ['t5x', 'hf'])
@pytest.mark.parametrize('early_stopping', [False, True, 'never'])
def test_beams_are_distinct_sorted_padded_and_rescored(penalty, early_stopping):
  decoder = decoding.Beam(5, length_penalty=penalty, alpha=1.0, early_stopping=early_stopping, returned=5)
  decoded = toy.decode(decoder, 8, 6)
  for row in range(toy.BATCH):
    assert len({tuple(tokens) for tokens in decoded.tokens[row]}) == 5
    ended = np.any(decoded.tokens[row] == toy.EOS, axis=-1)
    assert np.all(ended[:-1] >= ended[1:]) or penalty == 'hf'
    for part in (ended, ~ended) if penalty == 't5x' else (ended | True,):
      assert np.all(np.diff(decoded.scores[row][part]) <= 0)
    for tokens, log_prob in zip(decoded.tokens[row], decoded.log_probs[row], strict=True):
      assert np.all(tokens[len(toy.unpad(tokens)):] == toy.PAD)
      np.testing.assert_allclose(log_prob, toy.rescore(6, row, tokens), rtol=1e-5)


@pytest.mark.parametrize(('penalty', 'alpha'), [('t5x', 0.6), ('hf', 1.0)])
@pytest.mark.parametrize('ids', [toy.IDS, FORCED])
def test_a_beam_of_one_is_greedy(penalty, alpha, ids):
  one = decoding.Beam(1, length_penalty=penalty, alpha=alpha, min_length=1, banned=(3,))
  beam = toy.decode(one, 8, 7, ids)
  greedy = toy.decode(decoding.Greedy(min_length=1, banned=(3,)), 8, 7, ids)
  np.testing.assert_array_equal(beam.tokens, greedy.tokens)
  np.testing.assert_array_equal(beam.log_probs, greedy.log_probs)
  sizes = [len(toy.unpad(tokens[0])) for tokens in beam.tokens]
  np.testing.assert_allclose(beam.scores[:, 0], beam.log_probs[:, 0] / [toy.penalty(one, n) for n in sizes], rtol=1e-6)


def test_returned_are_the_best_of_all_beams():
  decode = lambda returned: toy.decode(decoding.Beam(4, returned=returned))
  for some, every in zip(decode(2), decode(4), strict=True):
    np.testing.assert_array_equal(some, every[:, :2])


def test_equals_come_in_order_of_beam_and_id():
  """All tokens are equally probable: the lowest ids, then the lowest ids behind the first beam."""
  step = lambda tokens, cache, time, visible: (np.zeros((1, 3, 6), np.float32), cache)
  decoder = decoding.Beam(3, length_penalty='hf', alpha=0.0, returned=3, banned=(toy.EOS,))
  decoded = decoder(np.zeros((1, 6), np.float32), {}, step, length=2, ids=toy.IDS)
  assert decoded.tokens.tolist() == [[[0, 0], [0, 2], [0, 3]]]


@pytest.mark.parametrize(('fields', 'message'), [
    ({'beams': 0}, 'Beam: beams is 0; expected at least 1'),
    ({'beams': 2, 'returned': 3}, 'returned is 3; expected 1 to 2, the number of beams'),
    ({'returned': 0}, 'returned is 0'),
    ({'length_penalty': 'T5X'}, "length_penalty is 'T5X'; expected one of 't5x', 'hf'"),
    ({'alpha': float('nan')}, 'alpha is nan; expected a finite number'),
    ({'early_stopping': 'always'}, "early_stopping is 'always'; expected True, False or 'never'"),
    ({'early_stopping': 1}, 'early_stopping is 1')])
def test_bad_fields(fields, message):
  with pytest.raises(ValueError, match=message):
    decoding.Beam(**fields)
