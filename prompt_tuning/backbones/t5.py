"""T5 1.0 (ReLU, tied embeddings) and 1.1 (gated GELU, untied): encoder-decoder with relative positions.

Raffel et al. 2020; numbers as T5X computes them. Parameter names are T5X's with `layers_{i}` stacked into
`layers`. Virtual tokens (ids >= V) take their embeddings from the `inputs` site, so that positions, masks and
dropout treat a soft prompt like text.
"""

from collections.abc import Mapping
import math

from flax import linen as nn
import jax.numpy as jnp

from prompt_tuning.backbones import cache as cache_lib
from prompt_tuning.backbones import layers, masks
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.backbones.stack import stack
from prompt_tuning.types import Array


def relative_buckets(relative_position: Array, bidirectional: bool, buckets: int, max_distance: int) -> Array:
  """T5's bucket of each key position minus query position: exact near 0, logarithmic up to `max_distance`."""
  offset = 0
  distance = -relative_position
  if bidirectional:
    buckets //= 2
    offset = buckets * (distance < 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(distance, 0)
  exact = buckets // 2
  scaled = jnp.log(distance.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps)
  far = exact + (scaled / math.log(max_distance / exact) * (buckets - exact)).astype(jnp.int32)
  return offset + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class RelativeBias(nn.Module):
  """One bias per head and bucket, added to the attention scores of a whole stack or of a layer."""

  config: BackboneConfig
  bidirectional: bool

  @nn.compact
  def __call__(self, queries: Array, keys: Array) -> Array:
    """Positions [T] and [S] -> bias [1, N, T, S]."""
    c = self.config
    table = layers.param(
        self, 'rel_embedding', nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
        (c.num_heads, c.relpos_buckets), ('heads', 'relpos_buckets'))
    bucket = relative_buckets(
        keys[None, :] - queries[:, None], self.bidirectional, c.relpos_buckets, c.relpos_max_distance)
    return jnp.take(table, bucket, axis=1)[None]


class Block(nn.Module):
  """One layer of the encoder, or, with cross-attention, of the decoder."""

  config: BackboneConfig
  cross: bool
  dropout_rate: float
  dtype: jnp.dtype
  deterministic: bool
  keep: bool
  attention: str

  @nn.compact
  def __call__(self, x: Array, shared: Mapping, per_layer: Mapping):
    """Args are the stack's: see `stack.stack`. Returns ([B, T, D], cache of this layer)."""
    c, sites, cache = self.config, per_layer['sites'], per_layer['cache'] or {}
    norm = lambda name, y: layers.RMSNorm(self.dtype, name=name)(y)
    drop = lambda y: layers.Dropout(self.dropout_rate)(y, self.deterministic)
    attention = lambda name: layers.Attention(
        c.num_heads, c.head_dim, self.dropout_rate, self.dtype, implementation=self.attention, name=name)

    bias = shared['bias']
    if c.relpos_per_layer:
      bias = RelativeBias(c, bidirectional=not self.cross, name='relpos_bias')(*shared['positions'])
    y = norm('pre_self_attention_layer_norm' if self.cross else 'pre_attention_layer_norm', x)
    y, new_self = attention('self_attention' if self.cross else 'attention')(
        y, y, shared['virtual'], bias, shared['mask'], sites, self.deterministic, cache=cache.get('self'))
    x = x + drop(y)
    new_cross = None
    if self.cross:
      y = norm('pre_cross_attention_layer_norm', x)
      encoded, cross_mask, cross_virtual = shared['cross']
      y, new_cross = attention('encoder_decoder_attention')(
          y, encoded, cross_virtual, None, cross_mask, sites, self.deterministic,
          site='cross_attn', cache=cache.get('cross'))
      x = x + drop(y)
    out_bias = bool(c.kept_ff) and not self.cross  # what pruned neurons leave behind
    y = layers.MLP(c.d_ff, c.mlp_activations, self.dropout_rate, self.dtype, out_bias=out_bias, name='mlp')(
        norm('pre_mlp_layer_norm', x), sites, self.deterministic)
    x = layers.states(sites_lib.at(sites, 'block_out', x + drop(y)))
    return x, {'self': new_self, 'cross': new_cross} if self.keep else None


class Stack(nn.Module):
  """Relative bias, layers and final norm of the encoder or the decoder, and the decoder's own LM head (1.1)."""

  config: BackboneConfig
  decoder: bool
  dropout_rate: float
  dtype: jnp.dtype
  scan: bool
  remat: str
  apart: bool = False
  attention: str = 'einsum'

  def setup(self):
    if self.decoder and not self.config.tied_embeddings:
      self.logits_dense = layers.Dense(self.config.vocab_size, ('embed', 'vocab'), jnp.float32)

  @nn.compact
  def __call__(self, x, virtual, mask, sites, deterministic, *, cross=None, positions=None, cache=None, keep=False):
    """Embeddings [B, T, D] -> [B, T, D] and new keys and values or None.

    Args:
      virtual: virtual ids of the tokens, [B, T].
      mask: of all self-attention keys: those in the cache, then those of `x`.
      cross: what the decoder attends to: encodings [B, S, D] (None: in the cache), their mask and virtual ids.
      positions: of the queries and of all keys, if there are others than those of `x`.
      cache: {'self', 'cross'} of earlier calls, see `cache.py`.
      keep: return the keys and values made here, [L, ...].
    """
    c = self.config
    queries, keys = positions or (jnp.arange(x.shape[1]),) * 2
    bias = None
    if not c.relpos_per_layer:
      bias = RelativeBias(c, bidirectional=not self.decoder, name='relpos_bias')(queries, keys)
    drop = lambda y: layers.Dropout(self.dropout_rate)(y, deterministic)
    shared = {'bias': bias, 'positions': (queries, keys), 'virtual': virtual, 'mask': mask, 'cross': cross}
    name = 'decoder' if self.decoder else 'encoder'
    per_layer = {'sites': sites_lib.of_stack(sites, name), 'cache': cache}
    blocks = stack(Block, c.segments(name), self.scan, self.remat, self.apart)
    x, new = blocks(self.decoder, self.dropout_rate, self.dtype, deterministic, keep, self.attention)(
        drop(x), shared, per_layer)
    return drop(layers.RMSNorm(self.dtype, name=f'{name}_norm')(x)), new

  def head(self, x: Array) -> Array:
    """Final states [B, T, D] -> logits, float32 [B, T, V]."""
    return layers.constrain(self.logits_dense(x), 'batch', 'length', 'vocab')


class T5(nn.Module):
  """The encoder-decoder. Methods take token ids; `sites` hold what a method installs.

  Attributes:
    dtype: of activations; logits, softmax and norm statistics are float32.
    dropout_rate: active only where a call says `deterministic=False`.
    scan: compile one layer and loop, or unroll; the numbers agree.
    remat, apart: see `stack.stack`.
    attention: see `layers.Attention`.
  """

  config: BackboneConfig
  dtype: jnp.dtype = jnp.float32
  dropout_rate: float = 0.1
  scan: bool = True
  remat: str = 'none'
  apart: bool = False
  attention: str = 'einsum'

  def setup(self):
    c = self.config
    self.token_embedder = layers.Embedder(c.vocab_size, c.d_model, self.dtype)
    make = lambda decoder: Stack(
        c, decoder, self.dropout_rate, self.dtype, self.scan, self.remat, self.apart, self.attention,
        name='decoder' if decoder else 'encoder')
    self.encoder, self.decoder = make(False), make(True)

  def _embed(self, tokens, sites):
    """[B, S] ids, virtual ones from the `inputs` site -> [B, S, D] and virtual ids [B, S]."""
    virtual = tokens - self.config.vocab_size
    return sites_lib.at(sites, 'inputs', self.token_embedder(tokens), virtual), virtual

  def encode(self, tokens, sites=None, *, segments=None, deterministic=True, keep=False):
    """Token ids [B, S] -> encodings [B, S, D]; with `keep`, and the keys and values of the layers."""
    sites = sites or {}
    mask = masks.padding(tokens, self.config.pad_id) & masks.segments(segments, segments)
    encoded, new = self.encoder(*self._embed(tokens, sites), mask, sites, deterministic, keep=keep)
    return (encoded, new['self']) if keep else encoded

  def decode(self, tokens, encoded, encoder_tokens, sites=None, *, segments=(None, None), deterministic=True,
             keep=False):
    """Decoder input ids [B, T] and encodings [B, S, D] -> logits [B, T, V]; with `keep`, and keys and values.

    Args:
      encoder_tokens: [B, S], to hide padding.
      segments: of decoder [B, T] and encoder [B, S], for packed rows.
    """
    sites = sites or {}
    mask = masks.causal(tokens.shape[1]) & masks.segments(segments[0], segments[0])
    cross_mask = masks.padding(encoder_tokens, self.config.pad_id) & masks.segments(*segments)
    x, new = self.decoder(
        *self._embed(tokens, sites), mask, sites, deterministic,
        cross=(encoded, cross_mask, encoder_tokens - self.config.vocab_size), keep=keep)
    return (self._logits(x, sites), new) if keep else self._logits(x, sites)

  def prefill(self, batch, sites=None, *, length=1):
    """Sources [B, S] and the start token, first of `decoder_input_tokens` -> logits [B, V] and a `cache.py` cache.

    Args:
      length: tokens to be decoded at most; a model with learned positions raises ValueError where they run out.
    """
    del length
    source, start = batch['encoder_input_tokens'], batch['decoder_input_tokens'][:, :1]
    logits, new = self.decode(start, self.encode(source, sites), source, sites, keep=True)
    return logits[:, 0], {
        **new, 'visible': jnp.ones_like(start, bool), 'position': jnp.zeros_like(start[:, 0]),
        'cross_mask': masks.padding(source, self.config.pad_id)}

  def decode_step(self, tokens, cache, time, visible, sites=None):
    """One step: ids [B, K] made at `time` -> logits [B, K, V] and their keys and values [L, B, K, N, H].

    Args:
      cache: see `cache.py`; it is read, not written.
      visible: slots that each query sees, [B, K, T K].
    """
    sites = sites or {}
    width, slots = tokens.shape[1], visible.shape[-1]
    position = 1 + time  # behind the start token
    keys = jnp.concatenate([jnp.zeros(1, jnp.int32), 1 + jnp.arange(slots) // width, jnp.full(width, position)])
    x, new = self.decoder(
        *self._embed(tokens, sites), cache_lib.mask(cache, visible), sites, True,
        cross=(None, cache['cross_mask'], None), positions=(position[None], keys),
        cache={name: cache[name] for name in ('self', 'cross')}, keep=True)
    return self._logits(x, sites), new['self']

  def activations(self, tokens, sites=None):
    """Keys and values {site: {'k', 'v'} [L, B, S, N, H]} of a text [B, S], read by both stacks."""
    encoded, encoder = self.encode(tokens, sites, keep=True)
    _, decoder = self.decode(tokens, encoded, tokens, sites, keep=True)
    return {'encoder/attn_kv': encoder, 'decoder/attn_kv': decoder['self'], 'decoder/cross_attn_kv': decoder['cross']}

  def __call__(self, batch, sites=None, *, deterministic=True) -> Array:
    """Teacher-forced logits [B, T, V] of a batch (`types.Batch`)."""
    sites_lib.check(sites or {})
    segments = batch.get('encoder_segment_ids')
    encoded = self.encode(
        batch['encoder_input_tokens'], sites, segments=segments, deterministic=deterministic)
    return self.decode(
        batch['decoder_input_tokens'], encoded, batch['encoder_input_tokens'], sites,
        segments=(batch.get('decoder_segment_ids'), segments), deterministic=deterministic)

  def head(self, x: Array) -> Array:
    """Final states [B, T, D] -> logits, float32 [B, T, V]."""
    if not self.config.tied_embeddings:
      return self.decoder.head(x)
    return self.token_embedder.attend(x) / math.sqrt(self.config.d_model)

  def _logits(self, x, sites):
    return sites['states'](x, None, None) if 'states' in sites else self.head(x)
