"""Layers of different widths: an encoder in segments is what it was as one stack, and its configuration is checked."""

import dataclasses
import functools
import json

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones import sites
from tests import models

FAMILIES = ['t5_1_1_tiny', 'bart_tiny', 'roberta_tiny']


class Shift(struct.PyTreeNode):
  """Adds a number per layer to the first channel."""

  by: jax.Array

  def __call__(self, x):
    return x.at[..., 0].add(self.by)


class Mean(sites.Reading):
  """Keeps the mean."""

  def read(self, x):
    return jnp.mean(x)


@functools.cache
def whole(size):
  """(configuration of four layers, parameters, batch)."""
  config = config_lib.from_size(size)
  config = dataclasses.replace(
      config, vocab_size=models.VOCAB, encoder_layers=4, mask_id=models.MASK if config.mask_id else None)
  return config, models.random_params(abstract(config)), models.tiny_batch(config=config)


def abstract(config, **kwargs):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  batch = {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens}
  return nn.meta.unbox(jax.eval_shape(module(config, **kwargs).init, jax.random.key(0), batch)['params'])


def module(config, **kwargs):
  return loading.BACKBONES[config.family](config, dropout_rate=0.0, **kwargs)


def in_segments(params, config):
  """The parameters of one stack as those of its segments; T5's new biases are 0."""
  new = {path: x for path, x in trees.flatten(params).items() if not path.startswith('encoder/layers/')}
  for path, shape in trees.flatten(abstract(config)).items():
    if path not in new:
      name, rest = path.removeprefix('encoder/').split('/', 1)
      old = trees.flatten(params['encoder']['layers']).get(rest)
      first = {'layers_0': 0, 'layers_1': 1, 'layers_2': 3}[name]
      new[path] = jnp.zeros(shape.shape) if old is None else old[first:first + shape.shape[0]]
  return trees.unflatten(new)


@pytest.mark.parametrize(('size', 'kwargs'), [
    *((size, {}) for size in FAMILIES), ('roberta_tiny', {'scan': False}),
    ('roberta_tiny', {'remat': 'full'})], ids=str)
def test_segments_of_equal_layers_are_one_stack(size, kwargs):
  config, params, batch = whole(size)
  pruned = dataclasses.replace(config, kept_ff=((1, config.d_ff), (2, config.d_ff), (1, config.d_ff)))
  content = {'encoder/mlp_act': sites.Chain((Shift(jnp.arange(4) / 10), Mean())),
             'encoder/mlp_out': Shift(jnp.arange(4) / -10)}

  def run(config, params):
    """What is read, keys and values, and the gradient for what is added: all that has a layer axis; and states."""
    backbone = module(config, **kwargs)

    def states(content):
      x, kept = backbone.apply(
          {'params': params}, batch['encoder_input_tokens'], content, mutable=[sites.READ], keep=True, method='encode')
      return jnp.mean(jnp.square(x[0][..., 0])), (*x, sites.kept(kept[sites.READ])['encoder/mlp_act'])

    return jax.grad(states, has_aux=True)(content)

  one = jax.jit(functools.partial(run, config))(params)
  several = jax.jit(functools.partial(run, pruned))(in_segments(params, pruned))
  assert one[1][2].shape == (4,)
  assert (np.abs(one[0]['encoder/mlp_out'].by) > 1e-4).all()
  for found, expected in zip(jax.tree.leaves(several), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('size', FAMILIES)
def test_layers_have_the_widths_of_their_segments(size):
  config, _, _ = whole(size)
  shapes = lambda config: {path: x.shape for path, x in trees.flatten(abstract(config)).items()}
  wi = 'wi_0' if len(config.mlp_activations) > 1 else 'wi'
  pruned = shapes(dataclasses.replace(config, kept_ff=((1, config.d_ff), (3, 5))))
  assert pruned[f'encoder/layers_0/mlp/{wi}/kernel'] == (1, 64, config.d_ff)
  assert pruned[f'encoder/layers_1/mlp/{wi}/kernel'] == (3, 64, 5)
  assert pruned['encoder/layers_1/mlp/wo/kernel'] == (3, 5, 64)
  assert pruned['encoder/layers_1/mlp/wo/bias'] == (3, 64)
  one = shapes(dataclasses.replace(config, kept_ff=((4, 5),)))
  assert one['encoder/layers/mlp/wo/kernel'] == (4, 5, 64)
  outside = lambda shapes: {path: shape for path, shape in shapes.items() if not path.startswith('encoder/layers')}
  assert outside(pruned) == outside(one) == outside(shapes(config))


def test_what_is_kept_is_joined_in_the_order_of_the_layers():
  layers = {f'layers_{i}': {'mlp': {'mlp_act': jnp.full((1, 2), i)}} for i in (10, 2, 0, 11, 1, 3, 4, 5, 6, 7, 8, 9)}
  found = sites.kept({'encoder': layers, 'decoder': {'layers': {'mlp': {'mlp_act': jnp.ones((3, 7))}}}})
  np.testing.assert_array_equal(found['encoder/mlp_act'], np.repeat(np.arange(12), 2).reshape(12, 2))
  assert found['decoder/mlp_act'].shape == (3, 7)
  layers['layers_1'] = {'mlp': {'mlp_act': jnp.ones((1, 3))}}
  with pytest.raises(ValueError, match=r'encoder/mlp_act: layers of this pruned model differ.*\(2,\) and \(3,\)'):
    sites.kept({'encoder': layers})


def test_a_configuration_comes_back_from_json():
  config = dataclasses.replace(config_lib.from_size('roberta_base'), kept_ff=((3, 3072), (9, 61)))
  again = config_lib.BackboneConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
  assert again == config
  assert hash(again) == hash(config)
  assert 'kept_ff ((3, 3072), (9, 61))' in str(again)


@pytest.mark.parametrize('kept_ff', [
    ((3, 3072),), ((12, 3073),), ((12, 0),), ((13, 61), (-1, 61)), ((12, 61, 1),), (12, 61), 12, None, ((12, '61'),),
    ((12, 6.0),), ((True, 61), (11, 61)), {'12': 61}])
def test_widths_that_no_model_has(kept_ff):
  with pytest.raises(ValueError, match='kept_ff is .*12 layers in all, each with 1 to 3072 neurons'):
    dataclasses.replace(config_lib.from_size('roberta_base'), kept_ff=kept_ff)
  with pytest.raises(ValueError, match='0 layers in all'):
    dataclasses.replace(config_lib.from_size('gpt2_tiny'), kept_ff=((2, 5),))
