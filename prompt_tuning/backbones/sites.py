"""The seam: named places of a backbone where a method may put something.

A backbone calls `at(sites, name, x, ...)` and knows nothing of what answers. A site's content is a callable
pytree; on sites inside a layer its leaves carry a leading layer axis [L, ...] so that the layer stack scans
over it.

| site | called with | returns |
|---|---|---|
| `inputs` | embeddings [B, S, D], virtual ids [B, S] (token id - V; negative: a real token) | embeddings |
| `{stack}/attn_kv`, `decoder/cross_attn_kv` | keys, values of the layer [B, S, N, H] | more keys and values, [P, N, H] or [B, P, N, H], that every query sees in the same softmax |
| `{stack}/attn_out`, `decoder/cross_attn_out`, `{stack}/mlp_out` | a sub-layer's output before the residual add [B, S, D] | the same |
| `{stack}/mlp_act` | FFN activations after nonlinearity and gate [B, S, F] | the same |

`{stack}` is `encoder` or `decoder`.
"""  # noqa: E501

from collections.abc import Callable, Mapping

_IN_LAYER = ('attn_kv', 'attn_out', 'mlp_act', 'mlp_out')
NAMES = frozenset(
    ['inputs', 'decoder/cross_attn_kv', 'decoder/cross_attn_out']
    + [f'{stack}/{site}' for stack in ('encoder', 'decoder') for site in _IN_LAYER])

Sites = Mapping[str, Callable]


def check(sites: Sites) -> None:
  """Raises ValueError if a site is named that no backbone has."""
  if unknown := sorted(set(sites) - NAMES):
    raise ValueError(f'No site is called {", ".join(unknown)}. Sites: {", ".join(sorted(NAMES))}.')


def of_stack(sites: Sites, stack: str) -> Sites:
  """The sites inside the layers of `stack`, without its name."""
  return {name.removeprefix(f'{stack}/'): f for name, f in sites.items() if name.startswith(f'{stack}/')}


def at(sites: Sites, name: str, x, *args):
  """What the site `name` makes of `x`; `x` itself where nothing is installed."""
  return sites[name](x, *args) if name in sites else x
