"""The training job: load a frozen base, train the small thing on top, evaluate, checkpoint, resume.

T5X's trainer counts the steps of pretraining in TRAIN_STEPS; here TRAIN_STEPS are steps of this run. Where a run goes
on with pretraining, INITIAL_STEP says how many came before: see `pretrained.py`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import batching, decoding, hosts, loading, trees
from prompt_tuning.checkpoints import run as run_checkpoints
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import readouts
from prompt_tuning.methods.base import Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.tasks import metrics as task_metrics
from prompt_tuning.train import batches as batches_lib
from prompt_tuning.train import data, losses, optim, pretrained, writers
from prompt_tuning.train import evaluate as evaluate_lib
from prompt_tuning.train import step as step_lib


class NonFiniteLossError(FloatingPointError):
  """The loss became NaN or infinite; the last checkpoint is from before."""


def train(
    *,
    model_dir: str,
    initial_checkpoint_path: str | None,
    method: Method,
    train_dataset: data.Dataset,
    eval_datasets: Sequence[data.Dataset] = (),
    train_steps: int,
    optimizer: optim.Optimizer,
    schedule: optim.Schedule,
    backbone: loading.Backbone = loading.Backbone(),  # noqa: B008 (frozen)
    partitioner: Partitioner | None = None,
    loss: Callable[..., losses.Loss] = losses.compute,
    initial_step: int | str = 0,
    restore_optimizer: bool = False,
    random_seed: int = 0,
    use_hardware_rng: bool = True,
    microbatches: int = 1,
    eval_period: int = 1000,
    eval_initial: bool = False,
    save_period: int = 1000,
    log_period: int = 10,
    keep: int = 2,
    best_metric: str | None = None,
    early_stopping_patience: int | None = None,
    decoder: decoding.Decoder | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Mapping[str, object]:
  """Trains `method` on a frozen base; every argument is a gin parameter.

  Args:
    model_dir: MODEL_DIR; a run found there is resumed from its newest checkpoint.
    initial_checkpoint_path: the base, see `loading.load`.
    loss: `losses.compute` with its options.
    train_steps: of this run; behind those of `initial_step`.
    initial_step, restore_optimizer: steps that came before, and their optimizer's state, see `pretrained.py`.
    random_seed: fixes initialisation, data order and dropout.
    eval_period, save_period, log_period: in steps.
    eval_initial: evaluate the untrained method too, as the step before the first (at the end, so that training begins
      at once).
    best_metric: 'metric' or 'task/metric' that chooses the best checkpoint; None: the mean over the evaluated tasks
      of the mean of each one's metrics (Lester et al. 2021). A 'metric' alone is that of the first task.
    early_stopping_patience: stop after so many evaluations without a better one.
    decoder: of evaluations, see `decoding`; None: greedy.
    on_start: called when everything is built, before the first step (the entry point saves the configuration).

  Returns:
    What `summary.json` holds: last and best step, whether SIGTERM ended it, metrics before and after, seconds (of
    training alone, and of everything), bytes of what is trained and of what is frozen.

  Raises:
    NonFiniteLossError: with the range of steps.
    checkpoints.run.ResumeError: MODEL_DIR holds another run.
  """
  began = time.monotonic()
  preemption = hosts.Preemption()
  first = hosts.is_first()
  tell = (lambda text: print(text, file=sys.stderr, flush=True)) if first else lambda text: None

  # --- The frozen base, in its shards.
  root = writers.writable_folder(model_dir, 'MODEL_DIR')
  partitioner = partitioner or Partitioner()
  for dataset in (train_dataset, *eval_datasets):
    partitioner.check_batch(dataset.batch_size)
  if train_dataset.batch_size % (microbatches * partitioner.mesh.shape['data']):
    raise ValueError(
        f'BATCH_SIZE={train_dataset.batch_size} does not divide into MICROBATCHES={microbatches} on '
        f'{partitioner.mesh.shape["data"]} data-parallel devices.')
  loaded = loading.load(initial_checkpoint_path, method, backbone, partitioner, random_seed)
  method = loaded.model.method
  model, frozen = loaded.model, loaded.frozen

  # --- The trainables and their optimizer.
  first_step = pretrained.first_step(initial_step, initial_checkpoint_path)
  end = first_step + train_steps
  optimizer_ = optimizer(schedule if restore_optimizer else pretrained.from_step(schedule, first_step, train_steps))
  trainable = loaded.new_trainable(random_seed)
  state = partitioner.replicate(step_lib.init_state(trainable, optimizer_)._replace(step=np.int32(first_step)))
  tell(f'{trees.size(trainable)} trainable on {trees.size(frozen)} frozen parameters ({loaded.path}), '
       f'{partitioner.describe(loaded.abstract)}')

  # --- What was done before, if anything.
  checkpoints = run_checkpoints.RunCheckpoints(model_dir, keep)
  about = {
      'base_fingerprint': loaded.fingerprint(), 'base_path': loaded.path, 'seed': random_seed,
      'optimizer': name_of(optimizer), 'initial_step': first_step,
      'restore_optimizer': restore_optimizer, 'method': repr(method).split('\n')[0], **settings_of(model),
      'state': run_checkpoints.description(state._asdict())}
  position, best, waited = None, -math.inf, 0
  hosts.agree(lambda: {
      'the base model': about['base_fingerprint'], **data.facts((train_dataset, *eval_datasets)),
      'newest checkpoint in MODEL_DIR, a folder that all hosts share': str(checkpoints.latest)})
  hosts.advise(checkpoints.last_words)
  if (resumed := checkpoints.resume(about, state._asdict(), tell)) is not None:
    state, before = step_lib.TrainState(**resumed.state), resumed.about
    position, best, waited = before['position'], before['best'], before['waited']
    tell(f'resuming {model_dir} at step {resumed.step}')
  elif restore_optimizer:
    restored = pretrained.restored(state.opt_state, trainable, initial_checkpoint_path, loaded.config, first_step)
    state = state._replace(opt_state=partitioner.replicate(restored))
  start = int(state.step)
  hosts.agree(lambda: {'the step to go on from': str(start)})
  if start >= end and (root / 'summary.json').exists():
    tell(f'{model_dir} has its steps up to {end} already; raise TRAIN_STEPS to go on')
    checkpoints.close()
    return json.loads((root / 'summary.json').read_text())

  # --- Data, and the files of the run.
  converter = evaluate_lib.converter(
      train_dataset, model, loaded.tokenizer, microbatches * partitioner.mesh.shape['data'])
  if train_dataset.batching.packs:
    model.check_lengths(trainable, frozen, *converter.shape)
  batches = batches_lib.TrainBatches(
      train_dataset, converter, random_seed, position,
      partitioner.shards_here(train_dataset.batch_size, train_dataset.shards))
  writer = writers.MetricsWriter(model_dir, start, enabled=first)
  if first:
    (root / 'model-info.txt').write_text(loading.model_info(loaded, trainable))
  make_step = step_lib.make_pieces_step if train_dataset.batching.pieces > 1 else step_lib.make_train_step
  train_step = make_step(
      model, optimizer_, loss, dropout_seed=random_seed if backbone.dropout_rate or method.dropout_rate else None,
      microbatches=microbatches, use_hardware_rng=use_hardware_rng)
  export = jax.jit(model.export, out_shardings=partitioner.replicated)
  evaluators = [evaluate_lib.Evaluator(loaded, dataset, decoder) for dataset in eval_datasets]
  on_start()

  def evaluate(step: int, trainable) -> dict[str, dict[str, float]]:
    results = {}
    for evaluator in evaluators:
      name = evaluator.dataset.mixture_or_task_name
      metrics, rows = evaluator(trainable)
      results[name] = metrics
      writer.write(step, f'inference_eval/{name}', **metrics)
      if first:
        writers.write_lines(root / 'inference_eval' / f'{name}-{step}.jsonl', rows)
      tell(f'step {step}  {name}  ' + '  '.join(f'{k} {v:.4f}' for k, v in metrics.items()))
    return results

  def save(step: int, metric: float | None = None) -> None:
    origin = {'base_fingerprint': about['base_fingerprint'], 'base_path': loaded.path,
              'base_dtype': backbone.param_dtype,
              'base_config': dataclasses.asdict(loaded.config), 'task': train_dataset.mixture_or_task_name,
              'step': step, 'metric': metric, **settings_of(model)}
    tensors = jax.device_get(export(state.trainable))
    finished = tuned.Tuned(tuned.method_of(tensors), tensors, origin) if tensors else None
    where = {'position': hosts.completed(position), 'best': best, 'waited': waited}
    checkpoints.save(step, state._asdict(), {**about, **where}, finished, metric)

  # --- The loop.
  results = {}
  progress, pending = Progress(end, start), []
  step, saved, stop = start, resumed.step if resumed else 0, False
  train_seconds = 0.0
  stream = batches_lib.prefetch(batches, functools.partial(batching.each, partitioner.place_batch))
  try:
    while step < end and not stop:
      tick = time.monotonic()
      batch, position = next(stream)
      state, metrics = train_step(state, frozen, batch)
      step += 1
      pending.append((step, metrics, batching.sources(batch)))
      if step == start + 1:
        jax.block_until_ready(state)
        tell(f'first step done {time.monotonic() - began:.1f} s after the start of the run')
      stop = preemption.stops(step, log_period)
      evaluating = bool(evaluators) and (step % eval_period == 0 or step == end)
      saving = step % save_period == 0 or step == end or evaluating or stop
      if step % log_period == 0 or saving:
        log = _fetch(pending, saved, model_dir)
        sources = [tokens for _, _, pieces in pending for tokens in pieces]
        real = sum(float(jnp.count_nonzero(tokens != loaded.config.source_pad_id)) for tokens in sources)
        padded = sum(tokens.size for tokens in sources)
        progress.add(examples=len(pending) * train_dataset.batch_size, tokens=padded, **{'real tokens': real})
        writer.write(step, 'train', **log, learning_rate=float(schedule(step - 1)),
                     **{'non_padding_fraction/encoder': real / padded})
        shown = {**{k: log[k] for k in ('loss', 'accuracy')}, 'padding': f'{1 - real / padded:.0%}'}
        progress.show(step, shown, force=step == end)
        pending = []
      train_seconds += time.monotonic() - tick
      metric = None
      if evaluating and not stop:
        began_evaluating = time.monotonic()
        results = evaluate(step, state.trainable)
        progress.pause(time.monotonic() - began_evaluating)
        metric = choose(results, best_metric)
        best, waited = (metric, 0) if metric > best else (best, waited + 1)
        stop = early_stopping_patience is not None and waited >= early_stopping_patience
      if saving:
        save(step, metric)
        saved = step
    before = None
    if eval_initial and not preemption.requested:
      before = evaluate(first_step, loaded.new_trainable(random_seed))
  finally:
    stream.close()
    writer.close()
    checkpoints.close()
  if preemption.requested:
    tell(f'SIGTERM: stopped after step {step}; start again with the same flags to go on')
  if report := converter.report():
    tell(f'train: {report}')
  summary = {
      'step': step, 'interrupted': preemption.requested, 'best_step': checkpoints.best,
      'metrics_before': before, 'metrics': results,
      'train_seconds': train_seconds, 'total_seconds': time.monotonic() - began,
      'trainable_bytes': trees.nbytes(trainable), 'frozen_bytes': trees.nbytes(frozen)}
  if first:
    writers.write_json(root / 'summary.json', summary)
  return summary


DIAGNOSTICS = task_metrics.DIAGNOSTICS


def settings_of(model) -> dict[str, object]:
  """What a finished file must know besides its tensors."""
  found = {'settings': model.method.settings(), 'readout': model.readout.settings()}
  return {name: x for name, x in found.items() if x and x != readouts.TextToText().settings()}


def name_of(function: Callable) -> str:
  """'adafactor' for the optimizer that `adafactor(...)` made."""
  return function.__qualname__.split('.')[0]


def choose(results: Mapping[str, Mapping[str, float]], best_metric: str | None) -> float:
  """The number that decides which checkpoint is best."""
  if best_metric is None:
    return float(np.mean([task_metrics.task_score(metrics) for metrics in results.values()]))
  metrics = next(iter(results.values()))
  task, slash, name = best_metric.rpartition('/')
  metrics = results.get(task, {}) if slash else metrics
  if name not in metrics:
    known = [f'{task}/{metric}' for task, values in results.items() for metric in values]
    raise ValueError(f'BEST_METRIC={best_metric!r} is not among the metrics: {", ".join(known)}.')
  return float(metrics[name])


def _fetch(pending, saved: int, model_dir: str) -> dict[str, float]:
  """Means over the pending steps, as numbers.

  Raises:
    NonFiniteLossError: one of the losses is not finite.
  """
  values = [{name: float(value) for name, value in metrics.items()} for _, metrics, _ in pending]
  bad = [step for (step, _, _), v in zip(pending, values, strict=True)
         if not (math.isfinite(v['loss']) and math.isfinite(v['grad_norm']))]
  if bad:
    raise NonFiniteLossError(
        f'The loss or its gradient is not finite in steps {bad[0]} to {bad[-1]}; stopped. '
        + (f'The last good checkpoint in {model_dir} is of step {saved}. ' if saved else 'There is no checkpoint yet. ')
        + 'Lower the learning rate, or use float32 activations.')
  return {name: float(np.mean([v[name] for v in values])) for name in values[0]}
