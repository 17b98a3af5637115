"""Prompts and prefixes of many tasks: one batch of mixed tasks is what each task alone is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import bank, prefix
from prompt_tuning.methods.p_tuning import PTuning
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.reparameterization import MLP
from prompt_tuning.prompted import Prompted
from tests import models
from tests.methods.prefix_test import base_of

TASKS = np.array([1, 0, 1, 0])  # of each row of a batch
TEXTS = [[7, 8, 9], [30, 31], [40, 41, 42, 43], [50]]


@functools.cache
def tiny(size):
  model, frozen, _ = models.tiny(size=size)
  return model.backbone, frozen


def of(size, method, seed):
  """(Prompted, trainable) on the tiny model of that size."""
  backbone, frozen = tiny(size)
  model = Prompted(backbone, method.bind(backbone.config, None))
  return model, model.init(jax.random.key(seed), base_of(model, frozen))


def batch_of(config, places):
  """The texts, each placed by its own function, and targets."""
  around = () if config.decoder_only else ([config.bos_id] * (config.bos_id is not None), [config.eos_id])
  opening, closing = around or ([], [])
  rows = [place(np.array([*opening, *text, *closing], np.int32), models.VOCAB)
          for place, text in zip(places, TEXTS, strict=True)]
  source = np.stack([np.pad(row, (0, 14 - len(row)), constant_values=config.source_pad_id) for row in rows])
  targets = np.random.default_rng(0).integers(10, 200, (4, 3))
  return jax.tree.map(jnp.asarray, {
      'encoder_input_tokens': source, 'decoder_input_tokens': models.shifted(targets, config),
      'decoder_target_tokens': targets, 'decoder_loss_weights': np.ones((4, 3), np.float32)})


@functools.cache
def outputs_of(model):
  """Logits, and what is generated where there is a decoder, jitted."""
  def run(trainable, frozen, batch):
    logits = model.logits(trainable, frozen, batch)
    return logits if model.backbone.config.encoder_only else (
        logits, model.generate(trainable, frozen, batch, 4).tokens[:, 0])
  return jax.jit(run)


def assert_rows_are_each_alone(mixed, singles):
  """Row b of the mixed batch against row b of its task's own."""
  for row, task in enumerate(TASKS):
    jax.tree.map(lambda x, own, row=row: np.testing.assert_allclose(x[row], own[row], rtol=0, atol=2e-5),
                 mixed, singles[task])


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny', 'roberta_tiny'])
def test_prompts_of_mixed_tasks(size):
  """Of other lengths, made by a network, and in a template."""
  methods = [Prompt(2, None, MLP(hidden=8)), PTuning('<p> {text} <p*2>', reparameterization=None)]
  config, frozen = tiny(size)[0].config, tiny(size)[1]
  members = [of(size, method, seed) for seed, method in enumerate(methods)]
  mixed, _ = of(size, bank.prompts(methods), 0)
  trainable = bank.stack_prompts([trainable for _, trainable in members])
  assert trainable['prompt']['embedding'].shape == (5, 64)
  assert mixed.method.virtual_tokens == 3
  found = outputs_of(mixed)(trainable, frozen, batch_of(config, [mixed.method.place_for(task) for task in TASKS]))
  singles = [outputs_of(model)(own, frozen, batch_of(config, [model.place] * 4)) for model, own in members]
  assert_rows_are_each_alone(found, singles)
  assert np.abs(jax.tree.leaves(singles[0])[0] - jax.tree.leaves(singles[1])[0]).max() > 0.01


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny', 'roberta_tiny'])
def test_prefixes_of_mixed_tasks(size):
  methods = [Prefix(3, reparameterization=MLP(hidden=8)), Prefix(3, reparameterization=None)]
  config, frozen = tiny(size)[0].config, tiny(size)[1]
  members = [of(size, method, seed) for seed, method in enumerate(methods)]
  batch = batch_of(config, [lambda tokens, vocab_size: tokens] * 4)
  chosen = prefix.choose(bank.stack_prefixes([trainable for _, trainable in members]), jnp.asarray(TASKS))
  assert_rows_are_each_alone(
      outputs_of(members[0][0])(chosen, frozen, batch),
      [outputs_of(model)(own, frozen, batch) for model, own in members])


def test_a_bank_of_files(tmp_path):
  """As its docstring says."""
  tables = [np.random.default_rng(i).standard_normal((n, 64), np.float32) for i, n in enumerate((2, 3))]
  for i, table in enumerate(tables):
    tuned.save_npy(tmp_path / f'{i}.npy', tuned.Tuned('prompt', {tuned.PROMPT: table}))
  method = bank.prompts([tmp_path / '0.npy', tmp_path / '1.npy'])
  model, trainable = of('gpt2_tiny', method, 0)
  np.testing.assert_array_equal(trainable['prompt']['embedding'], np.concatenate(tables))
  np.testing.assert_array_equal(model.export(trainable)[tuned.PROMPT], np.concatenate(tables))
  ids = np.array([5, 6])
  assert method.place_for(1)(ids, 100).tolist() == [102, 103, 104, 5, 6]
  assert method.place(ids, 100).tolist() == [100, 101, 5, 6]


def test_refusals():
  with pytest.raises(ValueError, match='A bank of no prompts; expected at least one file'):
    bank.prompts([])
  with pytest.raises(ValueError, match=r'A method \(task 1\) is a prefix; a bank holds prompts. Of prefixes, use'):
    bank.prompts([Prompt(2), Prefix(2)])
  with pytest.raises(ValueError, match='There is no task 2; this bank has the tasks 0 to 1'):
    bank.prompts([Prompt(2), Prompt(3)]).place_for(2)
  one, other = ({'prefix': {'decoder': {'attn_kv': {name: np.zeros((2, n, 4, 16)) for name in ('key', 'value')}}}}
                for n in (3, 4))
  with pytest.raises(ValueError, match=r'(?s)prefix of task 1 differs.*- prefix/decoder/attn_kv/key \[2, 3, 4, 16\]'):
    bank.stack_prefixes([one, other])
