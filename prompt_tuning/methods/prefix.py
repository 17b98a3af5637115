"""Prefix-tuning (Li & Liang 2021): P trainable keys and values in front of those of every layer.

A prefix is used as it is: no norm, no projection, no position is added to it, and every query sees it. GPT-2 counts
its positions on from P, BART and T5 do not. An encoder-decoder has three independent prefixes, for the encoder, the
decoder, and the cross-attention (the released code), each of which can be left out.

While it is trained an MLP makes it (section 4.3); what is kept are keys and values alone. Unlike the released code
nothing is copied for the examples of a batch: they share one prefix, and one mask of prefix dropout.
"""

from collections.abc import Callable, Mapping, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.backbones.sites import KeysValues
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import reparameterization
from prompt_tuning.methods.base import Base, Method, Patch
from prompt_tuning.methods.reparameterization import MLP
from prompt_tuning.types import Array, PyTree, Trainable

Initializer = Callable[[Base, int], Mapping[str, tuple[np.ndarray, np.ndarray]]]
"""(base, P) -> {site: (keys, values) [L, P, N, H]}."""


def from_words(words: str) -> Initializer:
  """The frozen model's activations on a text (section 7.4: real words, if of the task, are the best beginning).

  The text is cut at P tokens, or begun again until there are P; in the paper P is the number of its tokens.
  """

  def init(base, length):
    if base.activations is None:
      raise ValueError(f'{base.path}: a prefix from words needs the model itself, not only its embeddings; load it '
                       'with `loading.load`.')
    if not (ids := base.encode(words)):
      raise ValueError(f'The text {words!r} has no tokens to initialise a prefix from; set INITIAL_TEXT.')
    return base.activations(np.resize(ids, length))

  return init


def from_file(path: str) -> Initializer:
  """A prefix that was trained before, in any form that `checkpoints/tuned.py` reads; P must be its length."""
  return lambda base, length: keys_and_values(tuned.load(path, 'prefix').tensors)


def keys_and_values(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Tensors of a finished prefix or infix by path -> {site: (keys, values)}."""
  names = [name.removesuffix('/key') for name in sorted(tensors) if name.endswith('/key')]
  return {name.partition('/')[2]: (tensors[f'{name}/key'], tensors[f'{name}/value']) for name in names}


def sites_of(config: BackboneConfig) -> tuple[str, ...]:
  """Where a model can have a prefix."""
  if config.encoder_layers and config.decoder_layers:
    return 'encoder/attn_kv', 'decoder/attn_kv', 'decoder/cross_attn_kv'
  return ('encoder/attn_kv',) if config.encoder_layers else ('decoder/attn_kv',)


class Prefix(Method):
  """Keys and values of P virtual tokens at every layer.

  Attributes:
    length: P; 0 leaves the model as it is.
    sites: which of 'encoder/attn_kv', 'decoder/attn_kv' and 'decoder/cross_attn_kv' have one; None: all that the
      model has.
    reparameterization: makes the rows of a site while they are trained, one MLP and embedding a site; None: they are
      trained themselves (the paper: less stable, slightly worse).
    initializer: `from_words` or `from_file`; an MLP is fitted to it (`reparameterization.fit`, which also tells what
      error is left). None: N(0, 1), or the MLP as it begins.
    dropout_rate: of the keys and values while training, one mask for the whole batch.
  """

  length: int = 10
  sites: tuple[str, ...] | None = None
  reparameterization: MLP | None = MLP()
  initializer: Initializer | None = None
  dropout_rate: float = 0.0

  collection = 'prefix'

  def export(self, trainable: Trainable) -> dict[str, Array]:
    """Keys and values [L, P, N, H] as `prefix/<site>/key` and `.../value`."""
    return {f'prefix/{site}/{name}': x for site, params in by_site(trainable.get('prefix', {})).items()
            for name, x in zip(('key', 'value'), generate(params), strict=True)}

  @nn.compact
  def __call__(self, base: Base | None = None) -> Patch:
    """Returns the patch; with `base` (at init), its variables are made."""
    if base is not None:
      for stack, value in self._new(self.make_rng('prefix'), base).items():
        self.variable('prefix', stack, lambda value=value: value)
    variables = by_site(self.variables.get('prefix', {}))
    return Patch(sites={site: KeysValues(*map(self._dropout, generate(params))) for site, params in variables.items()})

  def _dropout(self, x: Array) -> Array:
    if not self.dropout_rate or not self.has_rng('dropout'):
      return x
    keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.dropout_rate, x.shape)
    return jnp.where(keep, x / (1 - self.dropout_rate), 0)

  def _new(self, key: jax.Array, base: Base) -> PyTree:
    legal = sites_of(base.config)
    chosen = legal if self.sites is None else self.sites
    if not chosen or set(chosen) - set(legal):
      raise ValueError(f'PREFIX_SITES={chosen} on a {base.config.family}; expected some of {legal}, or None for all.')
    if not self.length:
      return {}
    given = given_to(chosen, self.initializer, base, self.length)
    return trees.unflatten({
        site: new_site(jax.random.fold_in(key, i), base.config, site, self.length, self.reparameterization,
                       given.get(site), jax.random.normal)
        for i, site in enumerate(legal) if site in chosen})


def given_to(
    sites: Sequence[str], initializer: Initializer | None, base: Base,
    length: int) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
  """What an initializer has for sites; nothing without one.

  Raises:
    ValueError: it has nothing for one of them.
  """
  given = {} if initializer is None else initializer(base, length)
  if given and (missing := sorted(set(sites) - set(given))):
    raise ValueError(f'What to begin from has keys and values for {", ".join(sorted(given))}, none for '
                     f'{", ".join(missing)}; choose a file for a {base.config.family}, or set PREFIX_SITES.')
  return given


def new_site(
    key: jax.Array, config: BackboneConfig, site: str, length: int, mlp: MLP | None,
    given: tuple[np.ndarray, np.ndarray] | None, direct: Callable[[jax.Array, tuple[int, ...]], Array]) -> PyTree:
  """Trainables for the keys and values of a site: {'key', 'value'} [L, P, N, H], or the parameters of an MLP.

  Args:
    given: what they begin as; None: the MLP as it begins, or
    direct: (key, shape) -> array.

  Raises:
    ValueError: `given` is of another shape.
  """
  layers = config.encoder_layers if site.startswith('encoder/') else config.decoder_layers
  shape = (layers, length, config.num_heads, config.head_dim)
  for x in given or ():
    if x.shape != shape:
      raise ValueError(
          f'The prefix of {site} should be {list(shape)} (layers x PREFIX_LENGTH x heads x head width of the base '
          f'model) but its initializer made {list(x.shape)}. Use a prefix made for this base and its length.')
  if mlp is None:
    both = given or [direct(k, shape) for k in jax.random.split(key)]
    return {name: jnp.asarray(x, jnp.float32) for name, x in zip(('key', 'value'), both, strict=True)}
  params = mlp.init(key, length, config.d_model, (layers, 2, *shape[2:]))
  return params if given is None else reparameterization.fit(params, np.stack(given).transpose(2, 1, 0, 3, 4))[0]


def generate(params: PyTree) -> tuple[Array, Array]:
  """Trainables of one site -> its keys and values [L, P, N, H]."""
  if 'key' in params:
    return params['key'], params['value']
  rows = reparameterization.apply(params)  # [P, L, 2, N, H]
  return tuple(rows.transpose(2, 1, 0, 3, 4))


def by_site(collection: Mapping[str, Mapping[str, PyTree]]) -> dict[str, PyTree]:
  """Trainables {stack: {name: params}} -> {site: params}."""
  return {f'{stack}/{name}': params for stack, sites in collection.items() for name, params in sites.items()}


def choose(stacked: PyTree, which: Array) -> PyTree:
  """Gives each example of a batch a prefix of its own.

  Args:
    stacked: K finished prefixes of one length as trainables whose leaves are [K, L, P, N, H].
    which: prefix of each example, [B].

  Returns:
    Trainables with leaves [L, B, P, N, H], for `Prompted` with a `Prefix` of any kind.
  """
  return jax.tree.map(lambda x: jnp.take(x, which, axis=0).swapaxes(0, 1), stacked)
