"""The inference job: predictions for a task's split, a JSONL file or a text file, as JSONL."""

from collections.abc import Iterator, Mapping
import json
import os
import pathlib
import sys

from prompt_tuning import decoding, hosts, loading
from prompt_tuning.interactive import PromptedModel
from prompt_tuning.methods.base import Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.train import writers


class InputError(ValueError):
  """A line of an input file cannot be read; results of the lines before it are kept."""


def read_inputs(path: str) -> Iterator[tuple[str, dict]]:
  """Lines of a `.jsonl` file ({"inputs": text, "targets": text if to be scored}) or of a text file (one input each).

  Yields:
    Where a row stands ('FILE, line N'), and the row. Empty lines are skipped.

  Raises:
    InputError: a malformed line; the message names file and line.
    FileNotFoundError: no such file.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f'INPUT_FILE={path}: no such file; expected .jsonl or text, one input a line.')
  with open(file, encoding='utf-8') as lines:
    for number, line in enumerate(lines, 1):
      where = f'{path}, line {number}'
      if not line.strip():
        continue
      if file.suffix != '.jsonl':
        yield where, {'inputs': line.rstrip('\n')}
        continue
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise InputError(f'{where}: not JSON ({error.msg}); expected {{"inputs": "..."}}.') from error
      if not isinstance(row, dict) or not isinstance(row.get('inputs'), str):
        raise InputError(f'{where}: no "inputs" text; expected {{"inputs": "..."}}.')
      yield where, row


def _read_task(dataset) -> Iterator[tuple[str, dict]]:
  """Rows of a task; where it has several references, all of them as `target`, for `prompt-tuning score`."""
  for number, example in enumerate(dataset.epoch(seed=0)):
    row = {name: example[f'{name}_pretokenized'].decode()
           for name in ('inputs', 'targets') if f'{name}_pretokenized' in example}
    if 'references' in example:
      row['target'] = [text.decode() for text in example['references']]
    yield f'{dataset.mixture_or_task_name}, {dataset.split} example {number}', row


def _checked(rows: Iterator[tuple[str, dict]], model: PromptedModel, max_length: int) -> Iterator[dict]:
  for where, row in rows:
    try:
      model.check(row['inputs'], max_length)
    except ValueError as error:
      raise InputError(f'{where}: {error}') from error
    yield row


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
    decoder: decoding.Decoder | None = None,
    random_seed: int = 0,
) -> Mapping[str, int]:
  """Predicts; writes `<name>-predict.jsonl` with inputs, prediction and score into `output_dir`.

  Rows of a JSONL keep their other fields; one with "targets" also gets `target_score`, the targets' log-probability.
  Where the decoder returns several sequences, `predictions` and `scores` have them all. Until all is done the file is
  called `<name>-predict.jsonl.partial` and grows with each few batches.

  Args:
    input_file: INPUT_FILE, `.jsonl` or text; or
    dataset: a `train.data.Dataset` to read instead.
    max_length: tokens to produce at most.
    decoder: greedy if None, see `decoding`.

  Raises:
    InputError: a malformed line, an empty source or one too long; the results of the lines before it are in the file.
  """
  if (input_file is None) == (dataset is None):
    raise ValueError('Set either INPUT_FILE or MIXTURE_OR_TASK_NAME, not both and not neither.')
  root = writers.writable_folder(output_dir, 'INFER_OUTPUT_DIR')
  loaded = loading.load(initial_checkpoint_path, method, backbone, partitioner, random_seed)
  loaded.partitioner.check_batch(batch_size)
  model = PromptedModel(loaded, loaded.new_trainable(random_seed), batch_size=batch_size)
  name = pathlib.Path(input_file).stem if dataset is None else dataset.mixture_or_task_name
  rows = _checked(_read_task(dataset) if dataset else read_inputs(input_file), model, max_length)
  path = root / f'{name}-predict.jsonl'
  partial = path.with_name(path.name + '.partial')
  done, progress, first = 0, Progress(unit='prediction'), hosts.is_first()
  with open(partial if first else os.devnull, 'w', encoding='utf-8') as output:

    def flush(pending: list[dict]) -> None:
      nonlocal done
      for row in _predict(model, pending, max_length, decoder, done):
        output.write(json.dumps(row, ensure_ascii=False) + '\n')
      output.flush()
      done += len(pending)
      progress.show(done, {})

    pending, failure = [], None
    try:
      for row in rows:
        pending.append(row)
        if len(pending) == 8 * batch_size:  # enough to sort by length
          flush(pending)
          pending = []
    except InputError as error:
      failure = error
    if pending:
      flush(pending)
  if first:
    partial.replace(path)
    print(f'{done} predictions in {path}', file=sys.stderr)
  if failure is not None:
    raise failure
  return {'predictions': done}


def _predict(model: PromptedModel, rows: list[dict], max_length: int, decoder, first: int) -> list[dict]:
  """The rows with what the model says to them."""
  results = []
  for row, found in zip(rows, model.decode([row['inputs'] for row in rows], max_length, decoder, first=first),
                        strict=True):
    row = {**row, 'prediction': found[0].text, 'score': found[0].score}
    if len(found) > 1:
      row |= {'predictions': [one.text for one in found], 'scores': [one.score for one in found]}
    results.append(row)
  scored = [row for row in results if isinstance(row.get('targets'), str)]
  target_scores = model.score([row['inputs'] for row in scored], [row['targets'] for row in scored])
  for row, score in zip(scored, target_scores, strict=True):
    row['target_score'] = score
  return results
