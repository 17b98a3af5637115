"""N trainings at once on one copy of the frozen weights: seeds, lengths and learning rates side by side.

Each member is the run that `loop.train` would make of it alone: its own initialisation, data order, dropout, optimizer
(so that Adafactor clips each member's update by itself) and best checkpoint. The gradient is one program: members of
equal shapes are one `jax.vmap` with the frozen parameters unbatched, and where there is no dropout shorter prompts are
padded to the longest to be equal. (With dropout they are a `vmap` of their own: a padded row would have other masks.)
Results agree to rounding: what XLA adds up in another order, and what the optimizer makes of that.

What differs from a run: dropout is drawn by threefry, as with USE_HARDWARE_RNG = False, because XLA's generator draws
for all that is vmapped from the first key; there are no microbatches; and a member whose loss is not finite any more
is left behind, not an error, as long as another one goes on.

MODEL_DIR holds the state of all members (`checkpoints/`), `summary.json`, and for each member a folder `member_<i>`
with metrics, evaluations and `prompts/`, as the folder of a run. It is resumed like a run.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
import sys
import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from prompt_tuning import batching, decoding, hosts, loading, trees
from prompt_tuning.checkpoints import run as run_checkpoints
from prompt_tuning.methods.base import Method
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.train import batches as batches_lib
from prompt_tuning.train import data, loop, losses, optim, population_step, writers
from prompt_tuning.train import evaluate as evaluate_lib
from prompt_tuning.train import step as step_lib
from prompt_tuning.train.population_member import Member, Trained, members_of, method_of


def train(
    *,
    model_dir: str,
    initial_checkpoint_path: str | None,
    method: Method,
    members: Sequence[Mapping[str, Any] | Member],
    train_dataset: data.Dataset,
    eval_datasets: Sequence[data.Dataset] = (),
    train_steps: int,
    optimizer: optim.Optimizer,
    schedule: optim.Schedule,
    backbone: loading.Backbone = loading.Backbone(),  # noqa: B008 (frozen)
    partitioner: Partitioner | None = None,
    loss: Callable[..., losses.Loss] = losses.compute,
    random_seed: int = 0,
    shared_order: bool = False,
    eval_period: int = 1000,
    save_period: int = 1000,
    log_period: int = 10,
    keep: int = 2,
    best_metric: str | None = None,
    early_stopping_patience: int | None = None,
    decoder: decoding.Decoder | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Mapping[str, object]:
  """Trains all members; arguments that are not named here are those of `loop.train`.

  Args:
    members: dicts with the fields of `Member`.
    random_seed: of the parameters of a random base alone.
    shared_order: all members see the examples in the same order, which are then read once.
    early_stopping_patience: a member is left as it is after so many evaluations without a better one.

  Returns:
    What `summary.json` holds: steps, seconds, bytes, and of each member its settings, best step and metrics.

  Raises:
    loop.NonFiniteLossError: no member has a finite loss any more.
    checkpoints.run.ResumeError: MODEL_DIR holds another population, or a run.
  """
  began = time.monotonic()
  preemption = hosts.Preemption()
  first = hosts.is_first()
  tell = (lambda text: print(text, file=sys.stderr, flush=True)) if first else lambda text: None

  # --- The frozen base, in its shards, and each member's method on it.
  members = members_of(members)
  root = writers.writable_folder(model_dir, 'MODEL_DIR')
  partitioner = partitioner or Partitioner()
  for dataset in (train_dataset, *eval_datasets):
    partitioner.check_batch(dataset.batch_size)
  if not isinstance(train_dataset.batching, batching.Padded):
    raise ValueError(f'BATCHING = @batching.{type(train_dataset.batching).__name__}(): members train on batches of one '
                     'shape, each on examples of its own; use @batching.Padded().')
  methods = [method_of(method, member) for member in members]
  loaded = loading.load(initial_checkpoint_path, method, backbone, partitioner, random_seed)
  bound = [m.bind(loaded.config, loaded.known_tokenizer) for m in methods]
  each = [dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, method=m)) for m in bound]

  # --- Their trainables and optimizers.
  trainables = tuple(x.new_trainable(member.seed) for x, member in zip(each, members, strict=True))
  optimizers = [optimizer(lambda step, factor=member.learning_rate_factor: factor * schedule(step))
                for member in members]
  state = partitioner.replicate(step_lib.TrainState(
      np.zeros((), np.int32), trainables, tuple(o.init(t) for o, t in zip(optimizers, trainables, strict=True))))
  dropout = bool(backbone.dropout_rate or method.dropout_rate)
  groups = population_step.groups(each, trainables, pad=not dropout)
  tell(f'{len(members)} members in {len(groups)} groups of equal shapes, {trees.size(trainables)} trainable on '
       f'{trees.size(loaded.frozen)} frozen parameters ({loaded.path}), {partitioner.describe(loaded.abstract)}')

  # --- What was done before, if anything.
  checkpoints = run_checkpoints.RunCheckpoints(model_dir)
  about = {
      'base_fingerprint': loaded.fingerprint(), 'base_path': loaded.path, 'optimizer': loop.name_of(optimizer),
      'seed': [[*dataclasses.astuple(member)] for member in members] + ['shared order'] * shared_order,
      'state': run_checkpoints.description(state._asdict())}
  before = {'positions': None, 'status': None}
  hosts.agree(lambda: {
      'the base model': about['base_fingerprint'], **data.facts((train_dataset, *eval_datasets)),
      'newest checkpoint in MODEL_DIR, a folder that all hosts share': str(checkpoints.latest)})
  hosts.advise(checkpoints.last_words)
  if (resumed := checkpoints.resume(about, state._asdict(), tell)) is not None:
    state, before = step_lib.TrainState(**resumed.state), resumed.about
    tell(f'resuming {model_dir} at step {resumed.step}')
  start = int(state.step)
  hosts.agree(lambda: {'the step to go on from': str(start)})
  if start >= train_steps and (root / 'summary.json').exists():
    tell(f'{model_dir} has its {train_steps} steps already; raise TRAIN_STEPS to go on')
    checkpoints.close()
    return json.loads((root / 'summary.json').read_text())

  # --- Data, and the files of each member.
  converters = [evaluate_lib.converter(train_dataset, x.model, x.tokenizer) for x in each]
  batches = population_step.Batches(
      train_dataset, converters, [member.seed for member in members], before['positions'], shared_order,
      partitioner.shards_here(train_dataset.batch_size, train_dataset.shards))
  trained = [Trained(root / f'member_{i}', x, partitioner, start, first) for i, x in enumerate(each)]
  for member, status, trainable in zip(trained, before['status'] or [{}] * len(members), trainables, strict=True):
    member.status |= status
    if first:
      writers.write_lines(
          member.folder / 'model-info.txt', loading.model_info(member.loaded, trainable).splitlines())
  train_step = population_step.make(
      groups, optimizers, loss, [member.seed for member in members] if dropout else None)
  rows = NamedSharding(partitioner.mesh, PartitionSpec(None, 'data'))
  place = lambda batches: population_step.place(groups, batches, rows, loaded.config.source_pad_id)
  evaluators = {member.length: [evaluate_lib.Evaluator(x, dataset, decoder) for dataset in eval_datasets]
                for member, x in zip(members, each, strict=True)}
  on_start()

  def evaluate(step: int, i: int) -> float:
    member = trained[i]
    for evaluator in evaluators[members[i].length]:
      name = evaluator.dataset.mixture_or_task_name
      member.status['metrics'][name], lines = evaluator(state.trainable[i])
      metrics = member.status['metrics'][name]
      member.writer.write(step, f'inference_eval/{name}', **metrics)
      if first:
        writers.write_lines(member.folder / 'inference_eval' / f'{name}-{step}.jsonl', lines)
      tell(f'step {step}  member {i}  {name}  ' + '  '.join(f'{k} {v:.4f}' for k, v in metrics.items()))
    return loop.choose(member.status['metrics'], best_metric)

  def save(step: int, metrics: Mapping[int, float]) -> None:
    for i, member in enumerate(trained):
      if member.active or member.status['stopped'] == step:
        member.save(step, state.trainable[i], {
            'base_fingerprint': about['base_fingerprint'], 'base_path': loaded.path,
            'base_dtype': backbone.param_dtype,
            'base_config': dataclasses.asdict(loaded.config), 'task': train_dataset.mixture_or_task_name,
            'step': step, 'metric': metrics.get(i), **loop.settings_of(member.loaded.model)}, keep)
    checkpoints.save(step, state._asdict(), {
        **about, 'positions': hosts.completed(position)['streams'], 'status': [member.status for member in trained]})

  # --- The loop.
  progress, pending = Progress(train_steps, start), []
  step, stop, train_seconds = start, False, 0.0
  stream = batches_lib.prefetch(batches, place)
  try:
    while step < train_steps and not stop:
      tick = time.monotonic()
      batch, position = next(stream)
      state, metrics = train_step(state, loaded.frozen, batch)
      step += 1
      pending.append((step, metrics))
      stop = preemption.stops(step, log_period)
      evaluating = bool(eval_datasets) and (step % eval_period == 0 or step == train_steps)
      saving = step % save_period == 0 or step == train_steps or evaluating or stop
      if step % log_period == 0 or saving:
        shown = []
        for i, member in enumerate(trained):
          log, bad = _means([(at, jax.device_get(values[i])) for at, values in pending])
          if bad is not None and member.active:
            member.status['diverged'] = bad
            tell(f'member {i}: the loss or its gradient is not finite in step {bad}; it is left behind')
          if member.active:
            rate = float(schedule(step - 1)) * members[i].learning_rate_factor
            member.writer.write(step, 'train', **log, learning_rate=rate)
            shown.append(log['loss'])
        if all(member.status['diverged'] for member in trained):
          raise loop.NonFiniteLossError(
              f'No member has a finite loss any more, the last since step {step}; stopped. Lower the learning rates, '
              'or use float32 activations.')
        stop = stop or not any(member.active for member in trained)
        progress.add(examples=len(pending) * len(members) * train_dataset.batch_size)
        progress.show(step, {'mean loss': float(np.mean(shown or math.nan))}, force=step == train_steps)
        pending = []
      train_seconds += time.monotonic() - tick
      scores = {}
      if evaluating and not stop:
        began_evaluating = time.monotonic()
        for i, member in enumerate(trained):
          if member.active:
            scores[i] = evaluate(step, i)
            member.judge(step, scores[i], early_stopping_patience)
        progress.pause(time.monotonic() - began_evaluating)
        stop = not any(member.active for member in trained)
      if saving or stop:
        save(step, scores)
  finally:
    stream.close()
    for member in trained:
      member.writer.close()
    checkpoints.close()
  if preemption.requested:
    tell(f'SIGTERM: stopped after step {step}; start again with the same flags to go on')
  if report := converters[0].report():
    tell(f'train: {report}')
  summary = {
      'step': step, 'interrupted': preemption.requested,
      'train_seconds': train_seconds, 'total_seconds': time.monotonic() - began,
      'trainable_bytes': trees.nbytes(trainables), 'frozen_bytes': trees.nbytes(loaded.frozen),
      'members': [{**dataclasses.asdict(member), **x.summary()} for member, x in zip(members, trained, strict=True)]}
  if first:
    writers.write_json(root / 'summary.json', summary)
  return summary


def _means(pending) -> tuple[dict[str, float], int | None]:
  """Means over steps, and the first step whose loss or gradient is not finite."""
  bad = [step for step, values in pending if not np.isfinite([values['loss'], values['grad_norm']]).all()]
  names = pending[0][1]
  return {name: float(np.mean([v[name] for _, v in pending])) for name in names}, bad[0] if bad else None
