"""Interventions touch masked neurons and nothing else; what is drawn, and curves of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.analysis import intervene, record
from prompt_tuning.backbones import sites
from tests.analysis import oracle

LAYERS = {'encoder/mlp_act': 2, 'decoder/mlp_act': 2}
MASK = np.random.default_rng(0).random((4, 128)) < 0.3


class Keep(sites.Reading):
  """Keeps everything."""

  unused: jnp.ndarray  # [L]

  def read(self, x):
    return x


def activations(*contents):
  """{site: [L, B, S, F]} of the first batch, behind contents [4, ...]."""
  case = oracle.case('t5_1_1_tiny')
  batch, _ = next(case.batches())
  parts = [record.split(content, LAYERS) for content in (*contents, Keep(jnp.zeros(4)))]
  return case.read(batch, {site: sites.Chain(tuple(part[site] for part in parts)) for site in LAYERS})


@pytest.fixture(scope='module')
def before():
  return activations()


def test_only_masked_neurons_are_touched(before):
  """In the encoder's first layer, whose input nothing changes."""
  first = lambda found: np.asarray(found['encoder/mlp_act'][0])
  x, masked = first(before), MASK[0]
  mean = np.random.default_rng(1).random(MASK.shape, np.float32)
  noise = intervene.noise(MASK, 0.1, jax.random.key(0))
  for content, expected in ((intervene.Zero(MASK), 0), (intervene.Mean(MASK, mean), mean[0][masked]), (noise, None)):
    found = first(activations(content))
    np.testing.assert_array_equal(found[..., ~masked], x[..., ~masked])
    if expected is not None:
      np.testing.assert_array_equal(found[..., masked], np.broadcast_to(expected, found[..., masked].shape))
    else:
      added = found[..., masked] - x[..., masked]  # [B, S, masked]
      np.testing.assert_allclose(added, np.broadcast_to(added[:, :1], added.shape), atol=1e-6)  # same at all positions
      assert abs(added[:, 0].std() - 0.1) < 0.02
      assert np.unique(added[:, 0].round(5)).size > 0.9 * added[:, 0].size  # of its own for each example and neuron
  assert masked.any()
  assert not masked.all()


def test_no_noise_is_the_identity_and_layers_draw_apart(before):
  still = activations(intervene.noise(MASK, 0.0, jax.random.key(0)))
  nobody = activations(intervene.noise(np.zeros_like(MASK), 0.1, jax.random.key(0)))
  for site, x in before.items():
    np.testing.assert_array_equal(still[site], x)
    np.testing.assert_array_equal(nobody[site], x)
  noise = intervene.noise(np.ones((2, 128), bool), 1.0, jax.random.key(0))
  layers = [jax.tree.map(lambda leaf, i=i: leaf[i], noise) for i in range(2)]
  one, other = (np.asarray(layer(jnp.zeros((2, 3, 128)))) for layer in layers)
  assert np.abs(one - other).min() > 0
  half = np.asarray(dataclasses.replace(layers[0], alpha=jnp.float32(0.5))(jnp.zeros((2, 3, 128))))
  np.testing.assert_allclose(half, one / 2, rtol=1e-6)
  assert layers[0](jnp.zeros((2, 3, 128), jnp.bfloat16)).dtype == jnp.bfloat16


def test_random_neurons_are_as_many_in_each_layer():
  mask = np.zeros((3, 50), bool)
  mask[0, :5] = mask[2, :20] = True
  drawn = intervene.random_like(mask, seed=1)
  np.testing.assert_array_equal(drawn.sum(1), [5, 0, 20])
  np.testing.assert_array_equal(drawn, intervene.random_like(mask, seed=1))
  assert (drawn != intervene.random_like(mask, seed=2)).any()


def test_curves():
  masks = {percent: np.arange(100)[None] < percent for percent in (20, 0, 10)}
  calls = []

  def evaluate(mask, seed):
    calls.append((int(mask.sum()), seed))
    return 1.0 - mask[0, :30].sum() / 100 - seed / 1000

  found = intervene.curve(evaluate, masks, seeds=3)
  np.testing.assert_array_equal(found['percent'], [0, 10, 20])
  np.testing.assert_allclose(found['skill'], [[1] * 3, [0.9, 0.899, 0.898], [0.8, 0.799, 0.798]])
  assert found['random'].shape == (3, 3)
  assert (found['random'][1:] > found['skill'][1:]).all()
  np.testing.assert_allclose(found['random'][0], 1)
  assert calls.count((0, 0)) == 1
  assert len(calls) == 1 + 2 * 2 * 3
