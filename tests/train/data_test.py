"""A task's text on the way to bases of other families: re-encoded for the base, or as it is; and back as text."""

import dataclasses
import functools
import itertools
import json
import types

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning import batching, features, loading, trees
from prompt_tuning.checkpoints import base, huggingface
from prompt_tuning.checkpoints.source import TensorInfo
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.tasks import features as task_features
from prompt_tuning.tasks import vocabularies
from prompt_tuning.tokenizer import open_tokenizer
from prompt_tuning.train import batches as batches_lib
from prompt_tuning.train import data, evaluate
from tests import models

LENGTHS = {'inputs': 64, 'targets': 8}
SIZES = {'gpt2': 'gpt2_tiny', 'bart': 'bart_tiny', 't5': 't5_1_1_tiny'}
ROWS = [('name : Blue Spice', 'Blue Spice'), ('area : riverside', 'by the river'), ('food : Fast', 'fast')]
REFERENCES = ['one', 'another']


@functools.cache
def load(family, **kwargs) -> loading.Loaded:
  """A random small base with its tokenizer."""
  path = None if family == 't5' else str(models.GOLDENS / 'tokenizers' / family)
  backbone = loading.Backbone(**{'size': SIZES[family], 'tokenizer': path, **kwargs})
  return loading.load(None, Prompt(length=2), backbone, models.one_device())


def source(split, shuffle_files=False, seed=None) -> tf.data.Dataset:
  del split, shuffle_files, seed
  inputs, targets = map(list, zip(*ROWS, strict=True))
  return tf.data.Dataset.from_tensor_slices({'inputs': inputs, 'targets': targets})


def many(split, shuffle_files=False, seed=None) -> tf.data.Dataset:
  """50 rows in an order of the seed, which seqio can only shard by taking every n-th of them."""
  del split
  inputs = tf.data.Dataset.from_tensor_slices([f'name : pub {i}' for i in range(50)])
  inputs = inputs.shuffle(50, seed) if shuffle_files else inputs
  return inputs.map(lambda text: {'inputs': text, 'targets': text})


@pytest.fixture(scope='module', autouse=True)
def tasks():
  """Tasks as T5 has them, without their text, in another vocabulary, with references, and a mixture."""
  tokenize = seqio.preprocessors.tokenize
  without_text = lambda dataset, output_features: tokenize(dataset, output_features, copy_pretokenized=False)
  in_gpt2 = seqio.Feature(
      vocabularies.TokenizerVocabulary(open_tokenizer(models.GOLDENS / 'tokenizers/gpt2', 'gpt2')), add_eos=True)
  references = lambda text, example=None, is_target=False: REFERENCES if is_target else text.strip()
  exact = lambda targets, predictions: {'known': sum(p in t for t, p in zip(targets, predictions, strict=True))}
  names = []
  for name, step, feature, more in (
      ('data_test_text', tokenize, task_features.OUTPUT_FEATURES['inputs'], {}),
      ('data_test_ids', without_text, task_features.OUTPUT_FEATURES['inputs'], {}),
      ('data_test_gpt2', tokenize, in_gpt2, {}),
      ('data_test_references', tokenize, in_gpt2, {'postprocess_fn': references, 'metric_fns': [exact]})):
    seqio.TaskRegistry.add(
        name, source=seqio.FunctionDataSource(source, splits=['train']),
        preprocessors=[step, seqio.preprocessors.append_eos],
        output_features={'inputs': feature, 'targets': feature}, **{'metric_fns': [], **more})
    names.append(name)
  seqio.TaskRegistry.add(
      'data_test_many', source=seqio.FunctionDataSource(many, splits=['train']),
      preprocessors=[tokenize, seqio.preprocessors.append_eos], output_features=task_features.OUTPUT_FEATURES)
  names.append('data_test_many')
  seqio.MixtureRegistry.add('data_test_mixture', [('data_test_text', 1)])
  yield
  seqio.MixtureRegistry.remove('data_test_mixture')
  for name in names:
    seqio.TaskRegistry.remove(name)


def dataset(name='data_test_text', **kwargs) -> data.Dataset:
  return data.Dataset(name, LENGTHS, 'train', **{'batch_size': 3, 'shuffle': False, **kwargs})


def batch_of(loaded, dataset):
  convert = evaluate.converter(dataset, loaded.model, loaded.tokenizer)
  return next(batches_lib.TrainBatches(dataset, convert, seed=0)), convert


def test_t5_takes_the_tasks_own_ids():
  _, convert = batch_of(load('t5'), dataset())
  assert convert.encode is None


@pytest.mark.parametrize('name', ['data_test_text', 'data_test_gpt2', 'data_test_mixture'])
@pytest.mark.parametrize('family', ['gpt2', 'bart'])
def test_text_is_encoded_again_for_another_base(family, name):
  loaded = load(family)
  batch, convert = batch_of(loaded, dataset(name))
  ours, layout = loaded.tokenizer, convert.layout
  for row, (inputs, targets) in enumerate(ROWS):
    expected = layout.encode(ours, inputs, targets)
    tokens = batch['encoder_input_tokens'][row]
    assert tokens[tokens != layout.source_pad_id].tolist() == [1024, 1025, *expected['inputs']]
    weighed = batch['decoder_loss_weights'][row] > 0
    assert batch['decoder_target_tokens'][row][weighed].tolist() == expected['targets'][:8]
    assert batch['decoder_input_tokens'][row][0] == loaded.config.start_id


def test_t5_reads_a_task_in_another_vocabulary():
  loaded = load('t5')
  batch, _ = batch_of(loaded, dataset('data_test_gpt2'))
  ids = [*loaded.tokenizer.encode(ROWS[0][0]), 1]
  np.testing.assert_array_equal(batch['encoder_input_tokens'][0][2:2 + len(ids)], ids)


def test_a_task_that_keeps_no_text():
  batch_of(load('t5'), dataset('data_test_ids'))
  with pytest.raises(ValueError, match=r'data_test_ids: its token ids are not those of the base.*keeps no text'):
    batch_of(load('gpt2'), dataset('data_test_ids'))


def test_predictions_are_the_bases_text_and_references_are_kept():
  loaded = load('bart')
  metrics, rows = evaluate.Evaluator(loaded, dataset('data_test_references'))(loaded.new_trainable(0))
  assert metrics == {'known': 0.0}
  rows = [json.loads(row) for row in rows]
  assert [row['input'] for row in rows] == [inputs for inputs, _ in ROWS]
  assert all(row['target'] == REFERENCES for row in rows)
  assert all(isinstance(row['prediction'], str) for row in rows)


def test_a_base_without_tokenizer_loads_until_text_is_needed():
  loaded = load('gpt2', tokenizer=None)
  assert jax.tree.leaves(loaded.new_trainable(0))[0].shape == (2, 64)
  with pytest.raises(ValueError, match="random gpt2_tiny: this gpt2 model comes without a tokenizer, and text is to be "
                     "read. Copy its tokenizer's files into its folder, or name their folder by Backbone.tokenizer."):
    batch_of(loaded, dataset())


def test_tokenizers_lie_in_the_models_folder_and_are_written_along(tmp_path):
  given = load('gpt2')
  params = trees.flatten(given.frozen)
  infos = {path: TensorInfo(x.shape, x.dtype) for path, x in params.items()}
  with huggingface.writing(tmp_path / 'model', given.config, infos, models.GOLDENS / 'tokenizers/gpt2') as writer:
    for path, x in params.items():
      writer.write(path, np.asarray(x))
  assert base.open_base(str(tmp_path / 'model')).tokenizer_path == str(tmp_path / 'model')
  loaded = loading.load(str(tmp_path / 'model'), Prompt(length=2), partitioner=models.one_device())
  assert loaded.tokenizer.fingerprint == given.tokenizer.fingerprint
  assert loading.base_of(str(tmp_path / 'model')).encode('the pub') == given.tokenizer.encode('the pub')
  for name in ('vocab.json', 'merges.txt'):
    (tmp_path / 'model' / name).unlink()
  without = loading.base_of(str(tmp_path / 'model'))
  assert without.embeddings([3]).shape == (1, 64)
  with pytest.raises(ValueError, match='this gpt2 model comes without a tokenizer'):
    without.encode('the pub')


def test_the_tokenizer_of_another_family():
  with pytest.raises(ValueError, match='has no </s>, as that of bart models'):
    load('bart', tokenizer=str(models.GOLDENS / 'tokenizers/gpt2'))
  other = dataclasses.replace(load('t5'), known_tokenizer=load('bart').tokenizer)
  with pytest.raises(ValueError, match='eos_id of the tokenizer is 2 but that of the model 1'):
    batch_of(other, dataset())


def texts(stream, n):
  return [next(stream)['inputs_pretokenized'].decode() for _ in range(n)]


def test_a_stream_goes_on_from_its_position():
  one = batches_lib.Stream(dataset(shuffle=True), seed=1)
  first = texts(one, 4)
  assert one.position == {'epoch': 1, 'offset': 1}
  assert sorted(first[:3]) == sorted(inputs for inputs, _ in ROWS)
  assert texts(one, 3) == texts(batches_lib.Stream(dataset(shuffle=True), 1, position={'epoch': 1, 'offset': 1}), 3)


def sharded(shards, name='data_test_many', **kwargs) -> data.Dataset:
  return data.Dataset(name, LENGTHS, 'train', shards=shards, **{'batch_size': 12, **kwargs})


@pytest.mark.parametrize(('name', 'shards', 'limit'), [
    ('data_test_many', 3, None), ('data_test_many', 4, 30), ('sst2_sample', 3, None)])
def test_shards_have_every_example_once_an_epoch(name, shards, limit):
  whole = sharded(shards, name, limit=limit)
  parts = [[e['inputs_pretokenized'] for e in whole.epoch(5, 2, shard=i)] for i in range(shards)]
  together = [text for part in parts for text in part]
  everything = [e['inputs_pretokenized'] for e in whole.epoch(5, 2)]
  assert len(together) == len(everything)
  assert max(map(len, parts)) - min(map(len, parts)) <= 1
  if limit is None:
    assert sorted(together) == sorted(everything)


def test_a_batch_is_the_same_whoever_reads_its_shards():
  convert = types.SimpleNamespace(
      ids=lambda row: int(row['inputs_pretokenized'].split()[-1]) + 1, features=lambda ids: {'x': np.array(ids)})
  whole, left, right = (batches_lib.TrainBatches(sharded(2), convert, 3, shards=s) for s in (None, [0], [1]))
  for _ in range(5):  # past the end of epochs of 25
    batch, low, high = next(whole)['x'], next(left)['x'], next(right)['x']
    np.testing.assert_array_equal(np.concatenate([low[:6], high[6:]]), batch)
    assert not low[6:].any()
    assert not high[:6].any()
  second = {'epoch': 1, 'offset': 5}
  assert whole.position == {'shards': [second, second]}
  assert right.position == {'shards': [None, second]}
  again = batches_lib.TrainBatches(sharded(2), convert, 3, whole.position)
  np.testing.assert_array_equal(next(again)['x'], next(whole)['x'])


@pytest.mark.parametrize('shards', [1, 2])
def test_a_window_deals_its_examples_out_by_length(shards):
  converter = types.SimpleNamespace(
      ids=lambda row: features.Ids(row['inputs'], None), features=lambda ids: [tuple(x.source) for x in ids])
  plain = sharded(shards, 'sst2_sample', batch_size=10, shuffle=True)
  window = dataclasses.replace(plain, batching=batching.Bucketed(window=4))
  expected, batches = (batches_lib.TrainBatches(x, converter, 3) for x in (plain, window))
  positions, found = [], []
  for _ in range(8):
    found.append(next(batches))
    positions.append(json.loads(json.dumps(batches.position)))
  for some in (found[:4], found[4:]):
    assert sorted(x for batch in some for x in batch) == sorted(x for _ in range(4) for x in next(expected))
    spans = sorted((min(map(len, batch)), max(map(len, batch))) for batch in some)
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(spans))
  assert positions[3] == {name: x for name, x in positions[4].items() if name != 'window'}
  assert [[len(batch[0]) for batch in some] != sorted(len(batch[0]) for batch in some)
          for some in (found[:4], found[4:])].count(True)  # in random order
  for i, position in enumerate(positions[:7]):
    again = batches_lib.TrainBatches(window, converter, 3, position)
    assert again.position == position
    for expected, behind in zip(found[i + 1:], positions[i + 1:], strict=True):
      assert next(again) == expected
      assert again.position == behind
  other = dataclasses.replace(plain, batching=batching.Bucketed(window=2))
  with pytest.raises(ValueError, match='was stopped within Bucketed.window=4, asked for now: 2'):
    batches_lib.TrainBatches(other, converter, 3, positions[4])


def test_what_does_not_divide_into_shards_or_has_too_few_examples():
  with pytest.raises(ValueError, match='BATCH_SIZE=12 does not divide into DATA_SHARDS=5 streams'):
    sharded(5)
  with pytest.raises(ValueError, match="data_test_many: split 'train' has no examples for shard 2 of DATA_SHARDS=4"):
    texts(batches_lib.Stream(sharded(4, limit=2), 0, shard=2), 1)
  with pytest.raises(ValueError, match='began with DATA_SHARDS=1, asked for now: 4'):
    batches_lib.TrainBatches(sharded(4), None, 0, {'epoch': 0, 'offset': 8})


def test_facts_that_hosts_compare():
  facts = data.facts([dataset(), sharded(2, shuffle=True), dataset('data_test_mixture')])
  assert list(facts) == ['data of data_test_text, train', 'data of data_test_many, train',
                         'data of data_test_mixture, train']
  lines = facts['data of data_test_many, train'].splitlines()
  assert lines[0] == 'data_test_many: None examples, files of [] bytes'
  assert [line for line in lines if line.startswith('inputs_pretokenized')] == [
      f"inputs_pretokenized b'name : pub {i}'" for i in range(data.FIRST)]
  size = (models.GOLDENS.parents[1] / 'tasks/data/sst2_sample_train.tsv').stat().st_size
  assert f'files of [{size}] bytes' in data.facts([data.Dataset('sst2_sample', LENGTHS, 'train', 8)]).popitem()[1]
