"""Many trainings at once: each member is its own single run, alone in its folder, and survives the others."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from prompt_tuning import loading
from prompt_tuning.checkpoints import run as run_checkpoints
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.train import data, evaluate, loop, optim, population
from tests import models

LENGTHS = {'inputs': 24, 'targets': 4}
TRAIN = data.Dataset('sst2_sample', LENGTHS, 'train', batch_size=8)
EVAL = data.Dataset('sst2_sample', LENGTHS, 'validation', batch_size=8, shuffle=False, limit=16)
ADAFACTOR = optim.adafactor(weight_decay_rate=1e-5, multiply_by_parameter_scale=False, factored=False)
MEMBERS = ({'seed': 3}, {'seed': 4, 'learning_rate_factor': 0.5})

pytestmark = pytest.mark.usefixtures('compile_once')


BASE = str(models.GOLDENS / 'tiny' / 'gpt2')  # a real folder, so that seeds of runs do not change it


def arguments(model_dir, *, steps=3, dropout_rate=0.1, **kwargs):
  given = dict(
      model_dir=str(model_dir), initial_checkpoint_path=BASE, method=Prompt(length=4), train_dataset=TRAIN,
      train_steps=steps, optimizer=ADAFACTOR, schedule=optim.constant(0.1),
      backbone=loading.Backbone(dropout_rate=dropout_rate), partitioner=models.one_device(), eval_period=3,
      save_period=3, log_period=1)
  return {**given, **kwargs}


def train(model_dir, members=MEMBERS, **kwargs):
  return population.train(members=members, **arguments(model_dir, **kwargs))


def alone(model_dir, member, **kwargs):
  """The run of a member of its own."""
  given = arguments(model_dir, **kwargs)
  schedule, method = given.pop('schedule'), given.pop('method')
  method = method.clone(length=member['length']) if 'length' in member else method
  return loop.train(
      method=method, random_seed=member['seed'], use_hardware_rng=False,
      schedule=lambda step: member.get('learning_rate_factor', 1.0) * schedule(step), **given)


def lines(folder, split='train') -> list[dict]:
  found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [line for line in found if line['split'] == split]


def assert_same_run(member, single, atol=1e-5):
  """Losses, and the finished prompt of each step that both keep."""
  for name in ('loss', 'accuracy', 'grad_norm', 'learning_rate'):
    np.testing.assert_allclose(
        [line[name] for line in lines(member)], [line[name] for line in lines(single)], rtol=1e-5, err_msg=name)
  files = sorted(path.name for path in (single / 'prompts').iterdir())
  assert sorted(path.name for path in (member / 'prompts').iterdir()) == files
  for file in files:
    mine, theirs = tuned.load(member / 'prompts' / file), tuned.load(single / 'prompts' / file)
    assert mine.about == theirs.about
    for name, x in theirs.tensors.items():
      np.testing.assert_allclose(mine.tensors[name], x, rtol=0, atol=atol, err_msg=f'{file} {name}')


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A population with dropout and evaluation after 3 steps: (folder, summary)."""
  folder = tmp_path_factory.mktemp('population') / 'three'
  return folder, train(folder, eval_datasets=[EVAL])


@pytest.fixture
def copy(three, tmp_path):
  return shutil.copytree(three[0], tmp_path / 'run')


def test_each_member_is_its_own_run(three, tmp_path):
  folder, summary = three
  for i, member in enumerate(MEMBERS):
    single = alone(tmp_path / str(i), member, eval_datasets=[EVAL])
    assert_same_run(folder / f'member_{i}', tmp_path / str(i))
    assert summary['members'][i] == {
        'length': None, 'learning_rate_factor': 1.0, **member, 'best_step': 3, 'stopped': None, 'diverged': None,
        'metrics': single['metrics']}
    mine, theirs = ([json.loads(line)['prediction'] for line in (run / file).read_text().splitlines()]
                    for file in ['inference_eval/sst2_sample-3.jsonl']
                    for run in (folder / f'member_{i}', tmp_path / str(i)))
    assert mine == theirs
  assert json.loads((folder / 'summary.json').read_text())['members'] == summary['members']
  assert summary['trainable_bytes'] == 2 * 4 * 64 * 4


def test_a_continued_population_is_the_uninterrupted_one(copy, tmp_path):
  train(copy, steps=5, eval_datasets=[EVAL], save_period=5)
  train(tmp_path / 'whole', steps=5, eval_datasets=[EVAL], save_period=5)
  for i in range(2):
    mine, whole = copy / f'member_{i}', tmp_path / 'whole' / f'member_{i}'
    assert [line['loss'] for line in lines(mine)] == [line['loss'] for line in lines(whole)]
    assert [line['step'] for line in lines(mine)] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.load(mine / 'prompts' / 'prompt_5.npy', allow_pickle=False),
                                  np.load(whole / 'prompts' / 'prompt_5.npy', allow_pickle=False))
  before = (copy / 'summary.json').read_text()
  train(copy, steps=5)
  assert (copy / 'summary.json').read_text() == before


def scripted(monkeypatch, values):
  """Evaluations that give these accuracies, one after the other, member by member."""
  values = iter(values)
  monkeypatch.setattr(evaluate.Evaluator, '__call__', lambda self, trainable: ({'accuracy': next(values)}, []))


def test_each_keeps_its_best_and_stops_by_itself(tmp_path, monkeypatch):
  scripted(monkeypatch, [0.1, 0.9, 0.2, 0.5, 0.3, 0.4, 0.25])  # the second is asked no more
  summary = train(tmp_path, steps=4, eval_period=1, eval_datasets=[EVAL], early_stopping_patience=2, keep=1)
  first, second = summary['members']
  assert (first['best_step'], first['stopped'], second['best_step'], second['stopped']) == (3, None, 1, 3)
  assert summary['step'] == 4
  kept = lambda i: sorted(path.name for path in (tmp_path / f'member_{i}' / 'prompts').iterdir() if '.npy' in path.name)
  assert kept(0) == ['best.npy', 'prompt_3.npy', 'prompt_4.npy']
  assert kept(1) == ['best.npy', 'prompt_1.npy', 'prompt_3.npy']
  assert tuned.load(tmp_path / 'member_1').about['step'] == 1


def test_what_diverges_is_left_behind(tmp_path, capsys):
  members = ({'seed': 0, 'learning_rate_factor': math.inf}, {'seed': 0})
  first, second = train(tmp_path, members, steps=2, log_period=2)['members']
  assert (first['diverged'], second['diverged']) == (2, None)
  assert 'member 0: the loss or its gradient is not finite in step 2; it is left behind' in capsys.readouterr().err
  assert not (tmp_path / 'member_0' / 'prompts').exists()
  assert np.isfinite(tuned.load(tmp_path / 'member_1').tensors[tuned.PROMPT]).all()
  with pytest.raises(loop.NonFiniteLossError, match='No member has a finite loss any more'):
    train(tmp_path / 'all', members[:1], steps=2, log_period=2)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(members=({'seed': 3},)), r'(?s)holds other trainables.*\+ trainable/1/prompt/embedding'),
    (dict(members=({'seed': 3}, {'seed': 5})), r'seed \[\[3, None, 1.0\], \[4, .* asked for now: adafactor and seed')])
def test_another_population_is_not_resumed(copy, change, message):
  with pytest.raises(run_checkpoints.ResumeError, match=message):
    train(copy, steps=4, **change)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(members=()), r"MEMBERS is empty; expected one dict a training"),
    (dict(members=({'lenght': 3},)), r'MEMBERS\[0\] has lenght; expected some of seed, length, learning_rate_factor'),
    (dict(members=({'length': 3},), method=Full()), 'A Full has no length that MEMBERS could set'),
    (dict(partitioner=Partitioner(), train_dataset=dataclasses.replace(TRAIN, batch_size=12)),
     'BATCH_SIZE=12 does not divide over the 8 data-parallel devices')])
def test_refusals(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    train(tmp_path, **change)
