"""BitFit: which parameters are biases, what a T5 gets in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.bias import Added, Bias
from tests import models
from tests.methods import suite
from tests.methods.prefix_test import made


@pytest.mark.parametrize('size', suite.SIZES)
def test_begins_as_the_identity(size):
  suite.check_identity(size, Bias())


@pytest.mark.parametrize('size', ['t5_1_0_tiny', 'bart_tiny'])
def test_a_step_moves_all_biases_and_nothing_frozen(size):
  suite.check_step(size, Bias())


def test_decoding_is_reading():
  suite.check_decoding('t5_1_1_tiny', Bias())


@pytest.mark.parametrize('size', suite.SIZES)
def test_a_file_has_all_of_it(size, tmp_path):
  suite.check_file(size, Bias(), tmp_path)


@pytest.mark.parametrize('size', ['gpt2_tiny', 'bart_tiny', 'roberta_tiny'])
def test_biases_are_those_that_are_called_so(size):
  _, frozen, trainable = made(size, Bias())
  own = {path for path in trees.flatten(frozen) if path.endswith('bias')}
  assert len(own) > 8
  assert trees.flatten(trainable['bias']['params']).keys() == own
  one = {'gpt2_tiny': 'decoder/decoder_norm/bias', 'bart_tiny': 'decoder/logits_bias', 'roberta_tiny': 'mlm_head/bias'}
  assert one[size] in own


def test_a_t5_gets_new_ones():
  _, _, trainable = made('t5_1_1_tiny', Bias())
  assert {path: x.shape for path, x in trees.flatten(trainable['bias']['sites']).items()} == {
      site: (2, 64) for site in ('encoder/attn_out', 'encoder/mlp_out', 'decoder/attn_out', 'decoder/cross_attn_out',
                                 'decoder/mlp_out')}
  assert [*trainable['bias']] == ['sites']
  x = Added(jnp.arange(3.0))(jnp.ones((1, 2, 3), jnp.bfloat16))
  assert x.dtype == jnp.bfloat16
  np.testing.assert_array_equal(x[0], [[1, 2, 3]] * 2)


def test_numbers():
  """RoBERTa base: a layer has 4 D of attention, F + D of its feed-forward block, 2 D of norms; then 3 D and V more."""
  assert suite.number('roberta_base', Bias()) == 12 * (7 * 768 + 3072) + 3 * 768 + 50265
  assert suite.number('t5_1_1_base', Bias()) == 12 * 5 * 768


def test_needs_the_model_itself():
  with pytest.raises(ValueError, match='some/folder: BitFit begins with the model itself'):
    Bias().init({'bias': jax.random.key(0)}, Base(models.TINY, None, None, 'some/folder'))
