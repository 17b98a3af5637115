"""Optimizers and schedules: Adafactor equals T5X's trajectory, the others their formulas."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step
from tests import models


def run(trainable, optimizer, gradient, steps):
  """Losses before each step and the parameters after the last."""
  optimizer = optimizer(optim.constant(1.0)) if not isinstance(optimizer, optax.GradientTransformation) else optimizer

  @jax.jit
  def one(trainable, state, batch):
    loss, grads = gradient(trainable, batch)
    updates, state = optimizer.update(grads, state, trainable)
    return optax.apply_updates(trainable, updates), state, loss

  state, seen = optimizer.init(trainable), []
  for batch in steps:
    trainable, state, loss = one(trainable, state, batch)
    seen.append(float(loss))
  return trainable, seen


def test_adafactor_equals_t5x_on_a_whole_model():
  """40 steps of T5X's Adafactor (factored, with parameter scale); it keeps layers apart, here they are stacked."""
  ref = models.reference('t5x/ref_t5_1_1_trained40.npz')
  loaded = models.load_golden(models.T5X['t5_1_1_init'])

  def loss(params, batch):
    logits = loaded.model.backbone.apply({'params': params}, batch)
    return losses.compute(logits, batch, z_loss=1e-4, label_smoothing=0.1).total

  batches = [models.batch_of(ref, f'train/batch{i}/') for i in range(4)]
  count = len(ref['train/loss'])
  optimizer = optim.adafactor()(optim.constant(float(ref['train/lr'])))
  _, seen = run(loaded.frozen, optimizer, jax.value_and_grad(loss), [batches[i % 4] for i in range(count)])
  np.testing.assert_allclose(seen[:10], ref['train/loss'][:10], rtol=1e-5)
  np.testing.assert_allclose(seen, ref['train/loss'], rtol=1e-3)  # float32 drifts apart over 40 steps


def test_adafactor_equals_google_prompt_tuning():
  """Five prompt-only steps at learning rate 0.3."""
  ref = models.reference('t5x/ref_prompt_tuning_flaxformer.npz')
  loaded = models.load_golden(models.T5X['t5_1_1_init'])
  model = Prompted(loaded.model.backbone, Prompt(length=10))
  batch = models.batch_of(ref)
  batch['encoder_input_tokens'] = np.stack([
      model.method.place(row, loaded.config.vocab_size) for row in batch['encoder_input_tokens']])
  optimizer = optim.adafactor(
      weight_decay_rate=1e-5, multiply_by_parameter_scale=False, factored=False)(optim.constant(0.3))
  state = step.init_state({'prompt': {'embedding': jnp.asarray(ref['prompt'])}}, optimizer)
  loss = functools.partial(losses.compute, z_loss=1e-4, label_smoothing=0.1)
  train_step = step.make_train_step(model, optimizer, loss, dropout_seed=None)
  seen = []
  for _ in range(5):
    state, metrics = train_step(state, loaded.frozen, batch)
    seen.append(float(metrics['loss']))
  np.testing.assert_allclose(seen, ref['train/loss'], rtol=1e-5)
  np.testing.assert_allclose(state.trainable['prompt']['embedding'], ref['train/prompt_after5'], atol=1e-4)


def test_adafactor_equals_its_formula_in_float64():
  rng = np.random.default_rng(0)
  p = rng.standard_normal((4, 6))
  gradients = rng.standard_normal((10, 4, 6))
  optimizer = optim.adafactor(
      weight_decay_rate=1e-5, multiply_by_parameter_scale=False, factored=False)(optim.constant(0.3))
  actual, _ = run(jnp.asarray(p, jnp.float32), optimizer, lambda p, g: (0.0, g), list(gradients.astype(np.float32)))
  v = np.zeros_like(p)
  for t, g in enumerate(gradients):
    beta = 1 - (t + 1) ** -0.8
    v = beta * v + (1 - beta) * (g ** 2 + 1e-30)
    update = g / np.sqrt(v)
    update /= max(1, np.sqrt(np.mean(update ** 2)))
    p = p - 0.3 * update - 1e-5 * p
  np.testing.assert_allclose(actual, p, atol=1e-5)


def test_adafactor_factors_only_large_parameters():
  state = optim.adafactor()(optim.constant(1.0)).init({'large': jnp.zeros((256, 128)), 'small': jnp.zeros((256, 64))})
  assert state.slots['large'].v is None
  assert state.slots['large'].v_row.shape == (128,)
  assert state.slots['large'].v_col.shape == (256,)
  assert state.slots['small'].v.shape == (256, 64)


def test_adamw_clips_the_global_norm():
  optimizer = optim.adamw(max_grad_norm=1.0, b1=0.0, b2=0.0, eps=1.0)(optim.constant(1.0))
  p, _ = run(jnp.zeros(4), optimizer, lambda p, g: (0.0, g), [jnp.full(4, 5.0)])
  np.testing.assert_allclose(p, -0.5 / 1.5, rtol=1e-5)  # g = 1/2 each after clipping; g / (|g| + eps)


@pytest.mark.parametrize(('schedule', 'values'), [
    (optim.constant(0.3), {0: 0.3, 1000: 0.3}),
    (optim.constant(0.3, warmup_steps=10), {0: 0.0, 5: 0.15, 10: 0.3, 99: 0.3}),
    (optim.linear(1.0, total_steps=100), {0: 1.0, 50: 0.5, 100: 0.0, 120: 0.0}),
    (optim.linear(1.0, total_steps=110, warmup_steps=10), {5: 0.5, 10: 1.0, 60: 0.5, 110: 0.0}),
    (optim.rsqrt(1.0, warmup_steps=100), {0: 0.1, 100: 0.1, 400: 0.05}),
])
def test_schedules(schedule, values):
  for at, value in values.items():
    np.testing.assert_allclose(schedule(jnp.int32(at)), value, rtol=1e-5, atol=1e-7)


def test_a_learning_rate_for_each_collection(tmp_path):
  """Each collection moves as it would alone with its rate, and the state goes through a checkpoint."""
  rng = np.random.default_rng(0)
  draw = lambda: {name: {'x': jnp.asarray(rng.standard_normal((3, 4), np.float32))} for name in ('prompt', 'full')}
  trainable, grads = draw(), draw()
  both = optim.by_collection(optim.adamw(max_grad_norm=1.0), {'full': 0.1})(optim.constant(1e-2))
  state = both.init(trainable)
  with contextlib.closing(RunCheckpoints(str(tmp_path))) as checkpoints:
    checkpoints.save(1, {'opt_state': state}, {})
    state = checkpoints.restore(1, {'opt_state': state})['opt_state']
  updates, _ = both.update(grads, state, trainable)
  for name, rate in (('prompt', 1e-2), ('full', 1e-3)):
    alone = optim.adamw(max_grad_norm=1.0)(optim.constant(rate))
    expected, _ = alone.update(grads[name], alone.init(trainable[name]), trainable[name])
    np.testing.assert_allclose(updates[name]['x'], expected['x'], rtol=1e-6)
  with pytest.raises(ValueError, match='by_collection.factors names fall; what is trained is full, prompt'):
    optim.by_collection(optim.adamw(), {'fall': 0.1})(optim.constant(1e-2)).init({'full': 1, 'prompt': 2})
