"""A training step on every kind of mesh is that of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import hlo
from prompt_tuning.train import losses, step
from tests import meshes

LOSS = functools.partial(losses.compute, normalizing_factor='NUM_REAL_TARGET_TOKENS')
OPTIMIZER = optax.sgd(1e3)  # large, so that the prompt afterwards shows its gradient and not float32's rounding


@functools.cache
def stepped(size: str, mesh: str, odd: bool):
  """What one training step gives, and its collectives."""
  partitioner, model, frozen, trainable, batch = meshes.placed(size, mesh, odd)
  train_step = step.make_train_step(model, OPTIMIZER, LOSS, dropout_seed=None)
  state = partitioner.replicate(step.init_state(jax.tree.map(jnp.copy, trainable), OPTIMIZER))
  compiled = train_step.lower(state, frozen, batch).compile()
  state, metrics = compiled(state, frozen, batch)
  return jax.device_get((state.trainable, metrics)), hlo.collectives(compiled.as_text())


STEPS = [
    ('t5_1_1_tiny', '8x1', False), ('t5_1_1_tiny', '4x2 fsdp', False), ('t5_1_1_tiny', '4x2 wide', False),
    ('gpt2_tiny', '2x4', False), ('gpt2_tiny', '8x1 fsdp', False), ('gpt2_tiny', '4x2', True),
    ('bart_tiny', '4x2 length', False), ('bart_tiny', '4x2 wide fsdp', True), ('roberta_tiny', '4x2 fsdp', True),
    ('roberta_tiny', '1x8', False)]


@pytest.mark.parametrize(('size', 'mesh', 'odd'), STEPS)
def test_a_step_is_that_of_one_device(size, mesh, odd):
  (expected, expected_metrics), found = stepped(size, '1x1', odd)
  assert found == []
  (trainable, metrics), _ = stepped(size, mesh, odd)
  assert metrics['grad_norm'] > 0
  for name in ('loss', 'accuracy', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name)
  before = meshes.base(size, odd)[2]['prompt']['embedding']
  gradient = before - expected['prompt']['embedding']
  np.testing.assert_allclose(
      before - trainable['prompt']['embedding'], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())
