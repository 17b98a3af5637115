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
  mask_id: int | None = None  # what a masked LM reads a word at; folders do not say it, their tokenizers do
  # A pruned encoder: (layers, F) of each run of equal layers, from the first one on; (): all have d_ff
  kept_ff: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    """Raises ValueError for dimensions that no model has; they may come from a stranger's file."""
    for names, least, most in ((('vocab_size', 'd_model', 'num_heads', 'head_dim', 'd_ff'), 1, 2**31 - 1),
                               (('encoder_layers', 'decoder_layers'), 0, 10_000)):
      for name in names:
        if not least <= getattr(self, name) <= most:
          raise ValueError(f'{name} is {getattr(self, name)}; expected a number from {least} to {most}.')
    for name in ('mlp_activations', 'kept_ff'):  # JSON has no tuples
      object.__setattr__(self, name, _tuples(getattr(self, name)))
    if self.kept_ff != () and not self._fits(self.kept_ff):
      raise ValueError(f'kept_ff is {self.kept_ff}; expected (layers, neurons) of each run of encoder layers, '
                       f'{self.encoder_layers} layers in all, each with 1 to {self.d_ff} neurons.')

  def _fits(self, kept_ff) -> bool:
    runs = isinstance(kept_ff, tuple) and all(isinstance(run, tuple) and len(run) == 2 for run in kept_ff)
    return (runs and all(type(n) is int and n >= 1 for run in kept_ff for n in run)
            and sum(n for n, _ in kept_ff) == self.encoder_layers and all(f <= self.d_ff for _, f in kept_ff))

  def segments(self, stack: str) -> dict[str, tuple[int, 'BackboneConfig']]:
    """Runs of equal layers of the 'encoder' or 'decoder', in order: name -> how many, and the configuration of each.

    That of a pruned layer has its own `d_ff`, and a `kept_ff` that still says it is of a pruned model.
    """
    if stack == 'encoder' and self.kept_ff:
      runs = [(n, dataclasses.replace(self, d_ff=f, kept_ff=((self.encoder_layers, f),))) for n, f in self.kept_ff]
    else:
      runs = [(self.encoder_layers if stack == 'encoder' else self.decoder_layers, self)]
    return {'layers' if len(runs) == 1 else f'layers_{i}': run for i, run in enumerate(runs)}

  @property
  def decoder_only(self) -> bool:
    return not self.encoder_layers

  @property
  def encoder_only(self) -> bool:
    return not self.decoder_layers

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


def _tuples(x):
  return tuple(_tuples(y) for y in x) if isinstance(x, list | tuple) else x


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


def _encoder(family, d_model, layers, heads, vocab_size, **kwargs) -> BackboneConfig:
  return BackboneConfig(
      family=family, vocab_size=vocab_size, d_model=d_model, num_heads=heads, head_dim=d_model // heads,
      d_ff=4 * d_model, encoder_layers=layers, decoder_layers=0, mlp_activations=('gelu_exact',), tied_embeddings=True,
      **kwargs)


def _roberta(*shape, mask_id, max_positions=512) -> BackboneConfig:
  return _encoder(
      'roberta', *shape, layer_norm_epsilon=1e-5, max_positions=max_positions, position_offset=2, token_types=1,
      mlm_head=True, pad_id=1, eos_id=2, bos_id=0, mask_id=mask_id)


def _bert(*shape, max_positions=512, ids=(101, 102, 103), mlm_head=True) -> BackboneConfig:
  bos, eos, mask = ids  # [CLS], [SEP] and [MASK] of the uncased vocabulary
  return _encoder(
      'bert', *shape, layer_norm_epsilon=1e-12, max_positions=max_positions, token_types=2, mlm_head=mlm_head,
      pad_id=0, eos_id=eos, bos_id=bos, mask_id=mask)


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
    # Liu et al. 2019
    'roberta_tiny': _roberta(64, 2, 4, 1024, mask_id=1004, max_positions=256),
    'roberta_base': _roberta(768, 12, 12, 50265, mask_id=50264),
    'roberta_large': _roberta(1024, 24, 16, 50265, mask_id=50264),
    'roberta_base_pruned': dataclasses.replace(  # Wang et al. 2022: 2% of the neurons of the top nine layers
        _roberta(768, 12, 12, 50265, mask_id=50264), kept_ff=((3, 3072), (9, 61))),
    # Devlin et al. 2019, uncased; Wang et al. 2020, whose release is without the masked-LM head
    'bert_tiny': _bert(64, 2, 4, 1024, max_positions=256, ids=(2, 3, 4)),
    'bert_base': _bert(768, 12, 12, 30522),
    'bert_large': _bert(1024, 24, 16, 30522),
    'minilm': _bert(384, 6, 12, 30522, mlm_head=False),
}


def from_size(name: str) -> BackboneConfig:
  """The configuration called `name`, such as `t5_1_1_base`.

  Raises:
    ValueError: no such size; the message lists those there are.
  """
  if name not in SIZES:
    raise ValueError(f'There is no backbone size {name!r}. Sizes: {", ".join(SIZES)}.')
  return SIZES[name]
