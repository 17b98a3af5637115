"""Where each T5 parameter of ours lies in a Hugging Face and in a T5X checkpoint.

Our tree is T5X's with the `layers_{i}` of a stack merged into one `layers` whose leaves carry a leading layer
axis [L, ...]. Kernels are (in, out) here and in T5X, (out, in) in Hugging Face (PyTorch); the relative
position table is [N, buckets] here and in T5X, [buckets, N] there.
"""
from collections.abc import Iterator
from typing import NamedTuple

from prompt_tuning.backbones import config as config_lib


class Entry(NamedTuple):
  """The tensors of a checkpoint that make up one parameter of ours."""

  names: tuple[str, ...]  # one per layer if `stacked`, else exactly one
  stacked: bool  # our leaf has a leading layer axis
  transpose: bool  # our last two axes are theirs, swapped


KeyTable = dict[str, Entry]  # keyed by our path, joined with '/'

_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_SUBLAYERS = {  # stack -> (our module, Hugging Face's, the norm before it), in the order of HF's `layer.{j}`
    'encoder': (
        ('attention', 'SelfAttention', 'pre_attention_layer_norm'),
        ('mlp', 'DenseReluDense', 'pre_mlp_layer_norm'),
    ),
    'decoder': (
        ('self_attention', 'SelfAttention', 'pre_self_attention_layer_norm'),
        ('encoder_decoder_attention', 'EncDecAttention', 'pre_cross_attention_layer_norm'),
        ('mlp', 'DenseReluDense', 'pre_mlp_layer_norm'),
    ),
}


def _rows(config: config_lib.BackboneConfig) -> Iterator[tuple[str, str, int, bool]]:
  """(our path, Hugging Face's name with `{i}` for the layer, layers (0: not stacked), transposed there)."""
  gated = len(config.mlp_activations) > 1
  mlp = {name: name for name in (('wi_0', 'wi_1', 'wo') if gated else ('wi', 'wo'))}
  yield 'token_embedder/embedding', 'shared.weight', 0, False
  for stack, layers in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    yield f'{stack}/relpos_bias/rel_embedding', bias, 0, True
    for j, (ours, theirs, norm) in enumerate(_SUBLAYERS[stack]):
      place = f'{stack}.block.{{i}}.layer.{j}'
      yield f'{stack}/layers/{norm}/scale', f'{place}.layer_norm.weight', layers, False
      for our_kernel, their_kernel in (mlp if ours == 'mlp' else _ATTENTION).items():
        name = f'{place}.{theirs}.{their_kernel}.weight'
        yield f'{stack}/layers/{ours}/{our_kernel}/kernel', name, layers, True
    yield f'{stack}/{stack}_norm/scale', f'{stack}.final_layer_norm.weight', 0, False
  if not config.tied_embeddings:
    yield 'decoder/logits_dense/kernel', 'lm_head.weight', 0, True


def _entry(template: str, layers: int, transpose: bool) -> Entry:
  names = tuple(template.format(i=i) for i in range(layers)) if layers else (template,)
  return Entry(names, bool(layers), transpose)


def huggingface(config: config_lib.BackboneConfig) -> KeyTable:
  """Our paths -> the tensors of a Hugging Face `T5ForConditionalGeneration`."""
  return {path: _entry(name, layers, transpose) for path, name, layers, transpose in _rows(config)}


def t5x(config: config_lib.BackboneConfig) -> KeyTable:
  """Our paths -> the '/'-joined leaves under T5X's `target`."""
  return {
      path: _entry(path.replace('/layers/', '/layers_{i}/'), layers, False)
      for path, _, layers, _ in _rows(config)
  }
