"""Top-layer fine-tuning: which rows are trained, and that nothing else has a gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.top import LastRows, Top
from tests import models
from tests.methods import suite
from tests.methods.prefix_test import batch_of, made

BOTH = Top(1, ('encoder', 'decoder'), embedding=True)


def method_for(size: str) -> Top:
  return Top(1, embedding=True) if size in ('gpt2_tiny', 'roberta_tiny') else BOTH


@pytest.mark.parametrize('size', suite.SIZES)
def test_begins_as_the_identity(size):
  suite.check_identity(size, Top(1))


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_a_step_moves_them_and_nothing_frozen(size):
  suite.check_step(size, method_for(size))


def test_decoding_is_reading():
  suite.check_decoding('gpt2_tiny', Top(1))


@pytest.mark.parametrize('size', suite.SIZES)
def test_a_file_has_all_of_it(size, tmp_path):
  kept = suite.check_file(size, method_for(size), tmp_path)
  assert (kept.layers, kept.embedding) == (1, True)


@pytest.mark.parametrize(('size', 'stack', 'norm'), [
    ('gpt2_tiny', 'decoder', {'decoder/decoder_norm/scale', 'decoder/decoder_norm/bias'}),
    ('t5_1_1_tiny', 'decoder', {'decoder/decoder_norm/scale'}), ('bart_tiny', 'decoder', set()),
    ('roberta_tiny', 'encoder', set())])
def test_what_is_trained(size, stack, norm):
  _, frozen, trainable = made(size, Top(1))
  flat, base = trees.flatten(trainable['top']), trees.flatten(frozen)
  layers = {path for path in base if path.startswith(f'{stack}/layers/')}
  assert flat.keys() == layers | norm
  for path, x in flat.items():
    np.testing.assert_array_equal(x, base[path][1:] if path in layers else base[path])


def test_the_embedding_and_a_head_of_its_own():
  tables = lambda size: {path for path in trees.flatten(made(size, Top(1, embedding=True))[2]['top'])
                         if '/layers/' not in path and 'norm' not in path}
  assert tables('gpt2_tiny') == tables('t5_1_0_tiny') == {'token_embedder/embedding'}
  assert tables('t5_1_1_tiny') == {'token_embedder/embedding', 'decoder/logits_dense/kernel'}


def test_rows_are_put_over_the_last_ones_in_the_type_of_the_base():
  found = LastRows(jnp.array([[7.0]]))(jnp.array([[1], [2], [3]], jnp.bfloat16))
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found[:, 0], [1, 2, 7])


def test_the_layers_below_stay_as_they_are():
  """The gradient is of the rows alone, and of them that of full fine-tuning."""
  model, frozen, trainable = made('gpt2_tiny', Top(1), scan=True)
  args = (frozen, batch_of(model))
  gradient = jax.jit(jax.grad(lambda *a: model.score(*a).sum()))(trainable, *args)['top']
  whole = jax.jit(jax.grad(lambda frozen, batch: model.score(trainable, frozen, batch).sum()))(*args)
  assert gradient['decoder']['layers']['mlp']['wi']['kernel'].shape == (1, 64, 256)
  assert not np.any(whole['decoder']['layers']['mlp']['wi']['kernel'][1:])  # what the rows lie over
  assert np.any(whole['decoder']['layers']['mlp']['wi']['kernel'][:1])


def test_numbers():
  """GPT-2 medium: two blocks of 12 D^2 + 13 D, a norm; the released code's other setting adds V D."""
  block = 12 * 1024**2 + 13 * 1024
  assert suite.number('gpt2_medium', Top(2)) == 2 * block + 2 * 1024
  assert suite.number('gpt2_medium', Top(2, embedding=True)) == 2 * block + 2 * 1024 + 50257 * 1024
  assert suite.number('bart_large', Top(12, ('encoder', 'decoder'))) == sum(
      x.size for path, x in trees.flatten(suite.abstract('bart_large')[1]).items() if '/layers/' in path)


def test_the_last_layers_of_a_pruned_stack():
  """Its segments have parameters of their own."""
  config = dataclasses.replace(
      config_lib.from_size('roberta_tiny'), encoder_layers=4, kept_ff=((1, 256), (2, 16), (1, 8)))
  params = {'encoder': {name: {'w': np.zeros((n, 3))} for name, (n, _) in config.segments('encoder').items()}}
  method = Top(2)
  variables = method.init({'top': jax.random.key(0)}, Base(config, None, None, params=lambda: params))
  assert {path: x.shape for path, x in trees.flatten(variables['top']).items()} == {
      'encoder/layers_1/w': (1, 3), 'encoder/layers_2/w': (1, 3)}
  assert [type(x) for x in method.apply(variables).overlay.values()] == [LastRows] * 2


@pytest.mark.parametrize(('method', 'message'), [
    (Top(0), 'TOP_LAYERS=0; expected 1 to 2, the layers of the decoder'),
    (Top(3), 'TOP_LAYERS=3; expected 1 to 2'),
    (Top(1, ('encoder',)), r"TOP_STACKS=\('encoder',\) on a gpt2; expected some of \('decoder',\), or None"),
    (Top(1, ()), r'TOP_STACKS=\(\) on a gpt2')])
def test_what_is_refused(method, message):
  with pytest.raises(ValueError, match=message):
    made('gpt2_tiny', method)


def test_needs_the_model_itself():
  with pytest.raises(ValueError, match='some/folder: top-layer fine-tuning begins with the model itself'):
    Top().init({'top': jax.random.key(0)}, Base(models.TINY, None, None, 'some/folder'))
