"""Adapters: what each design computes, how many parameters it has, what a budget makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.adapter import DESIGNS, SITES, Adapter, Bottleneck, Design, layers_at
from prompt_tuning.methods.base import Base
from tests import models
from tests.methods import suite
from tests.methods.prefix_test import base_of, made

EVERY = Design(SITES, layer_norm=True, activation='tanh', train_norms=True)  # all there is at once


def numpy_bottleneck(x, params, f, norm):
  if norm:
    centered = x - x.mean(-1, keepdims=True)
    y = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-5)
    y = y * params['norm']['scale'] + params['norm']['bias']
  else:
    y = x
  hidden = f(y @ params['down']['kernel'] + params['down']['bias'])
  return x + hidden @ params['up']['kernel'] + params['up']['bias']


@pytest.mark.parametrize('norm', [False, True])
def test_a_bottleneck_is_what_it_says(norm):
  rng = np.random.default_rng(0)
  shapes = {'down': {'kernel': (4, 3), 'bias': (3,)}, 'up': {'kernel': (3, 4), 'bias': (4,)}}
  shapes |= {'norm': {'scale': (4,), 'bias': (4,)}} if norm else {}
  params = jax.tree.map(lambda s: rng.standard_normal(s), shapes, is_leaf=lambda x: isinstance(x, tuple))
  x = rng.standard_normal((2, 5, 4))
  found = Bottleneck(jax.tree.map(jnp.float32, params), 'relu')(jnp.float32(x))
  np.testing.assert_allclose(
      found, numpy_bottleneck(x, params, lambda y: np.maximum(y, 0), norm), rtol=1e-4, atol=1e-5)
  half = Bottleneck(jax.tree.map(jnp.float32, params), 'relu')(jnp.bfloat16(x))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), found, rtol=0.1, atol=0.2)


@pytest.mark.parametrize('size', suite.SIZES)
def test_begins_as_the_identity(size):
  suite.check_identity(size, Adapter('lin', 3))


def test_begins_near_the_identity():
  suite.check_identity('gpt2_tiny', Adapter('houlsby', 3), share=0.005)


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny', 'roberta_tiny'])
def test_a_step_moves_everything_there_is_and_nothing_frozen(size):
  suite.check_step(size, Adapter(EVERY, 3))


def test_decoding_is_reading_and_scan_is_unrolled():
  suite.check_decoding('bart_tiny', Adapter(EVERY, 3))
  suite.check_scan('bart_tiny', Adapter(EVERY, 3))


def test_sharded_is_single_device():
  suite.check_sharded('gpt2_tiny', Adapter(EVERY, 3))


@pytest.mark.parametrize('design', [*DESIGNS, EVERY], ids=[*DESIGNS, 'every'])
@pytest.mark.parametrize('size', ['bart_tiny', 'roberta_tiny'])
def test_a_file_has_all_of_it(size, design, tmp_path):
  kept = suite.check_file(size, Adapter(design, 3), tmp_path)
  expected = DESIGNS.get(design, design) if isinstance(design, str) else design
  assert kept.bottleneck == 3
  assert (kept.design.layer_norm, kept.design.activation, kept.design.train_norms) == (
      expected.layer_norm, expected.activation, expected.train_norms)
  missing = {'cross_attn_out'} if size == 'roberta_tiny' else set()
  assert set(kept.design.sites) == set(expected.sites) - missing


def test_where_they_are():
  names = lambda size, sites: [*layers_at(config_lib.from_size(size), sites)]
  assert names('gpt2_tiny', DESIGNS['houlsby'].sites) == ['decoder/attn_out', 'decoder/mlp_out']
  assert names('roberta_tiny', DESIGNS['houlsby'].sites) == ['encoder/attn_out', 'encoder/mlp_out']
  assert names('bart_tiny', DESIGNS['houlsby'].sites) == [
      'encoder/attn_out', 'encoder/mlp_out', 'decoder/attn_out', 'decoder/cross_attn_out', 'decoder/mlp_out']
  assert names('t5_1_1_tiny', DESIGNS['lin'].sites) == ['encoder/block_out', 'decoder/block_out']


def test_the_norms_of_houlsby_are_those_of_the_base():
  _, _, trainable = made('bart_tiny', Adapter('houlsby', 3))
  norms = trees.flatten(trainable['adapter']['norms'])
  assert len(norms) == 2 * (2 + 3 + 2)  # scale and bias; of encoder layers, decoder layers, both embeddings
  assert all('norm/' in path for path in norms)
  _, _, trainable = made('t5_1_1_tiny', Adapter('houlsby', 3))
  assert len(trees.flatten(trainable['adapter']['norms'])) == 2 + 3 + 2


# --- numbers ---


@pytest.mark.parametrize(('b', 'expected'), [(5, 319_608), (6, 368_784), (100, 4_991_328), (215, 10_646_568)])
def test_numbers_of_the_prefix_paper(b, expected):
  assert suite.number('gpt2_medium', Adapter('lin', b)) == expected


@pytest.mark.parametrize(('budget', 'b'), [(0.001, 6), (0.0009, 5), (0.03, 215)])
def test_a_budget_is_the_nearest_width(budget, b):
  assert suite.number('gpt2_medium', Adapter('lin', budget=budget)) == suite.number('gpt2_medium', Adapter('lin', b))


def test_numbers_of_the_others():
  """GPT-2 medium, b=8: 24 layers x 2 sites x (2 x 1024 x 8 + 8 + 1024), and 49 norms."""
  site = 2 * 1024 * 8 + 8 + 1024
  assert suite.number('gpt2_medium', Adapter('houlsby', 8)) == 24 * 2 * site + 49 * 2 * 1024
  assert suite.number('gpt2_medium', Adapter('lin_2', 8)) == 24 * 2 * site
  assert suite.number('gpt2_medium', Adapter('pfeiffer', 8)) == 24 * site
  assert suite.number('roberta_base', Adapter('pfeiffer', 48)) == 12 * (2 * 768 * 48 + 48 + 768)
  assert suite.number('bart_large', Adapter('houlsby', 8)) == 12 * 5 * site + (12 * 5 + 2) * 2 * 1024


def test_a_budget_counts_the_model_itself_if_nobody_else_does():
  model, frozen, trainable = made('gpt2_tiny', Adapter('lin', budget=0.05))
  share = trees.size(trainable) / trees.size(frozen)
  assert share == pytest.approx(0.05, rel=0.1)


# --- refusals ---


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: made('gpt2_tiny', Adapter('nothing')), "ADAPTER='nothing'; expected one of houlsby, pfeiffer, lin, lin_2"),
    (lambda: made('gpt2_tiny', Adapter(bottleneck=0)), 'BOTTLENECK=0; expected at least 1'),
    (lambda: made('gpt2_tiny', Adapter('lin', budget=1e-4)),
     r'BUDGET=0.0001 of \d+ parameters; expected a share of them, at least 0.00\d+ for these adapters'),
    (lambda: made('gpt2_tiny', Adapter('lin', budget=3)), 'BUDGET=3 of .* and less than 1'),
    (lambda: made('gpt2_tiny', Adapter(Design(('cross_attn_out',)))), 'a gpt2 has none of them'),
    (lambda: Design(('mlp',)), r"Design.sites=\('mlp',\); expected some of \('attn_out', "),
    (lambda: Design(activation='gelu2'), "Design.activation='gelu2'; expected one of relu, gelu"),
])
def test_what_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize('method', [Adapter('houlsby'), Adapter('lin', budget=0.1)])
def test_needs_the_model_itself(method):
  with pytest.raises(ValueError, match='some/folder: .* begins with the model itself; load it with'):
    method.init({'adapter': jax.random.key(0)}, Base(models.TINY, None, None, 'some/folder'))


def test_of_another_model(tmp_path):
  kept = suite.check_file('bart_tiny', Adapter('lin', 3), tmp_path)
  model, frozen, _ = made('gpt2_tiny')
  with pytest.raises(ValueError, match=r'(?s)a tiny base: .*\(adapter\) does not fit this gpt2.*\+ encoder/block_out/'):
    kept.init({'adapter': jax.random.key(0)}, base_of(model, frozen))
