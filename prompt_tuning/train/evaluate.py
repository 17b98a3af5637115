"""Scores a task: predictions (or target log-probabilities) into the task's own seqio metric functions."""

from collections.abc import Mapping, Sequence
import functools
import json
import sys
import time

import jax
import numpy as np

from prompt_tuning import decoding, ensemble, features, hosts, loading
from prompt_tuning.methods.base import Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.prompted import Prompted
from prompt_tuning.tokenizer import AnyTokenizer
from prompt_tuning.train import batches as batches_lib
from prompt_tuning.train import data, writers


def converter(
    dataset: data.Dataset, model: Prompted, tokenizer: AnyTokenizer, row_multiple: int = 1) -> features.Converter:
  """Pads a dataset's examples for a model and its tokenizer, virtual tokens in place.

  Args:
    row_multiple: what the rows of an array must be a multiple of.

  Raises:
    ValueError: model, tokenizer and task do not belong together, or what is read from a model cannot be packed.
  """
  config, readout = model.backbone.config, model.readout
  label = None if readout.length is None else readout.encode
  if label is None and config.encoder_only:
    raise ValueError(f'A {config.family} has no decoder to generate a target with. Set READOUT = @readouts.Verbalizer()'
                     ' or @readouts.Head(), with the targets of the task as LABELS; or @readouts.Span().')
  if dataset.batching.packs and not readout.packs:
    raise ValueError(f'{type(readout).__name__} tells places of a row apart, which packed rows have several examples '
                     'of. Use BATCHING = @batching.Bucketed().')
  layout = features.layout_of(config, tokenizer)
  encode = data.encoder(dataset, tokenizer, layout, targets=label is None)
  pieces = max(feature.vocabulary.vocab_size for feature in dataset.task.output_features.values())
  if encode is None and pieces > config.vocab_size:
    raise ValueError(
        f'{dataset.mixture_or_task_name} has a vocabulary of {pieces} tokens but the base model embeds '
        f'{config.vocab_size}; ids beyond would be virtual tokens. Use a task with the vocabulary of the base.')
  lengths = {**dataset.task_feature_lengths, **({'targets': readout.length} if label else {})}
  return features.Converter(
      lengths, model.place, model.placed, config.vocab_size, layout, dataset.on_truncation, encode, label,
      dataset.batching, row_multiple)


class Evaluator:
  """Evaluates trainables on one dataset; compiled once."""

  def __init__(self, loaded: loading.Loaded, dataset: data.Dataset, decoder: decoding.Decoder | None = None):
    """`decoder`: None is greedy; of several sequences the first is the prediction."""
    self.dataset, self._loaded = dataset, loaded
    self._generate = jax.jit(
        functools.partial(loaded.model.generate, length=dataset.task_feature_lengths['targets'], decoder=decoder),
        out_shardings=loaded.partitioner.replicated)
    self._score = jax.jit(loaded.model.score, out_shardings=loaded.partitioner.replicated)

  def __call__(self, trainable) -> tuple[dict[str, float], list[str]]:
    """Returns the metrics and one JSON line an example: input, target (or its references), prediction, score.

    Only tasks with score metrics pay for scoring, and those with no others have no prediction. `score` is the
    log-probability of the prediction, or of the target where there is none.
    """
    task, loaded = self.dataset.task, self._loaded
    convert = converter(self.dataset, loaded.model, loaded.tokenizer)
    vocabulary = task.output_features['targets'].vocabulary
    decode = lambda ids, source: vocabulary.decode(ids)  # T5's sentinels too
    if convert.label is not None:
      decode = loaded.model.readout.decode
    elif convert.encode is not None:
      decode = lambda ids, source: convert.layout.decode(loaded.tokenizer, ids)
    generating = bool(task.predict_metric_fns) or not task.score_metric_fns
    found: dict[int, tuple] = {}  # of each example: target, prediction, score, row
    progress = Progress(unit='example')
    for numbers, examples, batch in batches_lib.eval_batches(self.dataset, convert):
      sources = batch['encoder_input_tokens']
      batch = loaded.partitioner.place_batch(batch)
      if task.score_metric_fns:
        log_probs = scores = np.asarray(self._score(trainable, loaded.frozen, batch))
      if generating:
        keys = decoding.example_keys(np.resize(numbers, self.dataset.batch_size))
        decoded = self._generate(trainable, loaded.frozen, batch, keys=keys)
        tokens, log_probs = (np.asarray(x)[:, 0] for x in (decoded.tokens, decoded.log_probs))
      for i, (number, example, source) in enumerate(zip(numbers, examples, sources, strict=False)):
        target, prediction = _text(example, 'targets', vocabulary), None
        goal = task.postprocess_fn(target, example=example, is_target=True)
        row = {'input': _text(example, 'inputs', vocabulary), 'target': goal if isinstance(goal, list) else target}
        if generating:
          row['prediction'] = decode([int(token) for token in tokens[i]], source)
          prediction = task.postprocess_fn(row['prediction'], example=example, is_target=False)
        line = json.dumps({**row, 'score': float(log_probs[i])}, ensure_ascii=False)
        found[number] = (goal, prediction, float(scores[i]) if task.score_metric_fns else None, line)
      progress.show(len(found), {})
    targets, predictions, scores, rows = ([found[i][column] for i in range(len(found))] for column in range(4))
    metrics: dict[str, float] = {}
    for fns, outputs in ((task.predict_metric_fns, predictions), (task.score_metric_fns, scores)):
      for fn in fns:
        metrics.update({name: float(value) for name, value in fn(targets, outputs).items()})
    if hosts.is_first() and (report := convert.report()):
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
    decoder: decoding.Decoder | None = None,
    random_seed: int = 0,
) -> Mapping[str, Mapping[str, float]]:
  """The evaluation job: scores a finished method, such as `finished.load(path)`, on datasets.

  Writes `<task>.jsonl` and `metrics.json` into `output_dir` (EVAL_OUTPUT_DIR) and returns the metrics by task.
  """
  root = writers.writable_folder(output_dir, 'EVAL_OUTPUT_DIR')
  loaded = loading.load(initial_checkpoint_path, method, backbone, partitioner, random_seed)
  return _score(loaded, loaded.new_trainable(random_seed), eval_datasets, decoder, root)


def evaluate_ensemble(
    *,
    output_dir: str,
    initial_checkpoint_path: str,
    checkpoint_paths: Sequence[str],
    eval_datasets: Sequence[data.Dataset],
    backbone: loading.Backbone = loading.Backbone(),  # noqa: B008 (frozen)
    partitioner: Partitioner | None = None,
    decoder: decoding.Decoder | None = None,
) -> Mapping[str, Mapping[str, float]]:
  """Scores the majority vote of what was trained several times (Lester et al. 2021, section 6); else as `evaluate`."""
  root = writers.writable_folder(output_dir, 'EVAL_OUTPUT_DIR')
  loaded, trainable = ensemble.read(initial_checkpoint_path, checkpoint_paths, backbone, partitioner)
  return _score(loaded, trainable, eval_datasets, decoder, root)


def _score(loaded: loading.Loaded, trainable, eval_datasets, decoder, root) -> dict[str, Mapping[str, float]]:
  began, results = time.monotonic(), {}
  for dataset in eval_datasets:
    loaded.partitioner.check_batch(dataset.batch_size)
    name = dataset.mixture_or_task_name
    results[name], rows = Evaluator(loaded, dataset, decoder)(trainable)
    if hosts.is_first():
      writers.write_lines(root / f'{name}.jsonl', rows)
      print(f'{name}  ' + '  '.join(f'{k} {v:.4f}' for k, v in results[name].items()), flush=True)
  results['seconds'] = time.monotonic() - began
  if hosts.is_first():
    writers.write_json(root / 'metrics.json', results)
  return results


def _text(example, feature: str, vocabulary) -> str:
  """The text of a feature; none for the source of a language modelling task."""
  if f'{feature}_pretokenized' in example:
    return example[f'{feature}_pretokenized'].decode()
  return vocabulary.decode([int(i) for i in example.get(feature, ())])
