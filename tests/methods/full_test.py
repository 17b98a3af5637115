"""Full fine-tuning: it begins as the base, trains all of its parameters, and leaves the frozen argument alone."""

import jax
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step
from tests import models
from tests.methods.prefix_test import batch_of, jitted, made


@pytest.mark.parametrize('size', ['gpt2_tiny', 'bart_tiny', 't5_1_1_tiny'])
def test_begins_as_the_base(size):
  model, frozen, trainable = made(size, Full())
  assert trees.size(trainable) == trees.size(frozen)
  plain = Prompted(model.backbone, Prefix(0))
  batch = batch_of(model)
  np.testing.assert_array_equal(jitted(model)(trainable, frozen, batch), jitted(plain)({}, frozen, batch))


def test_a_step_moves_parameters_and_no_frozen_ones():
  model, frozen, trainable = made('gpt2_tiny', Full(), scan=True)
  before, held = jax.device_get(trainable['full']), jax.device_get(frozen)
  optimizer = optim.adamw(max_grad_norm=1.0)(optim.constant(1e-2))
  run = step.make_train_step(model, optimizer, losses.compute, dropout_seed=None)
  state, metrics = run(step.init_state(trainable, optimizer), frozen, batch_of(model))
  assert float(metrics['loss']) > 0
  for path, x in trees.flatten(jax.device_get(state.trainable['full'])).items():
    assert np.abs(x - trees.flatten(before)[path]).max() > 0, path
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), held)


def test_needs_the_model_itself():
  base = Base(models.TINY, None, None, 'some/folder')
  with pytest.raises(ValueError, match='some/folder: full fine-tuning begins with the model itself'):
    Full().init({'full': jax.random.key(0)}, base)
