"""RoBERTa and BERT: an encoder with learned positions and layer norms behind each sub-layer, and a masked-LM head.

Devlin et al. 2019, Liu et al. 2019; numbers as Hugging Face computes them, but for dropout, whose masks are shared
along the length as T5X's are. All tokens are of the first type (segment).

To its callers the model is a decoder of as many tokens as there are mask tokens to fill: `decoder_input_tokens`
[B, T] say no more than how many states of each row are read. The head sees those states alone, so that its V columns
cost next to nothing.

Positions count what is no padding, virtual tokens included, from `position_offset` on (BERT's own padding takes
positions too, which differs only for padding that is not behind the text). A prefix does not shift them, as P-tuning
v2's paper has it (Liu et al. 2022); its code and PEFT do, because Hugging Face counts past keys.
"""

from collections.abc import Mapping

from flax import linen as nn
import jax.numpy as jnp

from prompt_tuning.backbones import layers, masks
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.backbones.stack import stack
from prompt_tuning.types import Array

_INIT = nn.initializers.normal(0.02)


def read_positions(
    tokens: Array, mask_id: int | None, count: int, segments: tuple[Array | None, Array | None] = (None, None)
) -> Array:
  """Where the first `count` mask tokens of each row are: [B, S] ids -> [B, count]; 0 where a row has fewer.

  Args:
    segments: of the tokens [B, S] and of what is read [B, count], for packed rows: the nth that is read of a segment is
      at its nth mask token, or where it begins if it has fewer.
  """
  is_mask = tokens == (-1 if mask_id is None else mask_id)
  if segments[0] is not None:
    within = segments[1][:, :, None] == segments[0][:, None, :]  # [B, T, S]
    nth = jnp.cumsum(within & is_mask[:, None], axis=-1) == 1 + masks.positions(segments[1] > 0, segments[1])[..., None]
    found = nth & within & is_mask[:, None]
    return jnp.argmax(jnp.where(found.any(-1, keepdims=True), found, within), axis=-1)
  nth = jnp.cumsum(is_mask, axis=-1)[:, None] == 1 + jnp.arange(count)[:, None]  # [B, T, S]
  return jnp.argmax(nth & is_mask[:, None], axis=-1)


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
    """Args are the stack's: see `stack.stack`. Returns ([B, S, D], keys and values of this layer)."""
    c, sites = self.config, per_layer['sites']
    norm = lambda name, y: layers.LayerNorm(self.dtype, c.layer_norm_epsilon, name=name)(y)
    drop = lambda y: layers.Dropout(self.dropout_rate)(y, self.deterministic)
    y, new = layers.Attention(
        c.num_heads, c.head_dim, self.dropout_rate, self.dtype, scaled=True, use_bias=True,
        implementation=self.attention, name='attention')(
            x, x, shared['virtual'], None, shared['mask'], sites, self.deterministic)
    x = norm('post_attention_layer_norm', x + drop(y))
    y = layers.MLP(c.d_ff, c.mlp_activations, 0.0, self.dtype, use_bias=True, name='mlp')(
        x, sites, self.deterministic)
    x = layers.states(sites_lib.at(sites, 'block_out', norm('post_mlp_layer_norm', x + drop(y))))
    return x, new if self.keep else None


class Stack(nn.Module):
  """The embedding norm and the layers."""

  config: BackboneConfig
  dropout_rate: float
  dtype: jnp.dtype
  scan: bool
  remat: str
  attention: str = 'einsum'

  @nn.compact
  def __call__(self, x, virtual, mask, sites, deterministic, *, keep=False):
    """Embeddings [B, S, D] -> [B, S, D] and, with `keep`, keys and values [L, B, S, N, H]."""
    c = self.config
    x = layers.LayerNorm(self.dtype, c.layer_norm_epsilon, name='embedding_norm')(x)
    x = layers.Dropout(self.dropout_rate)(x, deterministic)
    blocks = stack(Block, c.segments('encoder'), self.scan, self.remat)
    return blocks(self.dropout_rate, self.dtype, deterministic, keep, self.attention)(
        x, {'virtual': virtual, 'mask': mask}, {'sites': sites_lib.of_stack(sites, 'encoder')})


class MLMHead(nn.Module):
  """What stands between a state and the embedding table."""

  config: BackboneConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """States [B, T, D] -> what the embedding table is compared with [B, T, D], and a bias on the logits [V]."""
    c = self.config
    activation = 'gelu_exact' if c.family == 'roberta' else c.mlp_activations[0]  # as Hugging Face: see `families`
    x = layers.Dense(c.d_model, ('embed', None), self.dtype, use_bias=True, name='dense')(x)
    x = layers.LayerNorm(self.dtype, c.layer_norm_epsilon, name='layer_norm')(layers.ACTIVATIONS[activation](x))
    return x, layers.param(self, 'bias', nn.initializers.zeros, (c.vocab_size,), ('vocab',))


class RoBERTa(nn.Module):
  """The encoder, of RoBERTa and of BERT. Attributes are those of `t5.T5`."""

  config: BackboneConfig
  dtype: jnp.dtype = jnp.float32
  dropout_rate: float = 0.1
  scan: bool = True
  remat: str = 'none'
  attention: str = 'einsum'

  def setup(self):
    c = self.config
    table = lambda rows, axis='abspos_buckets': layers.Embedder(rows, c.d_model, self.dtype, _INIT, axis)
    self.token_embedder = table(c.vocab_size, 'vocab')
    self.position_embedder = table(c.max_positions + c.position_offset)
    self.token_type_embedder = table(c.token_types)
    self.encoder = Stack(c, self.dropout_rate, self.dtype, self.scan, self.remat, self.attention)
    if c.mlm_head:
      self.mlm_head = MLMHead(c, self.dtype)

  def encode(self, tokens, sites=None, *, segments=None, deterministic=True, keep=False):
    """Token ids [B, S] -> states [B, S, D]; with `keep`, and the keys and values of the layers.

    Args:
      segments: [B, S], for packed rows, in each of which positions begin again.

    Raises:
      ValueError: more tokens than the model has positions.
    """
    c, sites = self.config, sites or {}
    if segments is None:  # else a row may be longer than any of its examples: `Prompted.check_lengths` sees those
      masks.check_positions(c, 0, tokens.shape[1], 0)
    virtual = tokens - c.vocab_size
    positions = c.position_offset + masks.positions(tokens != c.pad_id, segments)
    mask = masks.padding(tokens, c.pad_id) & masks.segments(segments, segments)
    x = sites_lib.at(sites, 'inputs', self.token_embedder(tokens), virtual)
    x = x + self.position_embedder(positions) + self.token_type_embedder(jnp.zeros_like(tokens))
    x, new = self.encoder(x, virtual, mask, sites, deterministic, keep=keep)
    return (x, new) if keep else x

  def activations(self, tokens, sites=None):
    """As `t5.T5.activations`."""
    return {'encoder/attn_kv': self.encode(tokens, sites, keep=True)[1]}

  def __call__(self, batch, sites=None, *, deterministic=True) -> Array:
    """Logits [B, T, V] at the first T mask tokens of each row of a batch (`types.Batch`), see `read_positions`.

    Raises:
      ValueError: the model has no masked-LM head, and nothing is installed that would do without (site `states`).
    """
    c, sites, tokens = self.config, sites or {}, batch['encoder_input_tokens']
    sites_lib.check(sites)
    segments = batch.get('encoder_segment_ids'), batch.get('decoder_segment_ids')
    x = self.encode(tokens, sites, segments=segments[0], deterministic=deterministic)
    positions = read_positions(tokens, c.mask_id, batch['decoder_input_tokens'].shape[1], segments)
    if 'states' in sites:
      return sites['states'](x, positions, tokens != c.pad_id)
    return self.head(jnp.take_along_axis(x, positions[..., None], axis=1))

  def head(self, x: Array) -> Array:
    """States that are read [B, T, D] -> logits, float32 [B, T, V]."""
    c = self.config
    if c.mlm_head:
      x, bias = self.mlm_head(x)
      return self.token_embedder.attend(x) + bias
    if self.is_initializing():  # its parameters do not hang on what is read
      return x
    raise ValueError(f'This {c.family} model has no masked-LM head and cannot answer in words: let a head on its '
                     'states be trained (READOUT = @readouts.Head()), or use a checkpoint with such a head.')
