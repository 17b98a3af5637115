"""`prompt-tuning prune`: from a probe to a smaller base, a checkpoint like any other (Wang et al. 2022, section 5)."""

import pathlib
import sys
from typing import Any

import numpy as np

from prompt_tuning import loading, trees
from prompt_tuning.analysis import prune
from prompt_tuning.checkpoints import base as base_checkpoints
from prompt_tuning.checkpoints import convert
from prompt_tuning.methods.together import Together
from prompt_tuning.partitioning import Partitioner


def prune_base(
    *, output_dir: str, initial_checkpoint_path: str, probe_dir: str, percent: float = 2.0,
    layers: tuple[int, int] | None = None, backbone: loading.Backbone = loading.Backbone(),  # noqa: B008 (frozen)
    partitioner: Partitioner | None = None) -> dict[str, Any]:
  """Keeps a base's skill neurons and folds what the others do on average into a bias.

  Args:
    output_dir: PRUNED_DIR, the new base: INITIAL_CHECKPOINT_PATH of a run that tunes a prompt again.
    initial_checkpoint_path: the base that was probed.
    probe_dir: PROBE_DIR, PROBE_OUTPUT_DIR of that probe; its first trial's baselines are what is folded in.
    percent: of the neurons of each pruned layer that are kept.
    layers: the first layer that is pruned and the one behind the last; None: the top nine, or all of fewer.

  Returns:
    Parameters before and after, and neurons kept by layer.

  Raises:
    FileNotFoundError, ValueError: no probe, one of another model, int8 parameters, or a share or layers that select
      nothing; nothing is written then.
  """
  results = pathlib.Path(probe_dir) / 'results.npz'
  if not results.is_file():
    raise FileNotFoundError(f'PROBE_DIR={probe_dir} has no results.npz; expected PROBE_OUTPUT_DIR of a probe.')
  with np.load(results, allow_pickle=False) as file:
    pred, baseline = file['pred'], file['prompt_0_baseline'].mean((0, 2))  # [K, L, F], [L, F]
  if backbone.param_dtype == 'int8':
    raise ValueError('A pruned model is made of floating-point numbers; set PARAMETER_DTYPE to float32 or bfloat16. '
                     'What was probed may have been int8.')
  loaded = loading.load(initial_checkpoint_path, Together(), backbone, partitioner)
  config = loaded.config
  if pred.shape[1:] != (config.encoder_layers, config.d_ff):
    raise ValueError(f'PROBE_DIR={probe_dir} has neurons {list(pred.shape[1:])} (layers x neurons), the encoder of '
                     f'{initial_checkpoint_path} has {[config.encoder_layers, config.d_ff]}; probe this base at its '
                     'prompt.')
  keep = prune.masks_to_keep(pred, percent, layers)
  smaller, pruned = prune.prune(loaded.frozen, config, keep, baseline)
  tokenizer = base_checkpoints.open_base(initial_checkpoint_path).tokenizer_path
  convert.convert(convert.in_memory(smaller, pruned, backbone.tokenizer or tokenizer), output_dir, 'huggingface')
  numbers = {'parameters': trees.size(loaded.frozen), 'parameters_pruned': trees.size(smaller),
             'kept': keep.sum(1).tolist()}
  share = numbers['parameters_pruned'] / numbers['parameters']
  print(f'{numbers["parameters_pruned"]:,} of {numbers["parameters"]:,} parameters ({share:.1%}) in {output_dir}',
        file=sys.stderr)
  return numbers
