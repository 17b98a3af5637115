"""Meshes of the eight simulated devices, and models that divide over all of them."""

import dataclasses
import functools

from flax import linen as nn
import jax
import numpy as np

from prompt_tuning import loading
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from tests import models

LENGTH, ROWS, HEADS = 3, 8, 8
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
