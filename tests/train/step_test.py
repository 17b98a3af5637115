"""One step: only trainables move, microbatches and meshes change nothing, the base gets no gradient."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones import t5
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step
from tests import models

LOSS = functools.partial(losses.compute, z_loss=1e-4, label_smoothing=0.1, normalizing_factor='NUM_REAL_TARGET_TOKENS')
OPTIMIZER = optim.adafactor(
    weight_decay_rate=1e-5, multiply_by_parameter_scale=False, factored=False)(optim.constant(0.3))
CONFIG = dataclasses.replace(
    config_lib.from_size('t5_1_1_tiny'), vocab_size=models.VOCAB, num_heads=8, head_dim=8)
PROMPT = 3


@functools.cache
def build(dropout_rate: float = 0.0):
  """(model, frozen in numpy, prompt in numpy): eight heads, so that it divides over eight devices."""
  model = Prompted(t5.T5(CONFIG, dropout_rate=dropout_rate), Prompt(length=PROMPT))
  frozen = jax.tree.map(np.asarray, models.random_params(nn.meta.unbox(model.abstract_frozen())))
  prompt = np.random.default_rng(1).standard_normal((PROMPT, CONFIG.d_model), np.float32)
  return model, frozen, {'prompt': {'embedding': prompt}}


@functools.cache
def train(num_devices=1, num_partitions=1, rules=(), dropout_rate=0.0, microbatches=1, steps=3, hardware_rng=True):
  """Metrics of `steps` steps, a list of dicts, and the prompt after them."""
  model, frozen, trainable = build(dropout_rate)
  partitioner = Partitioner(num_partitions, additional_rules=rules, devices=jax.devices()[:num_devices])
  model = dataclasses.replace(model, constraints=partitioner.constraints)
  frozen = jax.device_put(frozen, partitioner.shardings(model.abstract_frozen()))
  state = partitioner.replicate(step.init_state(trainable, OPTIMIZER))
  run = step.make_train_step(
      model, OPTIMIZER, LOSS, dropout_seed=0 if dropout_rate else None, microbatches=microbatches,
      use_hardware_rng=hardware_rng)
  seen = []
  for i in range(steps):
    batch = jax.tree.map(np.asarray, models.tiny_batch(rows=16, prompt=PROMPT, seed=i))
    state, metrics = run(state, frozen, partitioner.place_batch(batch))
    seen.append({name: float(value) for name, value in metrics.items()})
  return seen, np.asarray(state.trainable['prompt']['embedding'])


def assert_same(actual, expected, rtol=1e-5, atol=1e-4):
  """Losses to `rtol`, gradient norms to ten times that, prompts to `atol`."""
  for name, tolerance in (('loss', rtol), ('grad_norm', 10 * rtol), ('accuracy', rtol)):
    np.testing.assert_allclose(
        [m[name] for m in actual[0]], [m[name] for m in expected[0]], rtol=tolerance, err_msg=name)
  np.testing.assert_allclose(actual[1], expected[1], atol=atol)


def test_only_trainables_move():
  model, frozen, trainable = build(0.1)
  frozen = jax.device_put(frozen)
  before = jax.tree.map(np.copy, frozen)
  state = jax.device_put(step.init_state(jax.tree.map(jnp.asarray, trainable), OPTIMIZER))
  given = state
  run = step.make_train_step(model, OPTIMIZER, LOSS, dropout_seed=0)
  for i in range(2):
    state, metrics = run(state, frozen, models.tiny_batch(rows=4, prompt=PROMPT, seed=i))
  assert float(metrics['grad_norm']) > 0
  assert int(state.step) == 2
  assert not any(x.is_deleted() for x in jax.tree.leaves(frozen))
  jax.tree.map(np.testing.assert_array_equal, frozen, before)
  moved = np.abs(np.asarray(state.trainable['prompt']['embedding']) - trainable['prompt']['embedding'])
  assert (moved > 0).all()  # each number of each row
  assert given.trainable['prompt']['embedding'].is_deleted()  # donated: no second copy of the state


def test_two_microbatches_equal_one_batch():
  whole, halves = train(), train(microbatches=2)
  assert_same(halves, whole, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
      [m['grad_norm'] for m in halves[0]], [m['grad_norm'] for m in whole[0]], rtol=1e-5)


@pytest.mark.parametrize('num_partitions', [1, 2, 8])
def test_sharded_equals_one_device(num_partitions):
  assert_same(train(8, num_partitions), train())


@pytest.mark.parametrize('hardware_rng', [True, False])
@pytest.mark.parametrize('num_partitions', [1, 2])
def test_dropout_does_not_depend_on_the_mesh(num_partitions, hardware_rng):
  sharded = train(8, num_partitions, dropout_rate=0.1, hardware_rng=hardware_rng)
  one = train(dropout_rate=0.1, hardware_rng=hardware_rng)
  assert abs(one[0][0]['loss'] - train()[0][0]['loss']) > 1e-3  # dropout was on
  assert_same(sharded, one)


@pytest.mark.parametrize('mesh', [
    (8, 2), (8, 1, (('embed', 'data'),)), (8, 2, (('embed', 'model'),)), (8, 4, (('embed', ('data', 'model')),))])
def test_microbatches_on_a_mesh(mesh):
  assert_same(train(*mesh, microbatches=2), train())


@pytest.mark.parametrize('groups', [1, 2])
def test_microbatches_draw_their_own_dropout(groups):
  """A constant normalizer, the paper's, counts once, however many microbatches there are."""
  model, frozen, trainable = build(0.3)
  partitioner = Partitioner(devices=jax.devices()[:groups])
  model = dataclasses.replace(model, constraints=partitioner.constraints)
  half = models.tiny_batch(rows=2, prompt=PROMPT)
  twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), half)  # dealt out in strides: each slice is `half`
  batch = jax.tree.map(lambda x: np.concatenate([x] * groups), twice)
  run = step.make_train_step(
      model, OPTIMIZER, losses.compute, dropout_seed=0, microbatches=2, use_hardware_rng=False)
  state = partitioner.replicate(step.init_state(trainable, OPTIMIZER))
  total = float(run(state, partitioner.replicate(frozen), partitioner.place_batch(batch))[1]['loss'])
  logits = jax.jit(build(0.3)[0].logits)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), (2, groups)).reshape(-1)
  parts = [float(losses.compute(logits(trainable, frozen, half, key), half).total) for key in keys]
  assert len({round(part, 3) for part in parts}) == 2 * groups
  np.testing.assert_allclose(total, sum(parts), rtol=1e-5)


def dot_shapes(jaxpr) -> set[tuple[int, ...]]:
  """Shapes of all matrix products in a program and in the programs within it."""
  found = set()
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      found |= {tuple(sorted(v.aval.shape)) for v in equation.outvars}
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        found |= dot_shapes(inner)
  return found


@pytest.mark.parametrize('scan', [True, False])
def test_no_gradient_of_the_base_is_computed(scan):
  model, frozen, trainable = models.tiny(length=PROMPT, scan=scan)
  batch = models.tiny_batch(rows=5, prompt=PROMPT)
  total = lambda trainable, frozen: losses.compute(model.logits(trainable, frozen, batch), batch).total
  kernels = {tuple(sorted(x.shape[-2:])) for path, x in trees.flatten(frozen).items() if path.endswith('kernel')}
  assert len(kernels) >= 3
  # Gradients of the base, were they wanted, are products of just these shapes...
  everything = jax.make_jaxpr(jax.grad(total, argnums=1))(trainable, frozen)
  assert dot_shapes(everything.jaxpr) & kernels
  # ... and of those there is none.
  ours = jax.make_jaxpr(jax.grad(total))(trainable, frozen)
  assert not dot_shapes(ours.jaxpr) & kernels


def test_the_prompts_gradient_costs_about_one_more_forward_pass():
  model, frozen, trainable = models.tiny(length=PROMPT, scan=False)
  batch = models.tiny_batch(rows=16, prompt=PROMPT)
  total = lambda trainable, frozen, batch: losses.compute(model.logits(trainable, frozen, batch), batch).total
  flops = lambda f: jax.jit(f).lower(trainable, frozen, batch).compile().cost_analysis()['flops']
  forward = flops(total)
  assert flops(jax.grad(total)) < 2.4 * forward
  assert flops(jax.grad(total, argnums=(0, 1))) > 2.6 * forward
