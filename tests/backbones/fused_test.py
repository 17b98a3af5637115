"""Fused attention is that of the einsums, whatever is hidden, added or put in front; what it cannot do it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import loading
from prompt_tuning.backbones import config as config_lib
from prompt_tuning.backbones import fused, layers, masks, sites
from prompt_tuning.methods.prompt import Prompt
from prompt_tuning.prompted import Prompted
from tests import models

B, T, S, N, H, P = 2, 5, 7, 3, 8, 4
RNG = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(RNG.standard_normal(shape, np.float32))
Q, K, V = normal(B, T, N, H), normal(B, S, N, H), normal(B, S, N, H)
TOKENS = jnp.asarray([[5, 6, 7, 8, 0, 0, 0], [5, 6, 7, 8, 9, 10, 0]])
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3, 0]])
MASKS = {
    'padding': masks.padding(TOKENS),
    'causal': masks.causal(S)[:, :, :T],
    'packed': masks.segments(SEGMENTS[:, :T], SEGMENTS) & masks.causal(S)[:, :, :T],
    'nothing seen': jnp.zeros((1, 1, 1, S), bool)}
BIASES = {'none': None, 'of heads': normal(1, N, T, S), 'of rows': normal(B, N, T, S)}
PREFIXES = {
    'none': (None, None), 'shared': ((normal(P, N, H), normal(P, N, H)), None),
    'of rows, with dropout': ((normal(B, P, N, H), normal(B, P, N, H)), normal(B, N, 1, P))}


@pytest.fixture(params=['xla', 'cudnn'])
def implementation(request, monkeypatch):
  """Of the two; what cuDNN would be given, XLA computes."""
  if request.param == 'cudnn':
    def stand_in(q, k, v, bias, mask, *, scale, implementation):
      assert implementation == 'cudnn'
      assert mask.shape == (B, N, q.shape[1], k.shape[1])
      assert q.shape[1] % 2 == k.shape[1] % 2 == 0
      return compute(q, k, v, bias, mask, scale=scale, implementation='xla')
    compute = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  return request.param


def test_equal_for_every_mask_bias_and_prefix(implementation):
  def both():
    found = {}
    for mask_name, mask in MASKS.items():
      for bias_name, bias in BIASES.items():
        for prefix_name, (more, kept) in PREFIXES.items():
          found[f'{mask_name}, bias {bias_name}, prefix {prefix_name}'] = (
              fused.attend(implementation, Q, K, V, bias, mask, more, kept),
              layers.attend(Q, [(K, V)], bias, mask, more, kept))
    return found
  for name, (found, expected) in jax.jit(both)().items():
    if implementation == 'cudnn' and name.startswith('nothing seen'):  # of keys, one more to make them even
      assert np.isfinite(found).all(), name
    else:
      np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('size', ['t5_1_1_tiny', 'gpt2_tiny', 'bart_tiny', 'roberta_tiny'])
def test_every_backbone_has_it(size):
  programs = []
  for attention in ('einsum', 'xla'):
    model, frozen, trainable = models.tiny(size=size, attention=attention)
    batch = models.tiny_batch(prompt=3, config=model.backbone.config)
    programs.append(str(jax.make_jaxpr(model.logits)(trainable, frozen, batch)))
  assert programs[0] != programs[1]


def test_a_model_with_a_prefix_and_dropout():
  model, frozen, trainable = models.tiny(size='t5_1_1_tiny', dropout_rate=0.3)
  c = model.backbone.config
  batch = models.tiny_batch(rows=2, prompt=3, config=c)
  content = {'decoder/attn_kv': sites.KeysValues(normal(c.decoder_layers, P, c.num_heads, c.head_dim),
                                                 normal(c.decoder_layers, P, c.num_heads, c.head_dim))}
  other = Prompted(model.backbone.clone(attention='xla'), model.method)

  def total(trainable, model):
    logits = model.logits(trainable, frozen, batch, jax.random.key(0), content)
    return jnp.sum(logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape))), logits

  (found, logits), (expected, wanted) = (
      jax.jit(jax.grad(functools.partial(total, model=m), has_aux=True))(trainable) for m in (other, model))
  np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max())
  found, expected = (x['prompt']['embedding'] for x in (found, expected))
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(('settings', 'message'), [
    ({'attention': 'flash'}, "ATTENTION='flash'; expected one of einsum, xla, cudnn"),
    ({'attention': 'cudnn', 'dtype': 'bfloat16'}, "runs on NVIDIA GPUs; these devices are of the platform 'cpu'")])
def test_what_cannot_be_is_said_before_anything_is_read(settings, message):
  with pytest.raises(ValueError, match=message):
    loading.load(None, Prompt(length=1), loading.Backbone(size='t5_1_1_tiny', **settings), models.one_device())


def test_cudnn_takes_the_heads_of_every_size_there_is():
  for size in config_lib.SIZES:
    fused.check('cudnn', jnp.bfloat16, config_lib.from_size(size).head_dim, 'gpu')
  with pytest.raises(ValueError, match="needs ACTIVATION_DTYPE = 'bfloat16', not float32"):
    fused.check('cudnn', jnp.float32, 64)
  with pytest.raises(ValueError, match='multiple of 8 and at most 128 wide; this model has 256'):
    fused.check('cudnn', jnp.bfloat16, 256)
