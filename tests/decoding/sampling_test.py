"""Greedy search and sampling: against the toy model in NumPy, and against the distribution they draw from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding
from prompt_tuning.decoding import sampling
from tests.decoding import toy

FORCED = toy.IDS._replace(forced_bos=5, forced_eos=toy.EOS)


@pytest.mark.parametrize('ids', [toy.IDS, FORCED])
@pytest.mark.parametrize('decoder', [decoding.Greedy(), decoding.Greedy(min_length=4, banned=(2, 3))])
def test_greedy(decoder, ids):
  decoded = toy.decode(decoder, 8, 7, ids)
  for row in range(toy.BATCH):
    tokens, total = toy.greedy(decoder, 8, 7, row, ids)
    assert decoded.tokens[row, 0].tolist() == tokens + [toy.PAD] * (8 - len(tokens))
    np.testing.assert_allclose(decoded.log_probs[row, 0], total, rtol=1e-5)
  np.testing.assert_array_equal(decoded.scores, decoded.log_probs)


@pytest.mark.parametrize('decoder', [
    decoding.Sampling(temperature=1e-5, samples=2), decoding.Sampling(top_k=1, samples=2),
    decoding.Sampling(top_p=1e-6, samples=2)])
def test_the_limits_of_sampling_are_greedy(decoder):
  decoded = toy.decode(decoder, 8, 7, keys=toy.keys())
  expected = toy.decode(decoding.Greedy(), 8, 7)
  for sample in range(2):
    np.testing.assert_array_equal(decoded.tokens[:, sample], expected.tokens[:, 0])
    np.testing.assert_allclose(decoded.log_probs[:, sample], expected.log_probs[:, 0], rtol=1e-6)


@pytest.mark.parametrize('temperature', [0.7, 1.5])
def test_samples_are_scored_by_the_model_itself(temperature):
  decoder = decoding.Sampling(temperature, top_k=6, top_p=0.9, samples=5, min_length=2, banned=(3,))
  decoded = toy.decode(decoder, 8, 9, keys=toy.keys())
  for row in range(toy.BATCH):
    for tokens, log_prob in zip(decoded.tokens[row], decoded.log_probs[row], strict=True):
      assert np.all(tokens[len(toy.unpad(tokens)):] == toy.PAD)
      np.testing.assert_allclose(log_prob, toy.rescore(9, row, tokens), rtol=1e-5)
  assert not np.any(decoded.tokens == 3)
  assert not np.any(decoded.tokens[..., :2] == toy.EOS)
  assert len(np.unique(decoded.tokens.reshape(-1, 8), axis=0)) > 10


def test_forced_tokens():
  decoded = toy.decode(decoding.Sampling(samples=3), 4, 9, FORCED, keys=toy.keys())
  assert np.all(decoded.tokens[..., 0] == 5)
  assert np.all(np.any(decoded.tokens == toy.EOS, axis=-1))


def test_an_example_depends_on_its_key_alone():
  decoder = decoding.Sampling(samples=3)
  every = toy.decode(decoder, keys=toy.keys())
  for rows in ([2], [3, 0], [1, 2, 3, 0]):
    some = toy.decode(decoder, rows=rows, keys=toy.keys(rows))
    np.testing.assert_array_equal(some.tokens, every.tokens[rows])
  np.testing.assert_array_equal(toy.decode(decoding.Sampling(), keys=toy.keys()).tokens, every.tokens[:, :1])
  assert np.any(toy.decode(decoder, keys=toy.keys(seed=1)).tokens != every.tokens)


def chi_square(counts, probs):
  """Of counts from probs, in standard deviations of its distribution."""
  counts, expected = counts[probs > 0], np.sum(counts) * probs[probs > 0]
  freedom = len(expected) - 1
  return (np.sum((counts - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom)


def filtered(log_probs, temperature, top_k, top_p):
  """Probabilities after temperature, top-k and top-p, by sorting."""
  probs = np.exp(log_probs / temperature)
  order = np.argsort(-probs, kind='stable')
  probs[order[top_k or len(probs):]] = 0
  probs /= probs.sum()
  before = np.cumsum(probs[order]) - probs[order]
  probs[order[before >= top_p]] = 0
  return probs / probs.sum()


@pytest.mark.parametrize(('temperature', 'top_k', 'top_p'), [
    (1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.4, 7, 0.7)])
def test_frequencies(temperature, top_k, top_p):
  decoder, vocab, count = decoding.Sampling(temperature, top_k, top_p, samples=1000), 12, 8 * 1000
  rows = [0] * 8
  run = functools.partial(toy.decode, decoder, 2, vocab, rows=rows)
  decoded = run(keys=jax.random.split(jax.random.key(7), len(rows))).tokens.reshape(count, 2)
  probs = filtered(toy.next_log_probs(vocab, 0, []), temperature, top_k, top_p)
  counts = np.bincount(decoded[:, 0], minlength=vocab)
  assert np.all(probs[counts > 0] > 0)
  assert chi_square(counts, probs) < 4
  first = np.argmax(np.where(np.arange(vocab) == toy.EOS, 0, counts))
  second = np.bincount(decoded[decoded[:, 0] == first, 1], minlength=vocab)
  assert chi_square(second, filtered(toy.next_log_probs(vocab, 0, [first]), temperature, top_k, top_p)) < 4


@pytest.mark.parametrize('vocab', [3, 256, 1000])
def test_draws_in_two_stages(vocab):
  """Frequencies are right over several blocks, and what has no probability never comes."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=vocab).astype(np.float32)
  logits[rng.permutation(vocab)[:vocab // 3]] = -np.inf
  keys = jax.random.split(jax.random.key(3), 20_000)
  counts = np.bincount(jax.jit(jax.vmap(sampling.draw, (0, None)))(keys, logits), minlength=vocab)
  assert counts.shape == (vocab,)
  assert np.all(counts[np.isneginf(logits)] == 0)
  assert chi_square(counts, np.exp(logits) / np.exp(logits).sum()) < 4


@pytest.mark.parametrize('mass', [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_nucleus_is_the_smallest_set_with_the_mass(mass):
  logits = jax.random.normal(jax.random.key(0), (3, 2, 700)) * 3
  kept = np.isfinite(jax.jit(sampling.nucleus)(logits, mass))
  probs = np.asarray(jax.nn.softmax(logits), np.float64)
  for row in np.ndindex(3, 2):
    order = np.argsort(-probs[row])
    smallest = order[:np.sum(np.cumsum(probs[row][order]) < mass) + 1]
    assert set(np.flatnonzero(kept[row])) == set(smallest)


def test_nucleus_keeps_equals_and_what_was_left_out_stays_out():
  logits = jnp.log(jnp.asarray([0.4, 0.2, 0.2, 0.2, 0.0]))
  for mass, kept in ((0.3, 1), (0.5, 4), (1.0, 4)):
    np.testing.assert_array_equal(np.isfinite(sampling.nucleus(logits, mass)), np.arange(5) < kept)


def test_of_equals_greedy_takes_the_lowest_id():
  step = lambda tokens, cache, time, visible: (np.zeros((2, 1, 6)), cache)
  decoded = decoding.Greedy(banned=(0, 1))(np.zeros((2, 6)), {}, step, length=1, ids=toy.IDS)
  assert decoded.tokens.tolist() == [[[2]], [[2]]]
  np.testing.assert_allclose(decoded.log_probs, -np.log(6), rtol=1e-6)  # of all six


@pytest.mark.parametrize(('decoder', 'fields', 'message'), [
    (decoding.Sampling, {'temperature': 0.0}, 'Sampling: temperature is 0.0; expected a number above 0'),
    (decoding.Sampling, {'temperature': -1.0}, 'temperature is -1.0'),
    (decoding.Sampling, {'temperature': float('nan')}, 'temperature is nan'),
    (decoding.Sampling, {'top_k': -1}, 'top_k is -1; expected at least 1, or 0 for all'),
    (decoding.Sampling, {'top_p': 0.0}, 'top_p is 0.0; expected a number above 0 and up to 1'),
    (decoding.Sampling, {'top_p': 1.1}, 'top_p is 1.1'),
    (decoding.Sampling, {'samples': 0}, 'samples is 0; expected at least 1'),
    (decoding.Greedy, {'min_length': -1}, 'Greedy: min_length is -1; expected at least 0')])
def test_bad_fields(decoder, fields, message):
  with pytest.raises(ValueError, match=message):
    decoder(**fields)


@pytest.mark.parametrize(('keys', 'found'), [
    (None, 'None'), (jax.random.PRNGKey(0), r'uint32\[2\]'), (jax.random.key(0), r'key<fry>\[\]'),
    (jax.random.split(jax.random.key(0), 3), r'key<fry>\[3\]')])
def test_keys_that_are_not_one_an_example(keys, found):
  with pytest.raises(ValueError, match=rf'keys is {found}; expected a typed random key an example.*, 4\)'):
    toy.decode(decoding.Sampling(), keys=keys)
