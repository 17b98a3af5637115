"""The probe job: what it leaves, that its numbers are those of its parts, and that nothing is left when it fails."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prompt_tuning import loading, probe, trees
from prompt_tuning.analysis import intervene, measure, other_probes, predictivity, prune_base, record
from prompt_tuning.checkpoints import tuned
from prompt_tuning.train import data
from tests import models

LABELS = ('negative', 'positive')
BACKBONE = loading.Backbone('t5_1_1_tiny', dropout_rate=0.0)
SMALL = {'percents': (0, 50), 'noise_seeds': 2, 'noise_alpha': 20.0}


def dataset(split, limit, task='sst2_sample'):
  return data.Dataset(task, {'inputs': 24, 'targets': 4}, split, batch_size=16, shuffle=False, limit=limit)


DATASETS = {'train': dataset('train', 60), 'test': dataset('validation', 40)}


def saved(path, seed, **about):
  """A prompt of 3 virtual tokens as a run would leave it."""
  table = np.random.default_rng(seed).standard_normal((3, 64), np.float32)
  tuned.save_safetensors(path, tuned.Tuned('prompt', {'prompt/embedding': table}, {'task': 'sst2_sample', **about}))
  return str(path)


def run(folder, checkpoint, **kwargs):
  return probe.probe(**{
      'output_dir': str(folder), 'initial_checkpoint_path': None, 'checkpoint_path': checkpoint, 'datasets': DATASETS,
      'labels': LABELS, 'backbone': BACKBONE, 'partitioner': models.one_device(), **SMALL, **kwargs})


@pytest.fixture(scope='module')
def two_trials(tmp_path_factory):
  """(folder, what was returned) of a probe of two prompts."""
  root = tmp_path_factory.mktemp('probes')
  paths = [saved(root / f'{seed}.safetensors', seed) for seed in (1, 2)]
  return root / 'out', run(root / 'out', paths, pooled=True)


def test_what_it_leaves(two_trials):
  folder, numbers = two_trials
  assert {path.name for path in folder.iterdir()} == {
      'results.npz', 'metrics.json', 'metrics.jsonl', 'report.html', 'activations_0.png', 'predictivity.png',
      'trials.png', 'intervention.png'}
  assert json.loads((folder / 'metrics.json').read_text()) == json.loads(json.dumps(numbers))
  page = (folder / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 4
  assert 'highest cosine' in page
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert sum(line['name'] == 'accuracy_under_intervention' for line in lines) == 2 * 2 * 2
  assert {line['of'] for line in lines if line['name'] == 'test_predictivity'} == {
      'prompt', 'random_prompt', 'random_model', 'mean_of_text', 'max_of_text'}
  assert numbers['rows'] == {'train': 48, 'dev': 12, 'test': 40}
  with np.load(folder / 'results.npz', allow_pickle=False) as results:
    assert results['pred'].shape == (1, 2, 128)
    assert results['prompt_1_baseline'].shape == (1, 2, 3, 128)
    assert results['activated'].shape == (2, 128)
    assert results['max_of_text_1_dev'].shape == (1, 2, 1, 128)
    assert (results['max_of_text_0_baseline'] > results['mean_of_text_0_baseline']).mean() > 0.9


def test_the_random_model_is_another_and_trials_differ(two_trials):
  folder, _ = two_trials
  with np.load(folder / 'results.npz', allow_pickle=False) as results:
    baselines = [results[f'{name}_baseline'] for name in ('prompt_0', 'prompt_1', 'random_prompt_0', 'random_model_0')]
  for i, one in enumerate(baselines):
    assert all(np.abs(one - other).max() > 1e-3 for other in baselines[:i])


def test_its_numbers_are_those_of_its_parts(two_trials):
  """Everything again with all activations in memory."""
  folder, numbers = two_trials
  loaded = loading.load(None, probe.finished.load(numbers['checkpoints'][0]),
                        loading.Backbone('t5_1_1_tiny', dropout_rate=0.0, readout=probe.readouts.Verbalizer(LABELS)),
                        models.one_device())
  splits = probe._splits(DATASETS, loaded, 0.2, 0)
  programs = measure.Programs(loaded.model, loaded.partitioner)
  model = measure.Model(programs, loaded.new_trainable(0), loaded.frozen)
  looks = probe._looks(loaded.model)

  class Everything(record.sites_lib.Reading):

    def read(self, x):
      return x[:, :3]

  def stored(name):
    rows = [np.asarray(model.read(batch, {'encoder/mlp_act': Everything()})['encoder/mlp_act'])
            for batch in splits[name].batches]
    keep = splits[name].classes >= 0
    return np.concatenate(rows, axis=1)[:, keep], splits[name].classes[keep]  # [L, rows, P, F]

  train, _ = stored('train')
  baseline = train.mean(1)
  accuracies = {}
  for name in ('dev', 'test'):
    x, y = stored(name)
    accuracies[name] = ((x > baseline[:, None]) == y[None, :, None, None]).mean(1)
  with np.load(folder / 'results.npz', allow_pickle=False) as results:
    np.testing.assert_allclose(results['prompt_0_baseline'][0], baseline, atol=1e-5)
    np.testing.assert_allclose(results['prompt_0_dev'][0], accuracies['dev'], atol=1e-6)
  pred = np.maximum(accuracies['dev'], 1 - accuracies['dev'])
  layer, place, neuron = np.unravel_index(pred.argmax(), pred.shape)
  assert numbers['best'] == [{'layer': layer, 'position': place, 'neuron': neuron}]
  test = accuracies['test'][layer, place, neuron]
  expected = test if accuracies['dev'][layer, place, neuron] >= 0.5 else 1 - test
  np.testing.assert_allclose(numbers['neuron_accuracy'][0], expected, atol=1e-6)
  # Interventions: none is the prompt's own accuracy, and noise is drawn as the curve says.
  own = model.accuracy(splits['test'])
  assert own == numbers['prompt_accuracy'][0] == numbers['curves']['skill'][0][0]
  with np.load(folder / 'results.npz', allow_pickle=False) as results:
    mask = predictivity.top(results['pred'], 50)
  counts = {site: look.layers for site, look in looks.items()}
  assert model.under(splits['test'], counts, mask, 'noise', 20.0, 1) == numbers['curves']['skill'][1][1]
  assert model.under(splits['test'], counts, intervene.random_like(mask, 0), 'noise', 20.0, 0) == (
      numbers['curves']['random'][1][0])
  assert numbers['mean_accuracy']['skill'] == {
      percent: pytest.approx(np.mean(numbers['curves']['skill'][i])) for i, percent in enumerate(('0', '50'))}
  zeroed = model.under(splits['test'], counts, np.ones_like(mask), 'zero', 0, 0)
  mean = model.under(splits['test'], counts, np.zeros_like(mask), 'mean', 0, 0, np.zeros(mask.shape))
  assert mean == own
  assert 0 <= zeroed <= 1


def test_other_tasks_are_compared(two_trials, tmp_path):
  folder, first = two_trials
  numbers = run(tmp_path / 'out', first['checkpoints'][1], other_probes=(str(folder),), controls=(), words=0,
                percents=(50,), noise_seeds=1, neurons_of=str(folder), any_task=True)
  others = numbers['other_tasks']
  assert len(numbers['curves']['skill']) == 1  # on the neurons of the first
  assert others['tasks'] == ['sst2_sample', 'sst2_sample']
  assert set(others['noise_on']) == {'sst2_sample', 'its own'}
  assert others['transfer']['sst2_sample']['zero_shot_accuracy'] == first['prompt_accuracy'][0]
  assert 0 <= others['transfer']['sst2_sample']['overlap'] <= 1
  assert np.shape(others['spearman_by_layer']) == (2, 2, 2)
  assert others['spearman_with'] == {'sst2_sample': {
      'all': others['spearman'][0][1], 'by_layer': [layer[0][1] for layer in others['spearman_by_layer']]}}
  assert (tmp_path / 'out/tasks.png').stat().st_size > 1000
  with pytest.raises(FileNotFoundError, match='has no results.npz.*OTHER_PROBES'):
    run(tmp_path / 'more', first['checkpoints'][1], other_probes=(str(tmp_path),), controls=(), percents=())
  assert not (tmp_path / 'more').exists()


def test_the_probe_of_a_task_is_found_among_others(two_trials, tmp_path):
  folder, first = two_trials
  assert other_probes.own([str(folder)], 'sst2_sample') == (first['checkpoints'], [])
  with pytest.raises(ValueError, match='the probe of boolq among OTHER_PROBES probed, of which there are 0'):
    run(tmp_path / 'out', None, datasets={**DATASETS, 'train': dataset('train', 60, 'boolq')},
        other_probes=(str(folder),))
  assert not (tmp_path / 'out').exists()


def test_a_base_in_int8_is_probed_like_the_base(two_trials, tmp_path):
  folder, numbers = two_trials
  run(tmp_path / 'out', numbers['checkpoints'][:1], backbone=dataclasses.replace(BACKBONE, param_dtype='int8'))
  exact, rounded = (np.load(path / 'results.npz', allow_pickle=False)['prompt_0_baseline']
                    for path in (folder, tmp_path / 'out'))
  assert 0 < np.abs(rounded - exact).max() < 0.1 * exact.std()


@pytest.mark.parametrize(('kwargs', 'message'), [
    ({'labels': ()}, r'LABELS=\(\); expected two or more'),
    ({'labels': ('negative', 'neutral')}, "target 'positive' is none of LABELS"),
    ({'percents': (0, 120)}, 'percent=120 of the neurons; expected 0 to 100'),
    ({'layers': (2, 5)}, 'Layers 2 to 5 .* select nothing or what is not there'),
    ({'intervention': 'hammer'}, "INTERVENTION: 'hammer'; expected noise or zero or mean"),
    ({'controls': ('placebo',)}, "CONTROLS: 'placebo'; expected random_prompt or random_model"),
    ({'dev_share': 1.5}, 'DEV_SHARE=1.5; expected'),
    ({'over_trials': 'median'}, "OVER_TRIALS: 'median'; expected mean or min"),
    ({'datasets': {**DATASETS, 'test': dataset('validation', 1)}}, 'rows of label . and none of label .'),
])
def test_bad_input_is_one_sentence_and_nothing_is_left(tmp_path, kwargs, message):
  checkpoint = saved(tmp_path / 'prompt.safetensors', 1)
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 'out', checkpoint, **kwargs)
  assert [path.name for path in tmp_path.iterdir()] == ['prompt.safetensors']


def test_a_prompt_of_another_task_is_refused(tmp_path):
  checkpoint = saved(tmp_path / 'prompt.safetensors', 1, task='imdb')
  with pytest.raises(ValueError, match='was trained on imdb, but MIXTURE_OR_TASK_NAME is sst2_sample.*ANY_TASK'):
    run(tmp_path / 'out', checkpoint)


def test_places_without_a_prompt():
  """A decoder is looked at where it predicts; an encoder without a prompt at index 0."""
  for size, site, places in (('gpt2_tiny', 'decoder', 10), ('roberta_tiny', 'encoder', 0)):
    model, *_ = models.tiny(size=size)
    looks = probe._looks(probe.dataclasses.replace(model, method=probe.finished.Together()))
    assert list(looks) == [f'{site}/mlp_act']
    batch = jax.device_get(models.tiny_batch(config=model.backbone.config))
    np.testing.assert_array_equal(looks[f'{site}/mlp_act'].positions(batch), [[places]] * 2)


def test_a_base_is_pruned_by_a_probe(tmp_path):
  base = str(models.GOLDENS / 'hf/t5_v1_1')
  whole = loading.load(base, probe.finished.Together(), loading.Backbone(), models.one_device())
  c = whole.config
  rng = np.random.default_rng(0)
  (tmp_path / 'probe').mkdir()
  np.savez(tmp_path / 'probe/results.npz', pred=rng.random((1, c.encoder_layers, c.d_ff), np.float32),
           prompt_0_baseline=rng.random((1, c.encoder_layers, 3, c.d_ff), np.float32))
  numbers = prune_base.prune_base(
      output_dir=str(tmp_path / 'pruned'), initial_checkpoint_path=base, probe_dir=str(tmp_path / 'probe'), percent=25,
      layers=(1, c.encoder_layers))
  assert numbers['kept'] == [c.d_ff] + [c.d_ff // 4] * (c.encoder_layers - 1)
  again = loading.load(str(tmp_path / 'pruned'), probe.finished.Together(), loading.Backbone(), models.one_device())
  assert trees.size(again.frozen) == numbers['parameters_pruned'] < numbers['parameters'] == trees.size(whole.frozen)
  with pytest.raises(ValueError, match='select nothing'):
    prune_base.prune_base(output_dir=str(tmp_path / 'more'), initial_checkpoint_path=base,
                          probe_dir=str(tmp_path / 'probe'), layers=(3, 3))
  with pytest.raises(FileNotFoundError, match='PROBE_DIR=.* has no results.npz'):
    prune_base.prune_base(output_dir=str(tmp_path / 'more'), initial_checkpoint_path=base, probe_dir=str(tmp_path))
  assert not (tmp_path / 'more').exists()
