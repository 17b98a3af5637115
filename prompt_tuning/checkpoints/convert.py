"""Conversion of whole models between formats, tensor by tensor: about one tensor is in memory at a time."""
from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, huggingface, keys, shards, t5x_writer
from prompt_tuning.checkpoints.source import Source, TensorInfo
from prompt_tuning.checkpoints.storage import Folder
from prompt_tuning.checkpoints.tuned_file import Tuned
from prompt_tuning.types import Params

FORMS = ('huggingface', 't5x', 't5x_scan')


def in_memory(params: Params, config: config_lib.BackboneConfig, tokenizer_path: str | None = None) -> Source:
  """A parameter tree of ours as a checkpoint, to be converted; `params` are whole arrays of this process.

  Args:
    tokenizer_path: what is to lie beside it, such as the `tokenizer_path` of the checkpoint that it was made of.
  """
  arrays = trees.flatten(params)
  return Source(
      path='memory',
      kind='in-memory',
      tensors={path: TensorInfo(tuple(x.shape), np.dtype(x.dtype)) for path, x in arrays.items()},
      config=config,
      read=lambda name, index: np.asarray(arrays[name][index]),
      key_table=lambda config: {path: keys.Entry((path,)) for path in arrays},
      ignored=lambda name: False,
      tokenizer_path=tokenizer_path)


def of_full(trained: Tuned, path: str | os.PathLike, tokenizer_path: str | None = None) -> Source:
  """What full-parameter training made, as a model of its own.

  Args:
    trained: all parameters of a model, as `tuned.load` reads them from a run or its file.
    path: where from, for messages.
    tokenizer_path: as of `in_memory`.

  Raises:
    ValueError: it is of another method, or does not say the dimensions of the model.
  """
  if trained.method != 'full':
    raise ValueError(f'{path}: holds a {trained.method}, which is no model by itself; only what methods/full.gin '
                     'trains is one.')
  try:
    config = config_lib.BackboneConfig(**trained.about['base_config'])
  except (KeyError, TypeError) as error:
    raise ValueError(f'{path}: does not say the dimensions of its model (base_config: {error!r}); use a file that a '
                     'run has written.') from error
  params = {name.removeprefix('full/'): x for name, x in trained.tensors.items()}
  return in_memory(trees.unflatten(params), config, tokenizer_path)


def form_for(source: Source, to: str | os.PathLike) -> str:
  """The format in which a model is to be written to `to`, by its name: `checkpoint_<step>` is T5X."""
  if not re.fullmatch(r'checkpoint_\d+', Folder(to).name):
    return 'huggingface'
  return 't5x_scan' if source.config is not None and source.config.relpos_per_layer else 't5x'


def convert(
    source: Source, to: str | os.PathLike, form: str, *, dtype: str | None = None,
    state: Source | None = None, tick: Callable[[int], None] = lambda nbytes: None) -> None:
  """Writes an opened checkpoint in another format; `to` appears whole or not at all.

  Args:
    form: one of `FORMS`; 't5x_scan' is T5X with scanned layers.
    dtype: 'float32' or 'bfloat16' for all tensors; None keeps the type of each.
    state: the optimizer state of a T5X checkpoint, which is kept if the format allows.
    tick: told how many bytes of parameters were written, after each piece.

  Raises:
    FileExistsError: `to` holds something.
    base.CheckpointMismatchError: parameters are missing, unknown, or of other shapes than the model's.
    ValueError: an unknown format, or one that has no place for this model.
  """
  if form not in FORMS:
    raise ValueError(f'There is no format {form!r} for a model; expected one of {", ".join(FORMS)}.')
  if source.config is None:
    raise ValueError(f'{source.path} does not look like a model that is known here; only T5X checkpoints of T5 are.')
  if source.config.kept_ff and form != 'huggingface':
    raise ValueError(f'{source.path} is a pruned model, and {form} has no place for layers of different widths; '
                     'convert the model that it was made of, or write it as it is (huggingface).')
  table = source.key_table(source.config)
  base.check(source, table, keys.shapes(source.config, table))
  leaves = {path: leaf(source, entry) for path, entry in table.items()}
  config = source.config
  if config.family == 't5' and config.relpos_per_layer != (form == 't5x_scan'):
    config = dataclasses.replace(config, relpos_per_layer=not config.relpos_per_layer)
    leaves = _with_relpos(source, leaves, config)
  parameters = {path: TensorInfo(x.info.shape, jnp.dtype(dtype or x.info.dtype)) for path, x in leaves.items()}
  writing = {
      'huggingface': lambda: huggingface.writing(to, config, parameters, source.tokenizer_path),
      't5x': lambda: t5x_writer.writing(to, config, parameters),
      't5x_scan': lambda: t5x_writer.writing(to, config, parameters, scanned=True),
  }[form]
  with writing() as writer:
    for path in writer.table:
      for first, value in leaves[path].pieces():
        writer.write(path, value.astype(parameters[path].dtype, copy=False), first)
        tick(value.nbytes)
    if keeps_state(source, form):
      for name in filter(source.ignored, source.tensors):
        writer.write_as_is(f'target/{name}', source.read(name, ()))
    if keeps_state(source, form) and state is not None:
      for name in state.tensors:
        writer.write_as_is(f'state/{name}', state.read(name, ()))
      trained = {name for name in source.tensors if any(s.startswith(f'param_states/{name}/') for s in state.tensors)}
      for name in source.tensors.keys() - trained if trained else ():
        writer.write_as_is(f'state/param_states/{name}', None)  # as a MultiOptimizer does


def left_out(source: Source, form: str, state: Source | None) -> list[str]:
  """What of an opened checkpoint a format has no place for, in sentences."""
  notes, kept = [], keeps_state(source, form)
  if state is not None and state.tensors and not kept:
    notes.append('The optimizer state and the step were left out.')
  if (names := [name for name in source.tensors if source.ignored(name)]) and not kept:
    notes.append(f'Not part of the model and left out: {trees.shorten(names, 5, ", ")}.')
  said = {field.name: field.default for field in dataclasses.fields(config_lib.BackboneConfig)}
  unsaid = [name for name in ('relpos_max_distance', 'pad_id', 'eos_id')
            if form != 'huggingface' and getattr(source.config, name) != said[name]]
  if form != 'huggingface' and source.config.mlp_activations[0] not in ('gelu', 'relu'):
    unsaid.append('mlp_activations')
  if unsaid:
    values = ', '.join(f'{name} {getattr(source.config, name)}' for name in unsaid)
    notes.append(f'A T5X checkpoint does not say these dimensions, set them where it is used: {values}.')
  return notes


def keeps_state(source: Source, form: str) -> bool:
  """Whether what T5X keeps beside the model can be copied to `form`: only if layers are laid out the same."""
  scanned = any(name.startswith('encoder/encoder/') for name in source.tensors)
  return source.kind == 'T5X' and form == ('t5x_scan' if scanned else 't5x')


class Leaf(NamedTuple):
  """A parameter of ours in a checkpoint, to be read in pieces.

  Attributes:
    info: its shape and type.
    pieces: (first layer, value) of every piece.
    piecewise: a piece is some of the layers, [l, ...]; else there is one piece, the whole.
  """

  info: TensorInfo
  pieces: Callable[[], Iterator[tuple[int, np.ndarray]]]
  piecewise: bool = False

  def whole(self) -> np.ndarray:
    """All of it."""
    values = [value for _, value in self.pieces()]
    return np.concatenate(values) if self.piecewise else values[0]


def leaf(source: Source, entry: keys.Entry) -> Leaf:
  """The parameter that `entry` describes."""
  shape = entry.our_shape(source.tensors[entry.names[0]].shape)
  types = {source.tensors[name].dtype for name in entry.names}
  dtype = np.dtype(jnp.result_type(*types)) if len(types) > 1 else types.pop()  # of layers that differ, the wider
  bounds = tuple((0, n) for n in (shape[1:] if entry.stacked else shape))

  def pieces():
    for i in range(len(entry.names)):
      value = shards.read(source, entry, i, bounds)
      yield i, value[None] if entry.stacked else value

  return Leaf(TensorInfo(shape, dtype), pieces, entry.stacked)


def _with_relpos(source: Source, leaves: Mapping[str, Leaf], config: config_lib.BackboneConfig) -> dict[str, Leaf]:
  """Repeats the one relative position table of a stack for each of its layers, or the other way round."""
  leaves = dict(leaves)
  for stack, layers in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    one, many = f'{stack}/relpos_bias/rel_embedding', f'{stack}/layers/relpos_bias/rel_embedding'
    old = leaves.pop(one if config.relpos_per_layer else many)
    value = old.whole()
    if config.relpos_per_layer:
      value = np.broadcast_to(value, (layers, *value.shape))
      leaves[many] = Leaf(TensorInfo(value.shape, old.info.dtype), lambda value=value: iter([(0, value)]))
    else:
      if (value != value[:1]).any():
        raise ValueError(f'{source.path} has another relative position table in each layer of the {stack}; of the '
                         'formats only t5x_scan has a place for them.')
      leaves[one] = Leaf(TensorInfo(value.shape[1:], old.info.dtype), lambda value=value: iter([(0, value[0])]))
  return leaves
