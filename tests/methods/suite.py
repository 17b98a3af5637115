"""What is true of every method, on every backbone: functions that the tests of the methods call."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import loading, partitioning, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.together import Together
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step
from tests.methods.prefix_test import base_of, batch_of, jitted, made

SIZES = ['t5_1_1_tiny', 't5_1_0_tiny', 'gpt2_tiny', 'bart_tiny', 'roberta_tiny']


def moved(trainable, size: float = 0.02, seed: int = 0):
  """Trainables as if they had been trained."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + size * rng.standard_normal(x.shape).astype(np.float32), trainable)


def frozen_logits(model, frozen, batch):
  """Of the model without a method."""
  return jitted(Prompted(model.backbone, Together()))({}, frozen, batch)


def check_identity(size, method, share=1e-6):
  """It begins as the frozen model, to a share of its largest logit, and is something else when it is trained."""
  model, frozen, trainable = made(size, method, scan=True)
  batch = batch_of(model)
  expected = frozen_logits(model, frozen, batch)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(jitted(model)(trainable, frozen, batch), expected, rtol=0, atol=share * scale)
  assert np.abs(jitted(model)(moved(trainable, 0.1), frozen, batch) - expected).max() > 0.01 * scale


def check_step(size, method, scan=True):
  """A step moves every trainable and nothing frozen; the gradient has the shapes of the trainables."""
  model, frozen, trainable = made(size, method, scan)
  before, trainable = jax.tree.map(np.array, frozen), moved(trainable)
  optimizer = optim.adamw(max_grad_norm=1.0)(optim.constant(1e-2))
  run = step.make_train_step(
      model, optimizer, functools.partial(losses.compute, normalizing_factor='NUM_SEQUENCES'), dropout_seed=None)
  state, metrics = run(step.init_state(jax.tree.map(jnp.copy, trainable), optimizer), frozen, batch_of(model))
  assert metrics['grad_norm'] > 0
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(frozen))
  for path, x in trees.flatten(jax.tree.map(lambda x, y: np.abs(x - y).max(), state.trainable, trainable)).items():
    assert x > 0, path


def check_file(size, method, folder):
  """What is exported to a file and loaded is the same patch and the same logits."""
  model, frozen, trainable = made(size, method)
  trainable = moved(trainable)
  tensors = jax.device_get(model.method.export(trainable))
  name = tuned.method_of(tensors)
  about = {'settings': method.settings()} if method.settings() else {}
  tuned.save_safetensors(folder / f'{name}_1.safetensors', tuned.Tuned(name, tensors, about))
  kept = finished.load(folder)
  again = Prompted(model.backbone, kept).init(jax.random.key(9), base_of(model, frozen))
  jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(trainable))
  jax.tree.map(np.testing.assert_array_equal, kept.apply(again), method.apply(trainable))
  assert jax.tree.structure(kept.apply(again)) == jax.tree.structure(method.apply(trainable))
  return kept


def check_decoding(size, method):
  """Greedy decoding agrees with reading."""
  model, frozen, trainable = made(size, method)
  batch, trainable = batch_of(model), moved(trainable)
  decoded = jax.jit(lambda *args: model.generate(*args, 4).tokens)(trainable, frozen, batch)[:, 0]
  start = batch['decoder_input_tokens'][:, :1]
  logits = jitted(model)(trainable, frozen, {
      **batch, 'decoder_input_tokens': jnp.concatenate([start, decoded[:, :-1]], axis=1)})
  ends = np.asarray(decoded) == model.backbone.config.eos_id
  alive = np.cumsum(ends, axis=1) - ends == 0
  alive[:, -1] &= model.backbone.config.forced_eos_id is None
  np.testing.assert_array_equal(np.asarray(decoded)[alive], np.asarray(logits.argmax(-1))[alive])


def check_scan(size, method):
  """A compiled loop over layers gives the numbers of an unrolled one."""
  unrolled, frozen, trainable = made(size, method)
  trainable = moved(trainable)
  batch = batch_of(unrolled)
  np.testing.assert_allclose(
      jitted(made(size, method, scan=True)[0])(trainable, frozen, batch), jitted(unrolled)(trainable, frozen, batch),
      rtol=0, atol=2e-5)


def check_sharded(size, method):
  """On 4 x 2 devices as on one."""
  model, frozen, trainable = made(size, method, scan=True)
  batch, trainable = batch_of(model, rows=4), moved(trainable)
  partitioner = partitioning.Partitioner(2)
  shards = partitioner.shardings(model.abstract_frozen())
  spread = jax.tree.map(jax.device_put, frozen, shards)
  laid_out = dataclasses.replace(model, constraints=partitioner.constraints)
  found = jitted(laid_out)(partitioner.replicate(trainable), spread, partitioner.place_batch(batch))
  np.testing.assert_allclose(found, jitted(model)(trainable, frozen, batch), rtol=0, atol=2e-5)


@functools.cache
def abstract(size: str):
  """(configuration, shapes of the parameters) of a model of any size."""
  config = config_lib.from_size(size)
  return config, nn.meta.unbox(Prompted(loading.BACKBONES[config.family](config), Together()).abstract_frozen())


def number(size: str, method) -> int:
  """How many parameters of a model are trained, without making one."""
  config, params = abstract(size)

  def init(params):
    base = Base(config, None, None, params=lambda: params, size=lambda: trees.size(params))
    return method.init({name: jax.random.key(0) for name in method.collections}, base)

  return trees.size(jax.eval_shape(init, params))
