"""Real backbones decode on every kind of mesh as on one device, each with its own part of the cache."""

import functools

import jax
import numpy as np
import pytest

from prompt_tuning import decoding, hlo
from tests import meshes

LENGTH = 5


@functools.cache
def decoded(size: str, mesh: str, decoder: decoding.Decoder, scan: bool):
  """(what is decoded, the text of the program, configuration, mesh)."""
  partitioner, model, frozen, trainable, batch = meshes.placed(size, mesh, scan=scan)
  keys = jax.device_put(jax.random.split(jax.random.key(0), meshes.ROWS), partitioner.rows)
  run = jax.jit(model.generate, static_argnames=('length', 'decoder'), out_shardings=partitioner.replicated)
  compiled = run.lower(trainable, frozen, batch, LENGTH, decoder, keys).compile()
  found = compiled(trainable, frozen, batch, keys)
  return jax.device_get(found), compiled.as_text(), model.backbone.config, partitioner.mesh.shape


@pytest.mark.parametrize(('size', 'mesh', 'decoder', 'scan'), [
    ('gpt2_tiny', '8x1', decoding.Beam(3), True), ('gpt2_tiny', '4x2', decoding.Sampling(samples=2, top_p=0.9), True),
    ('gpt2_tiny', '1x8', decoding.Beam(3), True), ('gpt2_tiny', '4x2 fsdp', decoding.Beam(3), False),
    ('t5_1_1_tiny', '2x4', decoding.Beam(5), True), ('bart_tiny', '4x2 wide fsdp', decoding.Greedy(), True)])
def test_decoding_is_that_of_one_device(size, mesh, decoder, scan):
  expected, *_ = decoded(size, '1x1', decoder, True)
  found, text, config, axes = decoded(size, mesh, decoder, scan)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-5)
  np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)

  context = 1 + (meshes.batch_of(size)['encoder_input_tokens'].shape[1] if config.decoder_only else 0)
  layers, slots = [config.decoder_layers] * scan, [config.head_dim, context + LENGTH * decoder.width]
  cache = lambda rows, heads: str([*layers, rows, heads, *slots]).replace(' ', '')
  assert cache(meshes.ROWS // axes['data'], meshes.HEADS // axes['model']) in text
  assert cache(meshes.ROWS, meshes.HEADS) not in text

  # Each token gathers a layer at a time: the base is never whole in memory. Layers apart are gathered once, before.
  gathered = {c.times for c in hlo.collectives(text) if c.kind == 'all-gather' and '/layers/' in c.origin
              and 'decode_step' in c.origin}
  assert gathered == (({None} if scan else {1}) if 'fsdp' in mesh else set())
