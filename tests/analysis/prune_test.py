"""Pruning: what is kept, what is folded into biases, that the model is smaller and saved like any other."""

import dataclasses
import functools
import json

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import loading, trees
from prompt_tuning.analysis import intervene, prune
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, convert
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from tests import bench_test, models
from tests.checkpoints import numpy_models

FAMILIES = ['t5_1_1_tiny', 'bart_tiny', 'roberta_tiny']  # gated, of an encoder-decoder, of an encoder alone
KEPT = 7


@dataclasses.dataclass(frozen=True)
class Case:
  """A random model of three layers of which the upper two are to be pruned."""

  model: Prompted
  frozen: dict
  trainable: dict
  batch: dict
  keep: np.ndarray  # [3, F]
  baseline: np.ndarray

  @property
  def config(self):
    return self.model.backbone.config

  @functools.cached_property
  def pruned(self):
    """(Prompted, parameters)."""
    frozen, config = prune.prune(self.frozen, self.config, self.keep, self.baseline)
    return dataclasses.replace(self.model, backbone=self.model.backbone.clone(config=config)), frozen


@functools.cache
def case(size):
  config = dataclasses.replace(config_lib.from_size(size), vocab_size=models.VOCAB, encoder_layers=3)
  config = dataclasses.replace(config, mask_id=models.MASK if config.mask_id else None)
  model = Prompted(loading.BACKBONES[config.family](config), Prompt(length=3))
  frozen = models.random_params(nn.meta.unbox(model.abstract_frozen()))
  rng = np.random.default_rng(1)
  keep = np.ones((3, config.d_ff), bool)
  keep[1:] = rng.permuted(np.tile(np.arange(config.d_ff) < KEPT, (2, 1)), axis=1)
  baseline = rng.standard_normal(keep.shape).astype(np.float32)
  trainable = {'prompt': {'embedding': jnp.asarray(rng.standard_normal((3, config.d_model), np.float32))}}
  batch = models.tiny_batch(prompt=3, config=config)
  if config.mask_id:
    tokens = jnp.pad(batch['encoder_input_tokens'], [(0, 0), (1, 0)], constant_values=config.mask_id)
    batch = {**batch, 'encoder_input_tokens': tokens}
  return Case(model, frozen, trainable, batch, keep, baseline)


def close(found, expected):
  """To 1e-5 of what the values are."""
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


# --- what is kept ---


def test_the_best_of_the_upper_layers_are_kept():
  pred = np.array([[.9, .8, .7, .6], [.5, .9, .5, .6], [.6, .7, .9, .8]])
  np.testing.assert_array_equal(prune.masks_to_keep(pred, 50, (1, 3)), [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]])
  np.testing.assert_array_equal(prune.masks_to_keep(pred, 25, (1, 2)), [[1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]])
  np.testing.assert_array_equal(
      prune.masks_to_keep(np.stack([pred, 1 - pred]), 50, (2, 3))[2], [1, 0, 1, 0])  # one of each sub-task


def test_by_default_as_in_the_paper():
  keep = prune.masks_to_keep(np.random.default_rng(0).random((12, 3072)))
  assert keep.sum(axis=1).tolist() == [3072] * 3 + [61] * 9
  assert prune.masks_to_keep(np.random.default_rng(0).random((6, 100))).sum() == 6 * 2  # of fewer than nine, all


@pytest.mark.parametrize(('settings', 'message'), [
    ({'percent': 101}, r'percent=101 of the neurons; expected 0 to 100'),
    ({'percent': -1}, r'percent=-1 of the neurons'),
    ({'percent': float('nan')}, r'percent=nan of the neurons'),
    ({'percent': 0.5}, r'percent=0.5 of 100 neurons is none; expected at least 1\.'),
    ({'layers': (3, 3)}, 'Layers 3 to 3 .* of 12 select nothing'),
    ({'layers': (3, 13)}, 'Layers 3 to 13 .* of 12 select nothing or what is not there')])
def test_masks_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    prune.masks_to_keep(np.ones((12, 100)), **settings)


# --- what is folded ---


def test_fold_by_hand():
  kernel = jnp.array([[[1., 2.], [3., 4.], [5., 6.]], [[1., 0.], [0., 1.], [0., 0.]]])  # [2, 3, 2]
  activations = np.array([[2., 0., -1.], [0., .5, 9.]])
  np.testing.assert_allclose(prune.fold(kernel, None, activations), [[-3., -2.], [0., .5]])
  np.testing.assert_allclose(prune.fold(kernel, jnp.ones((2, 2)), activations), [[-2., -1.], [1., 1.5]])
  assert prune.fold(kernel.astype(jnp.bfloat16), None, activations).dtype == jnp.bfloat16


def test_parameters_by_hand():
  """A gated MLP of one layer with four neurons, of which the second and the fourth are kept."""
  c = dataclasses.replace(models.TINY, d_ff=4, encoder_layers=1)
  model = Prompted(loading.BACKBONES['t5'](c), Prompt())
  frozen = models.random_params(nn.meta.unbox(model.abstract_frozen()))
  keep, baseline = np.array([[False, True, False, True]]), np.array([[1., 2., 3., 4.]])
  params, config = prune.prune(frozen, c, keep, baseline)
  assert config == dataclasses.replace(c, kept_ff=((1, 2),))
  old, new = frozen['encoder']['layers'], params['encoder']['layers']
  for name in ('wi_0', 'wi_1'):
    np.testing.assert_array_equal(new['mlp'][name]['kernel'], old['mlp'][name]['kernel'][:, :, [1, 3]])
  wo = np.asarray(old['mlp']['wo']['kernel'])
  np.testing.assert_array_equal(new['mlp']['wo']['kernel'], wo[:, [1, 3]])
  np.testing.assert_allclose(new['mlp']['wo']['bias'], wo[:, 0] + 3 * wo[:, 2], rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, new['attention'], old['attention'])
  jax.tree.map(np.testing.assert_array_equal, params['decoder'], frozen['decoder'])


@pytest.mark.parametrize('size', FAMILIES)
def test_a_pruned_model_is_one_whose_dropped_neurons_have_their_baselines(size):
  x = case(size)
  logits = jax.jit(lambda keep: x.model.logits(x.trainable, x.frozen, x.batch, sites={
      'encoder/mlp_act': intervene.Mean(~keep, jnp.asarray(x.baseline))}))
  expected = logits(jnp.asarray(x.keep))
  model, frozen = x.pruned
  close(jax.jit(model.logits)(x.trainable, frozen, x.batch), expected)
  assert np.abs(expected - logits(jnp.ones_like(x.keep))).max() > 1e-2
  assert not trees.diff(nn.meta.unbox(model.abstract_frozen()), frozen)


def test_roberta_against_float64(monkeypatch):
  x = case('roberta_tiny')
  left, original = [*zip(x.keep, x.baseline, strict=True)], numpy_models.mlp

  def mlp(p, inputs, config):
    keep, baseline = left.pop(0)
    activations = original({**p, 'wo': {'kernel': np.eye(len(keep)), 'bias': 0}}, inputs, config)
    return numpy_models.dense(p['wo'], np.where(keep, activations, baseline))

  monkeypatch.setattr(numpy_models, 'mlp', mlp)
  table = np.concatenate([x.frozen['token_embedder']['embedding'], x.trainable['prompt']['embedding']])
  params = jax.device_get({**x.frozen, 'token_embedder': {'embedding': table}})
  params['mlm_head']['bias'] = np.pad(params['mlm_head']['bias'], (0, 3))
  tokens = np.asarray(x.batch['encoder_input_tokens'])
  expected = numpy_models.bert(params, x.config, tokens, tokens != x.config.pad_id)[:, 0, :models.VOCAB]
  model, frozen = x.pruned
  close(jax.jit(model.logits)(x.trainable, frozen, x.batch)[:, 0], expected)


def test_pruning_nothing_changes_nothing():
  x = case('t5_1_1_tiny')
  assert prune.prune(x.frozen, x.config, np.ones_like(x.keep), x.baseline) == (x.frozen, x.config)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda keep, base: (keep[:2], base), r'keep is bool \(2, 256\) and baseline \(3, 256\); expected .* \(3, 256\)'),
    (lambda keep, base: (keep, base[:, :9]), r'baseline \(3, 9\)'),
    (lambda keep, base: (keep.astype(int), base), r'keep is int64'),
    (lambda keep, base: (keep, base * np.nan), 'The baseline has values that are no finite numbers'),
    (lambda keep, base: (keep & (np.arange(3) < 2)[:, None], base), 'Layer 2 would keep no neuron'),
    (lambda keep, base: (keep | ((np.arange(3) > 1)[:, None] & (np.arange(256) < 99)), base),
     r'Layer 1 would keep 7 neurons and layer 2 \d+; expected equally many in layers side by side')])
def test_what_cannot_be_pruned(change, message):
  x = case('roberta_tiny')
  with pytest.raises(ValueError, match=message):
    prune.prune(x.frozen, x.config, *change(x.keep, x.baseline))


def test_models_that_cannot_be_pruned():
  x = case('roberta_tiny')
  model, frozen = x.pruned
  with pytest.raises(ValueError, match=r'This model is pruned already, to .*\(\(1, 256\), \(2, 7\)\)'):
    prune.prune(frozen, model.backbone.config, x.keep, x.baseline)
  with pytest.raises(ValueError, match='This gpt2 model has no encoder'):
    prune.prune({}, config_lib.from_size('gpt2_tiny'), x.keep, x.baseline)


# --- what is left ---


def test_roberta_base_loses_a_third_of_its_parameters():
  full = config_lib.from_size('roberta_base')
  model = lambda config: Prompted(loading.BACKBONES['roberta'](config), None)
  size = lambda config: trees.size(nn.meta.unbox(model(config).abstract_frozen()))
  pruned = dataclasses.replace(full, kept_ff=((3, 3072), (9, 61)))
  assert size(full) == 124_697_433
  assert size(pruned) == 83_046_270 == size(full) - 9 * (3072 - 61) * (2 * 768 + 1)
  assert round(100 * size(pruned) / size(full), 1) == 66.6


def test_the_benchmark_says_how_much_smaller_and_faster():
  done = bench_test.run('--rows=tiny', '--turns=2', script='pruned.py')
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  assert [line.split()[0] for line in text] == ['row', 'tiny']
  row = json.loads(last)['rows']['tiny']
  assert row['share'] == row['parameters']['pruned'] / row['parameters']['whole'] < 1
  assert row['speed_up'] == min(row['seconds']['whole']) / min(row['seconds']['pruned'])
  assert all(len(seconds) == 2 for seconds in row['seconds'].values())


def save(x, path, **kwargs):
  model, frozen = x.pruned
  convert.convert(convert.in_memory(frozen, model.backbone.config, **kwargs), path, 'huggingface')


@pytest.mark.parametrize('size', FAMILIES)
def test_saved_and_loaded_as_any_base(size, tmp_path):
  x = case(size)
  save(x, tmp_path / 'pruned')
  loaded = loading.load(str(tmp_path / 'pruned'), Prompt(length=3), loading.Backbone(), models.one_device())
  model, frozen = x.pruned
  unsaid = {'mask_id': model.backbone.config.mask_id}  # its tokenizer says it
  assert dataclasses.replace(loaded.config, **unsaid) == model.backbone.config
  jax.tree.map(np.testing.assert_array_equal, loaded.frozen, frozen)
  assert loaded.fingerprint() == base.fingerprint(frozen)
  assert trees.size(loaded.frozen) < trees.size(x.frozen)


def test_converted_again_and_never_for_somebody_else(tmp_path):
  x = case('t5_1_1_tiny')
  vocabulary = tmp_path / 'own.model'
  vocabulary.write_bytes(b'a vocabulary')
  save(x, tmp_path / 'pruned', tokenizer_path=str(vocabulary))
  assert (tmp_path / 'pruned' / 'spiece.model').read_bytes() == b'a vocabulary'
  settings = json.loads((tmp_path / 'pruned' / 'config.json').read_text())
  assert settings['model_type'] == 'pruned_t5'
  assert settings['kept_ff'] == [[1, 128], [2, KEPT]]
  source = base.open_base(tmp_path / 'pruned')
  convert.convert(source, tmp_path / 'small', 'huggingface', dtype='bfloat16')
  small = base.open_base(tmp_path / 'small')
  assert small.config == source.config
  assert small.tensors['encoder.block.1.layer.1.DenseReluDense.wo.weight'].shape == (64, KEPT)
  with pytest.raises(ValueError, match='is a pruned model, and t5x has no place for layers of different widths'):
    convert.convert(source, tmp_path / 'checkpoint_0', 't5x')
  assert not (tmp_path / 'checkpoint_0').exists()


@pytest.mark.parametrize(('settings', 'message'), [
    ({'kept_ff': [[2, 5]]}, 'kept_ff is .* 3 layers in all'),
    ({'kept_ff': None}, 'kept_ff is None; expected'),
    ({'kept_ff': [[1, 256], [2, 9]]}, r'~ encoder/layers_1/mlp/wi/kernel  the model has \[2, 64, 9\], the .*64, 7\]'),
    ({'model_type': 'pruned_gpt5'}, "model_type is 'pruned_gpt5'; expected one of")])
def test_folders_that_are_not_what_they_say(settings, message, tmp_path):
  save(case('roberta_tiny'), tmp_path / 'pruned')
  file = tmp_path / 'pruned' / 'config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
  with pytest.raises(ValueError, match=message):
    loading.load(str(tmp_path / 'pruned'), Prompt(length=3), loading.Backbone(), models.one_device())


@pytest.mark.parametrize('scan', [True, False])
def test_a_pruned_t5_decodes_as_it_answers_the_teacher(scan):
  x = case('t5_1_1_tiny')
  model, frozen = x.pruned
  model = dataclasses.replace(model, backbone=model.backbone.clone(scan=scan))
  decoded = jax.jit(model.generate, static_argnums=3)(x.trainable, frozen, x.batch, 6)
  tokens = np.asarray(decoded.tokens[:, 0])
  log_probs = jax.jit(model.logits)(
      x.trainable, frozen, {**x.batch, 'decoder_input_tokens': models.shifted(tokens, x.config)})
  live = np.cumsum(np.pad(tokens == x.config.eos_id, [(0, 0), (1, 0)])[:, :-1], axis=1) == 0
  np.testing.assert_array_equal(np.where(live, log_probs.argmax(-1), x.config.pad_id), tokens)
  assert live.sum() > len(live)
