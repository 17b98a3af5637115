"""What a scanned stack keeps for the backward pass: all of a layer, its products with weights, or its input alone."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones import t5
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses
from tests import models

LAYERS, ROWS, LENGTH = 12, 4, 64


@pytest.fixture(scope='module')
def compiled():
  """remat -> the compiled gradient of a prompt."""
  config = dataclasses.replace(models.TINY, encoder_layers=LAYERS, decoder_layers=1)
  batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH if name.startswith('enc') else 2), x.dtype)
           for name, x in models.tiny_batch().items()}

  def compile(remat):
    model = Prompted(t5.T5(config, remat=remat), Prompt(length=3))
    total = lambda trainable, frozen, batch: losses.compute(model.logits(trainable, frozen, batch), batch).total
    trainable = {'prompt': {'embedding': jax.ShapeDtypeStruct((3, config.d_model), jnp.float32)}}
    return jax.jit(jax.grad(total)).lower(trainable, nn.meta.unbox(model.abstract_frozen()), batch).compile()

  return {remat: compile(remat) for remat in ('none', 'dots', 'full')}


def test_what_is_kept_of_a_layer(compiled):
  c = models.TINY
  kept = {remat: x.memory_analysis().temp_size_in_bytes for remat, x in compiled.items()}
  scores = 4 * LAYERS * ROWS * c.num_heads * LENGTH * LENGTH
  products = 4 * LAYERS * ROWS * LENGTH * (4 * c.num_heads * c.head_dim + 2 * c.d_ff)
  assert kept['none'] - kept['dots'] > scores  # and softmax, norms and activations
  assert kept['dots'] - kept['full'] > 0.5 * products
  states = 4 * LAYERS * ROWS * LENGTH * c.d_model
  assert kept['full'] < 4 * states + 12 * scores / LAYERS + 2 * products / LAYERS  # a layer's, and its gradients


def test_the_gradient_is_the_same(compiled):
  config = dataclasses.replace(models.TINY, encoder_layers=LAYERS, decoder_layers=1)
  frozen = models.random_params(nn.meta.unbox(Prompted(t5.T5(config), Prompt(length=3)).abstract_frozen()))
  rng = np.random.default_rng(0)
  trainable = {'prompt': {'embedding': jnp.asarray(rng.standard_normal((3, config.d_model), np.float32))}}
  ids = lambda length: jnp.asarray(rng.integers(2, models.VOCAB + 3, (ROWS, length), np.int32))
  batch = {'encoder_input_tokens': ids(LENGTH), 'decoder_input_tokens': ids(2) % models.VOCAB,
           'decoder_target_tokens': ids(2) % models.VOCAB, 'decoder_loss_weights': jnp.ones((ROWS, 2))}
  found = {remat: run(trainable, frozen, batch)['prompt']['embedding'] for remat, run in compiled.items()}
  for remat in ('dots', 'full'):
    np.testing.assert_allclose(found[remat], found['none'], atol=1e-5 * np.abs(found['none']).max())
