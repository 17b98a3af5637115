"""Scores a task: greedy predictions (or target log-probabilities) into the task's own seqio metric functions."""

from collections.abc import Mapping, Sequence
import json
import sys
import time

import jax
import numpy as np

from prompt_tuning import features, loading
from prompt_tuning.methods.base import Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import data, writers


def converter(dataset: data.Dataset, model: Prompted) -> features.Converter:
  """Pads a dataset's examples for a model, virtual tokens in place."""
  config, method = model.backbone.config, model.method
  pieces = dataset.task.output_features['inputs'].vocabulary.vocab_size
  if pieces > config.vocab_size:
    raise ValueError(
        f'{dataset.mixture_or_task_name} has a vocabulary of {pieces} tokens but the base model embeds '
        f'{config.vocab_size}; ids beyond would be virtual tokens. Use a task with the vocabulary of the base.')
  return features.Converter(
      dataset.task_feature_lengths, method.place, method.virtual_tokens, config.vocab_size, config.eos_id,
      dataset.on_truncation)


class Evaluator:
  """Evaluates trainables on one dataset; compiled once."""

  def __init__(self, loaded: loading.Loaded, dataset: data.Dataset):
    self.dataset, self._loaded = dataset, loaded
    length = dataset.task_feature_lengths['targets']
    self._generate = jax.jit(
        lambda trainable, frozen, batch: loaded.model.generate(trainable, frozen, batch, length),
        out_shardings=loaded.partitioner.replicated)
    self._score = jax.jit(loaded.model.score, out_shardings=loaded.partitioner.replicated)

  def __call__(self, trainable) -> tuple[dict[str, float], list[str]]:
    """Returns the metrics and one JSON line an example: input, target, prediction, score.

    Only tasks with score metrics pay for scoring; elsewhere `score` is the prediction's own log-probability.
    """
    task, loaded = self.dataset.task, self._loaded
    convert = converter(self.dataset, loaded.model)
    vocabulary = task.output_features['targets'].vocabulary
    targets, predictions, rows, scores = [], [], [], []
    progress = Progress(unit='example')
    for examples, batch in data.eval_batches(self.dataset, convert):
      batch = loaded.partitioner.place_batch(batch)
      decoded = self._generate(trainable, loaded.frozen, batch)
      tokens, log_probs = (np.asarray(x)[:len(examples)] for x in decoded)
      if task.score_metric_fns:
        scores += np.asarray(self._score(trainable, loaded.frozen, batch))[:len(examples)].tolist()
      for example, ids, log_prob in zip(examples, tokens, log_probs, strict=True):
        text = vocabulary.decode([int(i) for i in ids])
        target = _text(example, 'targets', vocabulary)
        targets.append(task.postprocess_fn(target, example=example, is_target=True))
        predictions.append(task.postprocess_fn(text, example=example, is_target=False))
        rows.append(json.dumps({
            'input': _text(example, 'inputs', vocabulary), 'target': target, 'prediction': text,
            'score': float(log_prob)}, ensure_ascii=False))
      progress.show(len(rows), {})
    metrics: dict[str, float] = {}
    for fns, outputs in ((task.predict_metric_fns, predictions), (task.score_metric_fns, scores)):
      for fn in fns:
        metrics.update({name: float(value) for name, value in fn(targets, outputs).items()})
    if report := convert.report():
      print(f'{self.dataset.mixture_or_task_name}: {report}', file=sys.stderr)
    return metrics, rows


def evaluate(
    *,
    output_dir: str,
    initial_checkpoint_path: str | None,
    method: Method,
    eval_datasets: Sequence[data.Dataset],
    backbone: loading.Backbone = loading.Backbone(),  # noqa: B008 (frozen)
    partitioner: Partitioner | None = None,
    random_seed: int = 0,
) -> Mapping[str, Mapping[str, float]]:
  """The evaluation job: scores a finished method, such as `prompt.load(path)`, on datasets.

  Writes `<task>.jsonl` and `metrics.json` into `output_dir` (EVAL_OUTPUT_DIR) and returns the metrics by task.
  """
  root = writers.writable_folder(output_dir, 'EVAL_OUTPUT_DIR')
  loaded = loading.load(initial_checkpoint_path, method, backbone, partitioner, random_seed)
  trainable = loaded.new_trainable(random_seed)
  began, results = time.monotonic(), {}
  for dataset in eval_datasets:
    loaded.partitioner.check_batch(dataset.batch_size)
    name = dataset.mixture_or_task_name
    results[name], rows = Evaluator(loaded, dataset)(trainable)
    writers.write_lines(root / f'{name}.jsonl', rows)
    print(f'{name}  ' + '  '.join(f'{k} {v:.4f}' for k, v in results[name].items()), flush=True)
  writers.write_json(root / 'metrics.json', {**results, 'seconds': time.monotonic() - began})
  return results


def _text(example, feature: str, vocabulary) -> str:
  if f'{feature}_pretokenized' in example:
    return example[f'{feature}_pretokenized'].decode()
  return vocabulary.decode([int(i) for i in example[feature]])
