"""Training a whole model: LM adaptation of a tiny T5, its steps and optimizer, and the base that it becomes."""

import contextlib
import dataclasses
import json
import shutil

from flax import linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import gin_utils, loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones import t5
from prompt_tuning.checkpoints import base, convert, tuned
from prompt_tuning.checkpoints import run as run_checkpoints
from prompt_tuning.checkpoints.source import TensorInfo
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import data, loop, optim, pretrained
from prompt_tuning.train import step as step_lib
from scripts import convert_checkpoint
from tests import models

pytestmark = pytest.mark.usefixtures('compile_once')

LENGTHS = {'inputs': 24, 'targets': 16}
TRAIN = data.Dataset('wikitext_sample_prefix_lm', LENGTHS, 'train', batch_size=4)
EVAL = data.Dataset('wikitext_sample_prefix_lm', LENGTHS, 'validation', batch_size=4, shuffle=False, limit=8)
FIRST, LAST = 100, 103  # steps before the run's, and its last
RSQRT = optim.rsqrt(1.0, warmup_steps=10)
TRAINED = str(models.GOLDENS / models.T5X['t5_1_1_trained40'])
ADAFACTOR = optim.adafactor(min_dim_size_to_factor=32)


def train(folder, start, steps, **kwargs):
  given = dict(
      model_dir=str(folder), initial_checkpoint_path=str(start), method=Full(), train_dataset=TRAIN, train_steps=steps,
      initial_step=FIRST, optimizer=ADAFACTOR, schedule=RSQRT, partitioner=models.one_device(),
      backbone=loading.Backbone(dropout_rate=0.0), save_period=2, log_period=1)
  return loop.train(**{**given, **kwargs})


def lines(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def newest(folder):
  """What is said about the newest checkpoint, and its state."""
  with contextlib.closing(run_checkpoints.RunCheckpoints(str(folder))) as checkpoints:
    return checkpoints.about(checkpoints.latest), checkpoints.restore(checkpoints.latest, None)


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A random base in a file: no initialiser to compile."""
  config = config_lib.from_size('t5_1_1_tiny')
  abstract = nn.meta.unbox(Prompted(t5.T5(config), Prompt(length=1)).abstract_frozen())
  folder = tmp_path_factory.mktemp('base') / 'model'
  convert.convert(convert.in_memory(models.random_params(abstract), config), folder, 'huggingface')
  return str(folder)


@pytest.fixture(scope='module')
def adapted(start, tmp_path_factory):
  """A run of three steps, with a checkpoint after two."""
  folder = tmp_path_factory.mktemp('pretrain') / 'run'
  train(folder, start, steps=3, keep=2, eval_datasets=[EVAL])
  return folder


@pytest.fixture(scope='module')
def as_t5x(adapted, tmp_path_factory):
  """What it made, as a T5X checkpoint."""
  to = tmp_path_factory.mktemp('t5x') / f'checkpoint_{LAST}'
  assert convert_checkpoint.main([str(adapted), str(to)]) == 0
  return to


# --- Steps ---


def test_steps_and_the_learning_rate_count_on(adapted):
  train_lines = [line for line in lines(adapted) if line['split'] == 'train']
  assert [line['step'] for line in train_lines] == [101, 102, 103]
  rates = np.array([100, 101, 102]) ** -0.5
  np.testing.assert_allclose([line['learning_rate'] for line in train_lines], rates, rtol=1e-6)
  assert json.loads((adapted / 'summary.json').read_text())['step'] == LAST
  assert {path.name for path in (adapted / 'checkpoints').iterdir()} == {'102', '103'}


def test_evaluation_is_of_the_text_alone(adapted):
  (line,) = [line for line in lines(adapted) if line['split'] != 'train']
  assert line['perplexity'] == pytest.approx(np.exp(-line['log_likelihood']))
  assert line['log_likelihood'] < -5
  rows = [json.loads(row) for row in
          (adapted / f'inference_eval/wikitext_sample_prefix_lm-{LAST}.jsonl').read_text().splitlines()]
  assert len(rows) == 8
  assert all(row.keys() == {'input', 'target', 'score'} for row in rows)
  assert all(row['score'] < 0 for row in rows)
  # What chooses the best checkpoint is larger when better, as perplexity is not.
  assert newest(adapted)[0]['best'] == pytest.approx(line['log_likelihood'])


def test_a_run_goes_on_as_if_it_had_not_stopped(adapted, start, tmp_path):
  again = shutil.copytree(adapted, tmp_path / 'again')
  for path in ('checkpoints/103', 'prompts/full_103.safetensors', 'prompts/best.safetensors'):
    shutil.rmtree(again / path) if (again / path).is_dir() else (again / path).unlink()
  train(again, start, steps=3)
  there, here = (tuned.load(folder / 'prompts/full_103.safetensors').tensors for folder in (adapted, again))
  assert all((there[name] == here[name]).all() for name in there)


@pytest.mark.parametrize(('change', 'message'), [
    ({'initial_step': 0}, r'began with INITIAL_STEP=100, .*=False; asked for now: INITIAL_STEP=0, '),
    ({'restore_optimizer': True}, 'asked for now: INITIAL_STEP=100, RESTORE_OPTIMIZER=True. To continue, ask for')])
def test_other_steps_are_not_resumed(adapted, change, message):
  about, _ = newest(adapted)
  with pytest.raises(run_checkpoints.ResumeError, match=message):
    run_checkpoints.check_resumable(about, {**about, **change}, 'run')
  without = {name: x for name, x in about.items() if name not in ('initial_step', 'restore_optimizer')}
  run_checkpoints.check_resumable(without, {**about, 'initial_step': 0}, 'a run from before these settings')


def test_a_checkpoint_says_its_step():
  assert pretrained.first_step('checkpoint', TRAINED) == 40
  assert pretrained.first_step(7, None) == 7


@pytest.mark.parametrize(('setting', 'path', 'message'), [
    ('checkpoint', None, 'needs a T5X checkpoint .* None is none'),
    ('checkpoint', str(models.GOLDENS / 'hf/t5_v1_1'), 'hf/t5_v1_1 is none. Set INITIAL_STEP to a number'),
    ('last', TRAINED, "INITIAL_STEP='last'; expected 'checkpoint' or a number"),
    (-1, TRAINED, 'INITIAL_STEP=-1')])
def test_steps_that_nobody_knows(setting, path, message):
  with pytest.raises(ValueError, match=message):
    pretrained.first_step(setting, path)


def test_a_schedule_that_has_ended_is_refused():
  with pytest.raises(ValueError, match='SCHEDULE is 0 from step 100 to 110.*total_steps to 110'):
    pretrained.from_step(optim.linear(1.0, total_steps=10), 100, 10)
  assert float(pretrained.from_step(optim.linear(1.0, total_steps=110), 100, 10)(0)) == pytest.approx(10 / 110)
  assert pretrained.from_step(RSQRT, 0, 10) is RSQRT


# --- The optimizer ---


@pytest.fixture(scope='module')
def trained():
  """T5X's checkpoint after 40 steps: (config, trainables, Adafactor's state before any step)."""
  loaded = models.load_golden(models.T5X['t5_1_1_trained40'])
  trainable = {'full': loaded.frozen}
  return loaded.config, trainable, optim.adafactor()(RSQRT).init(trainable)


def test_accumulators_are_those_of_the_checkpoint(trained):
  config, trainable, new = trained
  found = pretrained.restored(new, trainable, TRAINED, config, 40)
  assert trees.diff(*(run_checkpoints.description(x) for x in (found, new))) == []
  assert found.step == 40
  stored = base.open_t5x(TRAINED, 'state')
  raw = lambda path: stored.read(f'param_states/{path}', ())
  slots = found.slots['full']
  np.testing.assert_array_equal(slots['decoder']['layers']['mlp']['wi_0']['kernel'].v_row[1],
                                raw('decoder/layers_1/mlp/wi_0/kernel/v_row'))
  np.testing.assert_array_equal(slots['encoder']['layers']['attention']['out']['kernel'].v[0],
                                raw('encoder/layers_0/attention/out/kernel/v'))
  np.testing.assert_array_equal(slots['token_embedder']['embedding'].v_col, raw('token_embedder/embedding/v_col'))
  assert min(float(np.max(x)) for x in jax.tree.leaves(slots)) > 0


def test_accumulators_that_do_not_fit(trained):
  config, trainable, new = trained
  with pytest.raises(ValueError, match='takes the optimizer at step 40 .* begins at 0: set INITIAL_STEP'):
    pretrained.restored(new, trainable, TRAINED, config, 0)
  whole = optim.adafactor(factored=False)(RSQRT).init(trainable)
  with pytest.raises(ValueError, match=r'(?s)does not hold the accumulators.*embedding/v \[1024, 128\], there: \[1\]'):
    pretrained.restored(whole, trainable, TRAINED, config, 40)
  for other in ((optim.adamw()(RSQRT).init(trainable), trainable), (new, {'prompt': {}})):
    with pytest.raises(ValueError, match='use methods/full.gin and OPTIMIZER'):
      pretrained.restored(*other, TRAINED, config, 40)
  with pytest.raises(ValueError, match='RESTORE_OPTIMIZER needs a T5X checkpoint'):
    pretrained.restored(new, trainable, str(models.GOLDENS / 'hf/t5_v1_1'), config, 40)


def test_a_run_begins_with_the_accumulators(as_t5x, tmp_path, monkeypatch):
  """From a T5X checkpoint with accumulators of 1, after 103 steps."""
  source = base.open_base(as_t5x)
  abstract = ADAFACTOR(RSQRT).init(
      trees.unflatten({path: jnp.zeros(convert.leaf(source, entry).info.shape)
                       for path, entry in source.key_table(source.config).items()}))
  arrays = {'step': np.int32(LAST)}
  for path, entry in source.key_table(source.config).items():
    for name, x in trees.flatten(abstract.slots)[path]._asdict().items():
      shape = (1,) if x is None else x.shape[1:] if entry.stacked else x.shape
      arrays |= {f'param_states/{stored}/{name}': np.ones(shape, np.float32) for stored in entry.names}
  state = dataclasses.replace(
      source, read=lambda name, index: arrays[name],
      tensors={name: TensorInfo(x.shape, x.dtype) for name, x in arrays.items()})
  convert.convert(source, tmp_path / 'checkpoint_103', 't5x', state=state)

  seen = []
  def train_step(state, frozen, batch):  # nothing to compile
    seen.append(jax.device_get(state.opt_state))
    return state._replace(step=state.step + 1), dict.fromkeys(('loss', 'accuracy', 'grad_norm'), 0.0)

  monkeypatch.setattr(step_lib, 'make_train_step', lambda *args, **kwargs: train_step)
  train(tmp_path / 'run', tmp_path / 'checkpoint_103', steps=1, initial_step='checkpoint', restore_optimizer=True)
  (found,) = seen
  assert int(found.step) == LAST
  assert all((x == 1).all() for x in jax.tree.leaves(found.slots))
  about, after = newest(tmp_path / 'run')
  assert (about['initial_step'], about['restore_optimizer'], int(after['step'])) == (LAST, True, LAST + 1)


# --- The base that it becomes ---


def test_the_model_is_a_base_in_every_format(adapted, as_t5x, tmp_path, capsys):
  trained = tuned.load(adapted).tensors
  assert config_lib.BackboneConfig(**tuned.load(adapted).about['base_config']).d_model == 64
  assert convert_checkpoint.main([str(adapted), str(tmp_path / 'hf')]) == 0
  assert '(huggingface)' in capsys.readouterr().out
  for folder in (tmp_path / 'hf', as_t5x):
    loaded = loading.load(str(folder), Prompt(length=1), loading.Backbone(), models.one_device())
    params = trees.flatten(loaded.frozen)
    assert {f'full/{path}' for path in params} == trained.keys()
    assert all((np.asarray(x) == trained[f'full/{path}']).all() for path, x in params.items())
  assert pretrained.first_step('checkpoint', str(as_t5x)) == LAST


def test_only_a_whole_model_is_one(tmp_path, capsys):
  file = tmp_path / 'prompt.safetensors'
  tuned.save_safetensors(file, tuned.Tuned('prompt', {'prompt/embedding': np.ones((2, 4), np.float32)}))
  assert convert_checkpoint.main([str(file), str(tmp_path / 'model'), '--to_format=huggingface']) == 1
  assert 'holds a prompt, which is no model by itself' in capsys.readouterr().err
  with pytest.raises(ValueError, match='does not say the dimensions of its model'):
    convert.of_full(tuned.Tuned('full', {}), 'file')
  with pytest.raises(ValueError, match='does not say the dimensions of its model'):
    convert.of_full(tuned.Tuned('full', {}, {'base_config': {'height': 3}}), 'file')


# --- The paper's ---


@pytest.mark.parametrize(('file', 'expected'), [
    ('lm_adaptation', ('checkpoint', True, 100_000, 2**20)), ('span_corruption', (0, False, 1_000_000, 2**20))])
def test_recipes(file, expected):
  gin.clear_config()
  gin_utils.parse(['models/t5.gin', 'methods/full.gin', 'runs/train.gin', f'papers/lester2021/{file}.gin'],
                  ["INITIAL_CHECKPOINT_PATH = 'base'", "MODEL_DIR = 'run'"], '')
  get = gin_utils.macro
  tokens = get('BATCH_SIZE') * get('TASK_FEATURE_LENGTHS')['inputs']
  assert (get('INITIAL_STEP'), get('RESTORE_OPTIMIZER'), get('TRAIN_STEPS'), tokens) == expected
  assert get('DROPOUT_RATE') == 0
  assert 'rsqrt' in str(get('SCHEDULE'))
  assert gin.query_parameter('optim.adafactor.factored') is True
  gin.clear_config()
