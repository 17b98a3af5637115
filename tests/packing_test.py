"""Examples packed into rows have the losses and gradients that each has in a row of its own, on every family."""

import functools

import jax
import numpy as np
import pytest

from prompt_tuning import batching, features, trees
from prompt_tuning.backbones import masks, roberta
from prompt_tuning.methods import readouts
from prompt_tuning.methods.adapter import Adapter
from prompt_tuning.methods.prefix import Prefix
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.together import Together
from prompt_tuning.prompted import Prompted
from prompt_tuning.train import losses
from tests import models
from tests.methods.prefix_test import base_of

SIZES = {'t5': 't5_1_1_tiny', 'gpt2': 'gpt2_tiny', 'bart': 'bart_tiny', 'roberta': 'roberta_tiny'}
LABELS = ('a', 'b')
METHOD = Together(methods=(Prompt(length=3, initializer=None), Prefix(length=3, reparameterization=None),
                           Adapter(bottleneck=3)))
LENGTHS = [(9, 2), (3, 4), (5, 1), (7, 3), (4, 2), (2, 1), (6, 5)]


class Long(batching.Packed):
  """Rows longer than any position that an example may have, with a row to spare."""

  def __call__(self, sources, targets, room):
    places = batching._first_fit(sources, targets, 44, 18)
    return [batching.Piece(2 + max(place.row for place in places), 44, 18, places, packed=True)]


@functools.cache
def base(family):
  model, frozen, _ = models.tiny(size=SIZES[family], scan=True, dropout_rate=0.0)
  return model.backbone, frozen


def prompted(family, readout=None):
  """(model, frozen, trainable), an encoder read by its mask tokens."""
  backbone, frozen = base(family)
  readout = readout or (readouts.Verbalizer(labels=LABELS, seed=0) if family == 'roberta' else readouts.TextToText())
  model = Prompted(backbone, METHOD.bind(backbone.config, None), readout.bind(backbone.config, None))
  trainable = model.init(jax.random.key(0), base_of(model, frozen))
  rng = np.random.default_rng(1)  # adapters begin as nothing
  return model, frozen, jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), trainable)


def examples(config, lengths=LENGTHS):
  """Random text; the targets' text is for readouts."""
  rng, first = np.random.default_rng(0), 1 + max(config.mask_id or 0, config.eos_id or 0, 4)
  return [{'inputs': rng.integers(first, models.VOCAB, n), 'targets': rng.integers(first, models.VOCAB, m),
           'targets_pretokenized': LABELS[n % 2]} for n, m in lengths]


def converter(model, how):
  c = model.backbone.config
  layout = features.Layout(start_id=c.start_id, pad_id=c.pad_id, source_pad_id=c.source_pad_id)
  label = None if model.readout.length is None else model.readout.encode
  lengths = {'inputs': 10, 'targets': model.readout.length or 6}
  return features.Converter(lengths, model.place, model.placed, c.vocab_size, layout, label=label, batching=how)


def loss_and_gradient(model, frozen, trainable, batch, **kwargs):
  """(loss over its normalizer, accuracy, gradient) of a batch."""

  def total(trainable):
    loss = losses.compute(model.logits(trainable, frozen, batch), batch, z_loss=1e-3, **kwargs)
    return loss.total / loss.normalizer, loss.correct / loss.tokens

  (loss, accuracy), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(trainable)
  return float(loss), float(accuracy), jax.device_get(grads)


def assert_same(found, expected):
  assert found[0] == pytest.approx(expected[0], rel=1e-5)
  assert found[1] == pytest.approx(expected[1], rel=1e-6)
  flat, norm = trees.flatten(expected[2]), lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in tree.values()))
  difference = {path: x - flat[path] for path, x in trees.flatten(found[2]).items()}
  assert norm(flat) > 1e-4
  assert norm(difference) < 1e-5 * norm(flat)
  for path, x in difference.items():
    assert np.abs(x).max() < 1e-4 * max(np.abs(flat[path]).max(), 1e-3 * norm(flat)), path  # the terms of some cancel


@pytest.mark.parametrize(('family', 'readout'), [*((family, None) for family in SIZES), ('roberta', 'head')])
def test_packed_is_padded(family, readout):
  head = readouts.Head(labels=LABELS) if readout else None  # reads where a segment begins
  model, frozen, trainable = prompted(family, head)
  some = examples(model.backbone.config)
  packed, padded = (converter(model, how)(some) for how in (Long(), batching.Padded()))
  assert packed['encoder_segment_ids'].shape == (3, 44)
  assert packed['encoder_segment_ids'].max() > 2
  factor = 'NUM_SEQUENCES' if family == 'gpt2' else 'AVERAGE_PER_SEQUENCE'
  assert_same(*(loss_and_gradient(model, frozen, trainable, batch, normalizing_factor=factor)
                for batch in (packed, padded)))


def test_each_segment_is_read_at_its_own_masks():
  tokens = np.array([[4, 9, 4, 8, 8, 4, 7, 0], [4, 4, 4, 4, 9, 9, 9, 9]])
  segments = np.array([[1, 1, 1, 2, 2, 3, 3, 0], [1, 1, 2, 2, 3, 3, 3, 3]])
  read = np.array([[1, 1, 2, 3, 0], [2, 2, 2, 3, 3]])
  found = roberta.read_positions(tokens, 4, 5, (segments, read))
  np.testing.assert_array_equal(found[0][:4], [0, 2, 3, 5])
  np.testing.assert_array_equal(found[1], [2, 3, 2, 4, 4])  # the third of two masks, and of none: where it begins


def test_positions_count_what_is_seen_of_each_segment():
  visible = np.array([[1, 1, 0, 1, 0, 1, 1, 1, 1]], bool)
  segments = np.array([[1, 1, 1, 2, 0, 1, 1, 2, 2]])
  np.testing.assert_array_equal(masks.positions(visible, segments), [[0, 1, 1, 0, 0, 2, 3, 1, 2]])


def test_a_packed_rows_targets_are_shifted_within_each_example():
  layout = features.Layout(start_id=2, source_pad_id=-1)
  convert = features.Converter(
      {'inputs': 6, 'targets': 3}, lambda ids, v: np.append(v, ids), 1, 50, layout, batching=Long())
  batch = convert([
      {'inputs': [7, 8, 1], 'targets': [5, 1]}, {'targets': [9]}, {'inputs': [6, 1], 'targets': [3, 4, 1]}])
  row = {name: x[0][:12].tolist() for name, x in batch.items()}
  assert row['encoder_input_tokens'] == [50, 7, 8, 1, 50, 6, 1, 50, 1, -1, -1, -1]
  assert row['encoder_segment_ids'] == [1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0, 0]
  assert row['decoder_input_tokens'][:6] == [2, 5, 2, 3, 4, 2]
  assert row['decoder_target_tokens'] == [5, 1, 3, 4, 1, 9, *[0] * 6]
  assert row['decoder_segment_ids'] == [1, 1, 2, 2, 2, 3, *[0] * 6]
  assert batch['decoder_loss_weights'].sum() == 6
  assert not batch['encoder_segment_ids'][1].any()


def test_examples_too_long_for_the_models_positions_are_found_though_rows_may_be_longer():
  model, frozen, trainable = prompted('gpt2')  # with a prefix of three
  most = model.backbone.config.max_positions
  model.check_lengths(trainable, frozen, most - 7, 4)
  with pytest.raises(ValueError, match=f'The model has {most} positions, but {most + 1} tokens are asked for'):
    model.check_lengths(trainable, frozen, most - 6, 4)
