"""The inference job: predictions for a task's split, a JSONL file or a text file, as JSONL."""

from collections.abc import Iterator, Mapping
import json
import pathlib
import sys

import jax

from prompt_tuning import loading
from prompt_tuning.interactive import PromptedModel
from prompt_tuning.methods.base import Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.train import writers


class InputError(ValueError):
  """A line of an input file cannot be read; results of the lines before it are kept."""


def read_inputs(path: str) -> Iterator[dict]:
  """Lines of a `.jsonl` file ({"inputs": text, "targets": text if to be scored}) or of a text file (one input each).

  Raises:
    InputError: a malformed line; the message names file and line.
    FileNotFoundError: no such file.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f'INPUT_FILE={path}: no such file; expected .jsonl or text, one input a line.')
  with open(file, encoding='utf-8') as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      if file.suffix != '.jsonl':
        yield {'inputs': line.rstrip('\n')}
        continue
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise InputError(f'{path}, line {number}: not JSON ({error.msg}); expected {{"inputs": "..."}}.') from error
      if not isinstance(row, dict) or not isinstance(row.get('inputs'), str):
        raise InputError(f'{path}, line {number}: no "inputs" text; expected {{"inputs": "..."}}.')
      yield row


def _read_task(dataset) -> Iterator[dict]:
  for example in dataset.epoch(seed=0):
    yield {name: example[f'{name}_pretokenized'].decode()
           for name in ('inputs', 'targets') if f'{name}_pretokenized' in example}


def infer(
    *,
    output_dir: str,
    initial_checkpoint_path: str | None,
    method: Method,
    input_file: str | None = None,
    dataset=None,
    backbone: loading.Backbone = loading.Backbone(),  # noqa: B008 (frozen)
    partitioner: Partitioner | None = None,
    batch_size: int = 32,
    max_length: int = 64,
    random_seed: int = 0,
) -> Mapping[str, int]:
  """Predicts; writes `<name>-predict.jsonl` with inputs, prediction and score into `output_dir`.

  Rows of a JSONL keep their other fields; one with "targets" also gets `target_score`, the targets' log-probability.

  Args:
    input_file: INPUT_FILE, `.jsonl` or text; or
    dataset: a `train.data.Dataset` to read instead.
    max_length: tokens to produce at most.

  Raises:
    InputError: a malformed line, after the results of the lines before it are written.
  """
  if (input_file is None) == (dataset is None):
    raise ValueError('Set either INPUT_FILE or MIXTURE_OR_TASK_NAME, not both and not neither.')
  root = writers.writable_folder(output_dir, 'INFER_OUTPUT_DIR')
  loaded = loading.load(initial_checkpoint_path, method, backbone, partitioner, random_seed)
  loaded.partitioner.check_batch(batch_size)
  model = PromptedModel(loaded, loaded.new_trainable(random_seed), batch_size=batch_size)
  name = pathlib.Path(input_file).stem if dataset is None else dataset.mixture_or_task_name
  rows = _read_task(dataset) if dataset else read_inputs(input_file)
  results, failure, progress = [], None, Progress(unit='prediction')
  pending: list[dict] = []

  def flush():
    predictions, scores = model.predict_with_scores([row['inputs'] for row in pending], max_length)
    out = [{**row, 'prediction': p, 'score': s} for row, p, s in zip(pending, predictions, scores, strict=True)]
    if scored := [row for row in out if isinstance(row.get('targets'), str)]:
      target_scores = model.score([row['inputs'] for row in scored], [row['targets'] for row in scored])
      for row, score in zip(scored, target_scores, strict=True):
        row['target_score'] = score
    results.extend(json.dumps(row, ensure_ascii=False) for row in out)
    pending.clear()
    progress.show(len(results), {})

  try:
    for row in rows:
      pending.append(row)
      if len(pending) == 8 * batch_size:  # enough to sort by length
        flush()
  except InputError as error:
    failure = error
  if pending:
    flush()
  path = root / f'{name}-predict.jsonl'
  if jax.process_index() == 0:
    writers.write_lines(path, results)
  print(f'{len(results)} predictions in {path}', file=sys.stderr)
  if failure is not None:
    raise failure
  return {'predictions': len(results)}
