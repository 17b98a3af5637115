"""What is read from a model: labels by their words, by a trained head, spans; on encoders and decoders alike."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import tokenizer
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones.config import BackboneConfig
from prompt_tuning.methods import readouts
from prompt_tuning.methods.base import Base
from prompt_tuning.prompted import Prompted
from tests import models

GPT2 = models.GOLDENS / 'tokenizers/gpt2'
BERT = models.GOLDENS / 'tokenizers/bert'
ROBERTA = dataclasses.replace(config_lib.from_size('roberta_tiny'), mask_id=4)
LABELS = ('negative', 'positive')


def tiny(size: str, readout: readouts.Readout):
  """(Prompted, frozen, trainable, batch with one target) of a random small model; `readout` may be bound already."""
  model, frozen, trainable = models.tiny(size=size)
  config = model.backbone.config
  model = Prompted(model.backbone, model.method, readout)
  base = Base(config, lambda ids: np.asarray(frozen['token_embedder']['embedding'])[np.asarray(ids)], lambda text: [3])
  batch = models.tiny_batch(prompt=3, config=config)
  batch |= {'decoder_input_tokens': batch['decoder_input_tokens'][:, :1],
            'decoder_target_tokens': jnp.asarray([[1], [0]]), 'decoder_loss_weights': jnp.ones((2, 1))}
  return model, frozen, {**model.init(jax.random.key(1), base), 'prompt': trainable['prompt']}, batch


SIZES = ['t5_1_1_tiny', 't5_1_0_tiny', 'gpt2_tiny', 'bart_tiny', 'roberta_tiny', 'bert_tiny']


@pytest.mark.parametrize('size', SIZES)
def test_a_verbalizer_reads_the_columns_of_its_words(size):
  verbalizer = readouts.Verbalizer(LABELS, ids=(7, 5))
  model, frozen, trainable, batch = tiny(size, verbalizer)
  whole = Prompted(model.backbone, model.method).logits(trainable, frozen, batch)
  logits = model.logits(trainable, frozen, batch)
  np.testing.assert_array_equal(logits, whole[..., np.array([7, 5])])
  decoded = model.generate(trainable, frozen, batch, length=9)
  assert decoded.tokens.shape == (2, 1, 1)
  np.testing.assert_array_equal(decoded.tokens[:, 0, 0], np.argmax(logits[:, 0], axis=-1))
  both = jax.nn.log_softmax(logits[:, 0])
  np.testing.assert_allclose(decoded.log_probs[:, 0], both.max(-1), rtol=1e-6)
  np.testing.assert_allclose(model.score(trainable, frozen, batch), both[jnp.arange(2), jnp.asarray([1, 0])], rtol=1e-6)


@pytest.mark.parametrize('size', SIZES)
def test_a_head_is_trained_on_one_state(size):
  model, frozen, trainable, batch = tiny(size, readouts.Head(('a', 'b', 'c')))
  assert jax.tree.map(np.shape, trainable['head']) == {'kernel': (64, 3), 'bias': (3,)}
  logits = model.logits(trainable, frozen, batch)
  assert logits.shape == (2, 1, 3)
  grads = jax.grad(lambda t: model.score(t, frozen, batch).sum())(trainable)
  assert all(np.abs(np.asarray(x)).max() > 0 for x in jax.tree.leaves(grads))
  moved = {**trainable, 'head': {**trainable['head'], 'bias': jnp.asarray([0.0, 1.0, 0.0])}}
  np.testing.assert_allclose(model.logits(moved, frozen, batch) - logits, [[[0, 1, 0]]] * 2, atol=1e-6)
  assert set(model.export(trainable)) == {'prompt/embedding', 'head/kernel', 'head/bias'}


def test_a_head_sees_the_state_of_the_mask_else_of_the_first_token():
  model, frozen, trainable, batch = tiny('roberta_tiny', readouts.Head(LABELS))
  states = model.backbone.apply(
      {'params': frozen}, batch['encoder_input_tokens'], model.method.apply(trainable).sites, method='encode')
  expected = lambda x: x @ trainable['head']['kernel'] + trainable['head']['bias']
  np.testing.assert_allclose(
      model.logits(trainable, frozen, batch)[:, 0], expected(states[:, 0]), rtol=1e-4, atol=1e-5)
  tokens = batch['encoder_input_tokens'].at[1, 5].set(models.MASK)
  masked = model.logits(trainable, frozen, {**batch, 'encoder_input_tokens': tokens})[1, 0]
  states = model.backbone.apply({'params': frozen}, tokens, model.method.apply(trainable).sites, method='encode')
  np.testing.assert_allclose(masked, expected(states[1, 5]), rtol=1e-4, atol=1e-5)


def test_words_become_the_ids_of_their_first_pieces():
  gpt2, bert = (tokenizer.open_tokenizer(str(path), family) for path, family in ((GPT2, 'gpt2'), (BERT, 'bert')))
  config = config_lib.from_size('gpt2_tiny')
  bound = readouts.Verbalizer(('good', 'name')).bind(config, gpt2)
  assert bound.ids == (gpt2.encode(' good')[0], gpt2.encode(' name')[0])
  assert bound.mask_id is None
  config = dataclasses.replace(config_lib.from_size('bert_tiny'), mask_id=bert.mask_id)
  bound = readouts.Verbalizer(LABELS, words=('bad', 'good')).bind(config, bert)
  assert bound.ids == tuple(bert.encode(word)[0] for word in ('bad', 'good'))
  assert bound.virtual_tokens == 1
  np.testing.assert_array_equal(bound.place(np.array([9, 8]), 256), [bert.mask_id, 9, 8])
  np.testing.assert_array_equal(bound.place(np.array([9, bert.mask_id]), 256), [9, bert.mask_id])  # of a template
  assert readouts.Verbalizer(LABELS, mask=False).bind(config, bert).virtual_tokens == 0


def test_random_words_are_fixed_by_their_seed():
  ids = [readouts.Verbalizer(LABELS, seed=seed).bind(ROBERTA, None).ids for seed in (0, 0, 1)]
  assert ids[0] == ids[1] != ids[2]
  assert all(0 <= i < ROBERTA.vocab_size for i in ids[2])


@pytest.mark.parametrize(('readout', 'message'), [
    (readouts.Verbalizer(()), 'LABELS=.*two or more different'),
    (readouts.Head(('a', 'a')), 'LABELS=.*two or more different'),
    (readouts.Verbalizer(LABELS, words=('good',)), '1 words for the 2 LABELS'),
    (readouts.Verbalizer(LABELS, words=('good', '\u4e00\u4e01')), 'not in the vocabulary of this bert'),
    (readouts.Verbalizer(LABELS, words=('good', 'good')), 'two are the same'),
    (readouts.Span(), None),
])
def test_readouts_that_do_not_fit_are_refused(readout, message):
  bert = tokenizer.open_tokenizer(str(BERT), 'bert')
  config = dataclasses.replace(config_lib.from_size('bert_tiny'), mask_id=bert.mask_id)
  if message is None:
    with pytest.raises(ValueError, match='reads spans from an encoder; a gpt2 generates'):
      readout.bind(config_lib.from_size('gpt2_tiny'), bert)
    return
  with pytest.raises(ValueError, match=message):
    readout.bind(config, bert)


def test_a_target_that_is_no_label_is_refused():
  with pytest.raises(ValueError, match=r"target 'neutral' is none of LABELS=\('negative', 'positive'\)"):
    readouts.Verbalizer(LABELS).encode('neutral', np.array([1]))
  assert readouts.Verbalizer(LABELS).decode([1], np.array([1])) == 'positive'


class Words:
  """A tokenizer of numbers: '7 8' <-> [7, 8]."""

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids):
    return ' '.join(map(str, ids))


def test_a_span_is_found_and_read():
  model, frozen, trainable, batch = tiny('roberta_tiny', readouts.Span().bind(ROBERTA, Words()))
  source = np.asarray(batch['encoder_input_tokens'][0])
  answer = ' '.join(map(str, source[5:7]))
  assert model.readout.encode(answer, source) == [5, 6]
  assert model.readout.decode([5, 6], source) == answer
  assert model.readout.encode('9999', source) == []
  logits = model.logits(trainable, frozen, batch)
  assert logits.shape == (2, 2, batch['encoder_input_tokens'].shape[1])
  padding = np.asarray(batch['encoder_input_tokens'] == model.backbone.config.pad_id)
  assert padding.any()
  assert (np.asarray(logits)[:, 0][padding] == -1e10).all()
  best = model.generate(trainable, frozen, batch, length=1).tokens[:, 0]
  assert best.shape == (2, 2)
  assert (best[:, 0] <= best[:, 1]).all()


def test_a_span_ends_behind_its_beginning():
  starts, ends = jnp.asarray([[0.0, 1.0, 5.0, 0.0]]), jnp.asarray([[9.0, 1.0, 0.0, 2.0]])
  logits = jnp.stack([starts, ends], axis=1)
  np.testing.assert_array_equal(readouts.Span().choose(logits), [[0, 0]])  # 0 + 9 is more than 5 + 2
  np.testing.assert_array_equal(readouts.Span().choose(logits.at[0, 1, 0].set(0)), [[2, 3]])


def test_settings_make_the_same_readout():
  for readout in (readouts.Verbalizer(LABELS, words=('a', 'b'), mask=False), readouts.Head(LABELS, use_bias=False),
                  readouts.Span(), readouts.TextToText()):
    again = readouts.from_settings(readout.settings())
    assert again == readout
  assert readouts.from_settings(readouts.Head(LABELS).settings(), {'kernel': np.ones((2, 2))}).initial is not None
  with pytest.raises(ValueError, match='no kind that is known'):
    readouts.from_settings({'kind': 'Oracle'})
  with pytest.raises(ValueError, match='no kind that is known'):
    readouts.from_settings({'kind': 'Span', 'wings': 2})


def test_a_head_for_other_labels_is_refused():
  initial = {'kernel': np.zeros((64, 3)), 'bias': np.zeros(3)}
  with pytest.raises(ValueError, match=r'should be \[64, 2\] .* is \[64, 3\]'):
    tiny('roberta_tiny', readouts.Head(LABELS, initial=initial))


def test_config_knows_encoders():
  assert isinstance(ROBERTA, BackboneConfig)
  assert ROBERTA.encoder_only
  assert not models.TINY.encoder_only
