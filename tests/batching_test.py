"""Rows of one length, of buckets, and packed: each example once, where there is room, in a bounded number of shapes."""

import numpy as np
import pytest

from prompt_tuning import batching, features
from prompt_tuning.batching import Bucketed, Packed, Padded, Place, Room

ROOM = Room(rows=8, source=70, target=6, virtual=6)
SOURCES = [20, 9, 36, 12, 38, 8, 30, 14]
TARGETS = [2, 2, 4, 1, 2, 3, 2, 2]


def check(pieces, sources, targets, room):
  """Each example stands once, in free slots of a row."""
  assert sorted(place.example for piece in pieces for place in piece.places) == list(range(len(sources)))
  for piece in pieces:
    taken = np.zeros((piece.rows, piece.source), int), np.zeros((piece.rows, piece.target), int)
    for i, row, first, first_target in piece.places:
      assert first + sources[i] <= piece.source
      assert first_target + targets[i] <= piece.target
      taken[0][row, first:first + sources[i]] += 1
      taken[1][row, first_target:first_target + targets[i]] += 1
    assert max(taken[0].max(), taken[1].max()) == 1
    assert piece.rows % room.multiple == 0


def test_padded_is_a_row_an_example():
  [piece] = Padded()(SOURCES, TARGETS, ROOM)
  assert piece == (8, 70, 6, tuple(Place(i, i) for i in range(8)), False)


def test_the_smallest_bucket_that_holds_the_longest():
  how = Bucketed(lengths=(16, 32, 64), target_lengths=(4,))
  [piece] = how(SOURCES, TARGETS, ROOM)
  assert piece == (8, 38, 4, tuple(Place(i, i) for i in range(8)), False)  # 32 tokens behind 6 virtual ones
  assert how([39], [5], ROOM)[0][:3] == (8, 70, 6)
  assert how([8, 22], [1, 1], ROOM)[0][:3] == (8, 22, 4)
  assert how([71], [5], ROOM)[0].source == 70  # what is cut to the feature length
  assert Bucketed(lengths=(64, 128))([8], [1], Room(8, 30, 6))[0].source == 30  # no bucket is longer than that


def test_groups_by_length():
  pieces = Bucketed(lengths=(16, 32), target_lengths=(3, 5), groups=2, array_cost=0)(SOURCES, TARGETS, ROOM)
  check(pieces, SOURCES, TARGETS, ROOM)
  assert [piece[:3] for piece in pieces] == [(4, 22, 3), (4, 38, 5)]
  assert [place.example for place in pieces[0].places] == [5, 1, 3, 7]


@pytest.mark.parametrize(('room', 'arrays'), [
    (ROOM, 4), (ROOM._replace(multiple=2), 4), (ROOM._replace(multiple=4), 2), (ROOM._replace(multiple=8), 1)])
def test_groups_are_as_many_as_rows_divide_into(room, arrays):
  lengths = [300, 20, 400, 900, 30, 800, 420, 320]
  room = room._replace(source=1000)
  pieces = Bucketed(groups=4, lengths=(32, 400, 500))(lengths, TARGETS, room)
  check(pieces, lengths, TARGETS, room)
  assert [piece.rows for piece in pieces] == [8 // arrays] * arrays
  assert [piece.rows for piece in Bucketed(groups=4)([300] * 9, [1] * 9, room._replace(rows=9))] == [9]


def test_short_rows_are_not_dealt_out():
  assert len(Bucketed(lengths=(4, 8, 12, 16), groups=4)([5, 9, 12, 16], [1] * 4, Room(4, 64, 2))) == 1


@pytest.mark.parametrize('multiple', [1, 2, 4])
def test_packed(multiple):
  room = ROOM._replace(multiple=multiple)
  [piece] = Packed(lengths=(40, 64))(SOURCES, TARGETS, room)
  check([piece], SOURCES, TARGETS, room)
  assert piece.packed
  assert piece.rows * piece.source < 2 * sum(SOURCES)
  assert piece.source >= max(SOURCES)


def test_packed_targets_get_rows_of_several_times_their_length():
  [piece] = Packed(lengths=(64, 128))([16] * 16, [6] * 16, ROOM._replace(rows=16))
  assert piece.target % 6 == 0
  assert piece.target > 6


def test_few_shapes():
  rng = np.random.default_rng(0)
  bucketed, packed = set(), set()
  for _ in range(300):
    sources = np.minimum(20 + rng.geometric(0.02, 32), 120)
    room = Room(32, 120, 4, 20)
    pieces = Bucketed(lengths=(32, 64, 96), groups=4, array_cost=0)(sources, [2] * 32, room)
    check(pieces, sources, [2] * 32, room)
    bucketed |= {piece[:3] for piece in pieces}
    packed |= {piece[:3] for piece in Packed(lengths=(96, 128))(sources, [2] * 32, room)}
  assert len(bucketed) == 4
  assert len(packed) <= 8
  assert {rows % 4 for rows, *_ in packed} == {0}


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: Bucketed(lengths=()), r'Bucketed.lengths=\(\); expected one or more'),
    (lambda: Bucketed(target_lengths=(0,)), r'Bucketed.target_lengths=\(0,\)'),
    (lambda: Bucketed(groups=0), 'Bucketed.groups=0'), (lambda: Bucketed(window=0.5), 'Bucketed.window=0.5'),
    (lambda: Packed(lengths=('a',)), 'Packed.lengths'),
    (lambda: Packed(steps=0), 'Packed.steps=0')])
def test_wrong_settings(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_features_of_pieces():
  convert = features.Converter(
      {'inputs': 10, 'targets': 2}, lambda ids, v: np.append(v, ids), 1, 50,
      batching=Bucketed(lengths=(4,), groups=2, array_cost=0))
  pieces = convert([{'inputs': range(2, n), 'targets': [n, 1]} for n in (9, 4, 5, 8)])
  assert [piece['encoder_input_tokens'].shape for piece in pieces] == [(2, 5), (2, 11)]
  np.testing.assert_array_equal(pieces[0]['encoder_input_tokens'], [[50, 2, 3, 0, 0], [50, 2, 3, 4, 0]])
  np.testing.assert_array_equal(pieces[1]['decoder_target_tokens'], [[8, 1], [9, 1]])
  assert 'encoder_segment_ids' not in pieces[0]
  assert [x.shape for x in batching.sources(pieces)] == [(2, 5), (2, 11)]
  assert batching.each(len, pieces) == (4, 4)
  assert batching.each(len, pieces[0]) == 4
