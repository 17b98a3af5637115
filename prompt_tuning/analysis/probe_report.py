"""What a probe leaves for the eye: pictures, a report, and its numbers as lines."""

from collections.abc import Iterator, Mapping, Sequence
import pathlib
from typing import Any

import numpy as np

from prompt_tuning.analysis import plots, predictivity, report
from prompt_tuning.analysis.measure import Trial
from prompt_tuning.analysis.record import Histogram

Words = Mapping[str, Sequence[tuple[str, float]]]


def lines(numbers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Each number of a probe as {'name', 'value', what it belongs to}."""
  for i, value in enumerate(numbers['prompt_accuracy']):
    yield {'name': 'prompt_accuracy', 'trial': i, 'value': value}
  for i, value in enumerate(numbers['neuron_accuracy']):
    yield {'name': 'neuron_accuracy', 'trial': i, 'value': value}
  for which, found in numbers['test_predictivity'].items():
    for i, values in enumerate(found):
      for k, value in enumerate(values):
        yield {'name': 'test_predictivity', 'of': which, 'trial': i, 'sub_task': k, 'value': value}
  curves = numbers['curves']
  for i, percent in enumerate(curves.get('percent', ())):
    for which in ('skill', 'random'):
      for seed, value in enumerate(curves[which][i]):
        yield {'name': 'accuracy_under_intervention', 'neurons': which, 'percent': percent, 'seed': seed,
               'value': value}
  others = numbers.get('other_tasks', {})
  for task, value in others.get('noise_on', {}).items():
    yield {'name': 'accuracy_under_intervention', 'neurons': task, 'percent': None, 'seed': 0, 'value': value}
  for task, values in others.get('transfer', {}).items():
    for name, value in values.items():
      yield {'name': name, 'of': task, 'value': value}


def write(
    folder: pathlib.Path, numbers: Mapping[str, Any], trials: Mapping[str, Sequence[Trial]],
    histograms: Sequence[Histogram], curves: Mapping[str, np.ndarray], words: Words, others: Mapping[str, Any]) -> None:
  """Writes PNGs and `report.html` into the folder of a probe whose `metrics.json` is `numbers`."""
  task, labels = numbers['task'], numbers['labels']
  sections = [_summary(numbers)]

  figures = {}
  for k, (histogram, at) in enumerate(zip(histograms, numbers['best'], strict=True)):
    name = f'layer {at["layer"]}, neuron {at["neuron"]}, place {at["position"]}'
    baseline = trials['prompt'][0].baseline[k][at['layer'], at['position'], at['neuron']]
    file = folder / f'activations_{k}.png'
    plots.activations(file, histogram, float(baseline), labels, f'{task}: {name}')
    figures[f'Activation on test data by label, {name}'] = file
  sections.append(report.Section('The best neurons', figures=figures))

  file = folder / 'predictivity.png'
  by_finder = {name: np.max([trial.pred.max((0, 2)) for trial in found], axis=0) for name, found in trials.items()}
  plots.predictivity_by_layer(file, by_finder, f'{task}: predictivity on dev data')
  sections.append(report.Section('Layers', figures={'Predictivity of all neurons by layer': file}))

  if len(trials['prompt']) > 1:
    preds = np.stack([trial.pred.max((0, 2)).ravel() for trial in trials['prompt']])
    file = folder / 'trials.png'
    names = [f'trial {i}' for i in range(len(preds))]
    matrix = np.stack([predictivity.spearman(preds, one) for one in preds])
    plots.heatmap(file, matrix, names, names, 'Rank correlation of trials')
    sections.append(report.Section('Trials', figures={'Spearman of the predictivities of all neurons': file}))

  if curves:
    file = folder / 'intervention.png'
    plots.perturbation(file, curves['percent'], {name: curves[name] for name in ('skill', 'random')}, task)
    rows = [(float(p), float(s.mean()), float(s.std()), float(r.mean()), float(r.std()))
            for p, s, r in zip(curves['percent'], curves['skill'], curves['random'], strict=True)]
    table = report.Table(('% of neurons', 'skill', 'sd', 'random', 'sd'), rows)
    sections.append(report.Section('Interventions', figures={'Test accuracy against neurons touched': file},
                                   tables={'Test accuracy, mean and sd over seeds': table}))
  if words:
    sections.append(report.Section('Words', words=words))
  if others:
    file = folder / 'tasks.png'
    plots.heatmap(file, np.array(others['spearman']), others['tasks'], others['tasks'], 'Rank correlation of tasks')
    noise = report.Table(('neurons of', 'accuracy'), list(others['noise_on'].items()))
    moved = report.Table(('prompt of', 'zero-shot accuracy', 'overlap', 'overlap of top 20%'),
                         [(name, *row.values()) for name, row in others['transfer'].items()])
    sections.append(report.Section(
        'Other tasks', figures={'Spearman of the predictivities of all neurons': file},
        tables={f'Accuracy on {task} with an intervention on 10% of neurons': noise, f'Transfer to {task}': moved}))
  report.write(folder / 'report.html', f'Skill neurons: {task}', sections)


def _summary(numbers: Mapping[str, Any]) -> report.Section:
  rows = [(name, i, *values) for name, found in numbers['test_predictivity'].items() for i, values in enumerate(found)]
  tasks = [f'sub-task {k}' for k in range(len(numbers['best']))]
  accuracies = [(i, *pair) for i, pair in enumerate(zip(numbers['prompt_accuracy'], numbers['neuron_accuracy'],
                                                        strict=True))]
  text = (f'Model {numbers["base"]}; task {numbers["task"]} with labels {", ".join(numbers["labels"])}; rows '
          + ', '.join(f'{name} {count}' for name, count in numbers['rows'].items()) + '.')
  return report.Section('Summary', text, tables={
      'Test accuracy': report.Table(('trial', 'prompt', 'best neuron alone'), accuracies),
      'Test predictivity of the best neuron': report.Table(('prompt', 'trial', *tasks), rows)})
