"""T5 agrees with itself: scanned, unrolled, rematerialised, cached, in bfloat16; and every site is a site."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones import config, layers, sites, t5
from tests import models


def logits(**kwargs):
  model, frozen, trainable = models.tiny(**kwargs)
  return jax.jit(model.logits)(trainable, frozen, models.tiny_batch(prompt=3))


def test_unrolled_layers_equal_scanned_ones():
  np.testing.assert_allclose(logits(scan=True), logits(scan=False), atol=1e-5)


def loss_and_gradient(key=None, **kwargs):
  model, frozen, trainable = models.tiny(**kwargs)
  batch = models.tiny_batch(prompt=3)

  @jax.jit
  def run(trainable, frozen):
    return jax.value_and_grad(lambda t: jnp.sum(jnp.sin(model.logits(t, frozen, batch, key))))(trainable)

  value, grads = run(trainable, frozen)
  return float(value), np.asarray(grads['prompt']['embedding'])


@pytest.mark.parametrize(('scan', 'remat'), [(True, 'dots'), (True, 'full'), (False, 'full')])
def test_rematerialisation_changes_nothing(scan, remat):
  key = jax.random.key(7, impl='unsafe_rbg')  # dropout must be drawn the same way twice
  value, grads = loss_and_gradient(key, scan=scan)
  again, grads_again = loss_and_gradient(key, scan=scan, remat=remat)
  np.testing.assert_allclose(again, value, rtol=1e-5)
  np.testing.assert_allclose(grads_again, grads, atol=1e-4 * np.abs(grads).max())


def test_unknown_rematerialisation():
  with pytest.raises(ValueError, match="remat='some'.*none, full, dots"):
    logits(remat='some')


def test_dropout_is_drawn_from_its_key_and_off_without_one():
  model, frozen, trainable = models.tiny(dropout_rate=0.3)
  run = jax.jit(model.logits)
  batch = models.tiny_batch(prompt=3)
  plain = run(trainable, frozen, batch)
  one, same, other = (run(trainable, frozen, batch, jax.random.key(k)) for k in (1, 1, 2))
  np.testing.assert_array_equal(one, same)
  assert not np.allclose(one, other)
  assert not np.allclose(one, plain)


def test_dropout_keeps_the_expectation_and_one_mask_for_all_positions():
  module = layers.Dropout(0.25)
  x = jnp.ones((400, 7, 5))
  y = np.asarray(module.apply({}, x, False, rngs={'dropout': jax.random.key(0)}))
  np.testing.assert_allclose(y.mean(), 1.0, atol=0.05)
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))


def test_bfloat16_is_close_to_float32():
  """Eight bits of mantissa: a few per cent of the logits' spread at worst, well under one on average."""
  exact = np.asarray(logits())
  error = np.abs(np.asarray(logits(dtype=jnp.bfloat16)) - exact) / exact.std()
  assert error.mean() < 0.02
  assert error.max() < 0.2


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 't5_1_0_tiny'])
def test_decoding_equals_teacher_forcing(size):
  model, frozen, trainable = models.tiny(size=size)
  batch = models.tiny_batch(rows=3, prompt=3)
  length = 6
  decoded = jax.jit(model.generate, static_argnums=3)(trainable, frozen, batch, length)
  tokens = np.asarray(decoded.tokens[:, 0])
  forced = {**batch, 'decoder_input_tokens': np.pad(tokens, [(0, 0), (1, 0)])[:, :-1]}
  log_probs = np.asarray(jax.nn.log_softmax(jax.jit(model.logits)(trainable, frozen, forced)))
  live = np.cumsum(np.pad(tokens == 1, [(0, 0), (1, 0)])[:, :-1], axis=1) == 0
  np.testing.assert_array_equal(np.where(live, log_probs.argmax(-1), 0), tokens)
  np.testing.assert_allclose(decoded.log_probs[:, 0], (log_probs.max(-1) * live).sum(-1), rtol=1e-4)


def test_padding_does_not_matter():
  model, frozen, trainable = models.tiny()
  batch = models.tiny_batch(prompt=3)
  wider = {**batch, 'encoder_input_tokens': jnp.pad(batch['encoder_input_tokens'], [(0, 0), (0, 5)])}
  run = jax.jit(model.logits)
  np.testing.assert_allclose(run(trainable, frozen, wider), run(trainable, frozen, batch), atol=1e-5)


class Shift(struct.PyTreeNode):
  """Adds a number per layer to whatever arrives."""

  by: jax.Array

  def __call__(self, x, *unused):
    return x + self.by


@functools.cache
def run_without_sites():
  model, frozen, _ = models.tiny()
  return jax.jit(model.backbone.apply)({'params': frozen}, models.tiny_batch())


@pytest.mark.parametrize('name', sorted(sites.NAMES - {'states'}))  # that one: tests/methods/readouts_test.py
def test_every_site_reaches_the_logits(name):
  model, frozen, _ = models.tiny()
  apply = jax.jit(lambda frozen, sites: model.backbone.apply({'params': frozen}, models.tiny_batch(), sites))
  run = lambda content: apply(frozen, {name: content})
  without, c = run_without_sites(), models.TINY
  if name.endswith('_kv'):
    content = sites.KeysValues(*jax.random.normal(jax.random.key(1), (2, c.encoder_layers, 4, c.num_heads, c.head_dim)))
    per_row = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 2, *x.shape[1:])), content)
    np.testing.assert_allclose(run(content), run(per_row), atol=1e-4)  # shared, or one copy a row
  else:
    nothing = jnp.zeros(() if name == 'inputs' else c.encoder_layers)
    np.testing.assert_allclose(run(Shift(nothing)), without, atol=1e-5)
    content = Shift(nothing + 0.5)
  assert np.abs(run(content) - without).max() > 1e-3


def test_more_keys_share_one_softmax():
  """Keys given by the site equal keys that are part of the sequence."""
  q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, 3, 4)) for i in range(3))
  mask = jnp.ones((1, 1, 1, 3), bool)
  whole = layers.attend(q, [(k, v)], None, jnp.ones((1, 1, 1, 5), bool))
  split = layers.attend(q, [(k[:, 2:], v[:, 2:])], None, mask, (k[:, :2], v[:, :2]))
  pieces = layers.attend(q, [(k[:, 2:3], v[:, 2:3]), (k[:, 3:], v[:, 3:])], None, mask, (k[:, :2], v[:, :2]))
  np.testing.assert_allclose(split, whole, atol=1e-5)
  np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_unknown_site():
  model, frozen, _ = models.tiny()
  with pytest.raises(ValueError, match='No site is called encoder/mlp_acts.*encoder/mlp_act'):
    model.backbone.apply({'params': frozen}, models.tiny_batch(), {'encoder/mlp_acts': Shift(jnp.zeros(2))})


def test_virtual_tokens_may_stand_anywhere():
  """A virtual token with a word's embedding acts as that word."""
  model, frozen, _ = models.tiny(length=2)
  table = frozen['token_embedder']['embedding']
  batch = models.tiny_batch()
  words = batch['encoder_input_tokens']
  virtual = words.at[0, 1].set(models.VOCAB).at[1, 3].set(models.VOCAB + 1)
  prompt = {'prompt': {'embedding': jnp.stack([table[words[0, 1]], table[words[1, 3]]])}}
  run = jax.jit(model.logits)
  np.testing.assert_allclose(
      run(prompt, frozen, {**batch, 'encoder_input_tokens': virtual}), run(prompt, frozen, batch), atol=1e-5)


def test_unknown_size():
  with pytest.raises(ValueError, match="'t5_1_1_huge'.*t5_1_1_base"):
    config.from_size('t5_1_1_huge')


@pytest.mark.parametrize('bidirectional', [True, False])
def test_relative_buckets(bidirectional):
  """Exact near zero, shared far away, and by direction only where both directions are seen."""
  distance = jnp.arange(-300, 301)
  bucket = np.asarray(t5.relative_buckets(distance, bidirectional, 32, 128))
  past, future = bucket[distance <= 0][::-1], bucket[distance >= 0]
  exact = 8 if bidirectional else 16
  np.testing.assert_array_equal(past[:exact], np.arange(exact))
  assert (np.diff(past) >= 0).all()
  assert past[-1] == (15 if bidirectional else 31)
  np.testing.assert_array_equal(future[1:], past[1:] + 16 if bidirectional else 0 * past[1:])
