"""A base in int8 is the base with rounded matrices: the same numbers wherever it is used, close to the exact ones."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, loading, quantized, trees
from prompt_tuning.analysis import prune_base, selectivity
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.methods.bias import Bias
from prompt_tuning.methods.full import Full
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.top import Top
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses, optim, step
from tests import models

FAMILIES = ['t5_1_1_tiny', 'gpt2_tiny', 'bart_tiny', 'roberta_tiny']
GOLDENS = [('hf/t5_v1_1', 1), ('hf/gpt2', 1), ('t5x/t5x_native_scan/checkpoint_0', 2),
           ('t5x/t5x_native_bf16/checkpoint_0', 2)]


@functools.cache
def tiny(size: str, **kwargs):
  """(model, float32 parameters, int8 ones, the same as float32, trainable, batch)."""
  model, exact, trainable = models.tiny(size=size, **kwargs)
  like = nn.meta.unbox(quantized.abstract(model.abstract_frozen()))
  codes = quantized.cast(exact, like)
  batch = models.tiny_batch(rows=4, prompt=3, config=model.backbone.config)
  return model, exact, codes, quantized.dequantized(codes), trainable, batch


@pytest.mark.parametrize('axis', [-1, -2])
def test_each_number_is_off_by_half_a_step_at_most(axis):
  x = np.random.default_rng(0).standard_normal((3, 5, 7), np.float32)
  x[1] = 0  # as the rows of tokens that are never used may be
  codes, scale = quantized.quantize(x, axis)
  assert codes.dtype == np.int8
  assert scale.shape == (3, 7) if axis == -2 else (3, 5)
  assert np.abs(codes).max() == 127
  step = np.expand_dims(scale, axis)
  assert (np.abs(x - codes * step) <= 0.5 * step + 1e-7).all()
  again, scales = quantized.quantize(jnp.asarray(x), axis)  # XLA may multiply by 1/127
  np.testing.assert_allclose(scales, scale, rtol=3e-7)
  np.testing.assert_allclose(again, codes, atol=1)


@pytest.mark.parametrize('size', FAMILIES)
def test_logits_are_those_of_the_rounded_base(size):
  model, exact, codes, rounded, trainable, batch = tiny(size)
  logits = jax.jit(model.logits)
  found, expected, wanted = (np.asarray(logits(trainable, frozen, batch)) for frozen in (codes, rounded, exact))
  np.testing.assert_allclose(found, expected, atol=2e-5 * expected.std())
  error = np.abs(found - wanted) / wanted.std()
  assert 0 < error.mean() < 0.03  # of random matrices; bfloat16 is as far off
  assert error.max() < 0.2
  assert trees.nbytes(codes) < 0.37 * trees.nbytes(exact)  # positions are a good part of models as small as these


def test_bfloat16_activations_on_codes():
  """Codes are bfloat16 numbers too, so that only activations are rounded; as on a float32 base."""
  model, _, codes, rounded, trainable, batch = tiny('gpt2_tiny', dtype=jnp.bfloat16)
  found, expected = (np.asarray(jax.jit(model.logits)(trainable, x, batch)) for x in (codes, rounded))
  error = np.abs(found - expected) / expected.std()
  assert error.mean() < 0.02
  assert error.max() < 0.2


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_decoding_with_layers_apart_is_that_of_the_rounded_base(size):
  model, _, codes, rounded, trainable, batch = tiny(size)
  apart = Prompted(model.backbone.clone(scan=False), model.method)
  one, other = (jax.jit(functools.partial(m.generate, length=5, decoder=decoding.Beam(beams=2)))(trainable, x, batch)
                for m, x in ((apart, codes), (model, rounded)))
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)


@pytest.mark.parametrize(('size', 'remat'), [('t5_1_1_tiny', 'full'), ('gpt2_tiny', 'none')])
def test_a_step_on_a_mesh_is_that_of_the_rounded_base(size, remat):
  model, _, codes, rounded, trainable, batch = tiny(size)
  model = Prompted(model.backbone.clone(remat=remat), model.method)
  partitioner, optimizer = Partitioner(2), optim.adamw()(optim.constant(1e-2))
  boxed = model.abstract_frozen()
  found = []
  for frozen, shapes in ((codes, quantized.abstract(boxed)), (rounded, boxed)):
    run = step.make_train_step(model, optimizer, losses.compute, dropout_seed=None)
    frozen = jax.tree.map(jax.device_put, frozen, partitioner.shardings(shapes))
    state = partitioner.replicate(step.init_state(jax.tree.map(jnp.copy, trainable), optimizer))
    found.append(run(state, frozen, partitioner.place_batch(batch))[1])
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5)


def test_scales_are_split_like_their_channels():
  model, *_ = tiny('t5_1_1_tiny')
  found = {path: sharding.spec for path, sharding in trees.flatten(
      Partitioner(2).shardings(quantized.abstract(model.abstract_frozen()))).items()}
  spec = jax.sharding.PartitionSpec
  assert found['encoder/layers/mlp/wi_0/kernel_scale'] == spec(None, 'model')
  assert found['encoder/layers/mlp/wo/kernel_scale'] == spec(None, None)
  assert found['token_embedder/embedding_scale'] == spec('model')
  assert not any('norm' in path or 'relpos' in path for path in found if path.endswith(quantized.SCALE))


@pytest.mark.parametrize(('path', 'partitions'), GOLDENS)
def test_a_checkpoint_is_quantised_as_it_is_read(path, partitions):
  load = lambda dtype: loading.load(
      str(models.GOLDENS / path), Prompt(length=1), loading.Backbone(param_dtype=dtype),
      Partitioner(partitions, additional_rules=(('embed', 'data'),), devices=jax.devices()[:4]))  # both axes split
  exact, found = load('float32'), load('int8')
  expected = quantized.cast(jax.device_get(exact.frozen), found.frozen)
  jax.tree.map(np.testing.assert_array_equal, found.frozen, expected)
  assert found.fingerprint() != exact.fingerprint()
  rows = found.base().embeddings([3, 9])
  np.testing.assert_allclose(rows, exact.base().embeddings([3, 9]), atol=0.005 * np.abs(rows).max())


def test_a_random_base_is_quantised_too():
  load = lambda dtype: trees.flatten(loading.load(
      None, Prompt(length=1), loading.Backbone(size='gpt2_tiny', param_dtype=dtype), models.one_device()).frozen)
  found, exact = load('int8'), load('float32')
  path = 'decoder/layers/mlp/wo/kernel'
  codes, scale = quantized.quantize(np.asarray(exact[path]), -2)
  np.testing.assert_allclose(found[path + quantized.SCALE], scale, rtol=1e-6)
  assert np.abs(found[path] - codes.astype(np.int32)).max() <= 1  # a tie, fused
  np.testing.assert_array_equal(found['position_embedder/embedding'], exact['position_embedder/embedding'])


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_a_layer_at_a_time_is_dequantised(remat):
  """What a step holds besides its parameters does not grow with the layers by matrices."""
  config = dataclasses.replace(config_lib.from_size('gpt2_tiny'), vocab_size=models.VOCAB, decoder_layers=8, d_ff=2048)
  model = Prompted(loading.BACKBONES['gpt2'](config, remat=remat), Prompt(length=3))
  boxed, temporary = model.abstract_frozen(), {}
  trainable = {'prompt': {'embedding': jax.ShapeDtypeStruct((3, config.d_model), jnp.float32)}}
  batch = jax.eval_shape(lambda: models.tiny_batch(prompt=3, config=config))
  total = lambda trainable, frozen, batch: losses.compute(model.logits(trainable, frozen, batch), batch).total
  for name, shapes in (('float32', boxed), ('int8', quantized.abstract(boxed))):
    compiled = jax.jit(jax.grad(total)).lower(trainable, nn.meta.unbox(shapes), batch).compile()
    temporary[name] = compiled.memory_analysis().temp_size_in_bytes
  layer = 4 * 2 * config.d_model * config.d_ff  # of a feed-forward block, float32
  assert temporary['int8'] < temporary['float32'] + 2 * layer


@pytest.mark.parametrize(('method', 'message'), [
    (Full(), 'Full trains matrices of the base, which are int8 codes.*PARAMETER_DTYPE'), (Top(layers=1), 'Top trains')])
def test_matrices_are_not_trained_on_codes(method, message):
  loaded = loading.load(str(models.GOLDENS / 'hf/gpt2'), method, loading.Backbone(param_dtype='int8'),
                        models.one_device())
  with pytest.raises(ValueError, match=message):
    loaded.new_trainable(0)


def test_biases_are():
  loaded = loading.load(str(models.GOLDENS / 'hf/gpt2'), Bias(), loading.Backbone(param_dtype='int8'),
                        models.one_device())
  found = trees.flatten(loaded.new_trainable(0))
  assert found
  assert {path.split('/')[-1] for path in found} == {'bias'}


def test_what_is_read_of_a_neuron_is_a_column():
  _, _, codes, rounded, *_ = tiny('t5_1_1_tiny')
  layers, neurons = {'encoder/mlp_act': 2}, [(0, 3), (1, 5)]
  np.testing.assert_allclose(
      selectivity.key_vectors(codes, layers, neurons), selectivity.key_vectors(rounded, layers, neurons), rtol=1e-6)


def test_a_pruned_base_is_not_made_of_codes(tmp_path):
  np.savez(tmp_path / 'results.npz', pred=np.zeros((1, 2, 3)), prompt_0_baseline=np.zeros((1, 2, 1, 3)))
  with pytest.raises(ValueError, match='set PARAMETER_DTYPE to float32 or bfloat16'):
    prune_base.prune_base(output_dir=str(tmp_path / 'out'), initial_checkpoint_path='base', probe_dir=str(tmp_path),
                          backbone=loading.Backbone(param_dtype='int8'))
