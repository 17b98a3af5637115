"""P-tuning: where a template puts what, its network, and every refusal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import features, loading, trees
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.checkpoints import tuned
from prompt_tuning.methods import finished, initializers, reparameterization
from prompt_tuning.methods.p_tuning import PTuning
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.methods.reparameterization import LSTM
from prompt_tuning.prompted import Prompted
from prompt_tuning.tokenizer import open_tokenizer
from tests import models
from tests.methods.prefix_test import base_of, jitted, made

TEMPLATE = '<p*2> {text} Answer: <p> {mask} .'
TOKENIZERS = models.GOLDENS / 'tokenizers'


class Letters:
  """A tokenizer of letters."""

  bos_id = eos_id = mask_id = None

  def encode(self, text):
    return [ord(letter) for letter in text]


def config(size: str, **kwargs):
  return dataclasses.replace(config_lib.from_size(size), vocab_size=1000, **kwargs)


@pytest.mark.parametrize(('size', 'text', 'expected'), [
    ('t5_1_1_tiny', [7, 8, 1], [1000, 1001, 7, 8, *b' Answer:', 1002, *b' .', 1]),
    ('gpt2_tiny', [7, 8], [1000, 1001, 7, 8, *b' Answer:', 1002, *b' .']),
    ('bart_tiny', [0, 7, 8, 2], [0, 1000, 1001, 7, 8, *b' Answer:', 1002, *b' .', 2])])
def test_a_template_stands_inside_what_is_around_a_text(size, text, expected):
  method = PTuning('<p*2> {text} Answer: <p> .').bind(config(size), Letters())
  placed = method.place(np.array(text, np.int32), 1000)
  assert placed.dtype == np.int32
  assert placed.tolist() == expected
  assert method.virtual_tokens == len(expected) - len(text)
  assert method.length == 3


@pytest.mark.parametrize('family', ['roberta', 'bert'])
def test_a_template_of_a_masked_language_model(family):
  """With its own tokenizer and layout: the mask is where the template has it, whole words are between."""
  golden = {'roberta': 'bart', 'bert': 'bert'}[family]  # RoBERTa's files are BART's
  tokenizer = open_tokenizer(TOKENIZERS / golden, family)
  given = config(f'{family}_tiny', mask_id=tokenizer.mask_id, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
  method = PTuning(TEMPLATE).bind(given, tokenizer)
  layout = features.layout_of(given, tokenizer) if len(tokenizer) <= 1000 else features.Layout(
      (tokenizer.bos_id,), (tokenizer.eos_id,))
  ids = layout.encode(tokenizer, 'good food')['inputs']
  row = method.place(np.array(ids), 1000).tolist()
  assert row == [ids[0], 1000, 1001, *ids[1:-1], *tokenizer.encode(' Answer:'), 1002, tokenizer.mask_id,
                 *tokenizer.encode(' .'), ids[-1]]


def test_a_text_that_is_cut_or_empty_keeps_the_template():
  method = PTuning('<p> {text} <p>').bind(config('bart_tiny'), None)
  assert method.place(np.array([0, 2]), 1000).tolist() == [0, 1000, 1001, 2]
  assert method.place(np.array([], np.int32), 1000).tolist() == [1000, 1001]


@pytest.mark.parametrize(('template', 'message'), [
    ('<p*3>', r"'<p\*3>' has 0 \{text\}; expected text with one \{text\}"),
    ('{text} <p> {text}', r'has 2 \{text\}'),
    ('{text} .', r'has no virtual token; expected .* such as <p\*3>'),
    ('{text} <p*0>', r'has <p\*0>'),
    ('{text} <p*x>', r"'<p\*x>' is no placeholder"),
    ('{text} <p> {label}', r"'\{label\}' is no placeholder"),
    ('{text} <p> {mask}', r'has a \{mask\}, but this t5 has no mask token; leave it out')])
def test_templates_that_are_refused(template, message):
  with pytest.raises(ValueError, match=message):
    PTuning(template).bind(config('t5_1_1_tiny'), Letters())


def test_what_a_template_needs():
  with pytest.raises(ValueError, match="words ' Answer:' of TEMPLATE need the tokenizer of the gpt2; name it by TOKEN"):
    PTuning('{text} Answer: <p>').bind(config('gpt2_tiny'), None)
  with pytest.raises(ValueError, match=r'is text as yet; call bind'):
    PTuning('{text} <p>').place(np.array([1]), 9)


def lstm_by_hand(params, x):
  """PyTorch's equations in float64, one step at a time."""
  sigmoid = lambda x: 1 / (1 + np.exp(-x))

  def direction(cell, x):
    size = len(cell['bias']) // 4
    h = c = np.zeros(size)
    out = []
    for row in x:
      i, f, g, o = np.split(np.concatenate([row, h]) @ cell['kernel'] + cell['bias'], 4)
      c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
      out.append(h)
    return np.array(out)

  for layer in (params['lstm'][name] for name in sorted(params['lstm'])):
    x = np.concatenate([direction(layer['forward'], x), direction(layer['backward'], x[::-1])[::-1]], axis=1)
  for name in ('layer_0', 'layer_1'):
    x = x @ params[name]['kernel'] + params[name]['bias']
    x = np.maximum(x, 0) if name == 'layer_0' else x
  return x


@pytest.mark.parametrize('hidden', [None, 5])
def test_the_prompt_encoder(hidden):
  params = LSTM(hidden=hidden).init(jax.random.key(0), 4, 12, (12,))
  units = hidden or 6
  assert {path: x.shape for path, x in trees.flatten(params['lstm']).items()} == {
      f'{layer}/{way}/{name}': shape for layer, inputs in (('0', 12), ('1', 2 * units))
      for way in ('forward', 'backward')
      for name, shape in (('kernel', (inputs + units, 4 * units)), ('bias', (4 * units,)))}
  as64 = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  np.testing.assert_allclose(reparameterization.apply(params), lstm_by_hand(as64, as64['embedding']), atol=1e-6)
  with pytest.raises(ValueError, match='LSTM.layers=0; expected at least 1'):
    LSTM(layers=0)


@pytest.mark.parametrize('network', [LSTM(hidden=4), None])
def test_what_is_trained_and_kept(network, tmp_path):
  """All of the network moves; kept is the table, and with the template in its settings it is the same again."""
  model, frozen, _ = made('gpt2_tiny', Prompt(3))
  method = PTuning('<p*2> {text} <p>', reparameterization=network).bind(model.backbone.config, None)
  model = Prompted(model.backbone, method)
  trainable = model.init(jax.random.key(1), base_of(model, frozen))
  batch = models.tiny_batch(config=model.backbone.config)
  rows = [method.place(row[row >= 0], models.VOCAB) for row in np.asarray(batch['encoder_input_tokens'])]
  source = [np.pad(row, (0, 16 - len(row)), constant_values=-1) for row in rows]
  batch |= {'encoder_input_tokens': jnp.asarray(np.stack(source), jnp.int32)}
  gradient = jax.jit(jax.grad(lambda *args: model.score(*args).sum()))(trainable, frozen, batch)
  for path, x in trees.flatten(gradient).items():
    assert np.abs(x).max() > 0, path
  tensors = jax.device_get(model.export(trainable))
  assert {name: x.shape for name, x in tensors.items()} == {tuned.PROMPT: (3, 64)}
  about = {'settings': method.settings()}
  tuned.save_safetensors(tmp_path / 'a.safetensors', tuned.Tuned('prompt', tensors, about))
  again = finished.load(tmp_path / 'a.safetensors').bind(model.backbone.config, None)
  assert again.place(np.array([7]), 1000).tolist() == [1000, 1001, 7, 1002]
  kept = Prompted(model.backbone, again)
  np.testing.assert_allclose(
      jitted(kept)(kept.init(jax.random.key(9), base_of(kept, frozen)), frozen, batch),
      jitted(model)(trainable, frozen, batch), rtol=0, atol=1e-5)


def test_a_prompt_in_front_is_a_template_with_the_text_behind():
  front = PTuning('<p*3> {text}', reparameterization=None).bind(config('t5_1_1_tiny'), None)
  tokens = np.array([5, 6, 1], np.int32)
  np.testing.assert_array_equal(front.place(tokens, 1000), Prompt(3).place(tokens, 1000))


def test_a_network_is_fitted_to_an_initializer():
  model, frozen, _ = made('gpt2_tiny', Prompt(3))
  rows = lambda initializer: reparameterization.apply(Prompted(model.backbone, PTuning(
      '<p*3> {text}', initializer, LSTM()).bind(model.backbone.config, None)).init(
          jax.random.key(1), base_of(model, frozen))['prompt'])
  target = base_of(model, frozen).embeddings([17, 5, 203])
  fitted, before = rows(initializers.text('three words')), rows(None)
  assert np.square(fitted - target).mean() < 0.9 * np.square(before - target).mean()


def test_rows_of_the_mask_token():
  model, frozen, _ = models.tiny(size='roberta_tiny')
  base = loading.Loaded(model, frozen, None, models.one_device(), 'a', None).base()
  rows = initializers.mask()(None, (2, 64), base)
  np.testing.assert_array_equal(rows, np.asarray(frozen['token_embedder']['embedding'])[[models.MASK] * 2])
  with pytest.raises(ValueError, match='this gpt2 has no mask token to initialise a prompt from'):
    initializers.mask()(None, (2, 64), base_of(*made('gpt2_tiny', Prompt(3))[:2]))
