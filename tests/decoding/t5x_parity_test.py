"""Beams equal those of T5X and of google-research/prompt-tuning on it, but for what `decoding.beam` says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from tests import models

NO_PROMPT = {'prompt': {'embedding': jnp.zeros((1, 1))}}


def check(decoded, sequences, scores, length):
  """`sequences` [B, K, T] and `scores` [B, K] in increasing order; see `decoding.beam` on what has not ended."""
  sequences, scores = sequences[:, ::-1], scores[:, ::-1]
  for tokens, score, theirs, their_score in zip(decoded.tokens, decoded.scores, sequences, scores, strict=True):
    ended = np.any(theirs == 1, axis=-1)
    if not ended.any():
      their_score = their_score / ((5 + length) / 6) ** 0.6
      ended |= True
    assert np.all(their_score[~ended] == -1e7)
    np.testing.assert_array_equal(tokens[ended], theirs[ended])
    np.testing.assert_allclose(score[ended], their_score[ended], rtol=1e-5)
    assert not np.any(tokens[~ended] == 1)


def beams(model, trainable, frozen, batch, length, widths):
  """Results by width, from one compilation."""
  run = lambda frozen, batch: {
      width: model.generate(trainable, frozen, batch, length, decoding.Beam(width, returned=width)) for width in widths}
  return jax.tree.map(np.asarray, jax.jit(run)(frozen, batch))


@pytest.mark.parametrize('name', ['t5_1_1_init', 't5_1_0_init', 't5_1_1_trained40'])
def test_t5x(name):
  loaded, ref = models.load_golden(models.T5X[name]), models.reference('t5x/decodes.npz')
  batch = models.batch_of(models.reference(f't5x/ref_{name}.npz'))
  length = ref[f'{name}/beam4/seqs'].shape[-1]
  for width, decoded in beams(loaded.model, NO_PROMPT, loaded.frozen, batch, length, (1, 4)).items():
    check(decoded, ref[f'{name}/beam{width}/seqs'], ref[f'{name}/beam{width}/scores'], length)


def test_google_prompt_tuning():
  ref, goldens = models.reference('t5x/ref_prompt_tuning_flaxformer.npz'), models.reference('t5x/decodes.npz')
  loaded, batch = models.load_golden(models.T5X['t5_1_1_init']), models.batch_of(ref)
  prompt = np.broadcast_to(np.arange(1024, 1034), (len(batch['encoder_input_tokens']), 10))
  batch['encoder_input_tokens'] = np.concatenate([prompt, batch['encoder_input_tokens']], axis=1)
  model, trainable = Prompted(loaded.model.backbone, Prompt(length=10)), {'prompt': {'embedding': ref['prompt']}}
  sequences, scores = (goldens[f'prompt_tuning_flaxformer/beam4/{part}'] for part in ('seqs', 'scores'))
  length = sequences.shape[-1]
  decoded = beams(model, trainable, loaded.frozen, batch, length, (4,))[4]
  check(decoded, sequences, scores, length)
