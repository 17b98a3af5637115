"""A step and a generation on every kind of mesh are those of one device, and little crosses the network for it."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import hlo, loading
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, step
from tests import models

LENGTH, ROWS, HEADS = 3, 8, 8
LOSS = functools.partial(losses.compute, normalizing_factor='NUM_REAL_TARGET_TOKENS')
OPTIMIZER = optax.sgd(1e3)  # large, so that the prompt afterwards shows its gradient and not float32's rounding
FSDP, WIDE = dict(parameter_partitioning_dims=2), dict(activation_partitioning_dims=2)
MESHES = {
    '1x1': lambda: models.one_device(),
    '8x1': lambda: Partitioner(1),
    '4x2': lambda: Partitioner(2),
    '2x4': lambda: Partitioner(4),
    '1x8': lambda: Partitioner(8),
    '8x1 fsdp': lambda: Partitioner(1, **FSDP),
    '4x2 fsdp': lambda: Partitioner(2, **FSDP),
    '4x2 wide': lambda: Partitioner(2, **WIDE),
    '4x2 wide fsdp': lambda: Partitioner(2, **FSDP, **WIDE),
    '4x2 length': lambda: Partitioner(2, additional_rules=(('length', 'model'),)),
}


@functools.cache
def base(size: str, odd: bool = False):
  """(configuration, frozen parameters, prompt) of a model of eight heads; `odd`: of a vocabulary that is."""
  config = config_lib.from_size(size)
  config = dataclasses.replace(
      config, vocab_size=models.VOCAB + odd, mask_id=models.MASK if config.mask_id else None, num_heads=HEADS,
      head_dim=config.d_model // HEADS)
  model = Prompted(loading.Backbone(dropout_rate=0.0).module(config), Prompt(length=LENGTH))
  frozen = jax.tree.map(np.asarray, models.random_params(nn.meta.unbox(model.abstract_frozen())))
  prompt = np.random.default_rng(1).standard_normal((LENGTH, config.d_model), np.float32)
  return config, frozen, {'prompt': {'embedding': prompt}}


@functools.cache
def batch_of(size: str, odd: bool = False) -> dict[str, np.ndarray]:
  """Rows of an odd length, with virtual tokens in front."""
  batch = jax.tree.map(np.asarray, models.tiny_batch(rows=ROWS, prompt=LENGTH, config=base(size, odd)[0]))
  tokens = batch['encoder_input_tokens']
  assert tokens.shape[1] % 2
  return {**batch, 'encoder_input_tokens': tokens + odd * (tokens >= models.VOCAB)}


def placed(size: str, mesh: str, odd: bool = False, **kwargs):
  """(Partitioner, model, frozen parameters in their shards, prompt everywhere, batch in its shards)."""
  partitioner = MESHES[mesh]()
  config, frozen, trainable = base(size, odd)
  model = Prompted(loading.Backbone(dropout_rate=0.0, **kwargs).module(config), Prompt(length=LENGTH),
                   constraints=partitioner.constraints)
  spread = jax.device_put(frozen, partitioner.shardings(model.abstract_frozen()))
  return partitioner, model, spread, partitioner.replicate(trainable), partitioner.place_batch(batch_of(size, odd))


@functools.cache
def stepped(size: str, mesh: str, odd: bool = False, microbatches: int = 1):
  """What one training step and a scoring of its batch give, and the collectives of the step."""
  partitioner, model, frozen, trainable, batch = placed(size, mesh, odd)
  train_step = step.make_train_step(model, OPTIMIZER, LOSS, dropout_seed=None, microbatches=microbatches)
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
  before = base(size, odd)[2]['prompt']['embedding']
  gradient = before - expected['prompt']['embedding']
  np.testing.assert_allclose(
      before - trainable['prompt']['embedding'], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())
