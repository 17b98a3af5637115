"""GPT-2: a decoder with learned positions and layer norms in front (Radford et al. 2019).

A source x and a target y are one text, [x; BOS; y], that the model reads from left to right; a batch holds them
apart (`types.Batch`), padded each, and positions count what is no padding. Logits are made for the target alone.
Positions begin behind the prefix that a method installs, as if it were text (Li & Liang 2021, their code; also
Hugging Face's past keys). Dropout masks are shared along the length, as T5X's are, unlike Hugging Face's.
"""

from collections.abc import Mapping

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
  """One layer."""

  config: BackboneConfig
  dropout_rate: float
  dtype: jnp.dtype
  deterministic: bool
  keep: bool
  attention: str

  @nn.compact
  def __call__(self, x: Array, shared: Mapping, per_layer: Mapping):
    """Args are the stack's: see `stack.stack`. Returns ([B, T, D], keys and values of this layer)."""
    c, sites = self.config, per_layer['sites']
    norm = lambda name, y: layers.LayerNorm(self.dtype, c.layer_norm_epsilon, name=name)(y)
    drop = lambda y: layers.Dropout(self.dropout_rate)(y, self.deterministic)
    y = norm('pre_self_attention_layer_norm', x)
    y, new = layers.Attention(
        c.num_heads, c.head_dim, self.dropout_rate, self.dtype, scaled=True, use_bias=True,
        implementation=self.attention, name='self_attention')(
            y, y, shared['virtual'], None, shared['mask'], sites, self.deterministic, cache=per_layer['cache'])
    x = x + drop(y)
    y = layers.MLP(c.d_ff, c.mlp_activations, 0.0, self.dtype, use_bias=True, name='mlp')(
        norm('pre_mlp_layer_norm', x), sites, self.deterministic)
    x = layers.states(sites_lib.at(sites, 'block_out', x + drop(y)))
    return x, new if self.keep else None


class Stack(nn.Module):
  """The layers and the final norm."""

  config: BackboneConfig
  dropout_rate: float
  dtype: jnp.dtype
  scan: bool
  remat: str
  apart: bool = False
  attention: str = 'einsum'

  @nn.compact
  def __call__(self, x, virtual, mask, sites, deterministic, *, cache=None, keep=False):
    """Embeddings [B, T, D] -> [B, T, D] and, with `keep`, keys and values [L, B, T, N, H]."""
    c = self.config
    per_layer = {'sites': sites_lib.of_stack(sites, 'decoder'), 'cache': cache}
    x = layers.Dropout(self.dropout_rate)(x, deterministic)
    blocks = stack(Block, c.segments('decoder'), self.scan, self.remat, self.apart)
    x, new = blocks(self.dropout_rate, self.dtype, deterministic, keep, self.attention)(
        x, {'virtual': virtual, 'mask': mask}, per_layer)
    return layers.LayerNorm(self.dtype, c.layer_norm_epsilon, name='decoder_norm')(x), new


class GPT2(nn.Module):
  """The decoder-only model. Attributes are those of `t5.T5`."""

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
    self.position_embedder = layers.Embedder(c.max_positions, c.d_model, self.dtype, _INIT, 'abspos_buckets')
    self.decoder = Stack(c, self.dropout_rate, self.dtype, self.scan, self.remat, self.apart, self.attention)

  def _embed(self, tokens, positions, sites):
    """Ids and positions [B, T] -> [B, T, D] and virtual ids [B, T]."""
    virtual = tokens - self.config.vocab_size
    embedded = sites_lib.at(sites, 'inputs', self.token_embedder(tokens), virtual)
    return embedded + self.position_embedder(positions), virtual

  def _check_positions(self, source, target: int, sites):
    masks.check_positions(self.config, sites_lib.length(sites, 'decoder/attn_kv'), source.shape[1], target)

  def _read(self, source, target, sites, deterministic=True, keep=False, segments=None):
    """[x; y], padded each, [B, S] and [B, T] -> (y [B, T, D], keys and values, visible and positions [B, S + T]).

    Args:
      segments: of both, [B, S + T], for packed rows [x1 x2; y1 y2], where y1 goes on behind x1.
    """
    sites_lib.check(sites)
    if segments is None:  # else a row may be longer than any of its examples: `Prompted.check_lengths` sees those
      self._check_positions(source, target.shape[1], sites)
    tokens = jnp.concatenate([source, target], axis=1)
    visible = jnp.concatenate([source != self.config.source_pad_id, jnp.ones_like(target, bool)], axis=1)
    positions = masks.positions(visible, segments) + sites_lib.length(sites, 'decoder/attn_kv')
    mask = masks.causal(tokens.shape[1]) & visible[:, None, None] & masks.segments(segments, segments)
    x, new = self.decoder(*self._embed(tokens, positions, sites), mask, sites, deterministic, keep=keep)
    return x[:, source.shape[1]:], new, visible, positions

  def prefill(self, batch, sites=None, *, length=1):
    """As `t5.T5.prefill`; the context is the source and the start token."""
    source, start = batch['encoder_input_tokens'], batch['decoder_input_tokens'][:, :1]
    self._check_positions(source, length, sites or {})
    x, new, visible, positions = self._read(source, start, sites or {}, keep=True)
    return self._logits(x, sites or {})[:, 0], {'self': new, 'visible': visible, 'position': positions[:, -1]}

  def decode_step(self, tokens, cache, time, visible, sites=None):
    """As `t5.T5.decode_step`."""
    sites = sites or {}
    positions = jnp.broadcast_to((cache['position'] + 1 + time)[:, None], tokens.shape)
    x, new = self.decoder(
        *self._embed(tokens, positions, sites), cache_lib.mask(cache, visible), sites, True, cache=cache['self'],
        keep=True)
    return self._logits(x, sites), new

  def activations(self, tokens, sites=None):
    """As `t5.T5.activations`."""
    _, new, _, _ = self._read(tokens[:, :0], tokens, sites or {}, keep=True)
    return {'decoder/attn_kv': new}

  def __call__(self, batch, sites=None, *, deterministic=True) -> Array:
    """Logits [B, T, V] of the target behind its source (`types.Batch`)."""
    segments = None
    if 'encoder_segment_ids' in batch:
      segments = jnp.concatenate([batch['encoder_segment_ids'], batch['decoder_segment_ids']], axis=1)
    x, *_ = self._read(
        batch['encoder_input_tokens'], batch['decoder_input_tokens'], sites or {}, deterministic, segments=segments)
    return self._logits(x, sites or {})

  def head(self, x: Array) -> Array:
    """Final states [B, T, D] -> logits, float32 [B, T, V]."""
    return self.token_embedder.attend(x)

  def _logits(self, x, sites):
    return sites['states'](x, None, None) if 'states' in sites else self.head(x)
