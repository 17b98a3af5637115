"""What is done to chosen neurons: contents of `mlp_act` sites, and curves of accuracy against how many are touched.

Wang et al. 2022, section 4.1: Gaussian noise on skill neurons against noise on as many random ones. Noise is drawn
once for each example and neuron and is the same at every position, as in the paper's code. A mask [L, F] may span both
stacks: `record.split` gives each site its layers.
"""

from collections.abc import Callable, Mapping

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.types import Array


class Noise(struct.PyTreeNode):
  """Adds N(0, alpha^2) to the activations of masked neurons; see `noise`."""

  mask: Array  # bool [L, F]
  alpha: Array  # float32 [L]
  key: Array  # random keys [L]

  def __call__(self, x: Array) -> Array:
    drawn = self.alpha * jax.random.normal(self.key, (x.shape[0], 1, x.shape[2]))  # [B, 1, F]
    return x + jnp.where(self.mask, drawn, 0).astype(x.dtype)


class Zero(struct.PyTreeNode):
  """Sets the activations of masked neurons to 0."""

  mask: Array  # bool [L, F]

  def __call__(self, x: Array) -> Array:
    return jnp.where(self.mask, 0, x)


class Mean(struct.PyTreeNode):
  """Sets the activations of masked neurons to a mean of theirs, such as the baseline."""

  mask: Array  # bool [L, F]
  mean: Array  # float32 [L, F]

  def __call__(self, x: Array) -> Array:
    return jnp.where(self.mask, self.mean.astype(x.dtype), x)


def noise(mask: np.ndarray, alpha: float, key: jax.Array) -> Noise:
  """Noise on the neurons of a mask [L, F] with a key for each layer; fold the number of the batch into `key`."""
  return Noise(jnp.asarray(mask), jnp.full(len(mask), alpha, jnp.float32), jax.random.split(key, len(mask)))


def random_like(mask: np.ndarray, seed: int) -> np.ndarray:
  """A mask [L, F] of as many neurons in each layer, drawn from all of them (masked ones too, as in the paper)."""
  order = np.random.default_rng(seed).permuted(np.tile(np.arange(mask.shape[1]), (len(mask), 1)), axis=1)
  return order < mask.sum(1, keepdims=True)


def curve(
    evaluate: Callable[[np.ndarray, int], float], masks: Mapping[float, np.ndarray],
    seeds: int = 5) -> dict[str, np.ndarray]:
  """Accuracy against the share of neurons touched, for skill neurons and for equally many random ones.

  Args:
    evaluate: (mask [L, F], seed of the noise) -> accuracy; an empty mask is evaluated once.
    masks: percent -> skill neurons, such as `predictivity.top` gives them.
    seeds: how many draws there are, of the noise and of the random neurons.

  Returns:
    `percent` [n], ascending, `skill` and `random` [n, seeds].
  """
  percents = sorted(masks)
  found = {'skill': [], 'random': []}
  untouched = None
  for percent in percents:
    mask = masks[percent]
    if not mask.any():
      untouched = evaluate(mask, 0) if untouched is None else untouched
      found['skill'].append([untouched] * seeds)
      found['random'].append([untouched] * seeds)
      continue
    found['skill'].append([evaluate(mask, seed) for seed in range(seeds)])
    found['random'].append([evaluate(random_like(mask, seed), seed) for seed in range(seeds)])
  return {'percent': np.asarray(percents, np.float64), **{name: np.asarray(x) for name, x in found.items()}}
