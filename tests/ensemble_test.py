"""Ensembles: votes by hand, and N members in one pass against N passes of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import ensemble
from prompt_tuning.checkpoints import tuned
from prompt_tuning.interactive import PromptedModel
from prompt_tuning.methods import readouts
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from tests import models
from tests.methods.prefix_test import base_of

A, B, C = [1, 2], [1, 3], [4, 0]


@pytest.mark.parametrize(('said', 'probabilities', 'winner', 'mass'), [
    ([A, B, A], [0.1, 0.9, 0.2], A, 0.3),  # two votes, however sure the third is
    ([A, B, C], [0.2, 0.3, 0.1], B, 0.3),  # one vote each: the surest
    ([A, B, B, A], [0.5, 0.3, 0.3, 0.2], A, 0.7),  # two each: the highest sum
    ([A, B, B, A], [0.5, 0.3, 0.4, 0.1], B, 0.7),
    ([A], [0.4], A, 0.4)])
def test_a_vote_by_hand(said, probabilities, winner, mass):
  tokens, log_probs = ensemble.vote(jnp.array(said)[:, None], jnp.log(jnp.array(probabilities))[:, None])
  assert tokens.tolist() == [winner]
  np.testing.assert_allclose(jnp.exp(log_probs), [mass / len(said)], rtol=1e-6)


def test_rows_vote_apart():
  tokens = jnp.array([[A, C], [B, C], [A, B]])
  found, _ = ensemble.vote(tokens, jnp.full((3, 2), -1.0))
  assert found.tolist() == [A, C]


def test_the_mean_of_probabilities():
  np.testing.assert_allclose(jnp.exp(ensemble.mean(jnp.log(jnp.array([[0.1, 0.9], [0.3, 0.5]])))), [0.2, 0.7],
                             rtol=1e-6)


@functools.cache
def members(size, readout=readouts.TextToText()):  # noqa: B008 (frozen)
  """(one model, the ensemble, frozen, trainables of three seeds)."""
  model, frozen, _ = models.tiny(size=size)
  model = Prompted(model.backbone, Prompt(3), readout.bind(model.backbone.config, Letters()))
  trainables = [model.init(jax.random.key(seed), base_of(model, frozen)) for seed in range(3)]
  return model, ensemble.Ensemble(model.backbone, model.method, model.readout), frozen, trainables


class Letters:
  """A tokenizer of letters."""

  unk_id = None

  def encode(self, text):
    return [ord(letter) for letter in text]


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_one_pass_is_as_many_alone(size):
  """Generated texts vote, and the probabilities of given targets are averaged."""
  model, together, frozen, trainables = members(size)
  batch = models.tiny_batch(prompt=3, rows=4, config=model.backbone.config)
  both = lambda model: jax.jit(lambda *args: (model.generate(*args, 3), model.score(*args)))
  run = both(model)
  alone = [jax.device_get(run(trainable, frozen, batch)) for trainable in trainables]
  decoded, scores = jax.device_get(both(together)(ensemble.stack(trainables), frozen, batch))
  np.testing.assert_allclose(
      np.exp(scores), np.mean([np.exp(score) for _, score in alone], axis=0), rtol=1e-4)
  texts = [[tuple(d.tokens[row, 0].tolist()) for d, _ in alone] for row in range(4)]
  for row, said in enumerate(texts):
    log_probs = [float(d.log_probs[row, 0]) for d, _ in alone]
    weight = {text: (said.count(text), sum(np.exp(p) for t, p in zip(said, log_probs, strict=True) if t == text))
              for text in said}
    assert tuple(decoded.tokens[row, 0].tolist()) == max(weight, key=weight.get)


@pytest.mark.parametrize('readout', [
    readouts.Verbalizer(labels=('a', 'b', 'c')), readouts.Head(labels=('a', 'b', 'c'))])
def test_labels(readout):
  """Classes are voted for; logits are those of the mean probability. Each member has a head of its own."""
  model, together, frozen, trainables = members('roberta_tiny', readout)
  batch = {**models.tiny_batch(prompt=3, rows=8, config=model.backbone.config)}
  batch['decoder_input_tokens'] = batch['decoder_input_tokens'][:, :1]
  run = jax.jit(model.logits)
  alone = np.stack([jax.nn.softmax(run(trainable, frozen, batch)) for trainable in trainables])  # [N, B, 1, C]
  stacked = ensemble.stack(trainables)
  np.testing.assert_allclose(jnp.exp(together.logits(stacked, frozen, batch)), alone.mean(0), rtol=1e-4)
  chosen = together.generate(stacked, frozen, batch, 1).tokens[:, 0, 0]
  for row, probabilities in enumerate(alone[:, :, 0].transpose(1, 0, 2)):
    votes = np.bincount(probabilities.argmax(-1), minlength=3)
    tied = np.where(votes == votes.max(), np.where(
        probabilities == probabilities.max(-1, keepdims=True), probabilities, 0).sum(0), -1)
    assert chosen[row] == tied.argmax()


def test_files_to_talk_to(tmp_path):
  base = str(models.GOLDENS / 'tiny' / 'gpt2')
  for i in range(2):
    table = np.random.default_rng(i).standard_normal((2, 64), np.float32)
    tuned.save_npy(tmp_path / f'{i}.npy', tuned.Tuned('prompt', {tuned.PROMPT: table}))
  files = [tmp_path / '0.npy', tmp_path / '1.npy']
  given = dict(partitioner=models.one_device(), batch_size=2)
  texts, targets = ['name : The Mill', 'food : English'], ['The Mill', 'it serves food']
  alone = [PromptedModel.load(base, str(file), **given).score(texts, targets) for file in files]
  together = ensemble.load(base, files, **given)
  np.testing.assert_allclose(together.score(texts, targets), np.log(np.exp(alone).mean(0)), rtol=1e-4)
  assert len(together.predict(texts, 2)) == 2


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match='An ensemble of nothing; expected at least one run folder'):
    ensemble.read('base', [])
  with pytest.raises(ValueError, match='expected the trainables of at least one member'):
    ensemble.stack([])
  one, other = ({'prompt': {'embedding': np.zeros((n, 4))}} for n in (2, 3))
  with pytest.raises(ValueError, match=r'(?s)Member 1 .*- prompt/embedding \[2, 4\]\n  \+ prompt/embedding \[3, 4\]'):
    ensemble.stack([one, other])
  base = str(models.GOLDENS / 'tiny' / 'gpt2')
  table = np.zeros((2, 64), np.float32)
  for name, about in (('a', {}), ('b', {'settings': {'template': '{text} <p*2>'}})):
    tuned.save_safetensors(
        tmp_path / f'{name}.safetensors', tuned.Tuned('prompt', {tuned.PROMPT: table}, about))
  with pytest.raises(ValueError, match=r'b.safetensors is used with .*template.*an ensemble has one template'):
    ensemble.read(base, [tmp_path / 'a.safetensors', tmp_path / 'b.safetensors'], partitioner=models.one_device())
