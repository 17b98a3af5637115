"""T5 1.0 (ReLU, tied embeddings) and 1.1 (gated GELU, untied): encoder-decoder with relative positions.

Raffel et al. 2020; numbers as T5X computes them. Parameter names are T5X's with `layers_{i}` stacked into
`layers`. Virtual tokens (ids >= V) take their embeddings from the `inputs` site, so that positions, masks and
dropout treat a soft prompt like text.
"""

from collections.abc import Mapping
import math

from flax import linen as nn
import jax.numpy as jnp

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
  keep_cache: bool

  @nn.compact
  def __call__(self, x: Array, shared: Mapping, per_layer: Mapping):
    """Args are the stack's: see `stack.stack`. Returns ([B, T, D], cache of this layer)."""
    c, sites, cache = self.config, per_layer['sites'], per_layer['cache'] or {}
    norm = lambda name, y: layers.RMSNorm(self.dtype, name=name)(y)
    drop = lambda y: layers.Dropout(self.dropout_rate)(y, self.deterministic)
    attention = lambda name: layers.Attention(
        c.num_heads, c.head_dim, self.dropout_rate, self.dtype, name=name)

    bias = shared['bias']
    if c.relpos_per_layer:
      bias = RelativeBias(c, bidirectional=not self.cross, name='relpos_bias')(*shared['positions'])
    y = norm('pre_self_attention_layer_norm' if self.cross else 'pre_attention_layer_norm', x)
    y, self_cache = attention('self_attention' if self.cross else 'attention')(
        y, y, bias, shared['mask'], sites, self.deterministic,
        cache=cache.get('self'), index=shared['index'])
    x = x + drop(y)
    new_cache = {'self': self_cache}
    if self.cross:
      y = norm('pre_cross_attention_layer_norm', x)
      y, new_cache['cross'] = attention('encoder_decoder_attention')(
          y, shared['encoded'], None, shared['cross_mask'], sites, self.deterministic,
          site='cross_attn', cache=cache.get('cross'))
      x = x + drop(y)
    y = layers.MLP(c.d_ff, c.mlp_activations, self.dropout_rate, self.dtype, name='mlp')(
        norm('pre_mlp_layer_norm', x), sites, self.deterministic)
    return x + drop(y), new_cache if self.keep_cache else None


class Stack(nn.Module):
  """Relative bias, layers and final norm of the encoder or the decoder, and the decoder's own LM head (1.1)."""

  config: BackboneConfig
  decoder: bool
  dropout_rate: float
  dtype: jnp.dtype
  scan: bool
  remat: str

  @nn.compact
  def __call__(self, x, mask, sites, deterministic, *, cross=(None, None), cache=None, index=None, keep_cache=False):
    """Embeddings [B, T, D] -> ([B, T, D] or, with an LM head, logits [B, T, V]; cache [L, ...] or None).

    Args:
      cross: what the decoder attends to: encodings [B, S, D] (None: in the cache) and their mask.
      cache, index: keys and values of earlier steps, [L, B, T, N, H], and the position of `x` among them.
      keep_cache: return the keys and values.
    """
    c = self.config
    positions = jnp.arange(x.shape[1]) + (0 if index is None else index)
    keys = positions if cache is None else jnp.arange(cache['self']['k'].shape[2])
    bias = None
    if not c.relpos_per_layer:
      bias = RelativeBias(c, bidirectional=not self.decoder, name='relpos_bias')(positions, keys)
    drop = lambda y: layers.Dropout(self.dropout_rate)(y, deterministic)
    shared = {'bias': bias, 'positions': (positions, keys), 'mask': mask, 'encoded': cross[0],
              'cross_mask': cross[1], 'index': index}
    per_layer = {'sites': sites_lib.of_stack(sites, 'decoder' if self.decoder else 'encoder'), 'cache': cache}
    blocks = stack(Block, c.decoder_layers if self.decoder else c.encoder_layers, self.scan, self.remat)
    x, cache = blocks(c, self.decoder, self.dropout_rate, self.dtype, deterministic, keep_cache, name='layers')(
        drop(x), shared, per_layer)
    norm = 'decoder_norm' if self.decoder else 'encoder_norm'
    x = drop(layers.RMSNorm(self.dtype, name=norm)(x))
    if self.decoder and not c.tied_embeddings:
      x = layers.Dense(c.vocab_size, ('embed', 'vocab'), jnp.float32, name='logits_dense')(x)
    return x, cache


class T5(nn.Module):
  """The encoder-decoder. Methods take token ids; `sites` hold what a method installs.

  Attributes:
    dtype: of activations; logits, softmax and norm statistics are float32.
    dropout_rate: active only where a call says `deterministic=False`.
    scan: compile one layer and loop, or unroll; the numbers agree.
    remat: see `stack.stack`.
  """

  config: BackboneConfig
  dtype: jnp.dtype = jnp.float32
  dropout_rate: float = 0.1
  scan: bool = True
  remat: str = 'none'

  def setup(self):
    c = self.config
    self.token_embedder = Embedder(c.vocab_size, c.d_model, self.dtype)
    make = lambda decoder: Stack(
        c, decoder, self.dropout_rate, self.dtype, self.scan, self.remat,
        name='decoder' if decoder else 'encoder')
    self.encoder, self.decoder = make(False), make(True)

  def _embed(self, tokens, sites):
    """[B, S] ids, virtual ones from the `inputs` site -> [B, S, D]."""
    return sites_lib.at(sites, 'inputs', self.token_embedder(tokens), tokens - self.config.vocab_size)

  def encode(self, tokens, sites=None, *, segments=None, deterministic=True) -> Array:
    """Token ids [B, S] -> encodings [B, S, D]."""
    sites = sites or {}
    mask = masks.padding(tokens, self.config.pad_id) & masks.segments(segments, segments)
    return self.encoder(self._embed(tokens, sites), mask, sites, deterministic)[0]

  def decode(self, tokens, encoded, encoder_tokens, sites=None, *, segments=(None, None), deterministic=True,
             keep_cache=False):
    """Decoder input ids [B, T] and encodings [B, S, D] -> logits [B, T, V] (with `keep_cache`: and cache).

    Args:
      encoder_tokens: [B, S], to hide padding.
      segments: of decoder [B, T] and encoder [B, S], for packed rows.
    """
    sites = sites or {}
    mask = masks.causal(tokens.shape[1]) & masks.segments(segments[0], segments[0])
    cross_mask = masks.padding(encoder_tokens, self.config.pad_id) & masks.segments(*segments)
    x, cache = self.decoder(
        self._embed(tokens, sites), mask, sites, deterministic, cross=(encoded, cross_mask), keep_cache=keep_cache)
    logits = self._logits(x)
    return (logits, cache) if keep_cache else logits

  def decode_step(self, tokens, cache, index, encoder_tokens, sites=None):
    """One step: ids [B, 1] at position `index` -> logits [B, 1, V] and the cache, [L, B, T, N, H], with them."""
    sites = sites or {}
    mask = (jnp.arange(cache['self']['k'].shape[2]) <= index)[None, None, None]
    cross_mask = masks.padding(encoder_tokens, self.config.pad_id)
    x, cache = self.decoder(
        self._embed(tokens, sites), mask, sites, True, cross=(None, cross_mask), cache=cache, index=index,
        keep_cache=True)
    return self._logits(x), cache

  def __call__(self, batch, sites=None, *, deterministic=True) -> Array:
    """Teacher-forced logits [B, T, V] of a batch (`types.Batch`)."""
    sites_lib.check(sites or {})
    segments = batch.get('encoder_segment_ids')
    encoded = self.encode(
        batch['encoder_input_tokens'], sites, segments=segments, deterministic=deterministic)
    return self.decode(
        batch['decoder_input_tokens'], encoded, batch['encoder_input_tokens'], sites,
        segments=(batch.get('decoder_segment_ids'), segments), deterministic=deterministic)

  def _logits(self, x):
    if not self.config.tied_embeddings:
      return x
    return self.token_embedder.attend(x) / math.sqrt(self.config.d_model)


class Embedder(nn.Module):
  """The embedding table [V, D]."""

  vocab_size: int
  d_model: int
  dtype: jnp.dtype

  def setup(self):
    self.embedding = layers.param(
        self, 'embedding', nn.initializers.normal(1.0), (self.vocab_size, self.d_model), ('vocab', 'embed'))

  def __call__(self, tokens: Array) -> Array:
    """Ids [B, S] -> [B, S, D]; ids outside the table read its last row."""
    return jnp.take(self.embedding, tokens, axis=0, mode='clip').astype(self.dtype)

  def attend(self, x: Array) -> Array:
    """[B, T, D] -> similarity with every row, float32 [B, T, V]."""
    return jnp.einsum('BTD,VD->BTV', x.astype(jnp.float32), self.embedding.astype(jnp.float32))
