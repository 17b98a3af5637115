"""Bytes to and from memory, read from compiled programs and from what a TPU's compiler writes."""

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning.plan.traffic import traffic

N = 256
BYTES = 4 * N * N


def of(function, *shapes) -> int:
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return traffic(jax.jit(function).lower(*args).compile().as_text())


def test_a_product_reads_its_operands_and_writes_its_result():
  assert of(lambda x, y: x @ y, (N, N), (N, N)) == pytest.approx(3 * BYTES, rel=0.01)


def test_what_is_in_a_loop_counts_as_often_as_it_runs():
  def run(x, ws):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

  found = {n: of(run, (N, N), (n, N, N)) for n in (3, 5, 9)}
  assert found[9] - found[5] == 2 * (found[5] - found[3])
  per_layer = (found[9] - found[5]) / 4
  assert 3 * BYTES <= per_layer <= 8 * BYTES  # with copies; of the stack [n, N, N] a layer is read at a time


HLO = '''HloModule jit_f, num_partitions=1

%fused (p0: f32[24,64,64], p1: s32[]) -> f32[64,64] {
  %p0 = f32[24,64,64]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = f32[64,64]{1,0:T(8,128)} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,64,64}
}

%body (c: (s32[], f32[24,64,64], f32[64,64])) -> (s32[], f32[24,64,64], f32[64,64]) {
  %c = (s32[]{:T(128)}, f32[24,64,64]{2,1,0:T(8,128)}, f32[64,64]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %w = f32[24,64,64]{2,1,0:T(8,128)} get-tuple-element(%c), index=1
  %x = f32[64,64]{1,0:T(8,128)} get-tuple-element(%c), index=2
  %layer = f32[64,64]{1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused
  %y = f32[64,64]{1,0:T(8,128)} add(%x, %layer)
  ROOT %t = (s32[]{:T(128)}, f32[24,64,64]{2,1,0:T(8,128)}, f32[64,64]{1,0:T(8,128)}) tuple(%i, %w, %y)
}

%condition (c: (s32[], f32[24,64,64], f32[64,64])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[24,64,64]{2,1,0:T(8,128)}, f32[64,64]{1,0:T(8,128)}) parameter(0)
  ROOT %more = pred[]{:T(512)} custom-call()
}

ENTRY %main (a: s32[], w: f32[24,64,64], x: f32[64,64]) -> (s32[], f32[24,64,64], f32[64,64]) {
  %a = s32[]{:T(128)} parameter(0)
  %w = f32[24,64,64]{2,1,0:T(8,128)} parameter(1)
  %x = f32[64,64]{1,0:T(8,128)} parameter(2)
  %t = (s32[]{:T(128)}, f32[24,64,64]{2,1,0:T(8,128)}, f32[64,64]{1,0:T(8,128)}) tuple(%a, %w, %x)
  ROOT %loop = (s32[]{:T(128)}, f32[24,64,64]{2,1,0:T(8,128)}, f32[64,64]{1,0:T(8,128)}) while(%t), BODY
}
'''


@pytest.mark.parametrize('known', [True, False])
def test_slices_and_fast_memory(known):
  loop = 'condition=%condition, body=%body'
  text = HLO.replace('BODY', loop + (', backend_config={"known_trip_count":{"n":"24"}}' if known else ''))
  matrix, flag = 4 * 64 * 64, 1
  a_step = matrix + 4  # the fusion reads a layer and its number; what it writes stays on the chip
  a_step += 2 * matrix  # the sum reads x and writes y
  assert traffic(text, unknown=24) == 24 * a_step + 25 * flag
  assert traffic(text) == (24 * a_step + 25 * flag if known else a_step + 2 * flag)
