"""Streaming statistics: against a float64 oracle, against all activations stored, and on any mesh and dtype."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.analysis import predictivity, readings, record
from prompt_tuning.analysis.record import Address
from prompt_tuning.backbones import sites
from prompt_tuning.partitioning import Partitioner
from tests.analysis import oracle
from tests.analysis.oracle import LABELS, PROMPT, ROWS

SIZES = ['roberta_tiny', 'bart_tiny']
MARGIN = 3e-6  # activations this close to a threshold may fall on either side: twice the error of float32


class Keep(sites.Reading):
  """Keeps everything."""

  unused: jnp.ndarray  # [L]

  def read(self, x):
    return x


def looks_of(case):
  config = case.config
  start = readings.at_start(config) if config.decoder_layers else {}
  if config.decoder_only:  # its prompt sees no text
    return start
  return readings.at_prompt(config, PROMPT + (config.mask_id is not None), pooled=True) | start


def places(case, activations):
  """What `looks_of` looks at, of stored activations {site: [L, N, S, F]}: {site: [L, N, P, F]}."""
  tokens, config = case.tokens, case.config
  length = PROMPT + (config.mask_id is not None)
  found = {}
  for site, a in activations.items():
    if site == 'decoder/mlp_act':
      found[site] = a[:, :, -1:]
      continue
    text = (tokens[:, length:] != config.source_pad_id)[..., None]
    words = a[:, :, length:tokens.shape[1]]
    mean = np.where(text, words, 0).sum(2, keepdims=True) / text.sum(1, keepdims=True)
    most = np.where(text, words, -np.inf).max(2, keepdims=True)
    found[site] = np.concatenate([a[:, :, :length], mean, most], axis=2)
  return found


def stored(case):
  """The same by the model itself: {site: [L, N, S, F]}."""
  layers = {site: look.layers for site, look in looks_of(case).items()}
  read, found = case.read, []
  for batch, _ in case.batches():
    found.append(read(batch, {site: Keep(jnp.zeros(n)) for site, n in layers.items()}))
  return {site: np.concatenate([x[site] for x in found], axis=1)[:, :ROWS] for site in layers}


@functools.cache
def streamed(size):
  case = oracle.case(size)
  read, looks = case.read, looks_of(case)
  sums = record.baseline(read, case.batches(), looks)
  baselines = record.mean(sums)
  return sums, baselines, record.hits(read, case.batches(), looks, baselines)


def accuracies(values, thresholds, labels=LABELS):
  """[L, P, F] from [L, N, P, F], and how many activations are too close to the threshold to be sure of."""
  distance = values - thresholds[:, None]
  right = (distance > 0) == labels[:, None, None]
  return right.mean(1), (np.abs(distance) < MARGIN).mean(1)


@pytest.mark.parametrize('size', SIZES)
def test_baselines_accuracies_and_finders_are_those_of_a_float64_oracle(size):
  case = oracle.case(size)
  _, baselines, hits = streamed(size)
  for site, values in places(case, oracle.activations(case)).items():
    np.testing.assert_allclose(baselines[site][:, 0], values.mean(1), atol=MARGIN)
    expected, unsure = accuracies(values, values.mean(1))
    (acc,) = predictivity.accuracy(hits.by_site[site], hits.counts)
    assert (np.abs(acc - expected) <= unsure + 1e-12).all()
    assert (unsure == 0).mean() > 0.9
    assert len(np.unique(acc)) > 5


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny'])
def test_streaming_is_storing_everything(size):
  case = oracle.case(size)
  sums, baselines, hits = streamed(size)
  np.testing.assert_array_equal(hits.counts, [np.bincount(LABELS)])
  for site, values in places(case, stored(case)).items():
    np.testing.assert_allclose(sums.by_site[site][:, 0, 1], values[:, LABELS == 1].sum(1), rtol=2e-5, atol=MARGIN)
    above = values > baselines[site]
    expected = np.stack([above[:, LABELS == label].sum(1) for label in (0, 1)], axis=1)
    unsure = (np.abs(values - baselines[site]) < 1e-6).sum(1)
    assert (np.abs(hits.by_site[site][:, 0] - expected) <= unsure[:, None]).all()
    assert (unsure == 0).mean() > 0.9


def test_sub_tasks_are_streamed_together():
  case = oracle.case('t5_1_1_tiny')
  classes = np.arange(ROWS) % 3
  labels = predictivity.labels_of(classes, predictivity.sub_tasks(3))
  read, looks = case.read, readings.at_prompt(case.config, PROMPT)
  sums = record.baseline(read, case.batches(labels), looks)
  baselines = record.mean(sums)
  hits = record.hits(read, case.batches(labels), looks, baselines)
  assert hits.joined.shape == (2, 2, 2, PROMPT, case.config.d_ff)
  for k in range(2):
    one = record.baseline(read, case.batches(labels[:, k]), looks)
    np.testing.assert_allclose(sums.joined[:, k], one.joined[:, 0], atol=1e-5)
    thresholds = {site: x[:, k:k + 1] for site, x in baselines.items()}
    alone = record.hits(read, case.batches(labels[:, k]), looks, thresholds)
    np.testing.assert_array_equal(hits.joined[:, k], alone.joined[:, 0])
    np.testing.assert_array_equal(hits.counts[k], alone.counts[0])


def test_a_mesh_changes_nothing():
  case = oracle.case('roberta_tiny')
  _, baselines, hits = streamed('roberta_tiny')
  sharded = record.hits(case.reader(Partitioner(4)), case.batches(), looks_of(case), baselines)
  np.testing.assert_array_equal(sharded.counts, hits.counts)
  assert (sharded.joined != hits.joined).mean() < 1e-3  # another order of sums


def test_bfloat16_activations_are_summed_in_float32():
  case = oracle.case('t5_1_1_tiny', dtype=jnp.bfloat16)
  wide = streamed('t5_1_1_tiny')[1]
  narrow = record.mean(record.baseline(case.read, case.batches(), looks_of(case)))
  for site in wide:
    assert narrow[site].dtype == np.float32
    scale = np.abs(wide[site]).mean()
    assert np.abs(narrow[site] - wide[site]).mean() < 0.03 * scale
  at = readings.At(jnp.zeros((4000, 1), jnp.int32))
  ones = jnp.ones((1, 4000, 1, 2), jnp.float32)
  x = jnp.full((4000, 1, 3), 1.0078125, jnp.bfloat16)
  np.testing.assert_allclose(readings.Sum((at,), ones[0]).read(x), 4000 * 1.0078125, rtol=1e-6)


def test_one_compilation_serves_all_batches():
  case = oracle.case('t5_1_1_tiny')
  calls = []
  original = readings.Sum.read

  class Counted(readings.Sum):
    def read(self, x):
      calls.append(1)
      return original(self, x)

  looks, read = readings.at_prompt(case.config, PROMPT), case.read
  for seed in range(3):
    for batch, labels in case.batches(np.roll(LABELS, seed)):
      rows = readings.tiled(record.members(labels), 2)
      read(batch, {site: Counted(look.places(batch), rows) for site, look in looks.items()})
  assert len(calls) <= 2  # traced, and once more to find the shapes of the loop


def test_values_of_chosen_neurons():
  case = oracle.case('bart_tiny')
  looks = looks_of(case)
  addresses = [Address(0, 2, 7), Address(1, 4, 3), Address(3, 0, 9)]  # the last one in the decoder
  x, labels = record.values(case.read, case.batches(), looks, addresses)
  stacks = places(case, oracle.activations(case))
  expected = [stacks['encoder/mlp_act'][0, :, 2, 7], stacks['encoder/mlp_act'][1, :, 4, 3],
              stacks['decoder/mlp_act'][1, :, 0, 9]]
  np.testing.assert_allclose(x.T, expected, atol=MARGIN)
  np.testing.assert_array_equal(labels, LABELS)
  shown = record.histograms(case.read, case.batches(), looks, addresses, bins=12)
  for column, histogram in zip(x.T, shown, strict=True):
    inside = np.clip(column, histogram.edges[0], histogram.edges[-1])
    for label in (0, 1):
      counts, _ = np.histogram(inside[LABELS == label], histogram.edges.astype(np.float64))
      np.testing.assert_array_equal(histogram.counts[label], counts)
  for wrong, said in ((Address(4, 0, 0), r'Layers \[0, 1, 4\].*expected 0 to 3'), (Address(0, 5, 0), 'no activation'),
                      (Address(0, 0, 256), 'no activation')):
    with pytest.raises(ValueError, match=said):
      record.values(case.read, case.batches(), looks, [*addresses[:2], wrong])


def test_stacks_are_joined_and_split():
  by_site = {'decoder/mlp_act': np.ones((3, 4)), 'encoder/mlp_act': np.zeros((2, 4))}
  joined = record.join(by_site)
  np.testing.assert_array_equal(joined[:, 0], [0, 0, 1, 1, 1])
  parts = record.split(joined, {'decoder/mlp_act': 3, 'encoder/mlp_act': 2})
  for site, x in by_site.items():
    np.testing.assert_array_equal(parts[site], x)
  with pytest.raises(ValueError, match='The stacks differ.*as many places in both'):
    record.join({'decoder/mlp_act': np.ones((3, 1, 4)), 'encoder/mlp_act': np.zeros((2, 5, 4))})


# --- what is looked at ---


def test_prompt_positions_are_found_wherever_they_are():
  config = oracle.case('roberta_tiny').config
  v, mask, pad = config.vocab_size, config.mask_id, config.pad_id
  tokens = np.array([[mask, v, v + 1, 9, 10, pad], [9, v, 10, v + 1, mask, 11], [pad] * 6], np.int32)
  (look,) = readings.at_prompt(config, 3, pooled=True).values()
  at, pooled = look.places({'encoder_input_tokens': tokens})
  np.testing.assert_array_equal(at.positions[0, :2], [[0, 1, 2], [1, 3, 4]])
  assert at.positions.shape == (config.encoder_layers, 3, 3)
  np.testing.assert_array_equal(pooled.text[1], [[0, 0, 0, 1, 1, 0], [1, 0, 1, 0, 0, 1], [0] * 6])
  x = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
  mean, most = np.moveaxis(readings.Pooled(pooled.text[0])(x), 1, 0)
  np.testing.assert_allclose(mean[0], x[0, 3:5].mean(0), rtol=1e-6)
  np.testing.assert_array_equal(most[1], x[1, [0, 2, 5]].max(0))
  assert not mean[2].any()
  assert not most[2].any()


def test_bad_input_is_named():
  case = oracle.case('roberta_tiny')
  (look,) = readings.at_prompt(case.config, 5).values()
  with pytest.raises(ValueError, match='Row 0 has 4 virtual tokens .* looks at 5'):
    look.places({'encoder_input_tokens': case.tokens})
  gpt2 = oracle.case('gpt2_tiny')
  (look,) = readings.at_prompt(gpt2.config, PROMPT).values()
  with pytest.raises(ValueError, match='The prompt lies in front of the text.*at_start'):
    look.places({'encoder_input_tokens': gpt2.tokens})
  behind = np.roll(gpt2.tokens, 6, axis=1)
  np.testing.assert_array_equal(look.places({'encoder_input_tokens': behind})[0].positions[0], [[6, 7, 8]] * ROWS)
  with pytest.raises(ValueError, match='A roberta has no decoder to look at'):
    readings.at_start(case.config)
  with pytest.raises(ValueError, match='Label 2 in a probe of two classes'):
    record.members(np.array([0, 2]))
  with pytest.raises(ValueError, match='the data is empty'):
    record.baseline(case.read, [], looks_of(case))
  with pytest.raises(ValueError, match='the data is empty'):
    record.values(case.read, [], looks_of(case), [Address(0, 0, 0)])
  with pytest.raises(ValueError, match='the data is empty'):
    record.histograms(case.read, [], looks_of(case), [Address(0, 0, 0)])
  with pytest.raises(ValueError, match='No rows to take a mean of in sub-task 0'):
    record.mean(record.Totals({}, np.zeros((1, 2))))
  with pytest.raises(ValueError, match='Label 1; expected 0 to 0'):
    record.histograms(case.read, case.batches(), looks_of(case), [Address(0, 0, 0)], classes=1)
