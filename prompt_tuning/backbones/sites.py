"""The seam: named places of a backbone where a method may put something.

A backbone calls `at(sites, name, x, ...)` and knows nothing of what answers. A site's content is a callable
pytree; on sites inside a layer its leaves carry a leading layer axis [L, ...] so that the layer stack scans
over it.

| site | called with | returns |
|---|---|---|
| `inputs` | embeddings [B, S, D], virtual ids [B, S] (token id - V; negative: a real token) | embeddings |
| `{stack}/attn_kv`, `decoder/cross_attn_kv` | keys and values [B, S, N, H] as they are computed, virtual ids [B, S] of their tokens | the same; its `more` are keys and values that every query sees besides, see `KeysValues` |
| `{stack}/attn_out`, `decoder/cross_attn_out`, `{stack}/mlp_out` | a sub-layer's output before the residual add [B, S, D] | the same |
| `{stack}/mlp_act` | FFN activations after nonlinearity and gate [B, S, F] | the same |
| `{stack}/block_out` | the residual stream behind a layer [B, S, D] | the same |
| `states` | final states [B, S, D] before the LM head, the positions [B, T] that it reads (None: all) and which states are of no padding [B, S] (None: all) | logits of something else, in place of the LM head's |

`{stack}` is `encoder` or `decoder`. A content that is a `Reading` leaves what arrives alone and keeps something of it.
"""  # noqa: E501

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flax import struct
import jax.numpy as jnp

from prompt_tuning.types import Array

Sites = Mapping[str, Callable]

_IN_LAYER = ('attn_kv', 'attn_out', 'mlp_act', 'mlp_out', 'block_out')
NAMES = frozenset(
    ['inputs', 'states', 'decoder/cross_attn_kv', 'decoder/cross_attn_out']
    + [f'{stack}/{site}' for stack in ('encoder', 'decoder') for site in _IN_LAYER])


class HeadsFirst(NamedTuple):
  """Keys and values [..., N, H, S], as a step of decoding reads them without moving them: see `cache.py`."""

  k: Array
  v: Array


class KeysValues(struct.PyTreeNode):
  """Content of an `attn_kv` site that leaves computed keys and values alone and adds P more in front of them.

  Attributes:
    key, value: [L, P, N, H], shared by the batch and never copied, or [L, B, P, N, H]; a layer sees its own, without L.
  """

  key: Array
  value: Array

  @property
  def more(self) -> tuple[Array, Array] | HeadsFirst | None:
    """Keys and values in the softmax of every query, used as they are; None: there are none."""
    return self.key, self.value

  @property
  def length(self) -> int:
    """P: where a model has learned positions and counts what it has seen (GPT-2), its tokens begin there."""
    return self.key.shape[-3]

  def __call__(self, k: Array, v: Array, virtual_ids: Array) -> tuple[Array, Array]:
    """Computed keys and values [B, S, N, H] -> what is kept of them."""
    del virtual_ids
    return k, v


class HeadsFirstKeysValues(KeysValues):
  """The same for decoding, with leaves [L, N, H, P] or [L, B, N, H, P]."""

  @property
  def more(self) -> HeadsFirst:
    return HeadsFirst(self.key, self.value)

  @property
  def length(self) -> int:
    return self.key.shape[-1]


class Reading(struct.PyTreeNode):
  """Content of an `mlp_act` site that keeps `read(x)` in the variables `READ` and lets x pass (`Prompted.read`)."""

  def read(self, x: Array):
    raise NotImplementedError

  def __call__(self, x: Array) -> Array:
    return x


class Chain(struct.PyTreeNode):
  """Several contents of one site, one behind the other."""

  contents: tuple[Callable, ...]

  def __call__(self, x, *args):
    for content in self.contents:
      x = content(x, *args)
    return x


READ = 'read'  # the variable collection of what a `Reading` keeps


def join(first: Sites, second: Sites) -> Sites:
  """The contents of both; where both have one, that of `first` comes first.

  Raises:
    ValueError: keys and values of both: such a site has one content.
  """
  both = set(first) & set(second)
  if shared := sorted(name for name in both if name.endswith('attn_kv')):
    raise ValueError(f'Two methods want the site {", ".join(shared)}; combine methods of different sites.')
  return {**first, **second, **{name: Chain((first[name], second[name])) for name in both}}


def for_decoding(sites: Sites) -> Sites:
  """The sites with keys and values laid out once, before the first step, as each step reads them."""
  lay = lambda site: HeadsFirstKeysValues(heads_first(site.key), heads_first(site.value))
  return {name: lay(site) if type(site) is KeysValues else site for name, site in sites.items()}


def heads_first(x: Array) -> Array:
  """[..., S, N, H] -> [..., N, H, S]."""
  return jnp.moveaxis(x, -3, -1)


def length(sites: Sites, name: str) -> int:
  """P of the `attn_kv` site `name`; 0 where nothing is installed."""
  return sites[name].length if name in sites else 0


def check(sites: Sites) -> None:
  """Raises ValueError if a site is named that no backbone has."""
  if unknown := sorted(set(sites) - NAMES):
    raise ValueError(f'No site is called {", ".join(unknown)}. Sites: {", ".join(sorted(NAMES))}.')


def of_stack(sites: Sites, stack: str) -> Sites:
  """The sites inside the layers of `stack`, without its name."""
  return {name.removeprefix(f'{stack}/'): f for name, f in sites.items() if name.startswith(f'{stack}/')}


def readings(content: Callable | None) -> tuple[Reading, ...]:
  """The readings in the content of a site."""
  contents = content.contents if isinstance(content, Chain) else (content,)
  return tuple(c for c in contents if isinstance(c, Reading))


def kept(variables: Mapping, *path: str) -> dict[str, Array]:
  """What a stack's `Reading`s have kept, {'encoder': {'layers': {'mlp': {'mlp_act': x}}}} -> {'encoder/mlp_act': x}.

  Raises:
    ValueError: segments of a pruned stack keep arrays that are no one array [L, ...].
  """
  found = {}
  for name in sorted(variables, key=lambda name: (len(name), name)):  # layers_2 before layers_10
    value = variables[name]
    for site, x in (kept(value, *path, name) if isinstance(value, Mapping) else {f'{path[0]}/{name}': value}).items():
      if site in found and found[site].shape[1:] != x.shape[1:]:
        raise ValueError(f'{site}: layers of this pruned model differ in what is read of them, {found[site].shape[1:]} '
                         f'and {x.shape[1:]} a layer; read what does not depend on how many neurons a layer has.')
      found[site] = jnp.concatenate([found[site], x]) if site in found else x
  return found


def at(sites: Sites, name: str, x, *args):
  """What the site `name` makes of `x`; `x` itself where nothing is installed."""
  return sites[name](x, *args) if name in sites else x
