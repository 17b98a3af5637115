"""Models that tests share: goldens made elsewhere, and a small random one."""

import dataclasses
import functools
import pathlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import loading
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
T5X = {  # name of the reference -> checkpoint
    't5_1_1_init': 't5x/t5x_native/checkpoint_0',
    't5_1_0_init': 't5x/t5x_native_t5_1_0/checkpoint_0',
    't5_1_1_trained40': 't5x/t5x_native_trained/checkpoint_40',
}
T5X_SCAN = 't5x/t5x_native_scan/checkpoint_0'  # relative position tables of its own in each layer
VOCAB = 256
MASK = 4  # mask token of the models that have one
TINY = dataclasses.replace(config_lib.from_size('t5_1_1_tiny'), vocab_size=VOCAB)


def one_device() -> Partitioner:
  """A mesh of one device, whatever the test session has."""
  return Partitioner(devices=jax.devices()[:1])


@functools.cache
def load_golden(path: str, **kwargs) -> loading.Loaded:
  """A golden base checkpoint with no method of interest on it, on one device."""
  backbone = loading.Backbone(dropout_rate=0.0, **kwargs)
  return loading.load(str(GOLDENS / path), Prompt(length=1), backbone, one_device())


def reference(path: str) -> dict[str, np.ndarray]:
  """Arrays of a golden `.npz`."""
  with np.load(GOLDENS / path, allow_pickle=False) as file:
    return dict(file)


def batch_of(arrays, prefix='in/') -> dict[str, np.ndarray]:
  """The model features among reference arrays."""
  return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def random_params(abstract, seed: int = 0):
  """Random parameters made by numpy: nothing to compile."""
  rng = np.random.default_rng(seed)
  scale = lambda shape: 1.0 if len(shape) < 2 else shape[-2] ** -0.5
  return jax.tree.map(
      lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32) * scale(x.shape)), abstract)


def tiny(length: int = 3, seed: int = 0, size: str = 't5_1_1_tiny', **kwargs):
  """A random small model with a random prompt: (Prompted, frozen, trainable)."""
  config = config_lib.from_size(size)
  config = dataclasses.replace(config, vocab_size=VOCAB, mask_id=MASK if config.mask_id else None)
  model = Prompted(loading.BACKBONES[config.family](config, **kwargs), Prompt(length=length))
  frozen = random_params(nn.meta.unbox(model.abstract_frozen()), seed)
  base = Base(config, lambda ids: np.asarray(frozen['token_embedder']['embedding'])[np.asarray(ids)], lambda text: [3])
  return model, frozen, model.init(jax.random.key(seed + 1), base)


def tiny_batch(
    rows: int = 2, prompt: int = 0, seed: int = 0, config: config_lib.BackboneConfig = TINY) -> dict[str, jax.Array]:
  """Random text of 5 to 9 tokens, none a mask, with `prompt` virtual tokens in front, and targets of 2 to 4."""
  rng, first = np.random.default_rng(seed), 1 + (config.mask_id or config.eos_id)
  encoder = np.full((rows, prompt + 10), config.source_pad_id, np.int32)
  targets, weights = np.full((rows, 5), config.pad_id, np.int32), np.zeros((rows, 5), np.float32)
  for row in range(rows):
    n, m = rng.integers(5, 10), rng.integers(2, 5)
    encoder[row, :prompt] = np.arange(VOCAB, VOCAB + prompt)
    encoder[row, prompt:prompt + n] = [*rng.integers(first, VOCAB, n - 1), config.eos_id]
    targets[row, :m] = [*rng.integers(first, VOCAB, m - 1), config.eos_id]
    weights[row, :m] = 1
  return jax.tree.map(jnp.asarray, {
      'encoder_input_tokens': encoder,
      'decoder_input_tokens': shifted(targets, config),
      'decoder_target_tokens': targets,
      'decoder_loss_weights': weights})


def shifted(targets: np.ndarray, config: config_lib.BackboneConfig = TINY) -> np.ndarray:
  """Decoder inputs for targets [B, T]."""
  return np.pad(targets, [(0, 0), (1, 0)], constant_values=config.start_id)[:, :-1]
