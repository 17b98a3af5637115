"""A smaller model: of some layers' neurons, only those that are skilled (Wang et al. 2022, section 5).

A neuron that is dropped leaves its baseline behind: what it adds to the output of its layer on average goes into the
bias there, b2' = b2 + sum of a_bsl,i V_i over the dropped neurons i. Differs from the paper's code, which adds that of
the kept neurons too and so counts them twice. T5's MLPs have no bias: a pruned encoder has one in each of its layers.

What comes out is a model like any other (`BackboneConfig.kept_ff`). To tune a prompt on it, write it to a folder,

  convert.convert(convert.in_memory(params, config, tokenizer_path), 'models/pruned', 'huggingface')

and name that as INITIAL_CHECKPOINT_PATH.
"""

import dataclasses
import itertools
import re

import jax.numpy as jnp
import numpy as np

from prompt_tuning import trees
from prompt_tuning.analysis import predictivity
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.types import Array, Params

_LAYERS = 'encoder/layers/'
_OUT = 'mlp/wo/kernel', 'mlp/wo/bias'


def masks_to_keep(pred: np.ndarray, percent: float = 2, layers: tuple[int, int] | None = None) -> np.ndarray:
  """Which neurons to keep, bool [L, F]: of each of `layers` the most predictive ones, of the others all.

  Args:
    pred: predictivity [L, F] or, of sub-tasks, which share what is kept, [K, L, F].
    percent: how many, rounded down.
    layers: the first layer and the one behind the last; None: the top nine, as in the paper (of twelve).

  Raises:
    ValueError: `percent` is out of range or keeps no neuron, or there is no layer in `layers`.
  """
  count, neurons = pred.shape[-2:]
  layers = layers or (max(0, count - 9), count)
  keep = predictivity.top(pred, percent=percent, layers=layers)
  if not keep.any():
    raise ValueError(f'percent={percent} of {neurons} neurons is none; expected at least {100 / neurons:.3g}.')
  keep[:layers[0]] = keep[layers[1]:] = True
  return keep


def prune(
    frozen: Params, config: BackboneConfig, keep: np.ndarray, baseline: np.ndarray) -> tuple[Params, BackboneConfig]:
  """The parameters and the configuration of a model without some neurons of its encoder.

  Args:
    frozen: the parameters of the whole model.
    keep: bool [L, F]; layers side by side of which some neurons are dropped keep equally many.
    baseline: mean activations [L, F]; the paper's are those over the positions of the prompt in the training data.

  Raises:
    ValueError: arrays of other shapes, a baseline that is no number, a layer without a neuron or with more or fewer
      than the one beside it, or a model without an encoder or that is pruned already.
  """
  _check(config, keep, baseline)
  if keep.all():
    return frozen, config
  counts = [int(n) for n in keep.sum(axis=1)]
  config = dataclasses.replace(config, kept_ff=tuple((len(list(run)), n) for n, run in itertools.groupby(counts)))
  flat = trees.flatten(frozen)
  pruned = {path: x for path, x in flat.items() if not path.startswith(_LAYERS)}
  layers = {path.removeprefix(_LAYERS): x for path, x in flat.items() if path not in pruned}
  kernel, bias = (layers.get(name) for name in _OUT)
  layers[_OUT[1]] = fold(kernel, bias, np.where(keep, 0, baseline))
  first = 0
  for name, (length, own) in config.segments('encoder').items():
    rows = slice(first, first + length)
    neurons = np.argsort(~keep[rows], axis=1, kind='stable')[:, :own.d_ff]  # [l, F'], in their order
    pruned |= {f'encoder/{name}/{path}': _taken(path, x[rows], neurons) for path, x in layers.items()}
    first += length
  return trees.unflatten(pruned), config


def fold(kernel: Array, bias: Array | None, activations: np.ndarray) -> Array:
  """The output biases [L, D] to which constant activations [L, F] have been added, by way of the kernels [L, F, D]."""
  added = jnp.einsum('LF,LFD->LD', jnp.asarray(activations, jnp.float32), kernel.astype(jnp.float32),
                     precision='highest')
  return (added if bias is None else added + bias.astype(jnp.float32)).astype(kernel.dtype)


def _taken(path: str, x: Array, neurons: np.ndarray) -> Array:
  """Of a parameter [l, ...] of a layer, what belongs to the neurons [l, F']."""
  if path == _OUT[0]:
    return jnp.take_along_axis(x, neurons[:, :, None], axis=1)
  if re.fullmatch(r'mlp/wi(_\d+)?/(kernel|bias)', path):
    return jnp.take_along_axis(x, neurons if x.ndim == 2 else neurons[:, None], axis=-1)
  return x


def _check(config: BackboneConfig, keep: np.ndarray, baseline: np.ndarray) -> None:
  if config.decoder_only:
    raise ValueError(f'This {config.family} model has no encoder; only neurons of encoders are pruned here.')
  if config.kept_ff:
    raise ValueError(f'This model is pruned already, to (layers, neurons) {config.kept_ff}; prune the one that it was '
                     'made of.')
  shape = (config.encoder_layers, config.d_ff)
  if keep.dtype != bool or keep.shape != shape or baseline.shape != shape:
    raise ValueError(f'keep is {keep.dtype} {keep.shape} and baseline {baseline.shape}; expected bool and float '
                     f'{shape}, of all layers and neurons of the encoder.')
  if not np.isfinite(baseline).all():
    raise ValueError('The baseline has values that are no finite numbers: the model makes none for this data.')
  counts = keep.sum(axis=1)
  if not counts.all():
    raise ValueError(f'Layer {int(np.argmin(counts))} would keep no neuron; expected at least one in each layer.')
  for i, (one, other) in enumerate(itertools.pairwise(counts)):
    if one != other and max(one, other) < config.d_ff:
      raise ValueError(f'Layer {i} would keep {one} neurons and layer {i + 1} {other}; expected equally many in layers '
                       'side by side: choose the best of each layer, not of all.')
