"""A real backbone decodes a batch over eight devices as on one (see also `decoder_test`)."""

import functools

import jax
import numpy as np
import pytest

from prompt_tuning import decoding
from tests import models


@functools.cache
def tiny_gpt2():
  model, frozen, trainable = models.tiny(size='gpt2_tiny')
  return model, frozen, trainable, models.tiny_batch(rows=8, prompt=3, config=model.backbone.config)


@pytest.mark.parametrize('decoder', [decoding.Beam(3), decoding.Sampling(samples=2, top_p=0.9)])
def test_sharded_equals_one_device(decoder):
  model, frozen, trainable, batch = tiny_gpt2()
  keys = jax.random.split(jax.random.key(0), 8)
  run = jax.jit(lambda batch, keys: model.generate(trainable, frozen, batch, 5, decoder, keys))
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  expected, sharded = run(batch, keys), run(*jax.device_put((batch, keys), rows))
  np.testing.assert_array_equal(sharded.tokens, expected.tokens)
  np.testing.assert_allclose(sharded.scores, expected.scores, rtol=1e-5)
