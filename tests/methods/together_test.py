"""Several methods at once: each as it is alone, and what cannot be together."""

import jax
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.backbones import sites
from prompt_tuning.methods.adapter import Adapter
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.bias import Bias
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.infix import Infix
from prompt_tuning.methods.p_tuning import PTuning
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.together import Together
from prompt_tuning.methods.top import Top
from prompt_tuning.prompted import Prompted
from tests import models
from tests.methods import suite
from tests.methods.prefix_test import batch_of, jitted, made

PREFIX = Prefix(3, reparameterization=None)
THREE = Together((PREFIX, Adapter('lin', 3), Bias()))


def test_each_has_its_own_variables_and_all_work():
  model, frozen, trainable = made('t5_1_1_tiny', THREE)
  assert THREE.collections == ('prefix', 'adapter', 'bias')
  assert {*trainable} == {*THREE.collections}
  assert THREE.collection == 'prefix+adapter+bias'
  patch = THREE.apply(trainable)
  assert patch.sites.keys() == {f'{stack}/{site}' for stack in ('encoder', 'decoder') for site in (
      'attn_kv', 'attn_out', 'mlp_out', 'block_out')} | {'decoder/cross_attn_kv', 'decoder/cross_attn_out'}
  alone = Prompted(model.backbone, PREFIX)  # the others begin as the identity
  np.testing.assert_allclose(
      jitted(model)(trainable, frozen, batch_of(model)),
      jitted(alone)({'prefix': trainable['prefix']}, frozen, batch_of(model)), rtol=0, atol=2e-5)


def test_two_at_one_site_come_one_behind_the_other():
  method = Together((Adapter('pfeiffer', 3), Bias()))
  patch = method.apply(made('t5_1_1_tiny', method)[2])
  content = patch.sites['encoder/mlp_out']
  assert isinstance(content, sites.Chain)
  assert [type(x).__name__ for x in content.contents] == ['Bottleneck', 'Added']


def test_a_step_moves_all_of_them_and_nothing_frozen():
  suite.check_step('gpt2_tiny', Together((PREFIX, Full())))


def test_decoding_is_reading():
  suite.check_decoding('t5_1_0_tiny', THREE)


@pytest.mark.parametrize('methods', [
    (PREFIX, Full()), (Adapter('lin', 3), Prompt(3)), (Top(1), Adapter('lin_2', 3)), (PREFIX, Adapter('houlsby', 3))])
def test_a_file_has_all_of_it(methods, tmp_path):
  model, _, trainable = made('gpt2_tiny', Together(methods))
  tensors = Together(methods).export(trainable)
  assert {name.split('/')[0] for name in tensors} == {*trainable} == {method.collection for method in methods}
  kept = suite.check_file('gpt2_tiny', Together(methods), tmp_path)
  assert set(kept.collections) == {*trainable}


def test_no_method_is_the_model_as_it_is():
  model, frozen, trainable = made('gpt2_tiny', Together())
  assert trainable == {}
  assert Together().export({}) == {}
  batch = batch_of(model)
  np.testing.assert_array_equal(
      jitted(model)({}, frozen, batch), jax.jit(model.backbone.apply)({'params': frozen}, batch))


def test_virtual_tokens_and_dropout_are_those_of_the_one_that_has_them():
  method = Together((Full(), Prompt(3), Prefix(2, dropout_rate=0.1)))
  assert method.virtual_tokens == 3
  assert method.dropout_rate == 0.1
  np.testing.assert_array_equal(method.place(np.array([7, 8]), 256), [256, 257, 258, 7, 8])
  assert Together((Full(),)).dropout_rate == 0.0


def test_dropout_of_a_member_is_active_while_training_only():
  method = Together((Prefix(3, reparameterization=None, dropout_rate=0.5), Bias()))
  variables = made('gpt2_tiny', method)[2]
  key = lambda rngs: np.asarray(method.apply(variables, rngs=rngs).sites['decoder/attn_kv'].key)
  kept = key({'dropout': jax.random.key(0)})
  np.testing.assert_array_equal(kept, np.where(kept == 0, 0, 2 * key({})))
  assert 0.4 < (kept == 0).mean() < 0.6


def test_templates_are_bound():
  method = Together((PTuning('<p*2> {text} {mask} <p>', reparameterization=None), Full()))
  bound = method.bind(made('roberta_tiny', Prefix(0))[0].backbone.config, None)
  assert bound.virtual_tokens == 4
  assert bound.settings() == {'template': '<p*2> {text} {mask} <p>'}
  np.testing.assert_array_equal(bound.place(np.array([0, 9, 2]), 256), [0, 256, 257, 9, models.MASK, 258, 2])


def test_settings_of_all():
  assert THREE.settings() == {'adapter_activation': 'relu'}


@pytest.mark.parametrize(('methods', 'message'), [
    ((Prompt(3), Prompt(2)), "two of them keep what they train as 'prompt'"),
    ((Full(), Bias()), r'two of them train the parameter decoder/decoder_norm/bias of the base \(\d+ in all\)'),
    ((Adapter('houlsby', 3), Top(1)), 'two of them train the parameter decoder/decoder_norm/bias'),
    ((PREFIX, Infix(3, reparameterization=None)), 'Two methods want the site decoder/attn_kv'),
])
def test_what_cannot_be_together(methods, message):
  with pytest.raises(ValueError, match=message):
    made('gpt2_tiny', Together(methods))


def test_two_with_virtual_tokens():
  with pytest.raises(ValueError, match=r'2 of them have virtual tokens \(\[3, 2\]\)'):
    _ = Together((Prompt(3), Infix(2))).virtual_tokens


def test_members_begin_differently():
  """From one key, each has numbers of its own, whichever methods stand behind it."""
  base = Base(models.TINY, None, None, 'x', params=lambda: {'a': {'bias': np.zeros(3)}})
  keys = {name: jax.random.key(0) for name in ('prefix', 'adapter', 'bias')}
  one, two = (Together((PREFIX, other)).init(keys, base) for other in (Adapter('lin', 3), Bias()))
  jax.tree.map(np.testing.assert_array_equal, one['prefix'], two['prefix'])
  assert trees.size(two['bias']) == 3
