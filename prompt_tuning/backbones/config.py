"""What distinguishes one backbone from another of its family, and the one table of sizes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
  """Dimensions of a backbone. Letters are those of the dimension legend in `types.py`."""

  family: str  # 't5', 'gpt2', 'bart', 'roberta' or 'bert'
  vocab_size: int  # V, rows of the embedding table; ids >= V are virtual tokens
  d_model: int  # D
  num_heads: int  # N
  head_dim: int  # H
  d_ff: int  # F
  encoder_layers: int  # L of the encoder; 0 for decoder-only
  decoder_layers: int  # L of the decoder; 0 for encoder-only
  # Several: product of the branches (gated). 'gelu' is its tanh approximation, 'gelu_exact' the one with erf.
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  layer_norm_epsilon: float = 1e-6
  tied_embeddings: bool = False  # logits through the embedding table
  # T5: relative positions
  relpos_buckets: int = 32
  relpos_max_distance: int = 128
  relpos_per_layer: bool = False  # a table a layer (T5X's scalable_t5), else one a stack
  # The others: learned absolute positions
  max_positions: int = 0  # tokens and virtual tokens that have one
  position_offset: int = 0  # row of the first one (BART: 2, RoBERTa: pad_id + 1)
  token_types: int = 0  # rows of the token type table (BERT, RoBERTa)
  scale_embedding: bool = False  # token embeddings times sqrt(D) (BART)
  logits_bias: bool = False  # a bias on the decoder's logits (BART)
  mlm_head: bool = False  # a masked-LM head (BERT, RoBERTa); without it, hidden states are the output
  # Token ids; None: the model has none
  pad_id: int = 0
  eos_id: int | None = 1
  bos_id: int | None = None
  decoder_start_id: int | None = None  # first decoder input; None: pad_id (T5)
  forced_bos_id: int | None = None  # what decoding emits first, whatever the logits (BART)
  forced_eos_id: int | None = None  # what decoding emits last if the length limit ends it (BART)

  def __post_init__(self):
    """Raises ValueError for dimensions that no model has; they may come from a stranger's file."""
    for names, least, most in ((('vocab_size', 'd_model', 'num_heads', 'head_dim', 'd_ff'), 1, 2**31 - 1),
                               (('encoder_layers', 'decoder_layers'), 0, 10_000)):
      for name in names:
        if not least <= getattr(self, name) <= most:
          raise ValueError(f'{name} is {getattr(self, name)}; expected a number from {least} to {most}.')

  @property
  def decoder_only(self) -> bool:
    return not self.encoder_layers

  @property
  def start_id(self) -> int:
    """First decoder input: T5's pad, BART's `decoder_start_id`, GPT-2's BOS, which separates source and target."""
    if self.decoder_start_id is not None:
      return self.decoder_start_id
    return self.bos_id if self.decoder_only and self.bos_id is not None else self.pad_id

  @property
  def source_pad_id(self) -> int:
    """Fills up sources; -1, which is no token, for a decoder-only model: GPT-2's pad is its end of text too."""
    return -1 if self.decoder_only else self.pad_id

  def __str__(self) -> str:
    """What is no default."""
    values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
    return ', '.join(f'{field.name} {value}' for field, value in values if value != field.default)


def _t5(d_model, layers, heads, head_dim, d_ff, **kwargs) -> BackboneConfig:
  return BackboneConfig(
      family='t5', vocab_size=32128, d_model=d_model, num_heads=heads, head_dim=head_dim, d_ff=d_ff,
      encoder_layers=layers, decoder_layers=layers, **kwargs)


def _t5_1_0(*shape) -> BackboneConfig:
  return _t5(*shape, mlp_activations=('relu',), tied_embeddings=True)


def _gpt2(d_model, layers, heads, d_ff=None, vocab_size=50257, max_positions=1024, end=50256) -> BackboneConfig:
  return BackboneConfig(
      family='gpt2', vocab_size=vocab_size, d_model=d_model, num_heads=heads, head_dim=d_model // heads,
      d_ff=d_ff or 4 * d_model, encoder_layers=0, decoder_layers=layers, mlp_activations=('gelu',),
      layer_norm_epsilon=1e-5, tied_embeddings=True, max_positions=max_positions, pad_id=end, eos_id=end, bos_id=end)


def _bart(d_model, layers, heads, vocab_size, max_positions=1024) -> BackboneConfig:
  return BackboneConfig(
      family='bart', vocab_size=vocab_size, d_model=d_model, num_heads=heads, head_dim=d_model // heads,
      d_ff=4 * d_model, encoder_layers=layers, decoder_layers=layers, mlp_activations=('gelu_exact',),
      layer_norm_epsilon=1e-5, tied_embeddings=True, max_positions=max_positions, position_offset=2, logits_bias=True,
      pad_id=1, eos_id=2, bos_id=0, decoder_start_id=2, forced_eos_id=2)


SIZES: dict[str, BackboneConfig] = {
    # Raffel et al. 2020; 1.1 as in Lester et al. 2021, Table 4. `tiny` is ours, for tests and smoke runs.
    #                         D     L   N   H     F
    't5_1_1_tiny': _t5(64, 2, 4, 16, 128),
    't5_1_1_small': _t5(512, 8, 6, 64, 1024),
    't5_1_1_base': _t5(768, 12, 12, 64, 2048),
    't5_1_1_large': _t5(1024, 24, 16, 64, 2816),
    't5_1_1_xl': _t5(2048, 24, 32, 64, 5120),
    't5_1_1_xxl': _t5(4096, 24, 64, 64, 10240),
    't5_1_0_tiny': _t5_1_0(64, 2, 4, 16, 128),
    't5_1_0_small': _t5_1_0(512, 6, 8, 64, 2048),
    't5_1_0_base': _t5_1_0(768, 12, 12, 64, 3072),
    't5_1_0_large': _t5_1_0(1024, 24, 16, 64, 4096),
    't5_1_0_xl': _t5_1_0(1024, 24, 32, 128, 16384),
    't5_1_0_xxl': _t5_1_0(1024, 24, 128, 128, 65536),
    # Radford et al. 2019
    #                     D     L   N
    'gpt2_tiny': _gpt2(64, 2, 4, vocab_size=1024, max_positions=256, end=0),
    'gpt2_small': _gpt2(768, 12, 12),
    'gpt2_medium': _gpt2(1024, 24, 16),
    'gpt2_large': _gpt2(1280, 36, 20),
    'gpt2_xl': _gpt2(1600, 48, 25),
    # Lewis et al. 2020
    'bart_tiny': _bart(64, 2, 4, 1024, max_positions=256),
    'bart_base': _bart(768, 6, 12, 50265),
    'bart_large': _bart(1024, 12, 16, 50265),
}


def from_size(name: str) -> BackboneConfig:
  """The configuration called `name`, such as `t5_1_1_base`.

  Raises:
    ValueError: no such size; the message lists those there are.
  """
  if name not in SIZES:
    raise ValueError(f'There is no backbone size {name!r}. Sizes: {", ".join(SIZES)}.')
  return SIZES[name]
