import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.decoding.top_k import top_k


@pytest.mark.parametrize(('shape', 'k'), [
    ((3, 5), 5), ((2, 3, 300), 7), ((2, 5000), 1), ((2, 5003), 10), ((1, 9999), 40)
])
@pytest.mark.parametrize('levels', [0, 9])
def test_equals_lax(shape, k, levels):
  """Also with few different values: of equals, the lowest place comes first."""
  x = jax.random.normal(jax.random.key(k), shape)
  x = jnp.round(x * levels / 2) if levels else x
  for ours, theirs in zip(jax.jit(top_k, static_argnums=1)(x, k), jax.lax.top_k(x, k), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_what_is_not_there_is_minus_infinity():
  x = jnp.full((2, 700), -jnp.inf).at[0, 650].set(1.0).at[1, 20].set(-3.0)
  values, places = top_k(x, 3)
  np.testing.assert_array_equal(values, [[1.0, -np.inf, -np.inf], [-3.0, -np.inf, -np.inf]])
  np.testing.assert_array_equal(places[:, 0], [650, 20])
  values, _ = top_k(jnp.asarray([2.0, 3.0]), 4)
  np.testing.assert_array_equal(values, [3.0, 2.0, -np.inf, -np.inf])
