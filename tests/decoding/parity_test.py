"""Decodes equal those of Hugging Face, every row and every returned beam."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding
from prompt_tuning.prompted import Prompted
from tests import models

NO_PROMPT = {'prompt': {'embedding': jnp.zeros((1, 1))}}
EARLY_STOPPING = {'': False, 'True': True, 'Never': 'never'}


def hugging_face_batch(config, ref):
  """The last token of a source is the start token of a decoder-only model."""
  ids, mask = ref['input_ids'], ref['attention_mask']
  if not config.decoder_only:
    return {'encoder_input_tokens': np.where(mask > 0, ids, config.pad_id),
            'decoder_input_tokens': np.full((len(ids), 1), config.start_id)}
  last = mask.sum(-1, keepdims=True) - 1
  return {'encoder_input_tokens': np.where(np.arange(ids.shape[1]) < last, ids, config.source_pad_id)[:, :-1],
          'decoder_input_tokens': np.take_along_axis(ids, last, axis=1)}


def beam_of(name):
  """'beam5_[forced_]lp0.6[_esNever]' -> its decoder."""
  alpha, _, stop = name.partition('lp')[2].partition('_es')
  return decoding.Beam(
      5, length_penalty='hf', alpha=float(alpha), early_stopping=EARLY_STOPPING[stop], returned=5)


@pytest.mark.parametrize(('family', 'forced'), [
    ('t5_v1_1', False), ('t5_v1_0', False), ('gpt2', False), ('bart', False), ('bart', True)])
def test_hugging_face(family, forced):
  loaded, ref = models.load_golden(f'hf/{family}'), models.reference(f'hf/{family}/decodes.npz')
  config = loaded.config
  if family == 'bart':  # made with another end, which the random model does emit
    eos = int(ref['gen_eos_token_id'])
    force = {'forced_bos_id': config.bos_id, 'forced_eos_id': eos} if forced else {'forced_eos_id': None}
    config = dataclasses.replace(config, eos_id=eos, **force)
  model = Prompted(loaded.model.backbone.clone(config=config), loaded.model.method)
  greedy = 'greedy_forced' if forced else 'greedy'
  context = ref['input_ids'].shape[1] if config.decoder_only else 1  # their sequences begin with it
  length = ref[greedy].shape[1] - context
  beams = [name for name in ref if name.startswith('beam5') and not name.endswith('_scores')]
  beams = [name for name in beams if ('forced' in name) == forced]
  assert len(beams) == 6
  decoders = {greedy: decoding.Greedy(), **{name: beam_of(name) for name in beams}}
  run = lambda frozen, batch: {
      name: model.generate(NO_PROMPT, frozen, batch, length, decoder) for name, decoder in decoders.items()}
  decoded = jax.tree.map(np.asarray, jax.jit(run)(loaded.frozen, hugging_face_batch(config, ref)))
  for name, ours in decoded.items():
    theirs = ref[name][:, context:].reshape(*ours.tokens.shape[:2], -1)
    theirs = np.pad(theirs, [(0, 0), (0, 0), (0, length - theirs.shape[-1])], constant_values=config.pad_id)
    ended = np.cumsum(np.pad(theirs == config.eos_id, [(0, 0), (0, 0), (1, 0)])[..., :-1], axis=-1) > 0
    theirs = np.where(ended, config.pad_id, theirs)  # beams of T5 are padded with the end, its pad being 0
    np.testing.assert_array_equal(ours.tokens, theirs, err_msg=name)
    if name != greedy:
      np.testing.assert_allclose(ours.scores.ravel(), ref[f'{name}_scores'], rtol=2e-5, atol=2e-5, err_msg=name)
