"""A frozen base from a checkpoint, on the mesh, with a method on top: the first step of every job."""

from collections.abc import Callable, Sequence
import dataclasses
import os

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import quantized, trees
from prompt_tuning.backbones import bart, fused, gpt2, roberta, t5
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.checkpoints import base as base_checkpoints
from prompt_tuning.checkpoints.storage import is_remote
from prompt_tuning.methods import readouts
from prompt_tuning.methods.base import Base, Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.prompted import Prompted
from prompt_tuning.tokenizer import T5_VOCABULARY, AnyTokenizer, open_tokenizer
from prompt_tuning.types import Params, PyTree, Trainable

BACKBONES: dict[str, type[nn.Module]] = {
    't5': t5.T5, 'gpt2': gpt2.GPT2, 'bart': bart.BART, 'roberta': roberta.RoBERTa, 'bert': roberta.RoBERTa}

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PARAM_DTYPES = (*DTYPES, 'int8')


@dataclasses.dataclass(frozen=True)
class Backbone:
  """How to run the base; what it is comes from its checkpoint.

  Attributes:
    size: a name of the size table, only needed where no checkpoint says it (a random base).
    dtype: of activations, 'float32' or 'bfloat16'.
    param_dtype: of the frozen parameters in memory, 'float32', 'bfloat16' or 'int8' (matrices alone, see `quantized`).
    dropout_rate: of the frozen model while training (Lester et al. 2021 leave T5's 0.1 on).
    scan: one compiled layer in a loop (fast to compile), else unrolled (faster on a CPU).
    remat: 'none', 'dots' or 'full', see `backbones/stack.py`.
    attention: 'einsum', 'xla' or 'cudnn' (on GPUs), see `backbones/fused.py`.
    tokenizer: a folder or file of its tokenizer; None: what lies beside the checkpoint, else T5's own for T5.
    readout: what is read from it: its text, or a label.
  """

  size: str | None = None
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  dropout_rate: float = 0.1
  scan: bool = True
  remat: str = 'none'
  attention: str = 'einsum'
  tokenizer: str | None = None
  readout: readouts.Readout = readouts.TextToText()  # noqa: RUF009 (frozen)

  def __post_init__(self):
    for name, known in (('dtype', DTYPES), ('param_dtype', PARAM_DTYPES)):
      if getattr(self, name) not in known:
        raise ValueError(f'Backbone.{name}={getattr(self, name)!r}; expected one of {", ".join(known)}.')

  def module(self, config: BackboneConfig) -> nn.Module:
    """The backbone of that configuration.

    Raises:
      ValueError: there is none for its family of models, or its attention cannot be computed as asked for.
    """
    if config.family not in BACKBONES:
      raise ValueError(f'There is no backbone for models of the family {config.family!r} yet (there is one for: '
                       f'{", ".join(BACKBONES)}); its checkpoint can be inspected and converted, not run.')
    fused.check(self.attention, DTYPES[self.dtype], config.head_dim)
    return BACKBONES[config.family](
        config, dtype=DTYPES[self.dtype], dropout_rate=self.dropout_rate, scan=self.scan, remat=self.remat,
        attention=self.attention)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model in memory: pure functions, frozen parameters, and what is known of their origin."""

  model: Prompted
  frozen: Params
  known_tokenizer: AnyTokenizer | None
  partitioner: Partitioner
  path: str
  abstract: Params  # shapes boxed with logical axis names

  @property
  def config(self) -> BackboneConfig:
    return self.model.backbone.config

  @property
  def tokenizer(self) -> AnyTokenizer:
    """Raises ValueError if there is none; a model without can be loaded as long as no text is needed."""
    return _needed(self.known_tokenizer, self.config, self.path)

  def base(self) -> Base:
    """What initialisers of a method may see."""
    table = self.frozen['token_embedder']
    take = jax.jit(lambda table, ids: quantized.dequantized(jax.tree.map(
        lambda x: jnp.take(x, ids, axis=0, mode='fill'), table))['embedding'].astype(jnp.float32),
                   out_shardings=self.partitioner.replicated)
    rows = lambda ids: np.asarray(take(table, _known(ids, self.config, self.path)))
    read = jax.jit(
        lambda frozen, tokens: self.model.apply(frozen, tokens, method='activations'),
        out_shardings=self.partitioner.replicated)

    def activations(ids):
      both = read(self.frozen, _known(ids, self.config, self.path)[None])
      return {site: tuple(np.asarray(x[name][:, 0], np.float32) for name in ('k', 'v')) for site, x in both.items()}

    return Base(self.config, rows, lambda text: self.tokenizer.encode(text), self.path, self.fingerprint, activations,
                lambda: self.frozen)

  def new_trainable(self, seed: int) -> Trainable:
    """The method's trainables as its initialisers make them, whole on every device."""
    return self.partitioner.replicate(self.model.init(jax.random.key(seed), self.base()))

  def fingerprint(self) -> str:
    """Of the frozen parameters' content."""
    return base_checkpoints.fingerprint(self.frozen)


def load(
    path: str | None, method: Method, backbone: Backbone | None = None, partitioner: Partitioner | None = None,
    seed: int = 0) -> Loaded:
  """Reads a base checkpoint straight into its shards.

  Args:
    path: INITIAL_CHECKPOINT_PATH: a Hugging Face folder or a T5X checkpoint; None: random parameters of
      `backbone.size` from `seed`, for smoke runs.

  Raises:
    ValueError: the checkpoint does not fit the size asked for, or the mesh does not fit the model.
  """
  backbone, partitioner = backbone or Backbone(), partitioner or Partitioner()
  source = None if path is None else base_checkpoints.open_base(path)
  loaded = _described(path, source, method, backbone, partitioner)
  abstract, shardings = loaded.frozen, jax.tree.map(lambda x: x.sharding, loaded.frozen)
  if source is None:
    frozen = random_params(loaded.model, abstract, shardings, jax.random.key(seed))
  else:
    frozen = base_checkpoints.load_params(source, abstract, shardings, tick=megabytes(trees.nbytes(abstract)))
  return dataclasses.replace(loaded, frozen=frozen)


def abstract(path: str | None, method: Method, backbone: Backbone, partitioner: Partitioner) -> Loaded:
  """What `load` returns with shapes, types and shardings in place of arrays, for any size and any devices.

  A checkpoint that is remote or not there (yet) is not looked for if `backbone.size` says what it is.

  Raises:
    ValueError: it is not known what the base is, or the mesh does not fit it.
  """
  here = path is not None and not is_remote(path) and os.path.exists(path)
  if not here and backbone.size is None:
    raise ValueError(f'INITIAL_CHECKPOINT_PATH={path!r} cannot be looked into from here, so MODEL_SIZE must say what '
                     f'it is: one of {", ".join(config_lib.SIZES)}.')
  if not here and backbone.tokenizer is None and isinstance(backbone.readout, readouts.Verbalizer):
    backbone = dataclasses.replace(backbone, readout=backbone.readout.clone(seed=0))  # any words will do
  return _described(path, base_checkpoints.open_base(path) if here else None, method, backbone, partitioner)


def _described(path: str | None, source: base_checkpoints.Source | None, method: Method, backbone: Backbone,
               partitioner: Partitioner) -> Loaded:
  """What is known of a base before its parameters are read: they are shapes, types and shardings."""
  if backbone.size is not None:
    config = config_lib.from_size(backbone.size)
    if source is not None and source.config is not None:
      config = dataclasses.replace(
          config, relpos_buckets=source.config.relpos_buckets, relpos_max_distance=source.config.relpos_max_distance,
          relpos_per_layer=source.config.relpos_per_layer)
  elif source is not None:
    config = source.config
  else:
    raise ValueError('Neither INITIAL_CHECKPOINT_PATH nor MODEL_SIZE is set: name a base checkpoint, or a size '
                     f'({", ".join(config_lib.SIZES)}) for random parameters.')
  partitioner.check_heads(config.num_heads)
  fused.check(backbone.attention, DTYPES[backbone.dtype], config.head_dim, partitioner.mesh.devices.flat[0].platform)
  tokenizer = _tokenizer(backbone.tokenizer or (source and source.tokenizer_path), config)
  if config.mask_id is None and tokenizer is not None:
    config = dataclasses.replace(config, mask_id=tokenizer.mask_id if config.encoder_only else None)
  model = Prompted(
      backbone.module(config), method.bind(config, tokenizer), backbone.readout.bind(config, tokenizer),
      partitioner.constraints)
  boxed = stored(model.abstract_frozen(), backbone.param_dtype)
  frozen = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), nn.meta.unbox(boxed),
      partitioner.shardings(boxed))
  return Loaded(model, frozen, tokenizer, partitioner, path or f'random {backbone.size}', boxed)


def stored(boxed: PyTree, param_dtype: str) -> PyTree:
  """Shapes of a float32 tree, boxed with the logical names of their axes, as `Backbone.param_dtype` has them."""
  if param_dtype == 'int8':
    return quantized.abstract(boxed)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, DTYPES[param_dtype]), boxed)


def random_params(model: Prompted, abstract: PyTree, shardings: PyTree, key: jax.Array) -> Params:
  """Random parameters in the types of `abstract`; int8 ones one by one, or all of them would be float32 for a while."""
  where, params = trees.flatten(shardings), {}
  for paths in quantized.apart(trees.flatten(abstract)):

    def make(key, paths=paths):
      every = trees.flatten(quantized.cast(nn.meta.unbox(init_params(model, key)), abstract))
      return {path: every[path] for path in paths}

    params |= jax.jit(make, out_shardings={path: where[path] for path in paths})(key)
  return trees.unflatten(params)


def megabytes(total: int) -> Callable[[int], None]:
  """A progress line to be told of `total` bytes, some at a time; nothing is shown of what takes few seconds."""
  progress, done = Progress(round(total / 1e6), unit='MB'), 0

  def tick(nbytes: int) -> None:
    nonlocal done
    done += nbytes
    progress.show(round(done / 1e6), {})

  return tick


def base_of(path: str) -> Base:
  """What initialisers may see of a checkpoint, without loading it: rows of its embedding table are read as needed.

  Raises:
    FileNotFoundError, ValueError: there is no checkpoint, or none of a model that is known here.
  """
  source = base_checkpoints.open_base(path)
  if source.config is None:
    raise ValueError(f'{path} does not look like a model that is known here.')
  (name,) = source.key_table(source.config)['token_embedder/embedding'].names

  def rows(ids):
    ids = _known(ids, source.config, path)
    first = ids.min()
    between = source.read(name, (slice(first, ids.max() + 1),))  # at once: T5X's chunks are many rows
    return between[ids - first].astype(np.float32)

  tokenizer = _tokenizer(source.tokenizer_path, source.config)
  return Base(source.config, rows, lambda text: _needed(tokenizer, source.config, path).encode(text))


def _tokenizer(path: str | None, config: BackboneConfig) -> AnyTokenizer | None:
  """The tokenizer there; T5's own where T5 comes without."""
  path = path or (T5_VOCABULARY if config.family == 't5' else None)
  return path and open_tokenizer(path, config.family)


def _needed(tokenizer: AnyTokenizer | None, config: BackboneConfig, path: str) -> AnyTokenizer:
  if tokenizer is None:
    raise ValueError(f'{path}: this {config.family} model comes without a tokenizer, and text is to be read. Copy its '
                     "tokenizer's files into its folder, or name their folder by Backbone.tokenizer.")
  return tokenizer


def _known(ids: Sequence[int], config: BackboneConfig, path: str) -> np.ndarray:
  """The ids [n], if the model has them all."""
  ids = np.asarray(ids)
  if (worst := ids.max()) >= config.vocab_size:
    raise ValueError(f'Token {worst} is beyond the {config.vocab_size} rows of the embedding table of {path}: the '
                     'words to initialise from are not of its vocabulary; use other words, or its own spiece.model.')
  return ids


def init_params(model: Prompted, key: jax.Array):
  """Random parameters of a backbone, boxed."""
  tokens = jnp.ones((1, 1), jnp.int32)
  return model.backbone.init(key, {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens})['params']


def model_info(loaded: Loaded, trainable) -> str:
  """One line a variable as T5X's model-info.txt: path, size, shape with axis names, partition spec; then totals."""
  shardings = trees.flatten(loaded.partitioner.shardings(loaded.abstract))
  axes = trees.flatten(nn.get_partition_spec(loaded.abstract))
  lines = []
  for path, x in sorted(trees.flatten(nn.meta.unbox(loaded.abstract)).items()):
    names = (*axes[path], *[None] * (len(x.shape) - len(axes[path])))
    shape = ', '.join(f'{name}={n}' for name, n in zip(names, x.shape, strict=True))
    lines.append(f'Frozen    {path:<62} size {x.size:<12} shape ({shape})  partition spec {shardings[path].spec}')
  for path, x in sorted(trees.flatten(trainable).items()):
    lines.append(f'Trainable {path:<62} size {x.size:<12} shape {tuple(x.shape)}  partition spec PartitionSpec()')
  frozen, small = trees.size(nn.meta.unbox(loaded.abstract)), trees.size(trainable)
  share = f'{small / (frozen + small):.4%} of all'
  lines += ['', f'Devices:              {loaded.partitioner.describe(loaded.abstract)}',
            f'Frozen parameters:    {frozen}', f'Trainable parameters: {small} ({share})']
  return '\n'.join(lines) + '\n'
