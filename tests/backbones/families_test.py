"""What holds for every backbone: parity with Hugging Face, decoding as teacher forcing, padding, sites, one scan."""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, loading
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones import sites
from prompt_tuning.prompted import Prompted
from tests import models

NO_PROMPT = {'prompt': {'embedding': jnp.zeros((1, 1))}}
FAMILIES = ['t5_1_1_tiny', 'gpt2_tiny', 'bart_tiny']
TOLERANCE = 5e-4  # against Hugging Face, which is as close to itself


class Shift(struct.PyTreeNode):
  """Adds a number per layer to the first channel of whatever arrives."""

  by: jax.Array

  def __call__(self, x, *unused):
    return x.at[..., 0].add(self.by)


@functools.cache
def tiny(size, **kwargs):
  model, frozen, trainable = models.tiny(size=size, **kwargs)
  config = dataclasses.replace(model.backbone.config, forced_eos_id=None)
  model = Prompted(model.backbone.clone(config=config), model.method)
  return model, frozen, trainable, models.tiny_batch(rows=3, prompt=3, config=config)


@functools.cache
def golden(name):
  return models.load_golden(f'hf/{name}'), models.reference(f'hf/{name}/reference.npz')


def decodes(name):
  return models.load_golden(f'hf/{name}'), models.reference(f'hf/{name}/decodes.npz')


def logits_of(size, **kwargs):
  model, frozen, trainable, batch = tiny(size, **kwargs)
  return np.asarray(jax.jit(model.logits)(trainable, frozen, batch))


# --- Hugging Face ---


def gpt2_batch(config, ids, mask, source):
  """The first `source` tokens of each row as source, the others as decoder inputs."""
  x = np.where(mask > 0, ids, config.source_pad_id)[:, :source]
  return {'encoder_input_tokens': x, 'decoder_input_tokens': ids[:, source:]}


@pytest.mark.parametrize('source', [0, 1, 3])
def test_gpt2_logits_wherever_the_target_begins(source):
  loaded, ref = golden('gpt2')
  ids, mask = ref['input_ids'], ref['attention_mask']
  assert (mask[:, :source] == 1).all()
  logits = jax.jit(loaded.model.logits)(NO_PROMPT, loaded.frozen, gpt2_batch(loaded.config, ids, mask, source))
  real = mask[:, source:] > 0
  np.testing.assert_allclose(logits[real], ref['logits'][:, source:][real], atol=TOLERANCE)


def test_gpt2_loss():
  loaded, ref = decodes('gpt2')
  ids, mask, labels = ref['input_ids'], ref['attention_mask'], ref['labels']
  weights = (labels[:, 1:] >= 0).astype(np.float32)
  batch = {**gpt2_batch(loaded.config, ids[:, :-1], mask[:, :-1], 0),
           'decoder_target_tokens': np.maximum(labels[:, 1:], 0), 'decoder_loss_weights': weights}
  score = jax.jit(loaded.model.score)(NO_PROMPT, loaded.frozen, batch)
  np.testing.assert_allclose(-score.sum() / weights.sum(), ref['loss'], rtol=1e-5)


def test_bart_logits():
  loaded, ref = golden('bart')
  batch = {'encoder_input_tokens': np.where(ref['attention_mask'] > 0, ref['input_ids'], loaded.config.pad_id),
           'decoder_input_tokens': ref['decoder_input_ids']}
  logits = jax.jit(loaded.model.logits)(NO_PROMPT, loaded.frozen, batch)
  np.testing.assert_allclose(logits, ref['logits_float64'], atol=TOLERANCE)  # its float32 is off by as much as ours


def test_bart_loss():
  loaded, ref = decodes('bart')
  labels = ref['labels']
  weights = (labels >= 0).astype(np.float32)
  batch = {'encoder_input_tokens': np.where(ref['attention_mask'] > 0, ref['input_ids'], loaded.config.pad_id),
           'decoder_input_tokens': ref['decoder_input_ids'], 'decoder_target_tokens': np.maximum(labels, 0),
           'decoder_loss_weights': weights}
  score = jax.jit(loaded.model.score)(NO_PROMPT, loaded.frozen, batch)
  np.testing.assert_allclose(-score.sum() / weights.sum(), ref['loss'], rtol=1e-4)


# --- one model, several ways ---


@pytest.mark.parametrize('size', FAMILIES)
def test_scanned_layers_equal_unrolled_ones(size):
  np.testing.assert_allclose(logits_of(size), logits_of(size, scan=False), atol=1e-5)


@pytest.mark.parametrize('size', FAMILIES[1:])
def test_bfloat16_is_close_to_float32(size):
  exact = logits_of(size)
  error = np.abs(logits_of(size, dtype=jnp.bfloat16) - exact) / exact.std()
  assert error.mean() < 0.02
  assert error.max() < 0.2


@pytest.mark.parametrize('size', FAMILIES)
def test_padding_does_not_matter(size):
  model, frozen, trainable, batch = tiny(size)
  wide = jnp.pad(batch['encoder_input_tokens'], [(0, 0), (0, 5)], constant_values=model.backbone.config.source_pad_id)
  logits = jax.jit(model.logits)(trainable, frozen, {**batch, 'encoder_input_tokens': wide})
  np.testing.assert_allclose(logits, logits_of(size), atol=1e-5)


@pytest.mark.parametrize('size', FAMILIES)
def test_decoding_equals_teacher_forcing(size):
  model, frozen, trainable, batch = tiny(size)
  config, length = model.backbone.config, 7
  decoded = jax.jit(model.generate, static_argnums=3)(trainable, frozen, batch, length)
  tokens = np.asarray(decoded.tokens[:, 0])
  forced = {**batch, 'decoder_input_tokens': models.shifted(tokens, config)}
  log_probs = np.asarray(jax.nn.log_softmax(jax.jit(model.logits)(trainable, frozen, forced)))
  live = np.cumsum(np.pad(tokens == config.eos_id, [(0, 0), (1, 0)])[:, :-1], axis=1) == 0
  np.testing.assert_array_equal(np.where(live, log_probs.argmax(-1), config.pad_id), tokens)
  chosen = np.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(decoded.log_probs[:, 0], (chosen * live).sum(-1), rtol=1e-4)


@pytest.mark.parametrize('size', FAMILIES)
def test_decoding_with_layers_apart_equals_decoding_in_a_scan(size):
  model, frozen, trainable, batch = tiny(size)
  unrolled = Prompted(model.backbone.clone(scan=False), model.method)
  beam = decoding.Beam(beams=2)
  one, other = (jax.jit(functools.partial(m.generate, length=5, decoder=beam))(trainable, frozen, batch)
                for m in (model, unrolled))
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


@pytest.mark.parametrize('size', FAMILIES)
def test_beams_share_a_memory_but_not_a_past(size):
  """The score of every returned beam is that of its tokens, teacher-forced."""
  model, frozen, trainable, batch = tiny(size)
  config, length = model.backbone.config, 6
  beam = decoding.Beam(beams=3, length_penalty='hf', alpha=0.0, returned=3)
  decoded = jax.jit(functools.partial(model.generate, length=length, decoder=beam))(trainable, frozen, batch)
  score = jax.jit(model.score)
  for rank in range(3):
    tokens = np.asarray(decoded.tokens[:, rank])
    live = np.cumsum(np.pad(tokens == config.eos_id, [(0, 0), (1, 0)])[:, :-1], axis=1) == 0
    forced = {**batch, 'decoder_input_tokens': models.shifted(tokens, config), 'decoder_target_tokens': tokens,
              'decoder_loss_weights': live.astype(np.float32)}
    np.testing.assert_allclose(decoded.log_probs[:, rank], score(trainable, frozen, forced), rtol=1e-4)


# --- sites ---


def names_of(size):
  gpt2, names = config_lib.from_size(size).decoder_only, sorted(sites.NAMES - {'states'})  # that: readouts_test.py
  return [n for n in names if not gpt2 or not (n.startswith('encoder/') or 'cross' in n)]


@functools.cache
def without_sites(size):
  model, frozen, _, batch = tiny(size)
  return jax.jit(model.backbone.apply)({'params': frozen}, batch)


@pytest.mark.parametrize(('size', 'name'), [(size, name) for size in FAMILIES[1:] for name in names_of(size)])
def test_every_site_reaches_the_logits(size, name):
  model, frozen, _, batch = tiny(size)
  c = model.backbone.config
  layers = c.encoder_layers if name.startswith('encoder/') else c.decoder_layers
  apply = jax.jit(lambda frozen, sites: model.backbone.apply({'params': frozen}, batch, sites))
  if name.endswith('_kv'):
    content = sites.KeysValues(*jax.random.normal(jax.random.key(1), (2, layers, 4, c.num_heads, c.head_dim)))
    per_row = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 3, *x.shape[1:])), content)
    np.testing.assert_allclose(apply(frozen, {name: content}), apply(frozen, {name: per_row}), atol=1e-4)
  else:
    content = Shift(jnp.full(() if name == 'inputs' else layers, 0.5))
  assert np.abs(apply(frozen, {name: content}) - without_sites(size)).max() > 1e-3


def test_a_prefix_shifts_the_positions_of_gpt2():
  """Keys that get no weight leave only the shift: the same text, read P positions later."""
  model, frozen, _, batch = tiny('gpt2_tiny')
  c = model.backbone.config
  shape = (c.decoder_layers, 4, c.num_heads, c.head_dim)
  nothing = {'decoder/attn_kv': sites.KeysValues(jnp.zeros(shape), jnp.zeros(shape))}
  table = frozen['position_embedder']['embedding']
  shifted = {**frozen, 'position_embedder': {'embedding': jnp.roll(table, -4, axis=0)}}
  apply = jax.jit(lambda frozen, sites: model.backbone.apply({'params': frozen}, batch, sites))
  alone, with_keys = apply(shifted, {}), apply(frozen, nothing)
  unshifted = apply({**frozen, 'position_embedder': {'embedding': jnp.roll(table, 4, axis=0)}}, nothing)
  assert np.abs(with_keys - alone).max() < np.abs(unshifted - alone).max()


@pytest.mark.parametrize('size', ['gpt2_tiny', 'bart_tiny'])
def test_positions_run_out(size):
  model, frozen, trainable, batch = tiny(size)
  too_long = {**batch, 'encoder_input_tokens': jnp.full((3, 260), 5)}
  with pytest.raises(ValueError, match=r'has 256 positions, but 26\d tokens.*TASK_FEATURE_LENGTHS'):
    model.logits(trainable, frozen, too_long)
  with pytest.raises(ValueError, match=r'has 256 positions.*300'):
    model.generate(trainable, frozen, batch, 300)


@pytest.mark.parametrize(('size', 'parameters'), [
    ('gpt2_small', 124_439_808), ('gpt2_medium', 354_823_168), ('gpt2_large', 774_030_080), ('gpt2_xl', 1_557_611_200),
    ('bart_base', 139_420_416), ('bart_large', 406_291_456)])
def test_sizes(size, parameters):
  """Numbers of parameters of the released models, biases on BART's logits (not trained there) left out."""
  config = config_lib.from_size(size)
  model = Prompted(loading.BACKBONES[config.family](config), None)
  shapes = jax.tree.leaves(model.abstract_frozen())
  assert sum(x.size for x in shapes) - config.logits_bias * config.vocab_size == parameters
