"""Runs on rows of one length, of buckets and packed: the same examples, losses and updates, step for step."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from prompt_tuning import batching, loading
from prompt_tuning.methods import readouts
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.train import batches as batches_lib
from prompt_tuning.train import data, evaluate, loop, losses, optim, population
from tests import models

TRAIN = data.Dataset('sst2_sample', {'inputs': 100, 'targets': 4}, 'train', batch_size=8)
EVAL = data.Dataset('sst2_sample', TRAIN.task_feature_lengths, 'validation', batch_size=8, shuffle=False, limit=37)
WAYS = {  # how rows are made, microbatches, devices
    'padded': (batching.Padded(), 1, 1), 'groups': (batching.Bucketed(lengths=(24, 48), groups=2, array_cost=0), 1, 1),
    'packed': (batching.Packed(lengths=(64, 128)), 2, 2)}

pytestmark = pytest.mark.usefixtures('compile_once')


def train(folder, how, microbatches, devices):
  """A run on a random base; metrics of every step."""
  loop.train(
      model_dir=str(folder), initial_checkpoint_path=None, method=Prompt(length=4, initializer=None),
      train_dataset=dataclasses.replace(TRAIN, batching=how), train_steps=3, optimizer=optim.adamw(),
      schedule=optim.constant(0.1), backbone=loading.Backbone('t5_1_1_tiny', dropout_rate=0.0),
      partitioner=Partitioner(devices=jax.devices()[:devices]), save_period=2, log_period=1, keep=2,
      microbatches=microbatches,
      loss=lambda logits, batch: losses.compute(logits, batch, normalizing_factor='AVERAGE_PER_SEQUENCE'))
  lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  return [row for row in map(json.loads, lines) if row['split'] == 'train']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A way's run of three steps: its folder, what it logged of each step, its prompt, and what it said."""

  @functools.cache
  def run(name):
    folder = tmp_path_factory.mktemp('runs') / 'run'
    with contextlib.redirect_stderr(io.StringIO()) as said:
      rows = train(folder, *WAYS[name])
    return folder, rows, np.load(folder / 'prompts' / 'prompt_3.npy', allow_pickle=False), said.getvalue()

  return run


@pytest.mark.parametrize('name', ['groups', 'packed'])
def test_losses_are_those_of_padded_rows(name, run):
  _, rows, prompt, _ = run('padded')
  _, found, after, said = run(name)
  for metric in ('loss', 'accuracy', 'grad_norm', 'loss_per_nonpadding_target_token'):
    np.testing.assert_allclose([row[metric] for row in found], [row[metric] for row in rows], rtol=2e-5, err_msg=metric)
  np.testing.assert_allclose(after, prompt, atol=1e-3)  # Adam makes a step of 0.1 of the smallest gradient
  share = [row['non_padding_fraction/encoder'] for row in found]
  assert np.mean(share) > 1.5 * np.mean([row['non_padding_fraction/encoder'] for row in rows])
  assert f'padding {1 - share[-1]:.0%}' in said


def test_a_run_that_goes_on_is_the_run(run, tmp_path):
  folder, rows, prompt, _ = run('packed')
  again = shutil.copytree(folder, tmp_path / 'run')
  shutil.rmtree(again / 'checkpoints' / '3')
  assert [row['loss'] for row in train(again, *WAYS['packed'])] == [row['loss'] for row in rows]
  np.testing.assert_array_equal(np.load(again / 'prompts' / 'prompt_3.npy', allow_pickle=False), prompt)


def test_evaluation_sorted_by_length_says_the_same_in_the_same_order():
  loaded = loading.load(None, Prompt(length=4), loading.Backbone('t5_1_1_tiny'), models.one_device())
  ways = batching.Padded(), batching.Bucketed(lengths=(16, 32, 64))
  (metrics, rows), (sorted_metrics, sorted_rows) = (
      evaluate.Evaluator(loaded, dataclasses.replace(EVAL, batching=how))(loaded.new_trainable(0)) for how in ways)
  assert sorted_metrics == pytest.approx(metrics, rel=1e-5)
  for row, other in zip(map(json.loads, rows), map(json.loads, sorted_rows), strict=True):
    assert other.pop('score') == pytest.approx(row.pop('score'), rel=1e-4)
    assert other == row
  converter = evaluate.converter(dataclasses.replace(EVAL, batching=ways[1]), loaded.model, loaded.tokenizer)
  batches = list(batches_lib.eval_batches(EVAL, converter))
  assert len({batch['encoder_input_tokens'].shape for *_, batch in batches}) > 2
  assert sorted(i for numbers, *_ in batches for i in numbers) == list(range(37))


def test_what_cannot_be(tmp_path):
  loaded = loading.load(None, Prompt(length=4), loading.Backbone('t5_1_1_tiny'), models.one_device())
  for how in (WAYS['packed'][0], WAYS['groups'][0]):
    dataset = dataclasses.replace(EVAL, batching=how)
    with pytest.raises(ValueError, match=r'is for training.*Use @batching.Padded\(\), or @batching.Bucketed\(\) with'):
      evaluate.Evaluator(loaded, dataset)(loaded.new_trainable(0))
  packed = dataclasses.replace(TRAIN, batching=WAYS['packed'][0], shards=2)
  convert = evaluate.converter(packed, loaded.model, loaded.tokenizer)
  with pytest.raises(ValueError, match='this host reads 1 of DATA_SHARDS=2 parts'):
    batches_lib.TrainBatches(packed, convert, 0, shards=[1])
  spans = dataclasses.replace(loaded.model, readout=readouts.Span())
  with pytest.raises(ValueError, match='Span tells places of a row apart'):
    evaluate.converter(packed, spans, loaded.tokenizer)
  with pytest.raises(ValueError, match=r'BATCHING = @batching.Packed\(\): members train on batches of one shape'):
    population.train(
        model_dir=str(tmp_path), initial_checkpoint_path=None, method=Prompt(), members=[{}], train_dataset=packed,
        train_steps=1, optimizer=optim.adamw(), schedule=optim.constant(0.1), partitioner=models.one_device())
