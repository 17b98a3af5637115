"""Prefix-tuning on GPT-2, BART and T5 (Li & Liang 2021): what it must equal, what may move, and every refusal."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import loading, partitioning, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods import finished, prefix, reparameterization
from prompt_tuning.methods.base import Base
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.reparameterization import MLP
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step
from tests import models

SIZES = ['gpt2_tiny', 'bart_tiny', 't5_1_1_tiny']
SMALL = MLP(hidden=8)
WORDS = [17, 5, 203]


class Words:
  """A tokenizer that knows one phrase."""

  def encode(self, text: str) -> list[int]:
    return {'three words': WORDS, '': []}[text]


@functools.cache
def made(size: str, method=None, scan: bool = False) -> tuple[Prompted, dict, dict]:
  """(model, frozen, trainable) of a random base."""
  model, frozen, _ = models.tiny(size=size, scan=scan)
  model = Prompted(model.backbone, method or Prefix(3, reparameterization=None))
  return model, frozen, model.init(jax.random.key(5), base_of(model, frozen))


def base_of(model, frozen) -> Base:
  return loading.Loaded(
      model, frozen, Words(), models.one_device(), 'a tiny base', model.abstract_frozen()).base()


def batch_of(model, **kwargs):
  return models.tiny_batch(config=model.backbone.config, **kwargs)


@functools.cache
def jitted(model):
  return jax.jit(model.logits)


# --- what it equals ---


def words_as_context(model, frozen, batch):
  """Logits of the frozen model with the words in front of each source."""
  words = jnp.broadcast_to(jnp.array(WORDS), (2, 3))
  source = jnp.concatenate([words, batch['encoder_input_tokens']], axis=1)
  return jitted(Prompted(model.backbone, Prefix(0)))({}, frozen, {**batch, 'encoder_input_tokens': source})


def test_a_prefix_of_real_words_is_those_words_as_context():
  model, frozen, trainable = made('gpt2_tiny', Prefix(
      3, initializer=prefix.from_words('three words'), reparameterization=None))
  batch = batch_of(model)
  expected = words_as_context(model, frozen, batch)
  np.testing.assert_allclose(jitted(model)(trainable, frozen, batch), expected, rtol=0, atol=1e-5)
  assert np.abs(jitted(Prompted(model.backbone, Prefix(0)))({}, frozen, batch) - expected).max() > 0.1


def test_an_mlp_that_is_fitted_to_the_end_is_those_words_too():
  model, frozen, _ = made('gpt2_tiny', Prefix(0))
  target = np.stack(base_of(model, frozen).activations(WORDS)['decoder/attn_kv']).transpose(2, 1, 0, 3, 4)
  before = MLP(hidden=64).init(jax.random.key(0), 3, 64, target.shape[1:])
  after, error = reparameterization.fit(before, target, steps=2000, learning_rate=3e-3)
  assert error < 1e-6 * target.var()
  np.testing.assert_array_equal(after['embedding'], before['embedding'])  # only the weights are fitted
  batch = batch_of(model)
  logits = jitted(Prompted(model.backbone, Prefix(3)))({'prefix': {'decoder': {'attn_kv': after}}}, frozen, batch)
  np.testing.assert_allclose(logits, words_as_context(model, frozen, batch), rtol=0, atol=0.05)


def test_the_phrase_is_cut_or_begun_again():
  model, frozen, _ = made('bart_tiny')
  base = base_of(model, frozen)
  begin = prefix.from_words('three words')
  read = lambda ids: base.activations(ids)
  for length, ids in ((2, WORDS[:2]), (5, [*WORDS, *WORDS[:2]])):
    jax.tree.map(np.testing.assert_array_equal, begin(base, length), read(ids))
  assert {site: keys.shape for site, (keys, _) in begin(base, 5).items()} == {
      site: (2, 5, 4, 16) for site in prefix.sites_of(base.config)}


def test_an_mlp_is_fitted_to_the_words_as_in_the_paper():
  method = Prefix(3, initializer=prefix.from_words('three words'), reparameterization=MLP(hidden=64))
  model, frozen, trainable = made('gpt2_tiny', method)
  target = base_of(model, frozen).activations(WORDS)['decoder/attn_kv']
  random = Prompted(model.backbone, Prefix(3, reparameterization=MLP(hidden=64)))
  begins = random.init(jax.random.key(5), base_of(model, frozen))
  error = lambda variables: sum(
      np.square(x - y).mean() for x, y in zip(list(method.export(variables).values()), target, strict=True))
  assert error(trainable) < 0.8 * error(begins)
  embedding = lambda variables: variables['prefix']['decoder']['attn_kv']['embedding']
  np.testing.assert_array_equal(embedding(trainable), embedding(begins))


@pytest.mark.parametrize('size', SIZES)
def test_no_virtual_tokens_is_the_frozen_model(size):
  model, frozen, trainable = made(size, Prefix(0))
  assert not trainable
  assert model.method.export(trainable) == {}
  batch = batch_of(model)
  np.testing.assert_array_equal(
      jitted(model)(trainable, frozen, batch), jax.jit(model.backbone.apply)({'params': frozen}, batch))


@pytest.mark.parametrize(('size', 'mlp'), [
    ('gpt2_tiny', SMALL), ('gpt2_tiny', MLP(hidden=8, input_width=4, layers=2)), ('bart_tiny', SMALL)])
def test_what_is_exported_is_what_was_trained(size, mlp, tmp_path):
  model, frozen, trainable = made(size, Prefix(3, reparameterization=mlp))
  tensors = jax.device_get(model.method.export(trainable))
  assert tensors.keys() == {f'prefix/{site}/{name}' for site in prefix.sites_of(model.backbone.config)
                            for name in ('key', 'value')}
  finished.tuned.save_safetensors(tmp_path / 'a', finished.tuned.Tuned('prefix', tensors))
  exported = finished.load(tmp_path / 'a')
  kept = exported.init({'prefix': jax.random.key(0)}, base_of(model, frozen))
  jax.tree.map(np.testing.assert_array_equal, trees.flatten(kept), tensors)
  jax.tree.map(np.testing.assert_array_equal, exported.apply(kept), model.method.apply(trainable))  # the same patch


@pytest.mark.parametrize('size', SIZES[:2])
def test_scan_is_unrolled(size):
  unrolled, frozen, trainable = made(size)
  scanned = made(size, scan=True)[0]
  batch = batch_of(unrolled)
  np.testing.assert_allclose(
      jitted(scanned)(trainable, frozen, batch), jitted(unrolled)(trainable, frozen, batch), rtol=0, atol=2e-5)


@pytest.mark.parametrize('size', ['gpt2_tiny', 'bart_tiny'])
def test_a_batch_of_many_prefixes_is_one_batch_a_prefix(size):
  model, frozen, _ = made(size)
  base, which = base_of(model, frozen), jnp.array([2, 0, 1, 2])
  each = [model.init(jax.random.key(seed), base) for seed in range(3)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)
  mixed = prefix.choose(stacked, which)
  batch = batch_of(model, rows=4)
  logits = jitted(model)(mixed, frozen, batch)
  generate = jax.jit(lambda *args: model.generate(*args, 6).tokens)
  tokens = generate(mixed, frozen, batch)
  for i, trainable in enumerate(each):
    rows = np.flatnonzero(which == i)
    np.testing.assert_allclose(
        logits[rows], jitted(model)(trainable, frozen, batch)[rows], rtol=0, atol=2e-5)
    alone = prefix.choose(stacked, jnp.full(4, i))
    np.testing.assert_array_equal(tokens[rows], generate(alone, frozen, batch)[rows])
  assert np.abs(logits - jitted(model)(each[0], frozen, batch)).max() > 0.1


def test_an_adapter_of_peft_runs():
  folder = models.GOLDENS / 'hf/peft_gpt2_prefix'
  backbone = loading.Backbone(dropout_rate=0.0, scan=False)
  loaded = loading.load(str(models.GOLDENS / 'hf/gpt2'), finished.load(folder), backbone, models.one_device())
  trainable, reference = loaded.new_trainable(0), models.reference('hf/peft_gpt2_prefix/reference.npz')
  ids, real = reference['input_ids'], reference['attention_mask'] == 1
  batch = {'encoder_input_tokens': ids[:, :0], 'decoder_input_tokens': ids,
           'decoder_target_tokens': np.roll(ids, -1, axis=1),
           'decoder_loss_weights': np.pad(reference['labels'][:, 1:] >= 0, [(0, 0), (0, 1)]).astype(np.float32)}
  logits = jitted(loaded.model)(trainable, loaded.frozen, batch)
  np.testing.assert_allclose(logits[:3][real[:3]], reference['logits'][real[:3]], rtol=0, atol=5e-4)
  loss = losses.compute(logits, batch, normalizing_factor='NUM_REAL_TARGET_TOKENS')
  np.testing.assert_allclose(loss.total / loss.normalizer, reference['loss'], rtol=0, atol=5e-4)
  # Its greedy decodes: the last token of each text begins what is decoded.
  lengths, decoded = real.sum(axis=1), reference['greedy_left']
  source = np.where(np.arange(13) < lengths[:, None] - 1, ids[:, :13], -1)
  last = np.take_along_axis(ids, lengths[:, None] - 1, axis=1)
  tokens = jax.jit(lambda *args: loaded.model.generate(*args, decoded.shape[1] - 14).tokens)(
      trainable, loaded.frozen, {'encoder_input_tokens': source, 'decoder_input_tokens': last})
  np.testing.assert_array_equal(tokens[:, 0], decoded[:, 14:])


# --- what moves ---


@pytest.mark.parametrize(('size', 'mlp'), [('gpt2_tiny', SMALL), ('bart_tiny', SMALL), ('t5_1_1_tiny', None)])
def test_a_step_moves_every_site_and_nothing_frozen(size, mlp):
  model, frozen, trainable = made(size, Prefix(3, reparameterization=mlp), scan=True)
  optimizer = optim.adamw(max_grad_norm=1.0)(optim.constant(1e-2))
  train_step = step.make_train_step(
      model, optimizer, functools.partial(losses.compute, normalizing_factor='NUM_SEQUENCES'), dropout_seed=None)
  before = jax.tree.map(np.array, frozen)
  state = step.init_state(jax.tree.map(jnp.copy, trainable), optimizer)
  state, metrics = train_step(state, frozen, batch_of(model))
  jax.tree.map(np.testing.assert_array_equal, before, frozen)
  assert metrics['grad_norm'] > 0
  for path, moved in trees.flatten(jax.tree.map(lambda x, y: np.abs(x - y).max(), state.trainable, trainable)).items():
    assert moved > 0, path


@pytest.mark.parametrize('site', ['encoder/attn_kv', 'decoder/attn_kv', 'decoder/cross_attn_kv'])
def test_each_site_alone(site):
  model, _, trainable = made('bart_tiny', Prefix(3, sites=(site,), reparameterization=None))
  assert trees.flatten(trainable).keys() == {f'prefix/{site}/key', f'prefix/{site}/value'}
  _, _, everywhere = made('bart_tiny')  # what a site begins as does not depend on the others
  flat = trees.flatten(everywhere)
  jax.tree.map(np.testing.assert_array_equal, trees.flatten(trainable), {k: flat[k] for k in trees.flatten(trainable)})
  assert model.method.apply(trainable).sites.keys() == {site}


def test_dropout_of_the_prefix_changes_the_loss_while_training_only():
  model, frozen, trainable = made('gpt2_tiny', Prefix(3, reparameterization=None, dropout_rate=0.5))
  batch, key = batch_of(model), jax.random.key(0)
  dropped = Prompted(model.backbone.copy(dropout_rate=0.0), model.method)
  plain = jitted(made('gpt2_tiny')[0])(trainable, frozen, batch)
  np.testing.assert_array_equal(jitted(dropped)(trainable, frozen, batch), plain)
  assert np.abs(jitted(dropped)(trainable, frozen, batch, key) - plain).max() > 0.01
  sites = dropped.patch(trainable, key).sites
  kept = sites['decoder/attn_kv'].key
  assert kept.shape == (2, 3, 4, 16)  # one for the batch
  original = trainable['prefix']['decoder']['attn_kv']['key']
  np.testing.assert_array_equal(kept, np.where(kept == 0, 0, 2 * original))
  assert 0.4 < (kept == 0).mean() < 0.6


def test_sharded_is_single_device():
  model, frozen, trainable = made('gpt2_tiny', Prefix(3, reparameterization=SMALL), scan=True)
  optimizer = optim.adamw(max_grad_norm=1.0)(optim.constant(1e-2))
  train_step = step.make_train_step(model, optimizer, losses.compute, dropout_seed=None)
  batch = jax.tree.map(np.asarray, batch_of(model, rows=4))
  results = []
  for partitioner in (models.one_device(), partitioning.Partitioner(num_partitions=2)):
    shardings = partitioner.shardings(model.abstract_frozen())
    placed = jax.tree.map(jax.device_put, frozen, shardings)
    state = partitioner.replicate(step.init_state(jax.tree.map(jnp.copy, trainable), optimizer))
    state, metrics = train_step(state, placed, partitioner.place_batch(batch))
    results.append((metrics['loss'], jax.device_get(state.trainable)))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-4), *results)


# --- sizes (Li & Liang 2021, section 4.3 and table 5) ---


@pytest.mark.parametrize(('size', 'length', 'kept'), [
    ('gpt2_medium', 5, 245_760), ('gpt2_medium', 10, 491_520), ('gpt2_large', 5, 460_800),
    ('bart_large', 5, 368_640), ('bart_large', 100, 7_372_800), ('bart_large', 200, 14_745_600)])
def test_numbers_of_parameters_that_are_kept(size, length, kept):
  assert number(size, Prefix(length, reparameterization=None)) == kept


@pytest.mark.parametrize(('size', 'hidden', 'added', 'length'), [
    ('gpt2_medium', 512, 25.7e6, 5), ('bart_large', 800, 3 * 20.6e6, 100)])
def test_numbers_of_parameters_that_are_trained(size, hidden, added, length):
  method = Prefix(length, reparameterization=MLP(hidden))
  assert number(size, method) == pytest.approx(added, rel=3e-3)


def number(size: str, method: Prefix) -> int:
  """Trainable parameters, from shapes alone."""
  base = Base(config_lib.from_size(size), None, None)
  return trees.size(nn.meta.unbox(jax.eval_shape(lambda key: method.init({'prefix': key}, base), jax.random.key(0))))


# --- refusals ---


@pytest.mark.parametrize(('size', 'sites'), [('gpt2_tiny', ('encoder/attn_kv',)), ('bart_tiny', ('cross',)),
                                             ('bart_tiny', ())])
def test_sites_that_the_model_does_not_have(size, sites):
  with pytest.raises(ValueError, match='PREFIX_SITES=.*expected some of .*decoder/attn_kv.* or None for all'):
    made(size, Prefix(3, sites=sites))


@pytest.mark.parametrize(('method', 'change', 'message'), [
    (Prefix(3, initializer=prefix.from_words('')), {}, "The text '' has no tokens.*INITIAL_TEXT"),
    (Prefix(3, initializer=prefix.from_words('three words')), {'activations': None},
     'a tiny base: a prefix from words needs the model itself'),
    (Prefix(3, initializer=lambda base, length: {'decoder/attn_kv': (np.zeros((2, 4, 4, 16)),) * 2}), {},
     r'prefix of decoder/attn_kv should be \[2, 3, 4, 16\].*made \[2, 4, 4, 16\]'),
    (Prefix(3, initializer=lambda base, length: {'encoder/attn_kv': (np.zeros((2, 3, 4, 16)),) * 2}), {},
     'has keys and values for encoder/attn_kv, none for decoder/attn_kv; choose a file for a gpt2'),
])
def test_initializers_that_do_not_fit(method, change, message):
  model, frozen, _ = made('gpt2_tiny')
  with pytest.raises(ValueError, match=message):
    method.init({'prefix': jax.random.key(0)}, dataclasses.replace(base_of(model, frozen), **change))


def test_from_file_begins_where_another_ended(tmp_path):
  model, frozen, trainable = made('gpt2_tiny')
  tensors = jax.device_get(model.method.export(trainable))
  finished.tuned.save_safetensors(tmp_path / 'a', finished.tuned.Tuned('prefix', tensors))
  method = Prefix(3, reparameterization=None, initializer=prefix.from_file(str(tmp_path / 'a')))
  again = method.init({'prefix': jax.random.key(1)}, base_of(model, frozen))
  jax.tree.map(np.testing.assert_array_equal, again, trainable)


@pytest.mark.parametrize('name', ['hidden', 'layers', 'input_width'])
def test_an_mlp_without_width(name):
  with pytest.raises(ValueError, match=f'MLP.{name}=0; expected at least 1'):
    MLP(**{name: 0})
