"""Infix-tuning and embedding-only tuning (Li & Liang 2021, section 7.2 and 7.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished, infix, initializers
from prompt_tuning.methods.infix import Infix
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.reparameterization import MLP
from prompt_tuning.prompted import Prompted
from tests import models
from tests.methods.prefix_test import WORDS, base_of, jitted, made

SMALL = MLP(hidden=8)
SITES = {'gpt2_tiny': 'decoder/attn_kv', 'bart_tiny': 'encoder/attn_kv', 't5_1_1_tiny': 'encoder/attn_kv'}


def placed(model) -> dict:
  """A batch with the method's virtual tokens in its sources."""
  config = model.backbone.config
  batch = models.tiny_batch(config=config)
  rows = [model.method.place(row[row != config.source_pad_id], models.VOCAB)
          for row in np.asarray(batch['encoder_input_tokens'])]
  width = max(map(len, rows))
  source = [np.pad(row, (0, width - len(row)), constant_values=config.source_pad_id) for row in rows]
  return {**batch, 'encoder_input_tokens': jnp.asarray(np.stack(source), jnp.int32)}


def test_where_an_infix_is_placed():
  np.testing.assert_array_equal(Infix(3).place(np.array([7, 8]), 256), [7, 8, 256, 257, 258])
  assert Infix(3).virtual_tokens == 3


@pytest.mark.parametrize('size', SITES)
def test_an_infix_of_real_words_without_offsets_is_those_words(size):
  method = Infix(3, initializer=initializers.text('three words'), reparameterization=None)
  model, frozen, trainable = made(size, method)
  batch = placed(model)
  ids = np.asarray(batch['encoder_input_tokens'])
  words = np.where(ids >= models.VOCAB, np.array(WORDS)[np.clip(ids - models.VOCAB, 0, 2)], ids)
  plain = Prompted(model.backbone, Prefix(0))
  np.testing.assert_allclose(
      jitted(model)(trainable, frozen, batch),
      jitted(plain)({}, frozen, {**batch, 'encoder_input_tokens': words}), rtol=0, atol=1e-5)


def test_offsets_move_virtual_tokens_only():
  offsets = infix.Offsets(jnp.ones((2, 4, 3)), 2 * jnp.ones((2, 4, 3)))
  assert offsets.more is None
  assert offsets.length == 0
  k, v = offsets(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 3)), jnp.array([[-5, -1, 0, 1]]))
  np.testing.assert_array_equal(k[0, :, 0, 0], [0, 0, 1, 1])
  np.testing.assert_array_equal(v[0, :, 0, 0], [0, 0, 2, 2])


@pytest.mark.parametrize(('size', 'mlp'), [('gpt2_tiny', SMALL), ('bart_tiny', None)])
def test_what_an_infix_trains_and_keeps(size, mlp, tmp_path):
  model, frozen, trainable = made(size, Infix(3, reparameterization=mlp), scan=True)
  gradient = jax.jit(jax.grad(lambda *args: model.score(*args).sum()))(trainable, frozen, placed(model))
  for path, x in trees.flatten(gradient).items():
    assert np.abs(x).max() > 0, path
  tensors = jax.device_get(model.method.export(trainable))
  site = SITES[size]
  assert {name: x.shape for name, x in tensors.items()} == {
      'infix/embedding': (3, 64), **{f'infix/{site}/{name}': (2, 3, 4, 16) for name in ('key', 'value')}}
  tuned.save_safetensors(tmp_path / 'a', tuned.Tuned('infix', tensors))
  kept = finished.load(tmp_path / 'a')
  assert kept.virtual_tokens == 3
  again = kept.init({'infix': jax.random.key(0)}, base_of(model, frozen))
  jax.tree.map(np.testing.assert_array_equal, trees.flatten(again), tensors)
  jax.tree.map(np.testing.assert_array_equal, kept.apply(again), model.method.apply(trainable))


def test_decoding_with_an_infix_agrees_with_reading():
  model, frozen, trainable = made('gpt2_tiny', Infix(3, reparameterization=SMALL))
  batch = placed(model)
  decoded = jax.jit(lambda *args: model.generate(*args, 4).tokens)(trainable, frozen, batch)[:, 0]
  start = batch['decoder_input_tokens'][:, :1]
  logits = jitted(model)(trainable, frozen, {
      **batch, 'decoder_input_tokens': jnp.concatenate([start, decoded[:, :-1]], axis=1)})
  eos = model.backbone.config.eos_id
  alive = np.cumsum(np.asarray(decoded) == eos, axis=1) - (np.asarray(decoded) == eos) == 0
  np.testing.assert_array_equal(np.asarray(decoded)[alive], np.asarray(logits.argmax(-1))[alive])


@pytest.mark.parametrize('size', ['gpt2_tiny', 't5_1_1_tiny'])
def test_embedding_only(size):
  """Trained through an MLP, kept as a plain prompt."""
  model, frozen, trainable = made(size, Prompt(3, None, reparameterization=SMALL), scan=True)
  assert trees.flatten(trainable).keys() == {'prompt/embedding', *[
      f'prompt/layer_{i}/{name}' for i in range(2) for name in ('kernel', 'bias')]}
  gradient = jax.jit(jax.grad(lambda *args: model.score(*args).sum()))(trainable, frozen, placed(model))
  assert min(np.abs(x).max() for x in jax.tree.leaves(gradient)) > 0
  kept = model.method.export(trainable)
  assert {name: x.shape for name, x in kept.items()} == {tuned.PROMPT: (3, 64)}
  plain = Prompt(3).apply(trees.unflatten(kept))
  jax.tree.map(np.testing.assert_array_equal, plain, model.method.apply(trainable))


def test_embedding_only_begins_as_words_if_asked_to():
  words = initializers.text('three words')
  model, frozen, trainable = made('gpt2_tiny', Prompt(3, words, reparameterization=MLP(hidden=64)))
  (table,) = model.method.export(trainable).values()
  (before,) = model.method.export(made('gpt2_tiny', Prompt(3, None, reparameterization=MLP(hidden=64)))[2]).values()
  target = base_of(model, frozen).embeddings(WORDS)
  assert np.square(table - target).mean() < 0.9 * np.square(before - target).mean()
