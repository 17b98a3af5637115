"""What a job compiles: its jitted functions with the shapes and shardings of their arguments, and no arrays."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import decoding, features, loading, trees
from prompt_tuning.backbones import sites as sites_lib
from prompt_tuning.methods.full import Full
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.reproduce import cost
from prompt_tuning.train import losses
from prompt_tuning.train import step as step_lib
from prompt_tuning.types import PyTree

JOBS = {'train': 'loop.train', 'eval': 'evaluate.evaluate', 'infer': 'infer.infer'}  # job -> what is configured
SOURCE_LENGTH = 512  # tokens of a text to infer from, where nothing says it


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function of a job.

  Attributes:
    name: 'train step', 'score' or 'generate'.
    function: jitted.
    arguments: shapes with shardings.
    parts: the arguments by what they are: 'frozen', 'trainable', 'optimizer', 'batch'.
    rows: of the batch, on all devices together.
    flops: of one call on all devices, as `reproduce/cost.py` counts them.
    trips: a loop whose end depends on data (decoding) runs so often at most.
    cache: bytes of keys and values that decoding keeps, on all devices together.
    heads: of attention, which partitions share equally.
    saved: bytes of a checkpoint of the run, and of the file of what was trained.
  """

  name: str
  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  parts: Mapping[str, PyTree]
  rows: int
  flops: float
  heads: int
  trips: int = 1
  cache: int = 0
  saved: tuple[int, int] | None = None


def build(job: str, settings: Mapping[str, Any], partitioner: Partitioner) -> list[Program]:
  """The programs of a job.

  Args:
    job: a key of `JOBS`.
    settings: what one of the functions of `JOBS` is called with. The evaluation of a training, or inference with what
      it trains, can be planned from the training's.

  Raises:
    ValueError: settings that do not fit each other, the model or the devices.
  """
  if job == 'train' and 'train_dataset' not in settings:
    raise ValueError('--job=train: nothing to train is configured; expected a configuration with runs/train.gin.')
  loaded = loading.abstract(
      settings.get('initial_checkpoint_path'), settings['method'], settings['backbone'], partitioner)
  if job == 'train':
    return [_train_step(loaded, settings)]
  trainable = _placed(loaded.model.abstract_trainable(), partitioner.replicated)
  shapes = dict.fromkeys(_shapes_read(job, settings))  # each once
  programs = [_generate(loaded, trainable, settings, *shape) for shape in shapes]
  if job == 'eval':
    programs += [_score(loaded, trainable, *shape) for shape in shapes]
  return programs


def _shapes_read(job: str, settings: Mapping[str, Any]) -> Sequence[tuple[int, int, int]]:
  """(rows, tokens of a source, tokens of a target) of what is evaluated or inferred from."""
  if job == 'infer':
    known = settings.get('dataset') or next(iter(settings.get('eval_datasets') or ()), None)
    lengths = known.task_feature_lengths if known else {'inputs': SOURCE_LENGTH, 'targets': 64}
    rows = settings.get('batch_size') or (known.batch_size if 'eval_datasets' in settings and known else 32)
    return [(rows, lengths['inputs'], settings.get('max_length') or lengths['targets'])]
  if not settings.get('eval_datasets'):
    raise ValueError('--job=eval: nothing to evaluate on is configured; expected one with runs/train.gin or '
                     'runs/eval.gin.')
  return [(data.batch_size, data.task_feature_lengths['inputs'], data.task_feature_lengths['targets'])
          for data in settings['eval_datasets']]


def _train_step(loaded: loading.Loaded, settings: Mapping[str, Any]) -> Program:
  model, partitioner, data = loaded.model, loaded.partitioner, settings['train_dataset']
  lengths, microbatches = data.task_feature_lengths, settings.get('microbatches', 1)
  partitioner.check_batch(data.batch_size)
  if data.batch_size % (microbatches * partitioner.mesh.shape['data']):
    raise ValueError(f'BATCH_SIZE={data.batch_size} does not divide into MICROBATCHES={microbatches} on '
                     f'{partitioner.mesh.shape["data"]} data-parallel devices.')
  optimizer = settings['optimizer'](settings['schedule'])
  state = jax.eval_shape(lambda trainable: step_lib.init_state(trainable, optimizer), model.abstract_trainable())
  state, batch = _placed(state, partitioner.replicated), _batch(loaded, data.batch_size, lengths)
  dropout = settings['backbone'].dropout_rate or model.method.dropout_rate
  function = step_lib.make_train_step(
      model, optimizer, settings.get('loss', losses.compute), dropout_seed=0 if dropout else None,
      microbatches=microbatches, use_hardware_rng=settings.get('use_hardware_rng', True))
  trains_all = any(isinstance(one, Full) for one in getattr(model.method, 'methods', (model.method,)))
  flops = cost.flops(
      loaded.config, batch=data.batch_size, encoder_length=lengths['inputs'], virtual_tokens=model.placed,
      decoder_length=model.readout.length or lengths['targets'], trains_all=trains_all)
  parts = {'frozen': loaded.frozen, 'trainable': state.trainable, 'optimizer': (state.step, state.opt_state),
           'batch': batch}
  saved = trees.nbytes(state._asdict()), trees.nbytes(jax.eval_shape(model.export, state.trainable))
  return Program('train step', function, (state, loaded.frozen, batch), parts, data.batch_size, flops,
                 loaded.config.num_heads, saved=saved)


def _score(loaded: loading.Loaded, trainable: PyTree, rows: int, source: int, target: int) -> Program:
  batch = _batch(loaded, rows, {'inputs': source, 'targets': target})
  function = jax.jit(loaded.model.score, out_shardings=loaded.partitioner.replicated)
  return Program('score', function, (trainable, loaded.frozen, batch), _parts(loaded, trainable, batch), rows,
                 _forward(loaded, rows, source, target), loaded.config.num_heads)


def _generate(
    loaded: loading.Loaded, trainable: PyTree, settings: Mapping[str, Any], rows: int, source: int,
    target: int) -> Program:
  model, decoder = loaded.model, settings.get('decoder') or decoding.Greedy()
  limit = model.source_limit(trainable, target)
  if limit is not None and source + model.placed > limit:
    raise ValueError(f'{source} tokens of a source and {model.placed} virtual ones leave no room for {target} more: '
                     f'the model has positions for a source of {limit - model.placed}. Lower TASK_FEATURE_LENGTHS.')
  batch = _batch(loaded, rows, {'inputs': source, 'targets': target})
  keys = jax.eval_shape(decoding.example_keys, np.arange(rows))
  generate = functools.partial(model.generate, length=target, decoder=decoder)
  function = jax.jit(lambda *args: generate(*args[:3], keys=args[3]), out_shardings=loaded.partitioner.replicated)
  decodes = model.readout.length is None
  return Program(
      'generate', function, (trainable, loaded.frozen, batch, keys), _parts(loaded, trainable, batch), rows,
      _forward(loaded, rows, source, target, decoder.width if decodes else 1), loaded.config.num_heads,
      trips=max(1, target - 1),
      cache=_cache(loaded, trainable, rows, source + model.placed, target * decoder.width) if decodes else 0)


def _forward(loaded: loading.Loaded, rows: int, source: int, target: int, width: int = 1) -> float:
  model = loaded.model
  return cost.forward_flops(
      loaded.config, batch=rows, encoder_length=source, virtual_tokens=model.placed,
      decoder_length=model.readout.length or target, width=width)


def _cache(loaded: loading.Loaded, trainable: PyTree, rows: int, source: int, slots: int) -> int:
  """Bytes of the keys and values of `backbones/cache.py`."""
  config = loaded.config
  sites = jax.eval_shape(lambda trainable: loaded.model.method.apply(trainable).sites, trainable)
  context = 1 + sites_lib.length(sites, 'decoder/attn_kv') + (source if config.decoder_only else 0)
  cross = 0 if config.decoder_only else source + sites_lib.length(sites, 'decoder/cross_attn_kv')
  width = jnp.dtype(loaded.model.backbone.dtype).itemsize
  return 2 * config.decoder_layers * rows * config.num_heads * config.head_dim * (context + slots + cross) * width


def _batch(loaded: loading.Loaded, rows: int, lengths: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
  """The features of a batch of full rows."""
  model, readout = loaded.model, loaded.model.readout
  loaded.partitioner.check_batch(rows)
  label = None if readout.length is None else readout.encode
  if label is None and loaded.config.encoder_only:
    raise ValueError(f'A {loaded.config.family} has no decoder to generate a target with. Set READOUT = '
                     '@readouts.Verbalizer() or @readouts.Head(), with LABELS; or @readouts.Span().')
  convert = features.Converter(
      {'inputs': lengths['inputs'], 'targets': readout.length or lengths['targets']}, model.place, model.placed,
      loaded.config.vocab_size, label=label)
  return _placed(convert([], rows), loaded.partitioner.rows)


def _parts(loaded: loading.Loaded, trainable: PyTree, batch: PyTree) -> dict[str, PyTree]:
  return {'frozen': loaded.frozen, 'trainable': trainable, 'batch': batch}


def _placed(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def bytes_per_device(tree: PyTree) -> int:
  """Of the shards that one device holds; what has no sharding is whole."""
  shard = lambda x: x.shape if getattr(x, 'sharding', None) is None else x.sharding.shard_shape(x.shape)
  return sum(math.prod(shard(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
