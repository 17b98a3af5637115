"""What must hold of RoBERTa and BERT whatever their parameters: where they are read, positions, sites, one scan."""

import dataclasses
import functools

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones import roberta, sites
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from tests import models

PLACES = [(3, 6), (5, 0), (0, 0)]  # of the mask tokens of each row; 0: there is none


class Shift(struct.PyTreeNode):
  """Adds a number per layer to the first channel of whatever arrives."""

  by: jax.Array

  def __call__(self, x, *unused):
    return x.at[..., 0].add(self.by)


class What(struct.PyTreeNode):
  """Returns whatever arrives."""

  def __call__(self, *args):
    return args


@functools.cache
def tiny(size, rows=3, **kwargs):
  """(Prompted, frozen, trainable, batch): three virtual tokens in front, up to two masks a row, two read."""
  model, frozen, trainable = models.tiny(size=size, **kwargs)
  batch = models.tiny_batch(rows=rows, prompt=3, config=model.backbone.config)
  tokens = np.array(batch['encoder_input_tokens'])
  for row, places in enumerate(PLACES):
    tokens[row, [place for place in places if place]] = models.MASK
  return model, frozen, trainable, {
      'encoder_input_tokens': jnp.asarray(tokens), 'decoder_input_tokens': jnp.zeros((rows, 2), jnp.int32)}


def logits_of(size, **kwargs):
  model, frozen, trainable, batch = tiny(size, **kwargs)
  return np.asarray(jax.jit(model.logits)(trainable, frozen, batch))


# --- where the model is read ---


def test_the_first_mask_tokens_are_read_and_index_0_where_there_are_fewer():
  tokens = jnp.array([[7, 4, 4, 9, 4], [4, 7, 7, 7, 7], [7, 7, 7, 7, 7]])
  np.testing.assert_array_equal(roberta.read_positions(tokens, 4, 2), [[1, 2], [0, 0], [0, 0]])
  np.testing.assert_array_equal(roberta.read_positions(tokens, 4, 7)[0], [1, 2, 4, 0, 0, 0, 0])
  np.testing.assert_array_equal(roberta.read_positions(tokens, None, 1), [[0], [0], [0]])


def test_what_is_installed_in_place_of_the_head_sees_states_places_and_padding():
  model, frozen, _, batch = tiny('roberta_tiny')
  config, tokens = model.backbone.config, np.asarray(batch['encoder_input_tokens'])
  apply = jax.jit(lambda sites: model.backbone.apply({'params': frozen}, batch, sites))
  x, positions, visible = apply({'states': What()})
  np.testing.assert_array_equal(positions, PLACES)
  np.testing.assert_array_equal(visible, tokens != config.pad_id)
  read = jnp.take_along_axis(x, positions[..., None], axis=1)
  states, bias = roberta.MLMHead(config, jnp.float32).apply({'params': frozen['mlm_head']}, read)
  logits = states @ frozen['token_embedder']['embedding'].T + bias
  np.testing.assert_allclose(apply({}), logits, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_head_needs_another_readout():
  model, *_ = tiny('bert_tiny')
  headless = model.backbone.clone(config=dataclasses.replace(model.backbone.config, mlm_head=False))
  params = nn.meta.unbox(Prompted(headless, None).abstract_frozen())
  assert 'mlm_head' not in params
  apply = lambda params, sites: headless.apply({'params': params}, tiny('bert_tiny')[-1], sites)
  with pytest.raises(ValueError, match=r'This bert model has no masked-LM head.*READOUT = @readouts.Head\(\)'):
    jax.eval_shape(apply, params, {})
  assert jax.eval_shape(apply, params, {'states': Shift(jnp.ones(()))}).shape == (3, 13, 64)


# --- one model, several ways ---


@pytest.mark.parametrize('other', [{'scan': False}, {'remat': 'full'}], ids=str)
def test_unrolled_and_recomputed_layers_equal_scanned_ones(other):
  np.testing.assert_allclose(logits_of('roberta_tiny', **other), logits_of('roberta_tiny'), atol=1e-5)


def test_bfloat16_is_close_to_float32():
  exact = logits_of('roberta_tiny')
  error = np.abs(logits_of('roberta_tiny', dtype=jnp.bfloat16) - exact) / exact.std()
  assert error.mean() < 0.02
  assert error.max() < 0.2


@pytest.mark.parametrize('size', ['roberta_tiny', 'bert_tiny'])
def test_padding_does_not_matter_wherever_it_is(size):
  model, frozen, trainable, batch = tiny(size)
  run, pad = jax.jit(model.logits), model.backbone.config.pad_id
  for sides in ((0, 5), (3, 0)):
    wide = jnp.pad(batch['encoder_input_tokens'], [(0, 0), sides], constant_values=pad)
    # A row without a mask token is read at index 0, which would be padding in front.
    rows = slice(None) if sides[0] == 0 else slice(1)
    logits = run(trainable, frozen, {**batch, 'encoder_input_tokens': wide})
    np.testing.assert_allclose(logits[rows], logits_of(size)[rows], atol=1e-5)


@pytest.mark.parametrize('num_partitions', [1, 4])
def test_sharded_equals_one_device(num_partitions):
  model, frozen, trainable, batch = tiny('roberta_tiny', rows=8)
  partitioner = Partitioner(num_partitions)
  shardings = partitioner.shardings(model.abstract_frozen())
  assert shardings['mlm_head']['bias'].spec == jax.sharding.PartitionSpec('model')
  placed = jax.device_put(frozen, shardings), jax.device_put(batch, partitioner.rows)
  logits = jax.jit(model.logits)(partitioner.replicate(trainable), *placed)
  np.testing.assert_allclose(logits, logits_of('roberta_tiny', rows=8), atol=1e-4)


def test_every_parameter_has_names_for_its_axes():
  boxed = tiny('roberta_tiny')[0].abstract_frozen()
  shapes, names = (trees.flatten(f(boxed)) for f in (nn.meta.unbox, nn.get_partition_spec))
  assert {path: len(shape.shape) for path, shape in shapes.items()} == {path: len(n) for path, n in names.items()}


def test_dropout_is_drawn_from_its_key_and_off_without_one():
  model, frozen, trainable, batch = tiny('roberta_tiny', dropout_rate=0.3)
  run = jax.jit(model.logits)
  plain = run(trainable, frozen, batch)
  one, same, other = (run(trainable, frozen, batch, jax.random.key(k)) for k in (1, 1, 2))
  np.testing.assert_array_equal(plain, logits_of('roberta_tiny'))
  np.testing.assert_array_equal(one, same)
  assert not np.allclose(one, other)
  assert not np.allclose(one, plain)


def test_gradients_of_the_prompt_are_finite():
  model, frozen, trainable, batch = tiny('roberta_tiny', dropout_rate=0.3)
  loss = lambda t: jnp.sum(jnp.sin(model.logits(t, frozen, batch, jax.random.key(0))))
  (grad,) = jax.tree.leaves(jax.jit(jax.grad(loss))(trainable))
  assert np.isfinite(grad).all()
  assert (np.abs(grad).max(axis=1) > 1e-4).all()


# --- sites ---

NAMES = [name for name in sorted(sites.NAMES) if name == 'inputs' or name.startswith('encoder/')]


@functools.cache
def applied(size):
  model, frozen, _, batch = tiny(size)
  return jax.jit(lambda sites: model.backbone.apply({'params': frozen}, batch, sites))


@pytest.mark.parametrize('name', NAMES)
def test_every_site_reaches_the_logits(name):
  model, *_ = tiny('roberta_tiny')
  c, apply = model.backbone.config, applied('roberta_tiny')
  if name.endswith('_kv'):
    shape = (c.encoder_layers, 4, c.num_heads, c.head_dim)
    content = sites.KeysValues(*jax.random.normal(jax.random.key(1), (2, *shape)))
    per_row = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 3, *x.shape[1:])), content)
    np.testing.assert_allclose(apply({name: content}), apply({name: per_row}), atol=1e-4)
  else:
    content = Shift(jnp.full(() if name == 'inputs' else c.encoder_layers, 0.5))
  assert np.abs(apply({name: content}) - apply({})).max() > 1e-3


def test_virtual_tokens_take_positions():
  """A virtual token whose embedding is that of a word is that word."""
  model, frozen, _, batch = tiny('roberta_tiny')
  embedding = frozen['token_embedder']['embedding'][7:10]
  words = batch['encoder_input_tokens'].at[:, :3].set(jnp.where(
      batch['encoder_input_tokens'][:, :3] >= models.VOCAB, jnp.arange(7, 10), models.MASK))
  expected = jax.jit(model.backbone.apply)({'params': frozen}, {**batch, 'encoder_input_tokens': words})
  logits = jax.jit(model.logits)({'prompt': {'embedding': embedding}}, frozen, batch)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_activations_are_the_keys_and_values_of_a_text_and_as_a_prefix_shift_no_positions():
  """A text that sees its own keys and values twice attends as it did, in its place."""
  model, frozen, *_ = tiny('roberta_tiny')
  tokens = jnp.asarray([[9, models.MASK, 30, 12]])
  read = jax.jit(functools.partial(model.backbone.apply, method='activations'))({'params': frozen}, tokens)
  assert list(read) == ['encoder/attn_kv']
  kv = read['encoder/attn_kv']
  assert kv['k'].shape == (2, 1, 4, 4, 16)
  apply = jax.jit(lambda sites: model.backbone.apply(
      {'params': frozen}, {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens[:, :1]}, sites))
  twice = apply({'encoder/attn_kv': sites.KeysValues(kv['k'][:, 0], kv['v'][:, 0])})
  np.testing.assert_allclose(twice, apply({}), atol=1e-4)


# --- limits and sizes ---


def test_positions_run_out():
  model, frozen, trainable, batch = tiny('roberta_tiny')
  with pytest.raises(ValueError, match=r'has 256 positions, but 260 tokens.*TASK_FEATURE_LENGTHS'):
    model.logits(trainable, frozen, {**batch, 'encoder_input_tokens': jnp.full((3, 260), 5)})


@pytest.mark.parametrize(('size', 'parameters'), [
    ('roberta_base', 124_697_433), ('roberta_large', 355_412_057), ('bert_base', 109_514_298),
    ('bert_large', 335_174_458), ('minilm', 22_565_376)])
def test_sizes(size, parameters):
  """Numbers of parameters of the released models; MiniLM's pooler (384 x 385) left out."""
  config = config_lib.from_size(size)
  assert config.encoder_only
  assert not config.decoder_only
  model = Prompted(loading.BACKBONES[config.family](config), None)
  assert trees.size(nn.meta.unbox(model.abstract_frozen())) == parameters
