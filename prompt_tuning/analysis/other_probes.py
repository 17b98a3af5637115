"""One probe beside those of other tasks (Wang et al. 2022, sections 4.2, 4.3 and 5): ranks, noise and transfer."""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from prompt_tuning.analysis import predictivity, transfer

_NOISE_PERCENT = 10  # neurons of each layer that are touched
_OVERLAP_PERCENT = 20  # top neurons of a transfer's target (the paper's)


Other = Mapping[str, Any]
"""What is in `metrics.json` of a probe, and `pred` [K, L, F] and `activated` [L, F] of its `results.npz`."""


def read(paths: Sequence[str], neurons: tuple[int, int]) -> dict[str, Other]:
  """Other probes by the name of their task, or by their folder where two are of one task.

  Args:
    neurons: (L, F) of the model that they must be of.

  Raises:
    FileNotFoundError, ValueError: no probe, or one of another model.
  """
  found = [_read(path, neurons) for path in paths]
  tasks = [other['task'] for other in found]
  names = [path if tasks.count(task) > 1 else task for path, task in zip(paths, tasks, strict=True)]
  return dict(zip(names, found, strict=True))


def own(paths: Sequence[str], task: str) -> tuple[list[str], list[str]]:
  """What the probe of `task` among others probed (its `CHECKPOINT_PATH`), and the folders of the others.

  Raises:
    FileNotFoundError, ValueError: no probe; or none, or several, of the task.
  """
  numbers = {path: json.loads((_folder(path) / 'metrics.json').read_text()) for path in paths}
  found = [path for path in paths if numbers[path]['task'] == task]
  if len(found) != 1:
    raise ValueError(f'CHECKPOINT_PATH=None takes what the probe of {task} among OTHER_PROBES probed, of which there '
                     f'are {len(found)} in {tuple(paths)}; expected one. Set CHECKPOINT_PATH.')
  return numbers[found[0]]['checkpoints'], [path for path in paths if path != found[0]]


def _folder(path: str) -> pathlib.Path:
  folder = pathlib.Path(path)
  if not (folder / 'results.npz').is_file() or not (folder / 'metrics.json').is_file():
    raise FileNotFoundError(f'{path} has no results.npz and metrics.json; expected the PROBE_OUTPUT_DIR of a finished '
                            'probe (OTHER_PROBES, NEURONS_OF).')
  return folder


def _read(path: str, neurons: tuple[int, int]) -> Other:
  folder = _folder(path)
  with np.load(folder / 'results.npz', allow_pickle=False) as file:
    arrays = {'pred': file['pred'], 'activated': file['activated']}
  if arrays['pred'].shape[1:] != neurons:
    raise ValueError(f'{path} has neurons {list(arrays["pred"].shape[1:])}, this model has {list(neurons)} (layers x '
                     'neurons); probe the same base.')
  return {**json.loads((folder / 'metrics.json').read_text()), **arrays}


def compare(
    others: Mapping[str, Other], task: str, pred: np.ndarray, activated: np.ndarray,
    accuracy: Callable[[np.ndarray, int], float], zero_shot: Mapping[str, float]) -> dict[str, Any]:
  """This task against others: rank correlations, noise on their neurons, and their prompts on this task.

  Args:
    pred, activated: of this task, [K, L, F] and [L, F].
    accuracy: (mask [L, F], seed) -> accuracy of this prompt with an intervention.
    zero_shot: accuracy of each of their prompts on this task.
  """
  overall, by_layer = predictivity.cross_task([pred.max(0), *(other['pred'].max(0) for other in others.values())])
  mine = predictivity.top(pred, _OVERLAP_PERCENT)
  moved = {name: {
      'zero_shot_accuracy': zero_shot[name],
      'overlap': transfer.overlap(other['activated'], activated),
      'overlap_of_top_neurons': transfer.overlap(other['activated'], activated, mine),
  } for name, other in others.items()}
  own = accuracy(predictivity.top(pred, _NOISE_PERCENT), 0)
  noise_on = {task: own, **{
      name: accuracy(predictivity.top(other['pred'], _NOISE_PERCENT), 0) for name, other in others.items()}}
  noise_on['its own'] = own  # also where another is of the same task
  found = {
      'tasks': [task, *others], 'spearman': overall.tolist(), 'spearman_by_layer': by_layer.tolist(),
      'spearman_with': {name: {'all': float(overall[0, i]), 'by_layer': by_layer[:, 0, i].tolist()}
                        for i, name in enumerate([task, *others])},
      'noise_on': noise_on, 'transfer': moved}
  if len(moved) > 1:
    column = lambda name: np.array([row[name] for row in moved.values()])
    for name in ('overlap', 'overlap_of_top_neurons'):
      found[f'spearman_{name}'] = float(predictivity.spearman(column(name), column('zero_shot_accuracy')))
  return found
