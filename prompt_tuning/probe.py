"""The probe: which neurons of a frozen model tell the label in front of a trained prompt (Wang et al. 2022).

From a trained prompt (or several, trained with other seeds: trials) to a folder of numbers, pictures and a report.
The splits are those of the paper: baselines from training data, the finder on dev data, and what is reported on test
data. A text-to-text prompt is read as a classifier: its labels are compared by the first token of their words.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from prompt_tuning import features, loading
from prompt_tuning.analysis import intervene, measure, predictivity, probe_report, readings, record, selectivity
from prompt_tuning.analysis import other_probes as others_lib
from prompt_tuning.analysis.measure import Model, Split, Trial
from prompt_tuning.checkpoints import atomic, tuned
from prompt_tuning.methods import finished, initializers, readouts
from prompt_tuning.methods.base import Method
from prompt_tuning.methods.prompt import Table
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.progress import Progress
from prompt_tuning.train import data
from prompt_tuning.train import evaluate as evaluate_lib

CONTROLS = ('random_prompt', 'random_model')


def probe(
    *,
    output_dir: str,
    initial_checkpoint_path: str | None,
    checkpoint_path: str | Sequence[str] | None,
    datasets: Mapping[str, data.Dataset],
    labels: Sequence[str] = (),
    dev_share: float = 0.2,
    percents: Sequence[float] = (0, 1, 2, 5, 10, 15, 20),
    per_layer: bool = True,
    layers: tuple[int, int] | None = None,
    over_trials: str = 'mean',
    intervention: str = 'noise',
    noise_alpha: float = 0.1,
    noise_seeds: int = 5,
    controls: Sequence[str] = CONTROLS,
    hard_prompt: str | None = None,
    pooled: bool = False,
    words: int = 10,
    neurons_of: str | None = None,
    other_probes: Sequence[str] = (),
    any_task: bool = False,
    backbone: loading.Backbone = loading.Backbone(),  # noqa: B008 (frozen)
    partitioner: Partitioner | None = None,
    random_seed: int = 0,
) -> Mapping[str, Any]:
  """Probes a model; every argument is a gin parameter.

  Args:
    output_dir: PROBE_OUTPUT_DIR, which appears whole when all is done.
    checkpoint_path: CHECKPOINT_PATH, what was trained, or several of one task (trials); None: what the probe of this
      task among `other_probes` probed, which then is none of the others.
    datasets: 'train', 'dev' and 'test' of the task; without 'dev', `dev_share` of the training data is drawn for it.
    labels: LABELS, the targets of the task; (): those that the prompt was trained with.
    percents: of skill neurons that are perturbed.
    per_layer: the top neurons of each layer (the paper's code), else of all layers together (the paper).
    layers: the first layer that is perturbed and the one behind the last; None: all.
    over_trials: 'mean' or 'min' of the predictivities of trials.
    intervention: 'noise' of standard deviation `noise_alpha`, 'zero', or 'mean' (the baseline).
    noise_seeds: draws of the noise and of the random neurons it is compared with.
    controls: of 'random_prompt' (on the same model) and 'random_model' (random parameters and prompt).
    hard_prompt: a written text as a further prompt without training (Table 3 of the paper); None: none.
    pooled: compare with finders that know no prompt: the mean and the maximum over the text's tokens (Figure 3).
    words: how many are listed for each skill neuron; 0: none.
    neurons_of: folder of the probe whose skill neurons are perturbed, such as a prompt's on a model with adapters or
      BitFit (section 5 of the paper); None: those found here.
    other_probes: folders of probes of other tasks on the same base, to compare with: rank correlation of neurons,
      this prompt under noise on their neurons, and transfer of their prompts to this task.
    any_task: probe a task that the prompt was not trained on.

  Returns:
    What `metrics.json` holds.

  Raises:
    ValueError: another task than the prompt's, labels that the prompt does not know, data of one class, a percent out
      of range, layers that are not there; nothing is written then.
  """
  # --- What is probed, and whether it can be.
  _check_choices(controls, over_trials, intervention, dev_share)
  task = datasets['train'].mixture_or_task_name
  if checkpoint_path is None:
    checkpoint_path, other_probes = others_lib.own(other_probes, task)
  paths = [checkpoint_path] if isinstance(checkpoint_path, str) else list(checkpoint_path)
  for path in paths:
    _check_task(path, task, any_task)
  backbone = dataclasses.replace(backbone, readout=_readout(paths[0], labels))
  loaded = loading.load(initial_checkpoint_path, finished.load(paths[0]), backbone, partitioner, random_seed)
  labels = loaded.model.readout.labels
  programs = measure.Programs(loaded.model, loaded.partitioner)
  models = [_model(loaded, programs, finished.load(path)) for path in paths]
  looks, wide = _looks(loaded.model), _looks(loaded.model, pooled=True) if pooled else None
  counts = {site: look.layers for site, look in looks.items()}
  neurons = (sum(counts.values()), loaded.config.d_ff)
  for percent in percents:  # before anything is computed
    predictivity.top(np.zeros(neurons), percent, layers=layers)
  others = others_lib.read(other_probes, neurons)
  sources = {name: _model(loaded, programs, finished.load(other['checkpoints'][0])) for name, other in others.items()}
  given = None if neurons_of is None else others_lib.read([neurons_of], neurons)
  tasks = predictivity.sub_tasks(len(labels))

  with atomic.new_folder(output_dir) as folder:
    # --- Data, in memory.
    splits = _splits(datasets, loaded, dev_share, random_seed)
    touched = 2 * noise_seeds * sum(percent > 0 for percent in percents) + (0 in percents)
    steps = (1 + pooled) * len(paths) + len(controls) + (hard_prompt is not None) + 1 + touched + 1 + len(other_probes)
    progress, done = Progress(steps), 0

    def tick(what: str) -> None:
      nonlocal done
      done += 1
      print(what, file=sys.stderr, flush=True)
      progress.show(done, {}, force=True)

    # --- Predictivity: of each trial, and of what was never trained.
    trials: dict[str, list[Trial]] = {'prompt': []}
    for i, model in enumerate(models):
      trials['prompt'].append(measure.trial(model, splits, looks, tasks))
      tick(f'trial {i}: test predictivity of the best neuron {trials["prompt"][-1].test_of_best}')
    for model in models if pooled else ():
      both = measure.trial(model, splits, wide, tasks)  # the pooled ones are the last places
      for name, place in (('mean_of_text', -2), ('max_of_text', -1)):
        trials.setdefault(name, []).append(both.at(place))
      tick(f'pooled over the text: {[trials[name][-1].test_of_best for name in ("mean_of_text", "max_of_text")]}')
    for name, model in _controls(loaded, programs, controls, hard_prompt, random_seed).items():
      trials[name] = [measure.trial(model, splits, looks, tasks)]
      tick(f'{name}: test predictivity of the best neuron {trials[name][-1].test_of_best}')
    pred = predictivity.aggregate([trial.pred for trial in trials['prompt']], over_trials)
    pred = pred.astype(np.float32)  # [K, L, F]; as it is saved

    # --- What the best neurons do alone, and how the labels part.
    first, best = models[0], trials['prompt'][0].best
    histograms = record.histograms(first.read, splits['test'].labelled(), looks, best, len(labels))
    numbers: dict[str, Any] = {
        'task': task, 'labels': list(labels), 'checkpoints': paths, 'base': loaded.path,
        'places': _places(looks, splits),
        'rows': {name: int((split.classes >= 0).sum()) for name, split in splits.items()},
        'prompt_accuracy': [model.accuracy(splits['test']) for model in models],
        'neuron_accuracy': [measure.neuron_accuracy(model, splits, looks, trial, len(labels))
                            for model, trial in zip(models, trials['prompt'], strict=True)],
        'best': [address._asdict() for address in best],
        'test_predictivity': {name: [trial.test_of_best for trial in found] for name, found in trials.items()}}
    tick(f'accuracy of the prompt {numbers["prompt_accuracy"]}, of neurons {numbers["neuron_accuracy"]}')

    # --- Interventions on skill neurons and on as many random ones.
    baseline = trials['prompt'][0].baseline.mean((0, 2))  # [L, F]
    chosen = pred if given is None else next(iter(given.values()))['pred']
    masks = {percent: predictivity.top(chosen, percent, per_layer=per_layer, layers=layers) for percent in percents}

    def accuracy(mask, seed):
      value = first.under(splits['test'], counts, mask, intervention, noise_alpha, seed, baseline)
      tick(f'{intervention} on {mask.sum()} neurons: accuracy {value:.4f}')
      return value

    curves = intervene.curve(accuracy, masks, noise_seeds) if masks else {}
    numbers['curves'] = {name: x.tolist() for name, x in curves.items()}
    numbers['mean_accuracy'] = {  # over seeds, by percent
        name: {f'{percent:g}': float(values.mean()) for percent, values in zip(curves['percent'], x, strict=True)}
        for name, x in curves.items() if name != 'percent'}

    # --- Words.
    named = [(address.layer, address.neuron) for address in best]
    word_lists = _words(loaded, first, splits['train'], counts, named, words) if words else {}
    # Of each named neuron four: highest and lowest cosine, highest and lowest mean activation.
    numbers['words'] = [' '.join(word for word, _ in found) for found in word_lists.values()]

    # --- Other tasks.
    activated = measure.activated(first, _empty(loaded, datasets['train']), looks)
    compared = {}
    if others:
      zero_shot = {name: source.accuracy(splits['test']) for name, source in sources.items()}
      compared = others_lib.compare(others, task, pred, activated, accuracy, zero_shot)
      numbers['other_tasks'] = compared

    # --- The folder.
    arrays = {f'{name}_{i}_{part}': getattr(trial, part).astype(np.float32) for name, found in trials.items()
              for i, trial in enumerate(found) for part in ('baseline', 'dev', 'test')}
    np.savez(folder / 'results.npz', pred=pred.astype(np.float32), activated=activated.astype(np.float32), **arrays)
    (folder / 'metrics.json').write_text(json.dumps(numbers, indent=2) + '\n')
    with open(folder / 'metrics.jsonl', 'w', encoding='utf-8') as lines:
      lines.writelines(json.dumps(line) + '\n' for line in probe_report.lines(numbers))
    probe_report.write(folder, numbers, trials, histograms, curves, word_lists, compared)
  print(f'probe: {pathlib.Path(output_dir) / "report.html"}', file=sys.stderr)
  return numbers


def _check_choices(controls: Sequence[str], over_trials: str, intervention: str, dev_share: float) -> None:
  for name, value, legal in (('OVER_TRIALS', over_trials, ('mean', 'min')), ('INTERVENTION', intervention, measure.HOW),
                             *(('CONTROLS', control, CONTROLS) for control in controls)):
    if value not in legal:
      raise ValueError(f'{name}: {value!r}; expected {" or ".join(legal)}.')
  if not 0 < dev_share < 1:
    raise ValueError(f'DEV_SHARE={dev_share}; expected a share of the training data between 0 and 1.')


def _check_task(path: str, task: str, any_task: bool) -> None:
  trained_on = tuned.load(path).about.get('task')
  if trained_on not in (None, task) and not any_task:
    raise ValueError(f'{path} was trained on {trained_on}, but MIXTURE_OR_TASK_NAME is {task}: its neurons would be '
                     f'those of another task. Probe {trained_on}, or set ANY_TASK = True.')


def _readout(path: str, labels: Sequence[str]) -> readouts.Readout:
  """What the prompt was trained with if that tells classes apart, else words of the labels."""
  readout = finished.readout(path, readouts.TextToText())
  if readout.length == 1:
    if labels and set(labels) != set(readout.labels):
      raise ValueError(f'LABELS={tuple(labels)}, but {path} was trained with {readout.labels}; leave LABELS out.')
    return readout
  if readout.length is not None:
    raise ValueError(f'{path} reads {type(readout).__name__}; a probe needs a task of classes.')
  return readouts.Verbalizer(tuple(labels))


def _model(loaded: loading.Loaded, programs: measure.Programs, method: Method) -> Model:
  """The same base with another thing trained on it, in the same form."""
  method = method.bind(loaded.config, loaded.known_tokenizer)
  other = dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, method=method))
  if other.model.placed != loaded.model.placed:
    raise ValueError(f'CHECKPOINT_PATH: trials of {loaded.model.placed} and {other.model.placed} virtual tokens; '
                     'expected prompts of one length.')
  return Model(programs, other.new_trainable(0), loaded.frozen)


def _looks(model, pooled: bool = False) -> readings.Looks:
  config = model.backbone.config
  placed = model.place(np.zeros(0, np.int32), config.vocab_size)
  length = int(((placed >= config.vocab_size) | (placed == config.mask_id)).sum())
  if length and not config.decoder_only:
    return readings.at_prompt(config, length, pooled)
  if pooled:
    raise ValueError('POOLED = True compares with a prompt in an encoder, and there is none; set it to False.')
  if config.decoder_layers:
    return readings.at_start(config)
  first = lambda batch: np.zeros((len(batch['encoder_input_tokens']), 1))
  return {'encoder/mlp_act': readings.Look(config.encoder_layers, first)}


def _places(looks: readings.Looks, splits: Mapping[str, Split]) -> dict[str, int]:
  batch = splits['test'].batches[0]
  return {site: int(np.shape(look.positions(batch))[1]) for site, look in looks.items()}


def _splits(datasets, loaded: loading.Loaded, dev_share: float, seed: int) -> dict[str, Split]:
  """The data as batches; without a dev split, rows of the training data drawn by the seed."""
  examples = {name: list(dataset.epoch(seed=0)) for name, dataset in datasets.items()}
  if 'dev' not in examples:
    order = np.random.default_rng(seed).permutation(len(examples['train']))
    cut = int(round(len(order) * dev_share))
    rows, examples['train'] = examples['train'], [examples['train'][i] for i in sorted(order[cut:])]
    examples['dev'] = [rows[i] for i in sorted(order[:cut])]
  found = {}
  for name, rows in examples.items():
    dataset = datasets.get(name, datasets['train'])
    loaded.partitioner.check_batch(dataset.batch_size)
    if not rows:
      raise ValueError(f'{dataset.mixture_or_task_name}: no rows for {name}; choose other splits or DEV_SHARE.')
    convert = evaluate_lib.converter(dataset, loaded.model, loaded.tokenizer)
    size = dataset.batch_size
    batches = [convert(rows[i:i + size], size) for i in range(0, len(rows), size)]
    classes = np.concatenate([
        np.where(batch['decoder_loss_weights'] > 0, batch['decoder_target_tokens'], -1)[:, 0] for batch in batches])
    found[name] = Split(batches, classes)
    if report := convert.report():
      print(f'{name}: {report}', file=sys.stderr)
  return found


def _controls(loaded: loading.Loaded, programs: measure.Programs, names: Sequence[str], hard_prompt: str | None,
              seed: int) -> dict[str, Model]:
  """Prompts without training: random ones, on the model or on a random one of its shape, and a written text."""
  method, found = loaded.model.method, {}
  if not isinstance(method, Table):
    return found
  spread = float(np.std(np.asarray(loaded.base().embeddings(range(min(1000, loaded.config.vocab_size))))))
  rng = np.random.default_rng(seed)
  table = rng.normal(0, spread, (method.length, loaded.config.d_model))  # as wide as word embeddings are
  random = _model(loaded, programs, method.clone(initializer=lambda key, shape, base: table))
  if 'random_prompt' in names:
    found['random_prompt'] = random
  if 'random_model' in names:
    key = jax.random.fold_in(jax.random.key(seed), 1)  # the key itself may have made the base
    frozen = loading.random_params(
        loaded.model, nn.meta.unbox(loaded.abstract), loaded.partitioner.shardings(loaded.abstract), key)
    found['random_model'] = dataclasses.replace(random, frozen=frozen)
  if hard_prompt is not None:
    found['hard_prompt'] = _model(loaded, programs, method.clone(initializer=initializers.text(hard_prompt)))
  return found


def _words(loaded, model: Model, split: Split, layers, neurons, count: int) -> dict[str, list[tuple[str, float]]]:
  """Words of the highest and lowest cosine with each neuron's weights, and mean activation on them."""
  pieces, size = len(loaded.tokenizer), loaded.config.vocab_size
  embeddings = np.asarray(loaded.base().embeddings(range(pieces)))
  cosines = selectivity.cosines(embeddings, selectivity.key_vectors(loaded.frozen, layers, neurons))
  config = loaded.config
  special = [i for i in (config.pad_id, config.eos_id, config.bos_id, config.mask_id) if i is not None]

  def words(batch):
    tokens = np.asarray(batch['encoder_input_tokens'])
    return np.where((tokens < size) & ~np.isin(tokens, special), tokens, -1)  # a decoder-only model's padding is -1

  batches = [(batch, words(batch)) for batch in split.batches]
  means, seen = selectivity.word_means(model.read, batches, layers, neurons, size)
  names, often, found = [loaded.tokenizer.piece(i) for i in range(pieces)], seen[:pieces] >= 5, {}
  for i, (layer, neuron) in enumerate(neurons):
    which = f'neuron {neuron} of layer {layer}'
    for kind, scores, allowed in (('cosine', cosines[i], None), ('mean activation', means[i][:pieces], often)):
      high, low = selectivity.extremes(scores, names, count, allowed)
      found |= {f'{which}, highest {kind}': high, f'{which}, lowest {kind}': low}
  return found


def _empty(loaded: loading.Loaded, dataset: data.Dataset):
  """A batch of one row: the prompt and no text, the others filling."""
  layout = features.layout_of(loaded.config, loaded.tokenizer)
  model = loaded.model
  convert = features.Converter(
      {'inputs': dataset.task_feature_lengths['inputs'], 'targets': 1}, model.place, model.placed,
      loaded.config.vocab_size, layout)
  batch = convert([{}], dataset.batch_size)
  return batch
