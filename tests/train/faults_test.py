"""Faults around a run: a source that fails or is slow, and a clock that jumps. Nothing of them is in its numbers."""

import json
import time

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning import loading
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.tasks import features
from prompt_tuning.train import batches, data, loop, optim, retrying
from tests import models

pytestmark = pytest.mark.usefixtures('compile_once')
TASK, EXAMPLES, LENGTHS = 'faults_test', 20, {'inputs': 8, 'targets': 4}


class Source:
  """Twenty rows; `faults` says what happens at one, as often as it says."""

  def __init__(self):
    self.faults = {}  # row -> [what to do, ...]

  def rows(self):
    for i in range(EXAMPLES):
      if self.faults.get(i):
        self.faults[i].pop()()
      yield {'inputs': f'number {i}', 'targets': 'even' if i % 2 == 0 else 'odd'}

  def __call__(self, split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    signature = {name: tf.TensorSpec((), tf.string) for name in ('inputs', 'targets')}
    return tf.data.Dataset.from_generator(self.rows, output_signature=signature)


@pytest.fixture(scope='module')
def registered():
  source = Source()
  seqio.TaskRegistry.add(
      TASK, source=seqio.FunctionDataSource(source, splits=['train']),
      preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features=features.OUTPUT_FEATURES, metric_fns=[])
  yield source
  seqio.TaskRegistry.remove(TASK)


@pytest.fixture
def source(registered, monkeypatch):
  monkeypatch.setattr(retrying, 'FIRST_PAUSE', 0.01)
  registered.faults.clear()
  return registered


def train(folder):
  """Seven steps of three, a checkpoint every second: just over an epoch. Returns its numbers and its last prompt."""
  summary = loop.train(
      model_dir=str(folder), initial_checkpoint_path=None, method=Prompt(length=2),
      train_dataset=data.Dataset(TASK, LENGTHS, 'train', batch_size=3), train_steps=7, optimizer=optim.adamw(),
      schedule=optim.constant(0.1), backbone=loading.Backbone('t5_1_1_tiny'), partitioner=models.one_device(),
      save_period=2, log_period=1)
  assert summary['step'] == 7
  assert summary['total_seconds'] >= summary['train_seconds'] >= 0
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  kept = sorted(path.name for path in (folder / 'checkpoints').iterdir())
  prompt = np.load(folder / 'prompts' / 'prompt_7.npy', allow_pickle=False)
  return [(line['step'], line['loss']) for line in lines], kept, prompt.tolist()


@pytest.fixture(scope='module')
def undisturbed(registered, tmp_path_factory):
  return train(tmp_path_factory.mktemp('runs') / 'undisturbed')


def no_network():
  raise ConnectionResetError('the file server is gone')


def test_a_run_goes_on_when_its_source_is_back(undisturbed, source, tmp_path, capsys):
  source.faults = {4: [no_network, no_network], 15: [no_network]}
  assert train(tmp_path) == undisturbed
  assert source.faults == {4: [], 15: []}
  said = capsys.readouterr().err
  assert f"{TASK}, split 'train', epoch 0 could not be read at example " in said
  assert 'ConnectionResetError: the file server is gone' in said
  assert 'trying again in 0.02 s (2 of 5)' in said


def test_a_run_waits_for_a_slow_source(undisturbed, source, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(batches, 'WAIT', 0.1)
  source.faults = {4: [lambda: time.sleep(0.5)]}
  assert train(tmp_path) == undisturbed
  assert 'waiting for data (0 s)' in capsys.readouterr().err


def test_a_source_that_stays_away_ends_the_run_with_one_message(source, tmp_path):
  source.faults = {3: [no_network] * 100}
  with pytest.raises(retrying.SourceError) as error:
    train(tmp_path)
  assert len(source.faults[3]) == 94
  message = str(error.value)
  assert f"{TASK}, split 'train', epoch 0 could not be read at example " in message
  assert 'the file server is gone' in message
  assert 'also not in 5 further tries' in message
  assert '\n' not in message


def test_a_run_whose_clock_jumps(undisturbed, source, tmp_path, monkeypatch, capsys):
  """Backwards by a day at each look; only the time of day, as a clock that is set does."""
  now = [2e9]

  def jump():
    now[0] -= 86400
    return now[0]

  monkeypatch.setattr(time, 'time', jump)
  monkeypatch.setattr(time, 'time_ns', lambda: int(jump() * 1e9))
  assert train(tmp_path) == undisturbed
  assert now[0] < 2e9
  assert 'eta -' not in capsys.readouterr().err


def test_tries_are_counted_from_the_last_item_on(monkeypatch, capsys):
  monkeypatch.setattr(retrying, 'FIRST_PAUSE', 0.0)
  failures = iter([True, True, False] * 4)

  def open_at(offset):
    for i in range(offset, 4):
      if next(failures):
        raise TimeoutError(f'item {i}')
      yield i

  transient = lambda error: isinstance(error, TimeoutError)
  assert list(retrying.Retrying(open_at, 0, 2, transient, 'numbers')) == [0, 1, 2, 3]
  assert capsys.readouterr().err.count('trying again') == 8
  failures = iter([True] * 9)
  with pytest.raises(retrying.SourceError, match=r'numbers could not be read at example 1 \(TimeoutError: item 1\)'):
    next(retrying.Retrying(open_at, 1, 2, transient, 'numbers'))


@pytest.mark.parametrize('error', [
    FileNotFoundError('train.tsv'), PermissionError('train.tsv'), ValueError('no column'),
    tf.errors.InvalidArgumentError(None, None, 'no such feature')])
def test_what_will_not_pass_is_raised_at_once(error):
  def open_at(offset):
    raise error

  with pytest.raises(type(error)) as found:
    retrying.Retrying(open_at, 0, 5, data._may_be_gone_next_time, 'rows')
  assert found.value is error
