"""A tiny language model over the decoders' cache, and textbook decoders in NumPy to compare with."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import decoding

EOS, PAD = 1, 0
IDS = decoding.TokenIds(eos=EOS, pad=PAD)
BATCH, WIDTH = 4, 8


@functools.cache
def weights(vocab):
  rng = np.random.default_rng(vocab)
  return {'start': rng.normal(size=(BATCH, WIDTH)), 'embed': rng.normal(size=(vocab, WIDTH)),
          'place': rng.normal(size=(16, WIDTH)), 'head': rng.normal(size=(WIDTH, vocab))}


def next_log_probs(vocab, row, history):
  """What follows `history`, a list of tokens: every one of them and its place matters. float64 [V]."""
  w = weights(vocab)
  hidden = w['start'][row] + sum((w['embed'][token] * w['place'][time] for time, token in enumerate(history)), 0.0)
  logits = np.tanh(hidden) @ w['head']
  return logits - np.log(np.sum(np.exp(logits)))


def rescore(vocab, row, tokens):
  """Log-probability of tokens up to the first end of sequence."""
  tokens = list(tokens)
  tokens = tokens[:tokens.index(EOS) + 1] if EOS in tokens else tokens
  return sum(next_log_probs(vocab, row, tokens[:time])[token] for time, token in enumerate(tokens))


def step(w, tokens, cache, time, visible):
  """The same over a cache [B, T, K, WIDTH], read through `visible` only, in float32."""
  w = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), w)
  new = w['embed'][tokens] * w['place'][time]
  past = jnp.einsum('bktj,btjw->bkw', visible.astype(jnp.float32), cache['slots'])
  logits = jnp.tanh(cache['start'][:, None] + past + new) @ w['head']
  # Slots of this time and later must not be read: 1e6 lies there (see `inputs`).
  return logits, {**cache, 'slots': jax.lax.dynamic_update_index_in_dim(cache['slots'], new, time, axis=1)}


def inputs(decoder, length, vocab, rows=range(BATCH)):
  """(first_logits, cache) of these rows."""
  w = weights(vocab)
  start = jnp.asarray(w['start'][np.asarray(rows)], jnp.float32)
  slots = jnp.full((len(start), length, decoder.width, WIDTH), 1e6)
  return jnp.tanh(start) @ jnp.asarray(w['head'], jnp.float32), {'start': start, 'slots': slots}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def run(decoder, length, vocab, ids, first_logits, cache, keys):
  return decoder(first_logits, cache, functools.partial(step, weights(vocab)), length=length, ids=ids, keys=keys)


def decode(decoder, length=6, vocab=12, ids=IDS, rows=range(BATCH), keys=None):
  return jax.tree.map(np.asarray, run(decoder, length, vocab, ids, *inputs(decoder, length, vocab, rows), keys))


def keys(rows=range(BATCH), seed=0):
  """A key an example, by its row."""
  return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.asarray(list(rows)))


def allowed(decoder, ids, vocab, row, history, length):
  """{token: log-probability} of what may come now."""
  time = len(history)
  if ids.forced_eos is not None and time == length - 1:
    return {ids.forced_eos: 0.0}
  if ids.forced_bos is not None and time == 0:
    return {ids.forced_bos: 0.0}
  log_probs = dict(enumerate(next_log_probs(vocab, row, history)))
  return {token: p for token, p in log_probs.items()
          if token not in decoder.banned and (token != ids.eos or time >= decoder.min_length)}


def greedy(decoder, length, vocab, row, ids=IDS):
  tokens, total = [], 0.0
  while len(tokens) < length and (not tokens or tokens[-1] != ids.eos):
    options = allowed(decoder, ids, vocab, row, tokens, length)
    best = max(options, key=options.get)
    tokens, total = [*tokens, best], total + options[best]
  return tokens, total


def penalty(decoder, length):
  return ((5 + length) / 6) ** decoder.alpha if decoder.length_penalty == 't5x' else length ** decoder.alpha


def beam(decoder, length, vocab, row, ids=IDS):
  """[(score, log_prob, tokens)], best first: at most `beams` finished ones, and the live ones behind them."""
  count, hugging_face = decoder.beams, decoder.length_penalty == 'hf'
  live, finished = [(0.0, [])], []
  for time in range(length):
    candidates = [(total + gain, [*tokens, token]) for total, tokens in live
                  for token, gain in allowed(decoder, ids, vocab, row, tokens, length).items()]
    candidates = sorted(candidates, key=lambda x: -x[0])[:2 * count]
    ends = lambda tokens, last=time == length - 1: tokens[-1] == ids.eos or (hugging_face and last)
    able = candidates[:count] if hugging_face else candidates
    finished += [(total / penalty(decoder, time + 1), total, tokens) for total, tokens in able if ends(tokens)]
    finished = sorted(finished, key=lambda x: -x[0])[:count]
    live = [x for x in candidates if not ends(x[1])][:count]
    if len(finished) == count and live:
      at = length if decoder.early_stopping == 'never' and decoder.alpha > 0 else time + 1
      if decoder.early_stopping is True or live[0][0] / penalty(decoder, at) <= finished[-1][0]:
        break
  return finished + [(total / penalty(decoder, len(tokens)), total, tokens) for total, tokens in live]


def all_sequences(length, vocab):
  """Every sequence that ends, or has `length` tokens."""
  others = [token for token in range(vocab) if token != EOS]
  for size in range(length):
    yield from ([*tokens, EOS] for tokens in itertools.product(others, repeat=size))
  yield from map(list, itertools.product(others, repeat=length))


def unpad(tokens, ids=IDS):
  """A row of results as a list, up to the first end of sequence."""
  tokens = list(map(int, tokens))
  return tokens[:tokens.index(ids.eos) + 1] if ids.eos in tokens else tokens
