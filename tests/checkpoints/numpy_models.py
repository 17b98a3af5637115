"""GPT-2, BART, RoBERTa and BERT in plain NumPy, over our parameter trees and `BackboneConfig`, without dropout.

Oracles: they say what every parameter and every key of the config means. All sums are in float64. Letters of the
shapes are those of the dimension legend in `prompt_tuning/types.py`.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from prompt_tuning.backbones.config import BackboneConfig

Tree = Mapping[str, Any]

_ACTIVATIONS = {
    'gelu': lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    'gelu_exact': lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2))),
    'relu': lambda x: np.maximum(x, 0),
}

# --- layers ---


def dense(p: Tree, x):
  return x @ p['kernel'] + p['bias']


def layer_norm(p: Tree, x, config: BackboneConfig):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_epsilon) * p['scale'] + p['bias']


def attention(p: Tree, x, context, visible, config: BackboneConfig, prefix=None):
  """Queries of x [B, T, D] see a prefix, keys and values [P, N, H], and the context [B, S, D] where `visible` says so.

  `visible` is [B or 1, T or 1, P + S].
  """
  heads = lambda name, y: dense(p[name], y).reshape(*y.shape[:-1], config.num_heads, config.head_dim)
  q, k, v = heads('query', x), heads('key', context), heads('value', context)
  if prefix is not None:
    k, v = (np.concatenate([np.broadcast_to(rows, (len(y), *rows.shape)), y], axis=1)
            for rows, y in zip(prefix, (k, v), strict=True))
  scores = np.einsum('BTNH,BSNH->BNTS', q, k) / np.sqrt(config.head_dim)
  scores = np.where(visible[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum('BNTS,BSNH->BTNH', weights, v)
  return dense(p['out'], mixed.reshape(x.shape[0], x.shape[1], -1))


def mlp(p: Tree, x, config: BackboneConfig):
  (activation,) = config.mlp_activations
  return dense(p['wo'], _ACTIVATIONS[activation](dense(p['wi'], x)))


def layers(p: Tree):
  """The layers of a stack, one after the other."""
  if isinstance(p, Mapping):
    return [dict(zip(p, layer, strict=True)) for layer in zip(*map(layers, p.values()), strict=True)]
  return list(p)


def wide(p):
  """The tree in float64."""
  return {name: wide(x) for name, x in p.items()} if isinstance(p, Mapping) else np.asarray(p, np.float64)


# --- models ---


def gpt2(params: Tree, config: BackboneConfig, tokens, mask, prompt=None, prefix=None):
  """GPT-2.

  Args:
    tokens: [B, T].
    mask: [B, T], 0 where there is padding behind the text.
    prompt: embeddings [P, D] in front of the text's.
    prefix: keys and values, each [L, P, N, H], in front of those of each layer; positions of the text begin at P.

  Returns:
    Logits [B, P + T, V] with a prompt, else [B, T, V].
  """
  params = wide(params)
  table, decoder = params['token_embedder']['embedding'], params['decoder']
  x = table[tokens]
  if prompt is not None:
    x = np.concatenate([np.broadcast_to(prompt, (len(x), *prompt.shape)), x], axis=1)
  first = 0 if prefix is None else prefix[0].shape[1]
  x = x + params['position_embedder']['embedding'][first:first + x.shape[1]]
  known = first + x.shape[1]  # keys: prefix, prompt, text
  seen = np.concatenate([np.ones((len(mask), known - mask.shape[1]), bool), np.asarray(mask, bool)], axis=1)
  visible = seen[:, None] & np.tri(x.shape[1], known, first, dtype=bool)
  for i, p in enumerate(layers(decoder['layers'])):
    y = layer_norm(p['pre_self_attention_layer_norm'], x, config)
    x = x + attention(p['self_attention'], y, y, visible, config, prefix and (prefix[0][i], prefix[1][i]))
    x = x + mlp(p['mlp'], layer_norm(p['pre_mlp_layer_norm'], x, config), config)
  return layer_norm(decoder['decoder_norm'], x, config) @ table.T


def bart(params: Tree, config: BackboneConfig, tokens, mask, decoder_tokens):
  """Logits [B, T, V] of BART for inputs [B, S] with their mask, and decoder inputs [B, T]."""
  params = wide(params)
  table = params['token_embedder']['embedding']

  def embed(p, tokens):
    scale = np.sqrt(config.d_model) if config.scale_embedding else 1.0
    positions = config.position_offset + np.arange(tokens.shape[1])
    x = table[tokens] * scale + p['position_embedder']['embedding'][positions]
    return layer_norm(p['embedding_norm'], x, config)

  def finish(p, x):
    return layer_norm(p['post_mlp_layer_norm'], x + mlp(p['mlp'], x, config), config)

  seen = np.asarray(mask, bool)[:, None]
  x = embed(params['encoder'], tokens)
  for p in layers(params['encoder']['layers']):
    x = layer_norm(p['post_attention_layer_norm'], x + attention(p['attention'], x, x, seen, config), config)
    x = finish(p, x)
  y = embed(params['decoder'], decoder_tokens)
  past = np.tri(y.shape[1], dtype=bool)[None]
  for p in layers(params['decoder']['layers']):
    y = layer_norm(p['post_self_attention_layer_norm'], y + attention(p['self_attention'], y, y, past, config), config)
    mixed = attention(p['encoder_decoder_attention'], y, x, seen, config)
    y = finish(p, layer_norm(p['post_cross_attention_layer_norm'], y + mixed, config))
  return y @ table.T + (params['decoder']['logits_bias'] if config.logits_bias else 0)


def bert(params: Tree, config: BackboneConfig, tokens, mask, token_types=None):
  """BERT or RoBERTa: logits [B, S, V], or hidden states [B, S, D] of an encoder without a head."""
  params = wide(params)
  table, encoder = params['token_embedder']['embedding'], params['encoder']
  positions = np.arange(tokens.shape[1])[None]
  if config.family == 'roberta':  # counts what is not padding, which lies at pad_id
    text = tokens != config.pad_id
    positions = np.where(text, config.position_offset - 1 + text.cumsum(1), config.pad_id)
  types = np.zeros_like(tokens) if token_types is None else token_types
  x = table[tokens] + params['position_embedder']['embedding'][positions]
  x = layer_norm(encoder['embedding_norm'], x + params['token_type_embedder']['embedding'][types], config)
  seen = np.asarray(mask, bool)[:, None]
  for p in layers(encoder['layers']):
    x = layer_norm(p['post_attention_layer_norm'], x + attention(p['attention'], x, x, seen, config), config)
    x = layer_norm(p['post_mlp_layer_norm'], x + mlp(p['mlp'], x, config), config)
  if not config.mlm_head:
    return x
  head, (activation,) = params['mlm_head'], config.mlp_activations
  activation = 'gelu_exact' if config.family == 'roberta' else activation
  x = layer_norm(head['layer_norm'], _ACTIVATIONS[activation](dense(head['dense'], x)), config)
  return x @ table.T + head['bias']
