"""Where method meets backbone: `forward(trainable, frozen, batch)`.

Frozen or trainable is decided by which argument a tree is, never by a mask: `jax.grad` with respect to
`trainable` (argument 0) is the gradient, and nothing of the base's size is ever computed for it.
"""

from collections.abc import Callable
import contextlib
import dataclasses
from typing import NamedTuple

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import decoding, trees
from prompt_tuning.backbones import cache as cache_lib
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones import stack
from prompt_tuning.methods import readouts
from prompt_tuning.methods.base import Base, Method, Patch, plain
from prompt_tuning.types import Array, Batch, Params, Trainable


class Unread(NamedTuple):
  """Final states, and the head that makes logits of them, for those who never want to hold all logits.

  Attributes:
    states: [B, T, D].
    head: states [B, t, D] of any positions -> their logits [B, t, V]; None: the states are logits.
  """

  states: Array
  head: Callable[[Array], Array] | None

  def logits(self) -> Array:
    """[B, T, V], or of the readout's classes [B, T, C]."""
    return self.states if self.head is None else self.head(self.states)


class _AsTheyAre(struct.PyTreeNode):
  """Content of the site `states` that returns those which are read."""

  def __call__(self, states: Array, positions: Array | None, visible: Array | None) -> Array:
    del visible
    return states if positions is None else jnp.take_along_axis(states, positions[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class Prompted:
  """A frozen language model and the small thing trained on top of it; all functions are pure.

  `frozen` is the backbone's parameter tree, `trainable` the method's variables {collection: ...}.

  Attributes:
    constraints: entered around all that the backbone computes: `Partitioner.constraints` lays activations out.
  """

  backbone: nn.Module
  method: Method
  readout: readouts.Readout = readouts.TextToText()  # noqa: RUF009 (frozen)
  constraints: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

  def init(self, key: jax.Array, base: Base) -> Trainable:
    """New trainables."""
    own = self.method.init({name: key for name in self.method.collections}, base)
    read = self.readout.init({'head': jax.random.fold_in(key, 1)}, base)
    return nn.meta.unbox({**own, **read})

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """What is kept when training is done, by path."""
    return {**self.method.export(trainable), **self.readout.export(trainable)}

  def place(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Puts virtual tokens, and what a readout reads at, into the ids [n] of one input."""
    return self.readout.place(self.method.place(tokens, vocab_size), vocab_size)

  @property
  def placed(self) -> int:
    """How many tokens `place` adds at most."""
    return self.method.virtual_tokens + self.readout.virtual_tokens

  def abstract_frozen(self):
    """The base's parameters as shapes, with the logical names of their axes (boxed)."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens}
    return jax.eval_shape(self.backbone.init, jax.random.key(0), batch)['params']

  def abstract_trainable(self) -> Trainable:
    """The trainables as shapes, whatever they begin from."""
    frozen, config = nn.meta.unbox(self.abstract_frozen()), self.backbone.config

    def new():
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), frozen)
      rows = lambda ids: np.zeros((len(ids), config.d_model), np.float32)
      base = Base(config, rows, lambda text: [0], params=lambda: zeros)
      return dataclasses.replace(self, method=plain(self.method)).init(jax.random.key(0), base)

    return jax.eval_shape(new)

  def apply(self, frozen: Params, *args, **kwargs):
    """What the backbone computes, as its `apply` does, under `constraints`."""
    with self.constraints():
      return self.backbone.apply({'params': frozen}, *args, **kwargs)

  def logits(
      self, trainable: Trainable, frozen: Params, batch: Batch, dropout_key: jax.Array | None = None,
      sites: sites_lib.Sites | None = None) -> Array:
    """Teacher-forced logits [B, T, V], or of the readout's classes [B, T, C].

    Args:
      dropout_key: with one, dropout (method's and frozen model's) is active.
      sites: contents behind the method's own: interventions.
    """
    return self.unread(trainable, frozen, batch, dropout_key, sites).logits()

  def unread(
      self, trainable: Trainable, frozen: Params, batch: Batch, dropout_key: jax.Array | None = None,
      sites: sites_lib.Sites | None = None) -> Unread:
    """What `logits` makes logits of; a readout that has a head of its own has made them."""
    return self.unread_with(self.patch(trainable, dropout_key), frozen, batch, dropout_key, sites)

  def patch(self, trainable: Trainable, dropout_key: jax.Array | None = None) -> Patch:
    """What method and readout put into the backbone, for any batch; with a key after the method's dropout."""
    rngs = {} if dropout_key is None else {'dropout': dropout_key}
    patch, read = self.method.apply(trainable, rngs=rngs), self.readout.apply(trainable)
    return Patch(sites_lib.join(patch.sites, read.sites), patch.overlay)

  def unread_with(
      self, patch: Patch, frozen: Params, batch: Batch, dropout_key: jax.Array | None = None,
      sites: sites_lib.Sites | None = None) -> Unread:
    """`unread` where the patch is known."""
    sites = sites_lib.join(patch.sites, sites or {})
    frozen, own = trees.overlay(frozen, patch.overlay), 'states' in sites
    states = self.apply(
        frozen, batch, sites if own else {**sites, 'states': _AsTheyAre()}, deterministic=dropout_key is None,
        rngs={} if dropout_key is None else {'dropout': dropout_key})
    if own:
      return Unread(self.readout.read(states), None)
    return Unread(states, lambda x: self.readout.read(self.apply(frozen, x, method='head')))

  def read(
      self, trainable: Trainable, frozen: Params, batch: Batch,
      sites: sites_lib.Sites) -> tuple[Array, dict[str, Array]]:
    """Logits, and what the `Reading`s among `sites` keep: {'encoder/mlp_act': [L, ...]}."""
    frozen, patch = self._patched(trainable, frozen)
    logits, kept = self.apply(frozen, batch, sites_lib.join(patch.sites, sites), mutable=[sites_lib.READ])
    return self.readout.read(logits), sites_lib.kept(kept.get(sites_lib.READ, {}))

  def score(self, trainable: Trainable, frozen: Params, batch: Batch) -> Array:
    """Log-probability of each row's targets, [B], summed over `decoder_loss_weights`."""
    log_probs = jax.nn.log_softmax(self.logits(trainable, frozen, batch))
    chosen = jnp.take_along_axis(log_probs, batch['decoder_target_tokens'][..., None], axis=-1)[..., 0]
    return jnp.sum(chosen * batch['decoder_loss_weights'], axis=-1)

  def generate(
      self, trainable: Trainable, frozen: Params, batch: Batch, length: int,
      decoder: decoding.Decoder | None = None, keys: jax.Array | None = None) -> decoding.Decoded:
    """Decodes at most `length` tokens for each source of the batch.

    Args:
      batch: `encoder_input_tokens` [B, S] and, of `decoder_input_tokens` [B, T], the start tokens.
      decoder: `decoding.Greedy()` (the default), `decoding.Beam(...)` or `decoding.Sampling(...)`.
      keys: a random key an example [B], for sampling.
    """
    if self.readout.length is not None:
      return self._classify(trainable, frozen, batch)
    decoder = decoder or decoding.Greedy()
    frozen, patch = self._patched(trainable, frozen)
    config = self.backbone.config
    logits, context = self.apply(frozen, batch, patch.sites, length=length, method='prefill')
    model, sites = self, sites_lib.for_decoding(patch.sites)
    with self.constraints():
      cache = cache_lib.new(context, length * decoder.width)
    if not self.backbone.scan:
      layers = config.decoder_layers
      model = dataclasses.replace(self, backbone=self.backbone.clone(apart=True))
      frozen = stack.apart_params(frozen, 'decoder', layers)
      sites = {name: stack.apart(site, layers) if name.startswith('decoder/') else site for name, site in sites.items()}
      cache |= {name: stack.apart(cache[name], layers) for name in ('self', 'cross') if name in cache}

    def step(tokens, cache, time, visible):
      visible = visible.reshape(*tokens.shape, -1)  # [B, K, T K]
      logits, new = model.apply(frozen, tokens, cache, time, visible, sites, method='decode_step')
      return logits, cache_lib.write(cache, new, time)

    ids = decoding.TokenIds(config.eos_id, config.pad_id, config.forced_bos_id, config.forced_eos_id)
    return decoder(logits, cache, step, length=length, ids=ids, keys=keys)

  def _classify(self, trainable: Trainable, frozen: Params, batch: Batch) -> decoding.Decoded:
    """The readout's classes as if they had been decoded."""
    starts = jnp.repeat(batch['decoder_input_tokens'][:, :1], self.readout.length, axis=1)
    logits = self.logits(trainable, frozen, {**batch, 'decoder_input_tokens': starts})
    classes = self.readout.choose(logits)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[..., None], axis=-1)[..., 0]
    log_probs = jnp.sum(chosen, axis=-1, keepdims=True)
    return decoding.Decoded(classes[:, None], log_probs, log_probs)

  def source_limit(self, trainable: Trainable, length: int) -> int | None:
    """Tokens of a source, virtual ones included, that leave room to decode `length`; None: as many as you like."""
    config = self.backbone.config
    if not config.max_positions:
      return None
    sites = jax.eval_shape(lambda trainable: self.method.apply(trainable).sites, trainable)
    length = length if self.readout.length is None else self.readout.length
    taken = sites_lib.length(sites, 'decoder/attn_kv') + length if config.decoder_only else 0
    return config.max_positions - taken

  def check_lengths(self, trainable: Trainable, frozen: Params, source: int, target: int) -> None:
    """Raises ValueError if the model has no positions for an example of so many tokens, virtual ones included."""
    tokens = lambda length: jax.ShapeDtypeStruct((1, length), jnp.int32)
    batch = {'encoder_input_tokens': tokens(source), 'decoder_input_tokens': tokens(target)}
    jax.eval_shape(self.logits, trainable, frozen, batch)

  def _patched(self, trainable: Trainable, frozen: Params) -> tuple[Params, Patch]:
    patch = self.patch(trainable)
    return trees.overlay(frozen, patch.overlay), patch
