"""Whole runs on a tiny random base: files, resumption, best checkpoint, early stopping, and every refusal."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from prompt_tuning import loading
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import run as run_checkpoints
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.train import data, evaluate, loop, losses, optim, step
from tests import models

LENGTHS = {'inputs': 24, 'targets': 4}
TRAIN = data.Dataset('sst2_sample', LENGTHS, 'train', batch_size=8)
EVAL = data.Dataset('sst2_sample', LENGTHS, 'validation', batch_size=8, shuffle=False, limit=16)
ADAFACTOR = optim.adafactor(weight_decay_rate=1e-5, multiply_by_parameter_scale=False, factored=False)
BACKBONE = loading.Backbone('t5_1_1_tiny')


pytestmark = pytest.mark.usefixtures('compile_once')


def train(model_dir, *, steps=3, **kwargs):
  """A run on a random base, one device, dropout on; metrics of every step."""
  given = dict(
      model_dir=str(model_dir), initial_checkpoint_path=None, method=Prompt(length=4), train_dataset=TRAIN,
      train_steps=steps, optimizer=ADAFACTOR, schedule=optim.constant(0.3), backbone=BACKBONE,
      partitioner=models.one_device(), eval_period=3, save_period=3, log_period=1)
  return loop.train(**{**given, **kwargs})


def lines(model_dir, split='train') -> list[dict]:
  found = [json.loads(line) for line in (pathlib.Path(model_dir) / 'metrics.jsonl').read_text().splitlines()]
  return [line for line in found if line['split'] == split]


def last_prompt(model_dir, step) -> np.ndarray:
  return np.load(pathlib.Path(model_dir) / 'prompts' / f'prompt_{step}.npy', allow_pickle=False)


def steps_kept(model_dir) -> list[int]:
  with contextlib.closing(run_checkpoints.RunCheckpoints(model_dir)) as checkpoints:
    return checkpoints.steps


@pytest.fixture(scope='module')
def three_steps(tmp_path_factory):
  """A run stopped after 3 steps; tests that go on from it take a copy."""
  folder = tmp_path_factory.mktemp('runs') / 'three'
  train(folder)
  return folder


@pytest.fixture
def copy(three_steps, tmp_path):
  return shutil.copytree(three_steps, tmp_path / 'run')


@pytest.fixture(scope='module')
def six_steps(tmp_path_factory):
  """A run of 6 steps in one go, with evaluation: (folder, summary, what it said)."""
  folder = tmp_path_factory.mktemp('runs') / 'six'
  with open(folder.parent / 'stderr', 'w') as said, contextlib.redirect_stderr(said):
    summary = train(folder, steps=6, eval_datasets=[EVAL], eval_initial=True)
  return folder, summary, (folder.parent / 'stderr').read_text()


def test_files_of_a_run(six_steps):
  folder, summary, said = six_steps
  assert summary['step'] == 6
  assert summary['metrics'].keys() == summary['metrics_before'].keys() == {'sst2_sample'}
  assert 0 <= summary['metrics']['sst2_sample']['accuracy'] <= 100
  assert summary['trainable_bytes'] == 4 * 64 * 4
  info = (folder / 'model-info.txt').read_text()
  assert 'Trainable parameters: 256 ' in info
  assert 'token_embedder/embedding' in info
  train_lines = lines(folder)
  assert [line['step'] for line in train_lines] == [1, 2, 3, 4, 5, 6]
  for line in train_lines:
    assert np.isfinite(line['loss'])
    assert line['grad_norm'] > 0
    assert line['learning_rate'] == pytest.approx(0.3)
    assert 0 < line['non_padding_fraction/encoder'] <= 1
  assert sorted(line['step'] for line in lines(folder, 'inference_eval/sst2_sample')) == [0, 3, 6]
  rows = [json.loads(line) for line in (folder / 'inference_eval' / 'sst2_sample-6.jsonl').read_text().splitlines()]
  assert len(rows) == 16
  assert rows[0].keys() == {'input', 'target', 'prediction', 'score'}
  assert rows[0]['target'] in ('positive', 'negative')
  assert json.loads((folder / 'summary.json').read_text())['metrics'] == summary['metrics']
  assert list((folder / 'train').glob('events.out.tfevents.*'))
  assert list((folder / 'inference_eval' / 'sst2_sample').glob('events.out.tfevents.*'))
  assert last_prompt(folder, 6).shape == (4, 64)
  finished = tuned.load(folder / 'prompts' / 'prompt_6.safetensors', 'prompt')
  np.testing.assert_array_equal(finished.tensors['prompt/embedding'], last_prompt(folder, 6))
  assert finished.about == {
      'base_fingerprint': finished.about['base_fingerprint'], 'base_path': 'random t5_1_1_tiny', 'task': 'sst2_sample',
      'base_dtype': 'float32', 'step': 6, 'metric': summary['metrics']['sst2_sample']['accuracy'],
      'base_config': json.loads(json.dumps(dataclasses.asdict(config_lib.from_size('t5_1_1_tiny'))))}
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    assert finished.about['base_fingerprint'] == checkpoints.about(6)['base_fingerprint']
  assert 6 in steps_kept(folder)
  assert not [path for path in folder.rglob('*') if path.name.endswith('.tmp') or '.probe' in path.name]
  assert '256 trainable on' in said


def test_over_long_examples_are_counted(six_steps):
  assert 'examples cut: ' in six_steps[2]
  assert 'inputs (limit 24)' in six_steps[2]


def test_a_continued_run_is_the_uninterrupted_run_bit_for_bit(six_steps, copy):
  assert train(copy, steps=6)['step'] == 6
  assert [line['loss'] for line in lines(copy)] == [line['loss'] for line in lines(six_steps[0])]
  np.testing.assert_array_equal(last_prompt(copy, 6), last_prompt(six_steps[0], 6))
  assert [line['step'] for line in lines(copy)] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_costs_its_steps_alone(six_steps, tmp_path, capsys):
  """The run goes on from the one before, and all its numbers are those of a run in one go."""
  folder = tmp_path / 'run'
  train(folder, steps=5, save_period=1)
  (folder / 'checkpoints' / '5' / 'about' / 'metadata').write_text('{')
  train(folder, steps=6)
  said = capsys.readouterr().err
  assert f'The checkpoint {folder}/checkpoints/5 is damaged' in said
  assert f'resuming {folder} at step 4' in said
  assert [line['loss'] for line in lines(folder)] == [line['loss'] for line in lines(six_steps[0])]
  np.testing.assert_array_equal(last_prompt(folder, 6), last_prompt(six_steps[0], 6))
  assert steps_kept(folder) == [4, 6]


def test_a_finished_run_started_again_does_nothing(copy):
  before = last_prompt(copy, 3)
  assert train(copy, steps=3)['step'] == 3
  np.testing.assert_array_equal(last_prompt(copy, 3), before)


def scripted(monkeypatch, values):
  """Evaluations that give these accuracies, one after the other."""
  values = iter(values)
  monkeypatch.setattr(evaluate.Evaluator, '__call__', lambda self, trainable: ({'accuracy': next(values)}, []))


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path, monkeypatch):
  scripted(monkeypatch, [0.5, 0.9, 0.1])
  summary = train(tmp_path, steps=3, eval_period=1, eval_datasets=[EVAL])
  assert summary['best_step'] == 2
  assert steps_kept(tmp_path) == [2, 3]
  np.testing.assert_array_equal(
      np.load(tmp_path / 'prompts' / 'best.npy', allow_pickle=False), last_prompt(tmp_path, 2))
  assert sorted(path.name for path in (tmp_path / 'prompts').iterdir()) == [
      f'{name}.{suffix}' for name in ('best', 'prompt_2', 'prompt_3') for suffix in ('npy', 'safetensors')]
  best = tuned.load(tmp_path)
  np.testing.assert_array_equal(best.tensors['prompt/embedding'], last_prompt(tmp_path, 2))
  assert (best.about['step'], best.about['metric']) == (2, 0.9)


def test_early_stopping_also_across_a_restart(tmp_path, monkeypatch):
  scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2])
  options = dict(eval_period=1, eval_datasets=[EVAL], early_stopping_patience=2)
  assert train(tmp_path / 'a', steps=9, **options)['step'] == 3
  scripted(monkeypatch, [0.5, 0.4])
  train(tmp_path / 'b', steps=2, **options)
  scripted(monkeypatch, [0.3, 0.2])
  assert train(tmp_path / 'b', steps=9, **options)['step'] == 3


@pytest.mark.parametrize(('change', 'message'), [
    (dict(random_seed=1), r'fingerprint \w+ \(random t5_1_1_tiny\); this one has \w+ '),
    (dict(backbone=loading.Backbone('t5_1_0_tiny')), r'\(random t5_1_1_tiny\); this one has \w+ \(random t5_1_0_tiny'),
    (dict(method=Prompt(length=5)),
     r'(?s)- trainable/prompt/embedding \[5, 64\].*\+ trainable/prompt/embedding \[4, 64\]'),
    (dict(optimizer=optim.adamw()), r'(?s)other optimizer state.*- opt_state/0/.*\+ opt_state/'),
])
def test_another_run_is_not_resumed(copy, change, message):
  with pytest.raises(run_checkpoints.ResumeError, match=message) as error:
    train(copy, steps=6, **change)
  assert 'choose another MODEL_DIR' in str(error.value)
  assert [line['step'] for line in lines(copy)] == [1, 2, 3]


def test_another_seed_on_the_same_base_is_not_resumed():
  about = {'base_fingerprint': 'f', 'base_path': 'b', 'optimizer': 'adafactor', 'seed': 0, 'state': {}}
  with pytest.raises(run_checkpoints.ResumeError, match='seed 0, asked for now: adafactor and seed 1'):
    run_checkpoints.check_resumable(about, {**about, 'seed': 1}, 'runs/a')


def no_number(logits, batch):
  loss = losses.compute(logits, batch)
  return loss.replace(total=loss.total * np.nan)


def test_a_loss_that_is_not_finite_stops_the_run(copy):
  with pytest.raises(loop.NonFiniteLossError, match=r'steps 4 to 4; .* is of step 3') as error:
    train(copy, steps=6, loss=no_number)
  assert 'learning rate' in str(error.value)
  assert train(copy, steps=4)['step'] == 4  # the previous checkpoint is whole


def test_a_learning_rate_far_too_high_stops_the_run(tmp_path):
  with pytest.raises(loop.NonFiniteLossError, match=r'steps \d to 6; stopped'):
    train(tmp_path, steps=6, schedule=optim.constant(float('inf')), log_period=6, save_period=6)
  assert not (tmp_path / 'prompts').exists()


@pytest.mark.parametrize(('change', 'message'), [
    (dict(partitioner=None, train_dataset=data.Dataset('sst2_sample', LENGTHS, 'train', 12)),
     r'BATCH_SIZE=12 does not divide over the 8 data-parallel devices.*choose a multiple'),
    (dict(microbatches=3), 'BATCH_SIZE=8 does not divide into MICROBATCHES=3'),
    (dict(partitioner=loop.Partitioner(8)), 'NUM_PARTITIONS=8 cannot share 4 attention heads'),
    (dict(train_dataset=data.Dataset('sst2_sample', LENGTHS, 'test', 8)),
     "sst2_sample has no split 'test'; it has train, validation"),
    (dict(train_dataset=data.Dataset('sst2_smaple', LENGTHS, 'train', 8)),
     "no task or mixture 'sst2_smaple'.*sst2_sample"),
    (dict(train_dataset=data.Dataset('sst2_sample', {'inputs': 4}, 'train', 8)), 'lacks targets'),
    (dict(train_dataset=data.Dataset('sst2_sample', LENGTHS, 'train', 8, on_truncation='error')),
     r"Example \d+: inputs has \d+ tokens, more than TASK_FEATURE_LENGTHS\['inputs'\] = 24"),
    (dict(train_dataset=data.Dataset('sst2_sample', LENGTHS, 'train', 8, on_truncation='drop')),
     "on_truncation='drop'; expected 'count' or 'error'"),
    (dict(backbone=loading.Backbone()), 'Neither INITIAL_CHECKPOINT_PATH nor MODEL_SIZE'),
    (dict(backbone=loading.Backbone(), initial_checkpoint_path=str(models.GOLDENS / models.T5X['t5_1_1_init'])),
     r'tokenizer has 32000 ids but the model embeds 1024'),
])
def test_refusals(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    train(tmp_path, **change)


def test_an_unknown_best_metric_is_refused(tmp_path, monkeypatch):
  scripted(monkeypatch, [0.5])
  with pytest.raises(ValueError, match="BEST_METRIC='f1' is not among the metrics: sst2_sample/accuracy"):
    train(tmp_path, steps=1, eval_datasets=[EVAL], best_metric='f1')


def test_a_metric_of_a_named_task_is_best():
  results = {'a': {'accuracy': 1.0, 'f1': 2.0, 'legal_label_rate': 50.0}, 'b': {'accuracy': 3.0}}
  assert loop.choose(results, None) == (1.5 + 3.0) / 2  # of each task the mean, without diagnostics
  assert loop.choose(results, 'f1') == 2.0
  assert loop.choose(results, 'b/accuracy') == 3.0


def test_a_checkpoint_is_small(tmp_path):
  """100 x 768 with Adafactor: under a megabyte, whatever the base."""
  prompt = np.random.default_rng(0).standard_normal((100, 768), np.float32)
  state = step.init_state({'prompt': {'embedding': prompt}}, ADAFACTOR(optim.constant(0.3)))._asdict()
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(tmp_path))) as checkpoints:
    about = {'state': run_checkpoints.description(state)}
    checkpoints.save(1, state, about, tuned.Tuned('prompt', {'prompt/embedding': prompt}))
    with pytest.raises(ValueError, match='prompt_2: 76800 of 76800 values are NaN or infinite'):
      checkpoints.save(2, state, about, tuned.Tuned('prompt', {'prompt/embedding': prompt * np.nan}))
  assert sum(path.stat().st_size for path in (tmp_path / 'checkpoints').rglob('*') if path.is_file()) < 1_000_000
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(tmp_path))) as checkpoints:
    restored = checkpoints.restore(1, state)
  np.testing.assert_array_equal(restored['trainable']['prompt']['embedding'], prompt)
