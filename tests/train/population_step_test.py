"""The step of a population: each member moves as in a step of its own, padded, grouped or with a network."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from prompt_tuning import loading
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.reparameterization import LSTM, MLP
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import data, losses, optim, population_step, step
from tests import models
from tests.methods.prefix_test import base_of

LOSS = functools.partial(losses.compute, z_loss=1e-4, normalizing_factor='NUM_REAL_TARGET_TOKENS')
ADAFACTOR = optim.adafactor(weight_decay_rate=1e-5, multiply_by_parameter_scale=False, factored=False)
RATES = (0.003, 0.01, 0.001)  # at higher ones Adafactor makes more of rounding than the tolerance
STEPS = 2


@functools.cache
def base(size: str, dropout_rate: float):
  model, frozen, _ = models.tiny(size=size, dropout_rate=dropout_rate)
  return model.backbone, frozen


def member(size, dropout_rate, method, seed, rows=8):
  """(Loaded, trainable, batches of each step) of a member."""
  backbone, frozen = base(size, dropout_rate)
  loaded = loading.Loaded(Prompted(backbone, method), frozen, None, models.one_device(), 'a', None)
  trainable = loaded.model.init(jax.random.key(seed), base_of(loaded.model, frozen))
  batches = [jax.tree.map(np.asarray, models.tiny_batch(
      rows, method.virtual_tokens, seed=10 * seed + at, config=backbone.config)) for at in range(STEPS)]
  return loaded, trainable, batches


def together(members, dropout, partitioner=None, make=ADAFACTOR):
  """Metrics of each step and member, and the last trainables."""
  loaded, trainables, batches = zip(*members, strict=True)
  partitioner = partitioner or models.one_device()
  loaded = [dataclasses.replace(one, model=dataclasses.replace(one.model, constraints=partitioner.constraints))
            for one in loaded]
  groups = population_step.groups(loaded, trainables, pad=not dropout)
  optimizers = [make(optim.constant(rate)) for rate in RATES]
  state = partitioner.replicate(step.TrainState(
      np.zeros((), np.int32), tuple(trainables), tuple(o.init(t) for o, t in zip(optimizers, trainables, strict=True))))
  run = population_step.make(groups, optimizers, LOSS, range(len(members)) if dropout else None)
  rows = jax.sharding.NamedSharding(partitioner.mesh, jax.sharding.PartitionSpec(None, 'data'))
  metrics = []
  for some in zip(*batches, strict=True):
    placed = population_step.place(groups, some, rows, loaded[0].config.source_pad_id)
    state, found = run(state, loaded[0].frozen, placed)
    metrics.append(jax.device_get(found))
  return metrics, jax.device_get(state.trainable), groups


def alone(given, i, dropout, make=ADAFACTOR):
  loaded, trainable, batches = given
  optimizer = make(optim.constant(RATES[i]))
  run = step.make_train_step(
      loaded.model, optimizer, LOSS, dropout_seed=i if dropout else None, use_hardware_rng=False)
  state, metrics = step.init_state(jax.tree.map(np.copy, trainable), optimizer), []
  for batch in batches:
    state, found = run(state, loaded.frozen, batch)
    metrics.append(jax.device_get(found))
  return metrics, jax.device_get(state.trainable)


def assert_the_last_is_its_own(members, found, dropout, make=ADAFACTOR):
  """Neither the first of its `vmap` nor the longest, which would be the least to show."""
  metrics, trainables, _ = found
  single, trainable = alone(members[-1], len(members) - 1, dropout, make)
  for name in single[0]:
    np.testing.assert_allclose([m[-1][name] for m in metrics], [m[name] for m in single], rtol=2e-5, err_msg=name)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), trainables[-1], trainable)


LENGTHS = (3, 5, 3)


def test_members_over_eight_devices_with_dropout():
  """Prompts of another length are another `vmap`, as their masks would be others in padded rows."""
  members = [member('t5_1_1_tiny', 0.1, Prompt(n), seed) for seed, n in enumerate(LENGTHS)]
  found = together(members, True, Partitioner())
  assert [group.numbers for group in found[2]] == [(0, 2), (1,)]
  assert_the_last_is_its_own(members, found, True)


def test_shorter_prompts_are_padded_and_a_member_that_diverges_leaves_the_others_alone():
  members = [member('gpt2_tiny', 0.0, Prompt(n), seed) for seed, n in enumerate(LENGTHS)]
  members[0] = (members[0][0], jax.tree.map(lambda x: x * np.nan, members[0][1]), members[0][2])
  found = together(members, False)
  assert [(group.numbers, group.length) for group in found[2]] == [((0, 1, 2), 5)]
  assert np.isnan(found[0][0][0]['loss'])
  assert_the_last_is_its_own(members, found, False)


def test_prefixes_with_a_network_and_dropout_of_their_own():
  make = optim.adamw(max_grad_norm=1.0)
  members = [member('bart_tiny', 0.1, Prefix(3, reparameterization=MLP(8), dropout_rate=0.2), seed)
             for seed in range(3)]
  assert_the_last_is_its_own(members, together(members, True, make=make), True, make)


@pytest.mark.parametrize(('methods', 'expected'), [
    ([Prompt(3), Prompt(5)], [(0, 1)]),
    ([Prompt(n, None, LSTM(hidden=4)) for n in LENGTHS], [(0, 2), (1,)]),  # it reads its neighbours
    ([Prefix(n, reparameterization=None) for n in LENGTHS], [(0, 2), (1,)])])
def test_what_is_one_vmap(methods, expected):
  loaded, trainables, _ = zip(*[member('gpt2_tiny', 0.0, method, 0) for method in methods], strict=True)
  found = population_step.groups(loaded, trainables, pad=True)
  assert [group.numbers for group in found] == expected
  assert [group.length for group in found] == [5 if len(methods) == 2 else 0] * len(found)


def test_an_order_that_is_shared_is_read_once(monkeypatch):
  opened = []

  class Numbers(data.Dataset):
    """A dataset of numbers, shuffled by adding the seed."""

    def epoch(self, seed, epoch=0, skip=0, shard=None):
      opened.append(seed)
      return iter(range(100 * seed + skip, 100 * seed + 5))

  convert = lambda name: types.SimpleNamespace(
      ids=lambda row: f'{name}{row}', features=lambda ids: {'rows': list(ids)})
  make = lambda shared, positions=None: population_step.Batches(
      Numbers('numbers', {}, 'train', 2), [convert('a'), convert('b')], [1, 2], positions, shared)
  shared = make(True)
  assert next(shared) == [{'rows': ['a100', 'a101']}, {'rows': ['b100', 'b101']}]
  assert opened == [1]
  own = make(False)
  assert next(own) == [{'rows': ['a100', 'a101']}, {'rows': ['b200', 'b201']}]
  assert own.position == {'streams': [{'epoch': 0, 'offset': 2}] * 2}
  assert next(make(False, own.position['streams'])) == [{'rows': ['a102', 'a103']}, {'rows': ['b202', 'b203']}]
