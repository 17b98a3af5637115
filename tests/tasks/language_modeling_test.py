"""Prefix LM and span corruption: T5's own draws, what they leave of the text, and where text comes from."""

import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning import tasks
from prompt_tuning.tasks import builders, features
from prompt_tuning.tasks import language_modeling as lm
from prompt_tuning.train import data
from tests import models

EOS, FIRST_SENTINEL, LAST_PIECE = 1, 32_099, 31_999


@pytest.fixture(scope='module')
def golden() -> dict[str, np.ndarray]:
  return models.reference('span_corruption.npz')


def dataset_of(documents) -> tf.data.Dataset:
  return tf.data.Dataset.from_generator(
      lambda: ({'targets': ids} for ids in documents),
      output_signature={'targets': tf.TensorSpec([None], tf.int32)})


def examples(name: str, split='train', seed=0, skip=0, epoch=0, shuffle=True, **lengths) -> list[dict]:
  """What the trainer reads of a task."""
  dataset = data.Dataset(name, lengths or {'inputs': 64, 'targets': 64}, split, batch_size=1, shuffle=shuffle)
  return list(dataset.epoch(seed, epoch, skip))


def merged(inputs, targets) -> list[int]:
  """The text that a corrupted example was made of."""
  spans, current = {}, []
  for token in targets:
    if token > LAST_PIECE:
      current = spans.setdefault(token, [])
    else:
      current.append(token)
  return [x for token in inputs for x in (spans[token] if token > LAST_PIECE else [token])]


def test_span_corruption_equals_t5_from_the_same_seed(golden):
  documents = np.split(golden['ids'], np.cumsum(golden['lengths'])[:-1])
  with seqio.utils.map_seed_manager(94043 + 4):  # T5 takes two seeds before: to choose from documents, and to cut them
    corrupted = lm.span_corruption(dataset_of(documents), {'inputs': 1024, 'targets': 1024})
  for i, example in enumerate(corrupted.take(3).as_numpy_iterator()):
    np.testing.assert_array_equal(example['inputs'], golden['inputs'][i])
    np.testing.assert_array_equal(example['targets'], golden['targets'][i])
    assert merged(**example) == golden['ids'][i * 1137:(i + 1) * 1137].tolist()


@pytest.mark.parametrize(('inputs', 'expected'), [(512, (568, 114)), (1024, (1137, 229)), (3, (2, 3))])
def test_lengths_of_span_corruption(inputs, expected):
  assert lm.span_corruption_lengths(inputs) == expected


def test_noise_is_the_share_and_the_number_of_spans_it_should_be():
  masks = [lm.noise_mask(tf.constant(568), tf.constant([[seed, 1], [2, seed]], tf.int64)).numpy()
           for seed in range(50)]
  assert {mask.sum() for mask in masks} == {85}
  assert {int(mask[0]) + (mask[1:] & ~mask[:-1]).sum() for mask in masks} == {28}
  assert not any(mask[0] for mask in masks)
  lengths = [len(list(run)) for mask in masks for noise, run in itertools.groupby(mask) if noise]
  assert {1, 2, 3, 4, 5, 6} <= set(lengths)
  assert np.mean(masks, axis=0)[50:500].std() < 0.1  # no place is preferred: sqrt(.15 * .85 / 50) is .05
  assert [lm.noise_mask(tf.constant(n), tf.constant([[0, 1], [2, 3]], tf.int64)).numpy().tolist() for n in (2, 3)] == [
      [False, True], [False, False, True]]


def test_span_corruption_of_text_fills_its_lengths():
  found = examples('wikitext_sample_span_corruption', inputs=64, targets=32)
  assert len({(len(x['inputs']), len(x['targets'])) for x in found[:-1]}) <= 2  # chunks, and what was left
  assert max(len(x['inputs']) for x in found) == 64
  for x in found:
    assert x['inputs'][-1] == x['targets'][-1] == EOS
    sentinels = [token for token in x['inputs'] if token > LAST_PIECE]
    assert sentinels == [FIRST_SENTINEL - i for i in range(len(sentinels))]
    assert sentinels == [token for token in x['targets'] if token > LAST_PIECE]


def test_prefix_lm_divides_chunks_anywhere():
  found = examples('wikitext_sample_prefix_lm', 'validation', shuffle=False)
  lengths = [len(x['inputs']) - 1 for x in found if len(x['inputs']) + len(x['targets']) == 63 + 2]
  assert len(lengths) >= len(found) - 1
  assert min(lengths) < 10
  assert max(lengths) > 53
  assert min(len(x[name]) for x in found for name in ('inputs', 'targets')) >= 2  # a token and the end
  text = b' '.join(lm.documents(lm._DATA / 'wikitext_sample_validation.txt')).decode()
  assert [i for x in found for name in ('inputs', 'targets') for i in x[name][:-1]] == features.VOCABULARY.encode(text)


def test_the_point_is_drawn_uniformly():
  chunks = tf.data.Dataset.from_tensors({'targets': tf.range(1, 9)}).repeat(700)
  with seqio.utils.map_seed_manager(0):
    points = [len(x['inputs']) for x in lm.divide(chunks).as_numpy_iterator()]
  counts = np.bincount(points, minlength=9)
  assert counts[0] == 0
  assert len(counts) - 1 == 8 == counts[1:].argmin() + 1  # 1 ... 7
  assert np.abs(counts[1:8] - 100).max() < 40  # four standard deviations


def test_long_targets_are_cut_and_chunks_of_one_token_dropped():
  assert max(len(x['targets']) for x in examples('wikitext_sample_prefix_lm', inputs=64, targets=16)) == 16
  chunks = list(lm.cut(dataset_of([np.arange(1, 8)]), 3).as_numpy_iterator())
  assert [x['targets'].tolist() for x in chunks] == [[1, 2, 3], [4, 5, 6]]


def test_examples_are_a_function_of_the_seed_and_the_place():
  draw = lambda **kwargs: [(x['inputs'].tolist(), x['targets'].tolist()) for x in examples(
      'wikitext_sample_span_corruption', 'validation', inputs=64, targets=16, **kwargs)]
  whole = draw(seed=1)
  assert whole == draw(seed=1)
  assert whole[7:] == draw(seed=1, skip=7)
  assert whole != draw(seed=1, epoch=1)
  assert whole != draw(seed=2)


@pytest.mark.parametrize(('lengths', 'message'), [
    ({'inputs': 512, 'targets': 100}, "set 'targets' to 114 or more"),
    ({'inputs': 4096, 'targets': 4096}, 'would take 227 sentinels; the vocabulary has 100'),
    ({'inputs': 2, 'targets': 4}, 'needs at least 3')])
def test_lengths_that_do_not_do(lengths, message):
  with pytest.raises(ValueError, match=message):
    examples('wikitext_sample_span_corruption', **lengths)


def test_metric():
  assert lm.log_likelihood([2, 6], [-1.0, -3.0]) == {'log_likelihood': -0.5, 'perplexity': pytest.approx(np.exp(0.5))}
  assert lm.log_likelihood([1], [-1e6])['perplexity'] < np.inf
  assert lm.number_of_tokens('two words', {'targets': np.ones(5)}, is_target=True) == 5


@pytest.mark.parametrize(('text', 'expected'), [
    ('one\ntwo\n', [b'one', b'two']), ('\n\none \ntwo\n\n', [b'one', b'two']),
    ('a b\nc\n \n\nd\n', [b'a b\nc', b'd']), ('', [])])
def test_documents_of_a_file(tmp_path, text, expected):
  (tmp_path / 'train.txt').write_text(text)
  assert list(lm.documents(tmp_path / 'train.txt')) == expected


def test_your_own_text(tmp_path, monkeypatch):
  monkeypatch.setenv(builders.MANUAL_DIR, str(tmp_path))
  with pytest.raises(FileNotFoundError, match=rf'{tmp_path}/text/train\*.txt: there is no such file. Put text there'):
    examples('text_prefix_lm')
  (tmp_path / 'text').mkdir()
  for name, text in (('train-0', 'a first document\nits second line\n\nanother'), ('train-1', 'third\nfourth')):
    (tmp_path / f'text/{name}.txt').write_text(text)
  joined = {features.VOCABULARY.decode([i for k in ('inputs', 'targets') for i in x[k][:-1].tolist()])
            for seed in range(4) for x in examples('text_prefix_lm', seed=seed)}
  assert all(sorted(text.split()) == sorted('a first document its second line another third fourth'.split())
             for text in joined)
  assert len(joined) > 1
  with pytest.raises(FileNotFoundError, match=r'valid\*.txt'):
    examples('text_prefix_lm', 'validation')


def test_the_source_shards_and_knows_its_splits():
  source = tasks.load('wikitext_sample_prefix_lm').source
  shards = [len(list(source.get_dataset('train', shuffle=False, shard_info=seqio.ShardInfo(i, 2)))) for i in (0, 1)]
  assert shards == [2, 2]
  with pytest.raises(ValueError, match="no split 'test'"):
    source.list_shards('test')


@pytest.mark.parametrize('name', ['c4_prefix_lm', 'c4_v220_span_corruption'])
def test_c4_is_what_t5_has(name):
  task = tasks.load(name)
  assert task.splits == lm.SPLITS
  assert task.source.tfds_dataset.name == f'c4/en:{"2.2.0" if "v220" in name else "3.0.1"}'
