"""What initialisers of a prompt read of a base checkpoint."""
import dataclasses

import jax
import numpy as np
import pytest

from prompt_tuning import loading
from prompt_tuning.checkpoints import base
from prompt_tuning.methods import initializers
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.partitioning import Partitioner
from prompt_tuning.prompted import Prompted
from tests import models

BASES = {'hf/t5_v1_1': 'shared.weight', 't5x/t5x_native_t5_1_0/checkpoint_0': 'token_embedder/embedding',
         't5x/t5x_native_scan/checkpoint_0': 'token_embedder/embedding'}
INITIALIZERS = {
    'labels': initializers.class_labels(['good', 'the new one'], most_common=100),
    'vocabulary': initializers.sampled_vocabulary(most_common=100)}


@pytest.fixture
def reads(monkeypatch):
  """(stored name, first row, row behind the last) of every read of a checkpoint."""
  found = []

  def opened(path):
    source = open_base(path)

    def read(name, index):
      found.append((name, index[0].start, index[0].stop))
      return source.read(name, index)

    return dataclasses.replace(source, read=read)

  open_base = base.open_base
  monkeypatch.setattr(base, 'open_base', opened)
  return found


@pytest.mark.parametrize('initializer', INITIALIZERS)
@pytest.mark.parametrize('path', BASES)
def test_prompts_begin_as_in_training_without_loading_the_model(path, initializer, reads):
  loaded = models.load_golden(path)
  model = Prompted(loaded.model.backbone, Prompt(length=20, initializer=INITIALIZERS[initializer]))
  reads.clear()
  prompt = model.init(jax.random.key(3), loading.base_of(str(models.GOLDENS / path)))['prompt']['embedding']
  assert {name for name, *_ in reads} == {BASES[path]}
  assert max(stop for *_, stop in reads) <= 256  # not the whole of a table of 1024
  assert len(reads) <= 3  # one a label, one for the rest
  np.testing.assert_array_equal(prompt, model.init(jax.random.key(3), loaded.base())['prompt']['embedding'])


def test_words_beyond_the_vocabulary():
  label = Prompt(length=2, initializer=initializers.class_labels(['gorgeous']))
  loaded = models.load_golden('hf/t5_v1_1')
  for known in (loaded.base(), loading.base_of(str(models.GOLDENS / 'hf/t5_v1_1'))):
    with pytest.raises(ValueError, match=r'Token \d+ is beyond the 256 rows of the embedding table of .*t5_v1_1: '):
      Prompted(loaded.model.backbone, label).init(jax.random.key(0), known)


def test_rows_of_a_narrow_table_are_float32():
  path = str(models.GOLDENS / 't5x/t5x_native_bf16/checkpoint_0')
  rows = loading.base_of(path).embeddings([9, 3, 3])
  table = base.open_base(path).read('token_embedder/embedding', ())
  assert rows.dtype == np.float32
  np.testing.assert_array_equal(rows, table[[9, 3, 3]].astype(np.float32))


@pytest.mark.parametrize('path', [str(models.GOLDENS / 'hf/t5_v1_1'), None])
def test_abstract_is_what_is_loaded_without_arrays(path):
  backbone = loading.Backbone(size=None if path else 't5_1_1_tiny', param_dtype='bfloat16')
  method, partitioner = Prompt(length=3, initializer=initializers.class_labels(['good'])), Partitioner()
  shapes = loading.abstract(path, method, backbone, partitioner)
  loaded = loading.load(path, method, backbone, partitioner)
  described = lambda x: (x.shape, x.dtype, x.sharding)
  assert jax.tree.all(jax.tree.map(
      lambda x, y: isinstance(x, jax.ShapeDtypeStruct) and described(x) == described(y), shapes.frozen, loaded.frozen))
  assert shapes.model == loaded.model
  (prompt,) = jax.tree.leaves(shapes.model.abstract_trainable())
  assert prompt.shape == (3, loaded.config.d_model)


@pytest.mark.parametrize('path', ['gs://bucket/t5', '/no/such/folder', None])
def test_abstract_of_a_base_that_is_not_here_needs_its_size(path):
  method = Prompt(length=3)
  with pytest.raises(ValueError, match=r'INITIAL_CHECKPOINT_PATH=.* MODEL_SIZE must say .* t5_1_1_xxl'):
    loading.abstract(path, method, loading.Backbone(), Partitioner())
  assert loading.abstract(path, method, loading.Backbone(size='t5_1_1_xxl'), Partitioner(8)).config.d_ff == 10240
