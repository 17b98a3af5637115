"""What the sum over target tokens is divided by."""

import numpy as np
import pytest

from prompt_tuning.train import losses

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
