"""A run that trains a prefix: what it leaves, and that it goes on with its MLP."""

import contextlib
import shutil

import jax
import numpy as np
import pytest

from prompt_tuning import loading, trees
from prompt_tuning.checkpoints import run as run_checkpoints
from prompt_tuning.methods import finished
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.reparameterization import MLP
from prompt_tuning.train import data, loop, optim
from tests import models

pytestmark = pytest.mark.usefixtures('compile_once')

TRAIN = data.Dataset('sst2_sample', {'inputs': 24, 'targets': 4}, 'train', batch_size=4)
BACKBONE = loading.Backbone('t5_1_1_tiny', dropout_rate=0.0)
METHOD = Prefix(3, reparameterization=MLP(hidden=8), dropout_rate=0.1)


def train(folder, steps, method=METHOD):
  return loop.train(
      model_dir=str(folder), initial_checkpoint_path=None, method=method, train_dataset=TRAIN, train_steps=steps,
      optimizer=optim.adamw(max_grad_norm=1.0), schedule=optim.constant(1e-2), backbone=BACKBONE,
      partitioner=models.one_device(), save_period=2, log_period=1)


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'two'
  train(folder, 2)
  return folder


def state_of(folder):
  """Shapes of the newest checkpoint's state."""
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    return checkpoints.about(checkpoints.latest)['state']


def test_what_it_leaves(two_steps):
  assert [path.name for path in (two_steps / 'prompts').iterdir()] == ['prefix_2.safetensors']
  state = state_of(two_steps)
  assert state['trainable/prefix/encoder/attn_kv/layer_0/kernel'] == [64, 8]
  assert any(path.startswith('opt_state/') and path.endswith('layer_1/kernel') for path in state)
  method = finished.load(two_steps)
  assert method.length == 3
  assert method.reparameterization is None
  loaded = loading.load(None, method, BACKBONE, models.one_device())
  shapes = jax.tree.map(np.shape, trees.flatten(loaded.new_trainable(0)))  # no warning: it is the base of the run
  assert shapes == {f'prefix/{site}/{name}': (2, 3, 4, 16) for name in ('key', 'value')
                    for site in ('encoder/attn_kv', 'decoder/attn_kv', 'decoder/cross_attn_kv')}


def test_it_goes_on_with_its_mlp_bit_for_bit(two_steps, tmp_path):
  shutil.copytree(two_steps, tmp_path / 'resumed')
  train(tmp_path / 'resumed', 4)
  train(tmp_path / 'at_once', 4)
  kept = [finished.tuned.load(tmp_path / name, 'prefix').tensors for name in ('resumed', 'at_once')]
  jax.tree.map(np.testing.assert_array_equal, *kept)
  before = finished.tuned.load(two_steps, 'prefix').tensors
  assert all(np.abs(x - before[name]).max() > 0 for name, x in kept[0].items())


def test_another_mlp_does_not_go_on(two_steps, tmp_path):
  shutil.copytree(two_steps, tmp_path / 'run')
  with pytest.raises(run_checkpoints.ResumeError, match=r'layer_0/bias \[4\]'):
    train(tmp_path / 'run', 4, Prefix(3, reparameterization=MLP(hidden=4)))
