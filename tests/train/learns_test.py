"""A prefix learns: on a frozen GPT-2 and BART that know the words of E2E but not the task, trained by the real loop.

The models are of `scripts/make_tiny_models.py`: shown tables as the task gives them, they list the fields again.
"""

import functools
import itertools

import numpy as np
import pytest
import seqio

from prompt_tuning import loading, tasks
from prompt_tuning.methods.infix import Infix
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.reparameterization import MLP
from prompt_tuning.metrics import bleu
from prompt_tuning.train import data, evaluate, loop, losses, optim
from scripts import make_tiny_models
from tests import models

pytestmark = pytest.mark.usefixtures('compile_once', 'task')

TASK = 'e2e_sample_learns'
STEPS = 30
LENGTHS = {'inputs': 44, 'targets': 48}
DEV = data.Dataset(TASK, LENGTHS, 'validation', batch_size=32, shuffle=False, limit=32)
BACKBONE = loading.Backbone(dropout_rate=0.0)
SMALL = MLP(hidden=64)
METHODS = {
    'prefix': Prefix(5, reparameterization=SMALL),
    'infix': Infix(5, reparameterization=SMALL),
    'embedding_only': Prompt(5, initializer=None, reparameterization=SMALL),
}


@pytest.fixture(scope='module')
def task():
  """`e2e_sample` with metrics that cost nothing: BLEU, and the loss in nats a sentence."""
  metrics = [lambda targets, predictions: {'bleu': bleu.bleu(predictions, targets)},
             lambda targets, scores: {'loss': -float(np.mean(scores))}]
  seqio.TaskRegistry.add_provider(TASK, tasks.load('e2e_sample').replace(name=TASK, metric_fns=metrics))
  yield
  seqio.TaskRegistry.remove(TASK)


@functools.cache
def untuned(family):
  """Metrics of the model without anything on top."""
  loaded = loading.load(str(models.GOLDENS / 'tiny' / family), Prefix(0), BACKBONE, models.one_device())
  return evaluate.Evaluator(loaded, DEV)(loaded.new_trainable(0))[0]


def tuned(folder, family, method):
  """Metrics on the dev rows after training."""
  summary = loop.train(
      model_dir=str(folder), initial_checkpoint_path=str(models.GOLDENS / 'tiny' / family), method=METHODS[method],
      train_dataset=data.Dataset(TASK, LENGTHS, 'train', batch_size=16), eval_datasets=[DEV], train_steps=STEPS,
      optimizer=optim.adamw(max_grad_norm=1.0), schedule=optim.constant(1e-2), backbone=BACKBONE,
      loss=functools.partial(losses.compute, normalizing_factor='NUM_SEQUENCES'), partitioner=models.one_device(),
      best_metric='bleu')
  return summary['metrics'][TASK]


@pytest.mark.parametrize('family', ['gpt2', 'bart'])
def test_a_prefix_learns_to_describe(tmp_path, family):
  before, after = untuned(family), tuned(tmp_path, family, 'prefix')
  assert after['loss'] < 0.9 * before['loss'], (before, after)
  assert after['bleu'] > before['bleu'] + 0.3, (before, after)


@pytest.mark.parametrize('method', ['infix', 'embedding_only'])
def test_virtual_tokens_learn(tmp_path, method):
  before, after = untuned('gpt2'), tuned(tmp_path, 'gpt2', method)
  assert after['loss'] < 0.8 * before['loss'], (before, after)


def test_the_models_never_saw_the_task():
  sources, targets = zip(*itertools.islice(make_tiny_models.examples(0), 2000), strict=True)
  assert not [text for text in sources if ' : ' in text or ' | ' in text]
  described = [target for source, target in zip(sources, targets, strict=True) if source.startswith('describe , ')]
  assert 900 < len(described) < 1100
  assert not [text for text in described if '[' in text]
