"""Full fine-tuning: it begins as the base, trains all of its parameters, and leaves the frozen argument alone."""

import jax
import pytest

from prompt_tuning import trees
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.full import Full
from tests import models
from tests.methods import suite
from tests.methods.prefix_test import made


@pytest.mark.parametrize('size', suite.SIZES)
def test_begins_as_the_base(size):
  suite.check_identity(size, Full())
  _, frozen, trainable = made(size, Full(), scan=True)
  assert trees.size(trainable) == trees.size(frozen)


@pytest.mark.parametrize('size', ['gpt2_tiny', 'roberta_tiny'])
def test_a_step_moves_parameters_and_no_frozen_ones(size):
  suite.check_step(size, Full())


def test_what_is_trained_is_a_copy():
  """A training step may take the buffers of what it trains; those of the base must stay."""
  _, frozen, trainable = made('gpt2_tiny', Full())
  address = lambda x: x.unsafe_buffer_pointer()
  pairs = jax.tree.map(lambda x, y: address(x) == address(y), frozen, dict(trainable['full']))
  assert not any(jax.tree.leaves(pairs))


def test_decoding_is_reading():
  suite.check_decoding('bart_tiny', Full())


@pytest.mark.parametrize('size', ['gpt2_tiny', 't5_1_1_tiny', 'roberta_tiny'])
def test_a_file_has_all_of_it(size, tmp_path):
  suite.check_file(size, Full(), tmp_path)


def test_needs_the_model_itself():
  base = Base(models.TINY, None, None, 'some/folder')
  with pytest.raises(ValueError, match='some/folder: full fine-tuning begins with the model itself'):
    Full().init({'full': jax.random.key(0)}, base)
