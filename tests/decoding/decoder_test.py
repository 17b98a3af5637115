"""What holds for every decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding
from tests.decoding import toy

DECODERS = {
    'greedy': decoding.Greedy(), 'beam_t5x': decoding.Beam(3, returned=2),
    'beam_hf': decoding.Beam(3, length_penalty='hf', early_stopping=True, returned=2),
    'sampling': decoding.Sampling(samples=3, top_k=5, top_p=0.9)}


@pytest.fixture(params=list(DECODERS))
def decoder(request):
  return DECODERS[request.param]


def test_rows_do_not_depend_on_their_neighbours(decoder):
  every = toy.decode(decoder, keys=toy.keys())
  for row in range(toy.BATCH):
    alone = toy.decode(decoder, rows=[row], keys=toy.keys([row]))
    np.testing.assert_array_equal(alone.tokens[0], every.tokens[row])
    np.testing.assert_allclose(alone.scores[0], every.scores[row], rtol=1e-6)


def test_sharded_equals_one_device_and_moves_no_logits(decoder):
  rows = [0, 1, 2, 3] * 2
  expected = toy.decode(decoder, vocab=64, rows=rows, keys=toy.keys(range(8)))
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  arguments = jax.device_put(
      (*toy.inputs(decoder, 6, 64, rows), toy.keys(range(8))),
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data')))
  compiled = toy.run.lower(decoder, 6, 64, toy.IDS, *arguments).compile()
  text = compiled.as_text()
  for moving in ('all-gather', 'all-to-all', 'collective-permute'):
    assert moving not in text
  decoded = compiled(*arguments)
  np.testing.assert_array_equal(decoded.tokens, expected.tokens)
  np.testing.assert_allclose(decoded.log_probs, expected.log_probs, rtol=1e-6)


def count_steps(decoder, length, ids=toy.IDS):
  """How often the model runs."""
  calls = []

  def step(tokens, cache, time, visible):
    assert visible.shape == (toy.BATCH, decoder.width, length, decoder.width)
    jax.debug.callback(lambda time: calls.append(int(time)), time, ordered=True)
    return toy.step(toy.weights(12), tokens, cache, time, visible)

  jax.jit(lambda: decoder(*toy.inputs(decoder, length, 12), step, length=length, ids=ids, keys=toy.keys()))()
  jax.effects_barrier()
  assert calls == list(range(len(calls)))
  return len(calls)


def test_the_last_token_is_not_fed(decoder):
  never = toy.IDS._replace(eos=99)
  assert count_steps(decoder, 1, never) == 0
  assert count_steps(decoder, 4, never) == 3


def test_stops_when_all_have_ended(decoder):
  assert count_steps(decoder, 6, toy.IDS._replace(forced_bos=toy.EOS)) == 0


def test_beams_see_their_own_past_only():
  """Every beam sees one slot of each time before, the one its token of that time was fed into."""
  decoder, length, fed = decoding.Beam(3, length_penalty='hf', returned=3, banned=(toy.EOS,)), 5, []

  def step(tokens, cache, time, visible):
    jax.debug.callback(lambda *x: fed.append(x), tokens, visible, ordered=True)
    return toy.step(toy.weights(12), tokens, cache, time, visible)

  decoded = jax.jit(lambda: decoder(*toy.inputs(decoder, length, 12), step, length=length, ids=toy.IDS))()
  jax.effects_barrier()
  for time, (_, visible) in enumerate(fed):
    assert np.all(visible.sum(-1) == (np.arange(length) < time))
  last, visible = fed[-1]
  for row in range(toy.BATCH):
    live = [[fed[time][0][row, visible[row, k, time].argmax()] for time in range(length - 2)] + [last[row, k]]
            for k in range(3)]
    for tokens in decoded.tokens[row]:
      assert tokens[:-1].tolist() in [list(map(int, past)) for past in live]


def test_bfloat16_logits_are_normalised_in_float32(decoder):
  logits, cache = toy.inputs(decoder, 1, 12)
  decoded = toy.run(decoder, 1, 12, toy.IDS, logits.astype(jnp.bfloat16), cache, toy.keys())
  assert decoded.log_probs.dtype == decoded.scores.dtype == jnp.float32
  log_probs = jax.nn.log_softmax(logits.astype(jnp.bfloat16).astype(jnp.float32))
  chosen = jnp.take_along_axis(log_probs[:, None], decoded.tokens, axis=-1)[..., 0]
  np.testing.assert_allclose(decoded.log_probs, chosen, rtol=1e-6)


def test_is_a_static_argument(decoder):
  """Equal decoders compile once; a list of ids, as gin may give it, is a tuple."""
  same = type(decoder)(**{name: getattr(decoder, name) for name in decoder.__dataclass_fields__})
  assert (same, hash(same)) == (decoder, hash(decoder))
  assert hash(decoding.Greedy(banned=[628, 198])) == hash(decoding.Greedy(banned=(628, 198)))


@pytest.mark.parametrize('banned', [(12,), (3, -1)])
def test_banned_ids_that_do_not_exist(decoder, banned):
  wrong = type(decoder)(banned=banned)
  with pytest.raises(ValueError, match=r'banned is \(.*\); expected ids from 0 to 11, the last of the model'):
    toy.decode(wrong, keys=toy.keys())


def test_nothing_to_decode(decoder):
  run = functools.partial(decoder, *toy.inputs(decoder, 1, 12), None, ids=toy.IDS, keys=toy.keys())
  with pytest.raises(ValueError, match='length is 0; expected at least 1'):
    run(length=0)
