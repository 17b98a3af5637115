"""When two parameters are the same, and what is said of two that are not."""
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoints import base, compare


def differences(a, b, **kwargs):
  first, second = (compare.in_memory({'x': np.asarray(x)}) for x in (a, b))
  return list(compare.differences(first, second, **kwargs))


VALUES = np.array([1.0, -2.5, 0.0, np.nan, np.inf, -np.inf], np.float32)


def test_equal_values_of_any_type_are_the_same():
  assert differences(VALUES, VALUES.copy()) == []
  assert differences(VALUES, VALUES.astype(jnp.bfloat16)) == []
  assert differences(np.float32(0.0), np.float32(-0.0)) == []


@pytest.mark.parametrize(('i', 'value', 'largest'), [
    (0, np.nextafter(np.float32(1), np.float32(2)), 1.2e-7), (2, np.nan, np.nan), (3, 0.0, np.nan), (4, 1.0, np.inf),
    (4, -np.inf, np.inf)])
def test_one_other_value_is_found(i, value, largest):
  other = VALUES.copy()
  other[i] = value
  (found,) = differences(VALUES, other)
  np.testing.assert_allclose(found.largest, largest, rtol=0.01)
  assert found.unequal == 1
  assert found.lines()[0].startswith('~ x [6]  1 of 6 values differ, by at most')
  assert len(differences(VALUES, other, atol=1.0)) == (0 if i == 0 else 1)


def test_other_shapes():
  (found,) = differences(np.zeros((2, 3)), np.zeros(6))
  assert found.lines() == ['- x [2, 3]', '+ x [6]']


def test_a_difference_in_the_last_layer_is_found(goldens):
  source = base.open_base(goldens / 'hf/gpt2')

  def read(name, index):
    value = source.read(name, index)
    return np.nextafter(value, np.inf, dtype=np.float32) if name == 'transformer.h.1.attn.c_attn.weight' else value

  sides = [compare.parameters(s) for s in (source, dataclasses.replace(source, read=read))]
  found = list(compare.differences(*sides))
  assert [f.path for f in found] == [f'decoder/layers/self_attention/{x}/kernel' for x in ('key', 'query', 'value')]
  assert {f.unequal for f in found} == {32 * 32}
