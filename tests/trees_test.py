"""Trees by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import trees

TREE = {'a': {'kernel': np.zeros((2, 3)), 'bias': np.zeros(3)}, 'b': {'kernel': np.ones((4,), np.float32)}}


def test_flatten_and_back():
  flat = trees.flatten(TREE)
  assert list(flat) == ['a/kernel', 'a/bias', 'b/kernel']
  jax.tree.map(np.testing.assert_array_equal, trees.unflatten(flat), TREE)


def test_select_matches_whole_paths():
  assert set(trees.select(TREE, '.*/kernel')) == {'a/kernel', 'b/kernel'}
  with pytest.raises(ValueError, match=r"(?s)'kernel' matches none of 3 parameters:\n  a/kernel\n  a/bias"):
    trees.select(TREE, 'kernel')


def test_overlay_exchanges_and_leaves_the_rest():
  new = trees.overlay(TREE, {'a/bias': np.full(3, 7.0)})
  np.testing.assert_array_equal(new['a']['bias'], [7, 7, 7])
  assert new['b']['kernel'] is TREE['b']['kernel']
  assert TREE['a']['bias'][0] == 0
  assert trees.overlay(TREE, {}) is TREE
  with pytest.raises(ValueError, match=r'(?s)No parameter a/scale among:.*a/kernel'):
    trees.overlay(TREE, {'a/scale': 0})


def test_diff_shows_both_sides():
  found = {'a': {'kernel': np.zeros((2, 4)), 'bias': np.zeros(3)}, 'c': np.zeros(())}
  assert trees.diff(TREE, found) == [
      '- a/kernel [2, 3]', '+ a/kernel [2, 4]', '- b/kernel [4]', '+ c []']
  assert trees.diff(TREE, TREE) == []


def test_shorten():
  assert trees.shorten(['a', 'b']) == 'a\n  b'
  assert trees.shorten(map(str, range(5)), 2, ', ') == '0, 1, ... and 3 more'


def test_sizes():
  assert trees.size(TREE) == 13
  assert trees.nbytes({'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': np.zeros(5, np.int8)}) == 17


def test_overlay_by_functions_of_what_is_there():
  new = trees.overlay(TREE, {'b/kernel': lambda x: 2 * x, 'a/bias': np.full(3, 7.0)})
  np.testing.assert_array_equal(new['b']['kernel'], np.full(4, 2.0))
  np.testing.assert_array_equal(new['a']['bias'], [7, 7, 7])
