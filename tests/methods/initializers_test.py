"""How prompts begin (Lester et al. 2021, section 3.2)."""

import dataclasses

import jax
import numpy as np
import pytest

from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods import finished, initializers
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.prompt import Prompt

CONFIG = dataclasses.replace(config_lib.from_size('t5_1_1_tiny'), d_model=8)
TABLE = np.random.default_rng(0).standard_normal((CONFIG.vocab_size, 8)).astype(np.float32)
WORDS = {'good': [300], 'very bad': [400, 31_000], 'a b c': [5, 6, 7], '': []}
BASE = Base(CONFIG, lambda ids: TABLE[np.asarray(ids)], WORDS.__getitem__)
KEY = jax.random.key(0)


def make(initializer, length=10, base=BASE, key=KEY) -> np.ndarray:
  return np.asarray(initializer(key, (length, 8), base))


def rows_in_table(rows) -> list[int]:
  """Which embeddings the rows are."""
  return [int(np.flatnonzero((TABLE == row).all(axis=1))[0]) for row in rows]


@pytest.mark.parametrize(('low', 'high'), [(-0.5, 0.5), (0.0, 0.5)])
def test_uniform(low, high):
  x = make(initializers.random_uniform(low, high), 1000)
  assert x.min() >= low
  assert x.max() < high
  np.testing.assert_allclose([x.mean(), x.min(), x.max()], [(low + high) / 2, low, high], atol=0.02)
  assert (make(initializers.random_uniform(low, high), 10, key=jax.random.key(1)) != x[:10]).any()


def test_the_papers_range_is_the_default():
  assert make(initializers.random_uniform(), 1000).min() < -0.45


def test_sampled_vocabulary_takes_different_tokens_among_the_most_common():
  ids = rows_in_table(make(initializers.sampled_vocabulary(), 2000))
  assert len(set(ids)) == 2000
  assert max(ids) < 5000
  assert max(ids) > 4900  # all of them, evenly
  assert sorted(rows_in_table(make(initializers.sampled_vocabulary(most_common=10)))) == list(range(10))


def test_more_virtual_tokens_than_words():
  with pytest.raises(ValueError, match='prompt of 10 cannot be drawn from 9 different tokens.*most_common'):
    make(initializers.sampled_vocabulary(most_common=9))


def test_class_labels_are_means_of_their_pieces_then_sampled():
  x = make(initializers.class_labels(['good', 'very bad']))
  np.testing.assert_array_equal(x[0], TABLE[300])
  np.testing.assert_allclose(x[1], (TABLE[400] + TABLE[31_000]) / 2, rtol=1e-6)
  rest = rows_in_table(x[2:])
  assert len(set(rest)) == 8
  assert max(rest) < 5000


def test_class_labels_beyond_the_length_are_left_out():
  x = make(initializers.class_labels(['good', 'very bad', 'a b c']), 1)
  np.testing.assert_array_equal(x, TABLE[[300]])
  assert make(initializers.class_labels([]), 4).shape == (4, 8)


def test_a_text_is_cut_or_filled():
  np.testing.assert_array_equal(make(initializers.text('a b c'), 2), TABLE[[5, 6]])
  np.testing.assert_array_equal(make(initializers.text('a b c'), 3), TABLE[[5, 6, 7]])
  filled = make(initializers.text('a b c'), 6)
  np.testing.assert_array_equal(filled[:3], TABLE[[5, 6, 7]])
  assert max(rows_in_table(filled[3:])) < 5000


@pytest.mark.parametrize('initializer', [initializers.text(''), initializers.class_labels([''])])
def test_words_without_tokens(initializer):
  with pytest.raises(ValueError, match="The text '' has no tokens"):
    make(initializer)


def test_from_file(tmp_path):
  prompt = np.random.default_rng(1).standard_normal((10, 8)).astype(np.float64)
  np.save(tmp_path / 'a.npy', prompt)
  x = make(initializers.from_file(str(tmp_path / 'a.npy')))
  np.testing.assert_array_equal(x, prompt.astype(np.float32))
  method = finished.load(str(tmp_path / 'a.npy'))
  assert method.virtual_tokens == 10
  np.testing.assert_array_equal(method.init({'prompt': KEY}, BASE)['prompt']['embedding'], x)


def test_a_prompt_of_another_length_or_width(tmp_path):
  np.save(tmp_path / 'a.npy', np.zeros((10, 8), np.float32))
  method = Prompt(length=20, initializer=initializers.from_file(str(tmp_path / 'a.npy')))
  with pytest.raises(ValueError, match=r'should be \[20, 8\].*made \[10, 8\].*PROMPT_LENGTH'):
    method.init({'prompt': KEY}, BASE)
