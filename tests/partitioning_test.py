"""Meshes, axis rules, and what does not divide."""

import dataclasses

from flax import linen as nn
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from prompt_tuning import trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones import gpt2, t5
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted


def abstract(**kwargs):
  config = dataclasses.replace(config_lib.from_size('t5_1_1_tiny'), vocab_size=256, **kwargs)
  return Prompted(t5.T5(config), Prompt()).abstract_frozen()


def test_mesh():
  assert dict(Partitioner().mesh.shape) == {'data': 8, 'model': 1}
  assert dict(Partitioner(2).mesh.shape) == {'data': 4, 'model': 2}
  assert dict(Partitioner(1, model_parallel_submesh=(2, 2, 1)).mesh.shape) == {'data': 2, 'model': 4}
  assert dict(Partitioner(2, devices=jax.devices()[:2]).mesh.shape) == {'data': 1, 'model': 2}
  with pytest.raises(ValueError, match=r'NUM_PARTITIONS=3 does not divide the 8 devices; choose one of \[1, 2, 4, 8\]'):
    Partitioner(3)


def specs(partitioner, **kwargs):
  return {path: sharding.spec for path, sharding in trees.flatten(partitioner.shardings(abstract(**kwargs))).items()}


def test_standard_rules_split_heads_feed_forward_and_vocabulary():
  found = specs(Partitioner(2))
  assert found['token_embedder/embedding'] == P('model', None)
  assert found['encoder/layers/attention/query/kernel'] == P(None, None, 'model')
  assert found['encoder/layers/attention/out/kernel'] == P(None, 'model', None)
  assert found['decoder/layers/mlp/wi_0/kernel'] == P(None, None, 'model')
  assert found['decoder/layers/mlp/wo/kernel'] == P(None, 'model', None)
  assert found['decoder/logits_dense/kernel'] == P(None, 'model')


def test_additional_rules_go_first():
  found = specs(Partitioner(2, additional_rules=(('mlp', None), ('embed', 'data'))))
  assert found['encoder/layers/mlp/wo/kernel'] == P(None, None, 'data')
  assert found['token_embedder/embedding'] == P('model', 'data')


def test_parameters_are_spread_over_data_too():
  found = specs(Partitioner(2, parameter_partitioning_dims=2))
  assert found['encoder/layers/mlp/wo/kernel'] == P(None, 'model', 'data')
  assert found['token_embedder/embedding'] == P('model', 'data')
  assert found['encoder/encoder_norm/scale'] == P('data')
  found = specs(Partitioner(2, parameter_partitioning_dims=2, activation_partitioning_dims=2))
  assert found['encoder/layers/mlp/wo/kernel'] == P(None, 'model', 'data')
  assert found['encoder/encoder_norm/scale'] == P('model')
  with pytest.raises(ValueError, match='PARAMETER_PARTITIONING_DIMS=3; expected 1 or 2'):
    Partitioner(2, parameter_partitioning_dims=3)


@pytest.mark.parametrize(('rule', 'message'), [
    (('embedding', 'data'), r"\('embedding', 'data'\) is no rule for a logical axis; expected pairs .*vocab, embed,"),
    (('embed', 'fsdp'), r"\('embed', 'fsdp'\) names no mesh axis by 'fsdp'; expected .* and 'data' or 'model', a"),
    (('embed', ('data', 'modle')), "names no mesh axis by 'modle'"),
    (('embed',), 'is no rule'),
    ('embed', 'is no rule')])
def test_rules_name_axes_that_there_are(rule, message):
  with pytest.raises(ValueError, match=f'LOGICAL_AXIS_RULES: .*{message}'):
    Partitioner(2, additional_rules=[rule])


def test_rows_stay_on_data_whatever_comes_before():
  partitioner = Partitioner(2, additional_rules=[['embed', ['data', 'model']], ('heads', None), ('joined_kv', None)])
  assert nn.logical_to_mesh_axes(('batch', 'length', 'embed'), partitioner.rules) == P('data', None, None)
  assert specs(partitioner)['encoder/encoder_norm/scale'] == P(('data', 'model'))
  partitioner.check_heads(3)


def test_a_parameter_that_does_not_divide_is_named():
  with pytest.raises(ValueError, match=r'mlp/w\w+/kernel \[2, .*axis \d of 130 does not divide over 4 devices.*NUM_P'):
    Partitioner(4).shardings(abstract(d_ff=130))


def test_a_vocabulary_that_does_not_divide_is_whole():
  partitioner, model = Partitioner(4), Prompted(gpt2.GPT2(config_lib.from_size('gpt2_small')), Prompt())
  boxed = model.abstract_frozen()
  assert trees.flatten(partitioner.shardings(boxed))['token_embedder/embedding'].spec == P(None, None)
  assert partitioner.describe(boxed) == (
      "mesh {'data': 2, 'model': 4}; token_embedder/embedding is not split over 'model': "
      '50257 tokens do not divide by 4')
  assert partitioner.describe(abstract()) == "mesh {'data': 2, 'model': 4}"


def test_slices_are_joined_along_data():
  class Device:  # of two slices
    platform, device_kind, process_index, client = 'cpu', 'cpu', 0, None

    def __init__(self, number):
      self.id, self.slice_index = number, number % 2

    def __repr__(self):
      return str(self.id)

  partitioner = Partitioner(2, devices=[Device(i) for i in range(8)])
  assert dict(partitioner.mesh.shape) == {'data': 4, 'model': 2}
  assert [device.slice_index for device in partitioner.mesh.devices.flat] == [0, 0, 0, 0, 1, 1, 1, 1]
  with pytest.raises(ValueError, match='NUM_PARTITIONS=8 does not divide the 4 devices of a slice'):
    Partitioner(8, devices=[Device(i) for i in range(8)])


def test_constraints_lay_activations_out_on_several_devices_alone():
  lay = lambda x: nn.with_logical_constraint(x, ('batch', 'length', 'embed'))

  def within(partitioner):
    with partitioner.constraints():
      return jax.make_jaxpr(lay)(np.zeros((8, 3, 6))).eqns

  assert within(Partitioner(devices=jax.devices()[:1])) == []
  laid, = within(Partitioner(2, activation_partitioning_dims=2))
  assert laid.params['sharding'].spec == P('data', None, 'model')
  assert jax.make_jaxpr(lay)(np.zeros((8, 3, 6))).eqns == []  # and no longer than that


def test_heads_and_batches_must_divide():
  partitioner = Partitioner(4)
  partitioner.check_heads(8)
  with pytest.raises(ValueError, match='NUM_PARTITIONS=4 cannot share 6 attention heads equally'):
    partitioner.check_heads(6)
  partitioner.check_batch(6)
  with pytest.raises(ValueError, match='EVAL=7 does not divide over the 2 data-parallel devices'):
    partitioner.check_batch(7, 'EVAL')


def test_batches_are_split_and_trainables_whole():
  partitioner = Partitioner(2)
  x = np.arange(24).reshape(8, 3)
  placed = partitioner.place_batch({'x': x})['x']
  np.testing.assert_array_equal(placed, x)
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
  whole = partitioner.replicate({'a': x, 'b': 3.0})
  np.testing.assert_array_equal(whole['a'], x)
  assert {shard.data.shape for shard in whole['a'].addressable_shards} == {(8, 3)}
  assert float(whole['b']) == 3.0


def test_shards_that_are_held_here():
  assert Partitioner().shards_here(16, 4) == [0, 1, 2, 3]  # one process holds all


def test_every_parameter_has_names_for_its_axes():
  boxed = abstract()
  shapes, names = (trees.flatten(f(boxed)) for f in (nn.meta.unbox, nn.get_partition_spec))
  assert {path: len(shape.shape) for path, shape in shapes.items()} == {path: len(n) for path, n in names.items()}
