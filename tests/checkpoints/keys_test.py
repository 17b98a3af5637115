"""Key tables and the shapes they speak of: those of the backbones, and of checkpoints made elsewhere."""
import dataclasses

from flax import linen as nn
import pytest

from prompt_tuning import loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import base, keys
from prompt_tuning.checkpoints.families import t5
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted


@pytest.mark.parametrize('relpos_per_layer', [False, True])
@pytest.mark.parametrize('size', ['t5_1_1_xl', 't5_1_0_base'])
def test_t5_has_the_parameters_of_the_backbone(size, relpos_per_layer):
  config = dataclasses.replace(config_lib.from_size(size), relpos_per_layer=relpos_per_layer, decoder_layers=3)
  abstract = Prompted(loading.Backbone().module(config), Prompt()).abstract_frozen()
  expected = {path: x.shape for path, x in trees.flatten(nn.meta.unbox(abstract)).items()}
  for table in (t5.key_table, t5.t5x_key_table, t5.t5x_scanned_key_table):
    assert keys.shapes(config, table(config)) == expected


@pytest.mark.parametrize('name', ['gpt2', 'bart', 'roberta', 'bert', 't5_v1_1', 't5_v1_0'])
def test_shapes_are_those_in_the_file(goldens, name):
  source = base.open_base(goldens / 'hf' / name)
  table = source.key_table(source.config)
  found = {path: entry.our_shape(source.tensors[entry.names[0]].shape) for path, entry in table.items()}
  assert keys.shapes(source.config, table) == found
  for path, entry in table.items():
    assert entry.stored_shape(found[path]) == source.tensors[entry.names[0]].shape


def test_a_part_of_a_joined_tensor():
  entry = keys.per_layer('h.{i}.c_attn.weight', 2, part=(1, 3))
  assert entry.names == ('h.0.c_attn.weight', 'h.1.c_attn.weight')
  assert entry.our_shape((4, 18)) == (2, 4, 6)
  assert entry.stored_index(((1, 3), (2, 5)), (4, 18)) == (slice(1, 3), slice(8, 11))
  transposed = keys.Entry(('w',), transpose=True)
  assert transposed.stored_index(((1, 3), (2, 5)), (18, 4)) == (slice(2, 5), slice(1, 3))
