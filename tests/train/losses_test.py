"""What the sum over target tokens is divided by, and how many logits are held for it."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.backbones import t5
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted, Unread
from prompt_tuning.train import losses
from tests import models

LOGITS = np.random.default_rng(0).standard_normal((3, 4, 5), np.float32)
BATCH = {
    'decoder_target_tokens': np.array([[1, 2, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0]]),
    'decoder_loss_weights': np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)}


@pytest.mark.parametrize(('factor', 'expected'), [
    (None, 1), (7, 7), ('NUM_REAL_TARGET_TOKENS', 4), ('NUM_TOTAL_TARGET_TOKENS', 12), ('AVERAGE_PER_SEQUENCE', 2),
    ('NUM_SEQUENCES', 2)])  # the third row is padding
def test_normalizers(factor, expected):
  loss = losses.compute(LOGITS, BATCH, normalizing_factor=factor)
  assert float(loss.normalizer) == pytest.approx(expected)


def test_a_sum_over_each_sentence_and_their_mean():
  loss = losses.compute(LOGITS, BATCH, normalizing_factor='NUM_SEQUENCES')
  log_probs = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
  first = -log_probs[0, [0, 1, 2], [1, 2, 3]].sum()
  second = -log_probs[1, 0, 4]
  assert float(loss.total / loss.normalizer) == pytest.approx((first + second) / 2, rel=1e-5)


def test_an_unknown_normalizer():
  with pytest.raises(ValueError, match="LOSS_NORMALIZING_FACTOR='SENTENCES'; expected .*NUM_SEQUENCES"):
    losses.compute(LOGITS, BATCH, normalizing_factor='SENTENCES')


@pytest.mark.parametrize('factor', ['AVERAGE_PER_SEQUENCE', 'NUM_SEQUENCES', 'NUM_REAL_TARGET_TOKENS'])
def test_segments_count_as_the_rows_that_they_were(factor):
  order = np.array([[0, 1, 2, 4]])  # of the tokens above: the first example, then the second
  packed = {name: x.reshape(-1)[order] for name, x in BATCH.items()} | {'decoder_segment_ids': np.array([[1, 1, 1, 2]])}
  one = losses.compute(LOGITS, BATCH, normalizing_factor=factor)
  other = losses.compute(LOGITS.reshape(-1, 5)[order], packed, normalizing_factor=factor)
  assert float(other.normalizer) == float(one.normalizer)
  assert float(other.total) == pytest.approx(float(one.total), rel=1e-6)


# --- in chunks ---


OPTIONS = {'z_loss': 1e-4, 'label_smoothing': 0.1, 'normalizing_factor': 'AVERAGE_PER_SEQUENCE'}


@pytest.mark.parametrize(('size', 'chunk'), [
    ('t5_1_1_tiny', 2), ('t5_1_0_tiny', 5), ('gpt2_tiny', 1), ('bart_tiny', 9)])  # of five positions
def test_a_loss_in_chunks_is_the_loss(size, chunk):
  model, frozen, trainable = models.tiny(size=size)
  batch = models.tiny_batch(rows=3, prompt=3, config=model.backbone.config)

  def total(trainable, chunk):
    loss = losses.compute(model.unread(trainable, frozen, batch), batch, chunk=chunk, **OPTIONS)
    return loss.total, loss

  of = lambda chunk: jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(trainable, chunk)
  (gradients, loss), (expected, whole) = of(chunk), of(None)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), loss, whole)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6 * largest), gradients, expected)


def test_logits_are_not_held_at_once():
  config = dataclasses.replace(models.TINY, vocab_size=4096, encoder_layers=1, decoder_layers=1)
  model = Prompted(t5.T5(config), Prompt(length=3))
  rows, length, chunk = 4, 64, 8
  batch = {name: jax.ShapeDtypeStruct((rows, length), jnp.float32 if 'weights' in name else jnp.int32)
           for name in models.tiny_batch()}
  trainable = {'prompt': {'embedding': jax.ShapeDtypeStruct((3, config.d_model), jnp.float32)}}
  frozen = nn.meta.unbox(model.abstract_frozen())

  def temporary(chunk):
    total = lambda trainable, frozen, batch: losses.compute(
        model.unread(trainable, frozen, batch), batch, chunk=chunk).total
    compiled = jax.jit(jax.grad(total)).lower(trainable, frozen, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 4 * rows * length * config.vocab_size
  assert temporary(None) > logits
  assert temporary(None) - temporary(chunk) > (1 - 2 * chunk / length) * logits


def test_classes_are_not_chunked():
  """A head of a readout has made the logits already: [B, T, classes]."""
  loss = losses.compute(Unread(jnp.asarray(LOGITS), None), BATCH, chunk=2)
  np.testing.assert_array_equal(loss.total, losses.compute(LOGITS, BATCH).total)


def test_a_chunk_of_nothing():
  with pytest.raises(ValueError, match='LOSS_CHUNK=0; expected a number of target positions'):
    losses.compute(LOGITS, BATCH, chunk=0)
