"""What is looked at in a row, and contents of `mlp_act` sites that reduce it within a layer.

Leaves of a content are [L, ...] as a site's are; what is the same in all layers is tiled.
"""

from collections.abc import Callable, Mapping
import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.types import Array, Batch


class At(struct.PyTreeNode):
  """Activations at positions [L, B, P] of each row: [B, S, F] -> float32 [B, P, F]."""

  positions: Array

  def __call__(self, x: Array) -> Array:
    return jnp.take_along_axis(x, self.positions[..., None], axis=1).astype(jnp.float32)


class Pooled(struct.PyTreeNode):
  """Mean and maximum over the tokens where `text` [L, B, S] is True: -> float32 [B, 2, F]; 0 without such tokens."""

  text: Array

  def __call__(self, x: Array) -> Array:
    text = self.text[..., None]  # [B, S, 1]
    x = jax.lax.optimization_barrier(x)  # else the compiler computes the nonlinearity again for each of the two
    x = x[:, :text.shape[1]].astype(jnp.float32)  # a decoder-only model reads the target behind them
    count = jnp.sum(text, axis=1)
    sums = jnp.einsum('BS,BSF->BF', self.text.astype(jnp.float32), x, precision='highest')
    mean = sums / jnp.maximum(count, 1)
    most = jnp.max(jnp.where(text, x, -jnp.inf), axis=1)
    return jnp.stack([mean, jnp.where(count > 0, most, 0)], axis=1)


@dataclasses.dataclass(frozen=True)
class Look:
  """Which activations of a site are looked at: P places a row, those at `positions`, then the pooled ones.

  Attributes:
    layers: L of the stack.
    positions: batch -> positions in the rows of the stack [B, P].
    text: batch -> the input tokens that are pooled over, mean and maximum being two more places; None: no pooling.
  """

  layers: int
  positions: Callable[[Batch], np.ndarray]
  text: Callable[[Batch], np.ndarray] | None = None

  def places(self, batch: Batch) -> tuple[At | Pooled, ...]:
    """As content of a site, [L, ...]."""
    at = At(tiled(np.asarray(self.positions(batch), np.int32), self.layers))
    return (at,) if self.text is None else (at, Pooled(tiled(np.asarray(self.text(batch)), self.layers)))


Looks = Mapping[str, Look]  # by site


def at_prompt(config: BackboneConfig, length: int, pooled: bool = False) -> dict[str, Look]:
  """Looks at the first `length` virtual tokens or mask tokens of the source, in the stack that reads it.

  The mask counts as the paper's code counts it: it is the first of its 16 prompt positions.

  Args:
    pooled: look at the means and maxima over the text as well (the comparison finders of the paper's Figure 3).

  Raises (when a batch comes):
    ValueError: a row that is not all padding has fewer such tokens; or a decoder-only model, in which a prompt in
      front of the text sees nothing of it, has it there.
  """
  masks = [] if config.mask_id is None else [config.mask_id]

  def prompt(tokens):
    return (tokens >= config.vocab_size) | np.isin(tokens, masks)

  def positions(batch):
    tokens = np.asarray(batch['encoder_input_tokens'])
    found = prompt(tokens)
    short = (found.sum(1) < length) & (tokens != config.source_pad_id).any(1)
    if short.any():
      row = int(np.argmax(short))
      raise ValueError(f'Row {row} has {found[row].sum()} virtual tokens (and mask tokens), but the probe looks at '
                       f'{length}: expected a method that puts a prompt of this length into each row.')
    chosen = np.argsort(~found, axis=1, kind='stable')[:, :length]
    if config.decoder_only and (chosen == np.arange(length)).all():
      raise ValueError('The prompt lies in front of the text, which a decoder-only model does not see there: look at '
                       'the first decoder input (at_start), or put the prompt behind the text.')
    return chosen

  def text(batch):
    tokens = np.asarray(batch['encoder_input_tokens'])
    return (tokens != config.source_pad_id) & ~prompt(tokens)

  site, layers = ('decoder', config.decoder_layers) if config.decoder_only else ('encoder', config.encoder_layers)
  return {f'{site}/mlp_act': Look(layers, positions, text if pooled else None)}


def at_start(config: BackboneConfig) -> dict[str, Look]:
  """Looks at the decoder's first input, where the first target token is predicted: any method, any decoder.

  Raises:
    ValueError: an encoder-only model.
  """

  if not config.decoder_layers:
    raise ValueError(f'A {config.family} has no decoder to look at; look at its prompt or, without one, at position 0.')

  def positions(batch):
    rows, length = np.shape(batch['encoder_input_tokens'])
    return np.full((rows, 1), length if config.decoder_only else 0)

  return {'decoder/mlp_act': Look(config.decoder_layers, positions)}


# --- contents of sites ---


class _Reading(sites_lib.Reading):
  places: tuple[At | Pooled, ...]

  def look(self, x: Array) -> Array:
    return jnp.concatenate([place(x) for place in self.places], axis=1)  # [B, P, F]


class Sum(_Reading):
  """Sums of activations over the rows of each sub-task and label: [K, 2, P, F]."""

  members: Array  # float32 [L, B, K, 2]: 1 where a row is of this sub-task and label

  def read(self, x: Array) -> Array:
    return jnp.einsum('BKC,BPF->KCPF', self.members, self.look(x), precision='highest')


class Hits(_Reading):
  """How many rows of each sub-task and label lie above the thresholds: [K, 2, P, F]."""

  members: Array  # as in `Sum`
  thresholds: Array  # float32 [L, K, P, F]

  def read(self, x: Array) -> Array:
    x = self.look(x)
    above = [jnp.einsum('BC,BPF->CPF', self.members[:, k], (x > t).astype(jnp.float32))
             for k, t in enumerate(self.thresholds)]
    return jnp.stack(above)


class Values(_Reading):
  """Activations of n neurons at their places, in every layer: [B, n]; NaN where there is no such neuron."""

  place: Array  # int32 [L, n]
  neuron: Array  # int32 [L, n]

  def read(self, x: Array) -> Array:
    return self.look(x).at[:, self.place, self.neuron].get(mode='fill')


class Everywhere(sites_lib.Reading):
  """Activations of n neurons at all positions, in every layer: float32 [B, S, n]."""

  neuron: Array  # int32 [L, n]

  def read(self, x: Array) -> Array:
    return x[..., self.neuron].astype(jnp.float32)


def tiled(x: np.ndarray, layers: int) -> np.ndarray:
  """`x` for each layer, [L, ...], without copying it."""
  return np.broadcast_to(x, (layers, *x.shape))
