"""BART: encoder-decoder with learned positions and layer norms behind each sub-layer (Lewis et al. 2020).

Numbers as Hugging Face computes them, but for dropout, whose masks are shared along the length as T5X's are.
Positions are not shifted by a prefix (Li & Liang 2021, their code), unlike GPT-2's.
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

_INIT = nn.initializers.normal(0.02)


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
    """Args are the stack's: see `stack.stack`. Returns ([B, T, D], keys and values of this layer)."""
    c, sites, cache = self.config, per_layer['sites'], per_layer['cache'] or {}
    norm = lambda name, y: layers.LayerNorm(self.dtype, c.layer_norm_epsilon, name=name)(y)
    drop = lambda y: layers.Dropout(self.dropout_rate)(y, self.deterministic)
    attention = lambda name: layers.Attention(
        c.num_heads, c.head_dim, self.dropout_rate, self.dtype, scaled=True, use_bias=True,
        implementation=self.attention, name=name)

    name = 'self_attention' if self.cross else 'attention'
    y, new_self = attention(name)(
        x, x, shared['virtual'], None, shared['mask'], sites, self.deterministic, cache=cache.get('self'))
    x = norm(f'post_{name}_layer_norm', x + drop(y))
    new_cross = None
    if self.cross:
      encoded, cross_mask, cross_virtual = shared['cross']
      y, new_cross = attention('encoder_decoder_attention')(
          x, encoded, cross_virtual, None, cross_mask, sites, self.deterministic,
          site='cross_attn', cache=cache.get('cross'))
      x = norm('post_cross_attention_layer_norm', x + drop(y))
    y = layers.MLP(c.d_ff, c.mlp_activations, self.dropout_rate, self.dtype, use_bias=True, name='mlp')(
        x, sites, self.deterministic)
    x = layers.states(sites_lib.at(sites, 'block_out', norm('post_mlp_layer_norm', x + drop(y))))
    return x, {'self': new_self, 'cross': new_cross} if self.keep else None


class Stack(nn.Module):
  """Positions, embedding norm and layers of the encoder or the decoder."""

  config: BackboneConfig
  decoder: bool
  dropout_rate: float
  dtype: jnp.dtype
  scan: bool
  remat: str
  apart: bool = False
  attention: str = 'einsum'

  def setup(self):
    if self.decoder and self.config.logits_bias:
      self.logits_bias = layers.param(
          self, 'logits_bias', nn.initializers.zeros, (1, self.config.vocab_size), (None, 'vocab'))

  @nn.compact
  def __call__(self, x, virtual, mask, sites, deterministic, *, cross=None, positions=None, cache=None, keep=False):
    """Embeddings [B, T, D] -> [B, T, D] and new keys and values or None.

    Args:
      positions: of `x`, [T] or [B, T]; None: from 0 on.
      others: as those of `t5.Stack`.
    """
    c = self.config
    positions = jnp.arange(x.shape[1]) if positions is None else positions
    table = layers.Embedder(
        c.max_positions + c.position_offset, c.d_model, self.dtype, _INIT, 'abspos_buckets', name='position_embedder')
    x = x + table(positions + c.position_offset)
    x = layers.LayerNorm(self.dtype, c.layer_norm_epsilon, name='embedding_norm')(x)
    x = layers.Dropout(self.dropout_rate)(x, deterministic)
    name = 'decoder' if self.decoder else 'encoder'
    per_layer = {'sites': sites_lib.of_stack(sites, name), 'cache': cache}
    blocks = stack(Block, c.segments(name), self.scan, self.remat, self.apart)
    x, new = blocks(self.decoder, self.dropout_rate, self.dtype, deterministic, keep, self.attention)(
        x, {'virtual': virtual, 'mask': mask, 'cross': cross}, per_layer)
    return x, new

  def bias(self) -> Array | float:
    """What is added to the logits."""
    return self.logits_bias if self.config.logits_bias else 0.0


class BART(nn.Module):
  """The encoder-decoder. Attributes are those of `t5.T5`."""

  config: BackboneConfig
  dtype: jnp.dtype = jnp.float32
  dropout_rate: float = 0.1
  scan: bool = True
  remat: str = 'none'
  apart: bool = False
  attention: str = 'einsum'

  def setup(self):
    c = self.config
    self.token_embedder = layers.Embedder(c.vocab_size, c.d_model, self.dtype, _INIT)
    make = lambda decoder: Stack(
        c, decoder, self.dropout_rate, self.dtype, self.scan, self.remat, self.apart, self.attention,
        name='decoder' if decoder else 'encoder')
    self.encoder, self.decoder = make(False), make(True)

  def _embed(self, tokens, sites):
    """[B, S] ids -> embeddings without positions [B, S, D] and virtual ids [B, S]."""
    virtual = tokens - self.config.vocab_size
    scale = math.sqrt(self.config.d_model) if self.config.scale_embedding else 1.0
    return sites_lib.at(sites, 'inputs', self.token_embedder(tokens) * scale, virtual), virtual

  def encode(self, tokens, sites=None, *, segments=None, deterministic=True, keep=False):
    """Token ids [B, S] -> encodings [B, S, D]; with `keep`, and the keys and values of the layers.

    Args:
      segments: [B, S], for packed rows, in each of which positions begin again.
    """
    sites = sites or {}
    positions = self._positions(segments, 0, tokens.shape[1], 0)
    mask = masks.padding(tokens, self.config.pad_id) & masks.segments(segments, segments)
    encoded, new = self.encoder(
        *self._embed(tokens, sites), mask, sites, deterministic, positions=positions, keep=keep)
    return (encoded, new['self']) if keep else encoded

  def decode(self, tokens, encoded, encoder_tokens, sites=None, *, segments=(None, None), deterministic=True,
             keep=False):
    """Decoder input ids [B, T] and encodings [B, S, D] -> logits [B, T, V]; with `keep`, and keys and values.

    Args:
      segments: of decoder [B, T] and encoder [B, S], for packed rows.
    """
    sites = sites or {}
    positions = self._positions(segments[0], 0, 0, tokens.shape[1])
    mask = masks.causal(tokens.shape[1]) & masks.segments(segments[0], segments[0])
    cross_mask = masks.padding(encoder_tokens, self.config.pad_id) & masks.segments(*segments)
    x, new = self.decoder(
        *self._embed(tokens, sites), mask, sites, deterministic,
        cross=(encoded, cross_mask, encoder_tokens - self.config.vocab_size), positions=positions, keep=keep)
    return (self._logits(x, sites), new) if keep else self._logits(x, sites)

  def prefill(self, batch, sites=None, *, length=1):
    """As `t5.T5.prefill`."""
    masks.check_positions(self.config, 0, 0, length)
    source, start = batch['encoder_input_tokens'], batch['decoder_input_tokens'][:, :1]
    logits, new = self.decode(start, self.encode(source, sites), source, sites, keep=True)
    return logits[:, 0], {
        **new, 'visible': jnp.ones_like(start, bool), 'position': jnp.zeros_like(start[:, 0]),
        'cross_mask': masks.padding(source, self.config.pad_id)}

  def decode_step(self, tokens, cache, time, visible, sites=None):
    """As `t5.T5.decode_step`."""
    sites = sites or {}
    x, new = self.decoder(
        *self._embed(tokens, sites), cache_lib.mask(cache, visible), sites, True,
        cross=(None, cache['cross_mask'], None), positions=jnp.full(tokens.shape[1], 1 + time),
        cache={name: cache[name] for name in ('self', 'cross')}, keep=True)
    return self._logits(x, sites), new['self']

  def activations(self, tokens, sites=None):
    """As `t5.T5.activations`."""
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

  def _positions(self, segments, *lengths: int):
    """Positions [B, S] of a packed row; None, and a check of the lengths, of one that is not."""
    if segments is None:  # a packed row may be longer than any of its examples: `Prompted.check_lengths` sees those
      masks.check_positions(self.config, *lengths)
      return None
    return masks.positions(segments > 0, segments)

  def head(self, x: Array) -> Array:
    """Final states [B, T, D] -> logits, float32 [B, T, V]."""
    return self.token_embedder.attend(x) + self.decoder.bias()

  def _logits(self, x, sites):
    return sites['states'](x, None, None) if 'states' in sites else self.head(x)
