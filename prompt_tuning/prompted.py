"""Where method meets backbone: `forward(trainable, frozen, batch)`.

Frozen or trainable is decided by which argument a tree is, never by a mask: `jax.grad` with respect to
`trainable` (argument 0) is the gradient, and nothing of the base's size is ever computed for it.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning import decoding, trees
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.types import Array, Batch, Params, Trainable


@dataclasses.dataclass(frozen=True)
class Prompted:
  """A frozen encoder-decoder and the small thing trained on top of it; all functions are pure.

  `frozen` is the backbone's parameter tree, `trainable` the method's variables {collection: ...}.
  """

  backbone: nn.Module
  method: Method

  def init(self, key: jax.Array, base: Base) -> Trainable:
    """New trainables."""
    variables = self.method.init({self.method.collection: key}, base)
    return nn.meta.unbox(variables)

  def abstract_frozen(self):
    """The base's parameters as shapes, with the logical names of their axes (boxed)."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens}
    return jax.eval_shape(self.backbone.init, jax.random.key(0), batch)['params']

  def logits(self, trainable: Trainable, frozen: Params, batch: Batch, dropout_key: jax.Array | None = None) -> Array:
    """Teacher-forced logits [B, T, V]; the frozen model's dropout is active where there is a `dropout_key`."""
    frozen, patch = self._patched(trainable, frozen)
    rngs = {} if dropout_key is None else {'dropout': dropout_key}
    return self.backbone.apply(
        {'params': frozen}, batch, patch.sites, deterministic=dropout_key is None, rngs=rngs)

  def score(self, trainable: Trainable, frozen: Params, batch: Batch) -> Array:
    """Log-probability of each row's targets, [B], summed over `decoder_loss_weights`."""
    log_probs = jax.nn.log_softmax(self.logits(trainable, frozen, batch))
    chosen = jnp.take_along_axis(log_probs, batch['decoder_target_tokens'][..., None], axis=-1)[..., 0]
    return jnp.sum(chosen * batch['decoder_loss_weights'], axis=-1)

  def generate(self, trainable: Trainable, frozen: Params, batch: Batch, length: int) -> decoding.Decoded:
    """Greedy decoding of `encoder_input_tokens` [B, S] to at most `length` tokens."""
    frozen, patch = self._patched(trainable, frozen)
    config, tokens = self.backbone.config, batch['encoder_input_tokens']
    call = lambda method, *args, **kwargs: self.backbone.apply({'params': frozen}, *args, method=method, **kwargs)
    encoded = call('encode', tokens, patch.sites)
    start = jnp.full((tokens.shape[0], 1), config.pad_id, jnp.int32)
    logits, cache = call('decode', start, encoded, tokens, patch.sites, keep_cache=True)
    step = lambda last, cache, position: call('decode_step', last, cache, position, tokens, patch.sites)
    return decoding.greedy(
        logits[:, 0], decoding.grow_cache(cache, length), step,
        length=length, eos_id=config.eos_id, pad_id=config.pad_id)

  def _patched(self, trainable: Trainable, frozen: Params) -> tuple[Params, Patch]:
    patch = self.method.apply(trainable)
    return trees.overlay(frozen, patch.overlay), patch
