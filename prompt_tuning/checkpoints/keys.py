"""Where a parameter of ours lies among the tensors of a checkpoint: the vocabulary of all key tables."""
from collections.abc import Iterable
import re
from typing import NamedTuple

from prompt_tuning.backbones import config as config_lib


class Entry(NamedTuple):
  """The tensors of a checkpoint that make up one parameter of ours.

  Attributes:
    names: one per layer if `stacked`, else exactly one.
    stacked: our leaf has a leading layer axis [L, ...].
    transpose: our last two axes are theirs, swapped.
    part: (i, n): ours is the i-th of n equal parts of their last axis (GPT-2 joins query, key and value).
  """

  names: tuple[str, ...]
  stacked: bool = False
  transpose: bool = False
  part: tuple[int, int] = (0, 1)

  def our_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of our leaf if each of its tensors has shape `stored`."""
    inner = (*stored[:-1], stored[-1] // self.part[1]) if stored else ()
    inner = inner[::-1] if self.transpose else inner
    return (len(self.names), *inner) if self.stacked else inner

  def stored_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each tensor if our leaf has shape `ours`."""
    inner = ours[1:] if self.stacked else ours
    inner = inner[::-1] if self.transpose else inner
    return (*inner[:-1], inner[-1] * self.part[1]) if inner else ()

  def stored_index(self, bounds: tuple[tuple[int, int], ...], stored: tuple[int, ...]) -> tuple[slice, ...]:
    """Where `bounds` of one layer of ours, (start, stop) per axis, lie in a tensor of shape `stored`."""
    bounds = list(bounds[::-1] if self.transpose else bounds)
    if bounds:
      shift = self.part[0] * (stored[-1] // self.part[1])
      bounds[-1] = (bounds[-1][0] + shift, bounds[-1][1] + shift)
    return tuple(slice(*pair) for pair in bounds)


KeyTable = dict[str, Entry]  # keyed by our path, joined with '/'


def per_layer(template: str, layers: int, transpose: bool = False, part: tuple[int, int] = (0, 1)) -> Entry:
  """The entry of a name with `{i}` for the layer, or, with `layers` 0, of the one tensor of that name."""
  names = tuple(template.format(i=i) for i in range(layers)) if layers else (template,)
  return Entry(names, bool(layers), transpose, part)


def in_segments(table: KeyTable, config: config_lib.BackboneConfig) -> KeyTable:
  """The table of a model whose encoder is in segments (`BackboneConfig.segments`), of one in which it is not."""
  if not config.kept_ff:
    return table
  inside = 'encoder/layers/'
  result = {path: entry for path, entry in table.items() if not path.startswith(inside)}
  first = 0
  for name, (length, _) in config.segments('encoder').items():
    result |= {
        f'encoder/{name}/{path.removeprefix(inside)}': entry._replace(names=entry.names[first:first + length])
        for path, entry in table.items() if path.startswith(inside)}
    first += length
  return result


def shapes(config: config_lib.BackboneConfig, paths: Iterable[str]) -> dict[str, tuple[int, ...]]:
  """The shape of each parameter of ours, of a model of those dimensions, by its path."""
  return {path: _shape(config, path) for path in paths}


def _shape(c: config_lib.BackboneConfig, path: str) -> tuple[int, ...]:
  layers = ()
  if match := re.match(r'(encoder|decoder)/(layers\w*)/', path):
    length, c = c.segments(match[1])[match[2]]
    layers = (length,)
  joined = c.num_heads * c.head_dim
  last_two = '/'.join(path.split('/')[-2:])
  inner = {
      'token_embedder/embedding': (c.vocab_size, c.d_model),
      'position_embedder/embedding': (c.max_positions + c.position_offset, c.d_model),
      'token_type_embedder/embedding': (c.token_types, c.d_model),
      'relpos_bias/rel_embedding': (c.num_heads, c.relpos_buckets),
      **{f'{name}/kernel': (c.d_model, joined) for name in ('query', 'key', 'value')},
      **{f'{name}/bias': (joined,) for name in ('query', 'key', 'value')},
      'out/kernel': (joined, c.d_model),
      **{f'{name}/kernel': (c.d_model, c.d_ff) for name in ('wi', 'wi_0', 'wi_1')},
      'wi/bias': (c.d_ff,),
      'wo/kernel': (c.d_ff, c.d_model),
      'logits_dense/kernel': (c.d_model, c.vocab_size),
      'decoder/logits_bias': (1, c.vocab_size),
      'dense/kernel': (c.d_model, c.d_model),
      'mlm_head/bias': (c.vocab_size,),
  }.get(last_two, (c.d_model,))  # scales, and biases of what returns to the model's width
  return (*layers, *inner)
