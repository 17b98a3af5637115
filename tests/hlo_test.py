"""Collectives read from HLO text: of programs compiled here, and as the compilers of other devices write it."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from prompt_tuning import hlo

AXES = {'data': 4, 'model': 2}
P = PartitionSpec


def compiled(function, *shapes_and_specs) -> list[hlo.Collective]:
  mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(AxisType.Auto,) * 2)
  shapes = [jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec))
            for shape, spec in shapes_and_specs]
  with jax.set_mesh(mesh):
    return hlo.collectives(jax.jit(function).lower(*shapes).compile().as_text())


def rows(found) -> list[tuple]:
  return [(c.kind, c.bytes, c.times, c.over(AXES)) for c in found]


def mapped(function, taken, given):
  return jax.shard_map(function, in_specs=taken, out_specs=given, check_vma=False)


CASES = {
    'all-reduce': (lambda x: lax.psum(x, 'data'), P('data'), P(), (4 * 8 * 4, ('data',)), 2 * 3 / 4),
    'all-gather': (lambda x: lax.all_gather(x, 'data', tiled=True), P('data'), P(), (4 * 32 * 4, ('data',)), 3 / 4),
    'reduce-scatter': (lambda x: lax.psum_scatter(x, 'model', tiled=True), P(), P('model'), (4 * 32 * 4, ('model',)),
                       1 / 2),
    'all-to-all': (lambda x: lax.all_to_all(x, 'data', 1, 0, tiled=True), P('data'), P(None, 'data'),
                   (4 * 8 * 4, ('data',)), 3 / 4),
    'collective-permute': (lambda x: lax.ppermute(x, 'model', [(0, 1), (1, 0)]), P('model'), P('model'),
                           (4 * 16 * 4, ('model',)), 1),
}


@pytest.mark.parametrize('kind', CASES)
def test_every_kind_has_its_bytes_and_axes(kind):
  function, taken, given, (size, axes), share = CASES[kind]
  found = compiled(mapped(function, taken, given), ((32, 4), taken))
  assert rows(found) == [(kind, size, 1, axes)]
  assert hlo.bytes_on_wire(found[0]) == size * share


def test_a_loop_multiplies_what_is_in_it():
  def both(x, w):
    return lax.scan(lambda x, w: (x @ w @ w.T, None), x, w)[0]  # each layer: one product summed over `model`

  found = compiled(both, ((8, 16), P('data')), ((6, 16, 16), P(None, 'model')))
  reduced = [c for c in found if c.kind == 'all-reduce']
  assert [(c.bytes, c.times, c.over(AXES)) for c in reduced] == [(8 // 4 * 16 * 4, 6, ('model',))]
  assert sum(c.times * c.bytes for c in found) == hlo.total(found)


def test_a_loop_of_unknown_length_says_so():
  def until(x):
    return lax.while_loop(lambda x: jnp.max(x) > 0, lambda x: x - jnp.sum(x), x)

  found = compiled(until, ((32, 4), P('data')))
  assert [c.times for c in found] == [None, None]
  assert hlo.total(found) == 8
  assert hlo.total(found, unknown=10) == 80
  assert hlo.total(found, wire=True) == 2 * 2 * 3 / 4 * 4


def test_several_operands_count_together():
  found = compiled(mapped(lambda x: lax.psum((x, x[:1]), ('data', 'model')), P(('data', 'model')), P()),
                   ((32, 4), P(('data', 'model'))))
  assert sum(c.bytes for c in found) == (4 + 1) * 4 * 4
  assert {c.over(AXES) for c in found} == {('data', 'model')}


def test_nothing_moves_on_one_device():
  mesh = jax.make_mesh((1, 1), ('data', 'model'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
  x = jax.ShapeDtypeStruct((8,), np.float32, sharding=NamedSharding(mesh, P('data')))
  assert hlo.collectives(jax.jit(jnp.sum).lower(x).compile().as_text()) == []


# As the TPU compiler writes it: layouts with tiles, the trip count in the condition alone, a gather as three fusions.
TPU = '''HloModule jit_loss, is_scheduled=true, num_partitions=8

%start (p: bf16[1,512,64]) -> (bf16[1,512,64], bf16[1,512,256], u32[]) {
  %p = bf16[1,512,64]{1,2,0:T(8,128)(2,1)} parameter(0)
  %all-gather.35 = bf16[1,512,256]{1,2,0:T(8,128)(2,1)} all-gather(%p), channel_id=12, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[1,512,64]{1,2,0:T(8,128)S(1)}, bf16[1,512,256]{1,2,0:T(8,128)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.35), custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[1,512,64]) -> bf16[1,512,256] {
  %p.1 = bf16[1,512,64]{1,2,0:T(8,128)(2,1)} parameter(0)
  %all-gather.39 = bf16[1,512,256]{1,2,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=12, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
  ROOT %c.1 = bf16[1,512,256]{1,2,0:T(8,128)S(1)} custom-call(%all-gather.39), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (p.2: f32[64]) -> f32[16] {
  %p.2 = f32[64]{0} parameter(0)
  %all-reduce.9 = f32[64]{0} all-reduce(%p.2), channel_id=3, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %ds = f32[16]{0} dynamic-slice(%all-reduce.9, %i), dynamic_slice_sizes={16}
}

%body (s: (s32[], bf16[1,512,64], /*index=2*/f32[64])) -> (s32[], bf16[1,512,64], f32[64]) {
  %s = (s32[]{:T(128)}, bf16[1,512,64]{1,2,0:T(8,128)}, /*index=2*/f32[64]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %copy.6 = s32[]{:T(128)S(6)} copy(%i)
  %by = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%copy.6, %by)
  %w = bf16[1,512,64]{1,2,0:T(8,128)(2,1)} get-tuple-element(%s), index=1
  %g = f32[64]{0} get-tuple-element(%s), index=2
  %async-start = (bf16[1,512,64]{1,2,0:T(8,128)S(1)}, bf16[1,512,256]{1,2,0:T(8,128)S(1)}, u32[]{:S(2)}) fusion(%w), kind=kCustom, calls=%start
  %async-done = bf16[1,512,256]{1,2,0:T(8,128)S(1)} fusion(%async-start), kind=kCustom, calls=%done, metadata={op_name="jit(f)/while/body/dot"}
  %scattered = f32[16]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter
  ROOT %t = (s32[]{:T(128)}, bf16[1,512,64]{1,2,0:T(8,128)}, f32[64]{0}) tuple(%next, %w, /*index=2*/%g)
}

%cond (s.1: (s32[], bf16[1,512,64], f32[64])) -> pred[] {
  %most = s32[]{:T(128)} constant(6)
  %s.1 = (s32[]{:T(128)}, bf16[1,512,64]{1,2,0:T(8,128)}, f32[64]{0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %most), direction=LT
}

ENTRY %main (w.1: bf16[1,512,64], g.1: f32[64]) -> f32[] {
  %w.1 = bf16[1,512,64]{1,2,0:T(8,128)(2,1)} parameter(0)
  %g.1 = f32[64]{0} parameter(1)
  %zero = s32[]{:T(128)} constant(START)
  %copy.2 = s32[]{:T(128)} copy(%zero)
  %tuple = (s32[]{:T(128)}, bf16[1,512,64]{1,2,0:T(8,128)}, f32[64]{0}) tuple(%copy.2, %w.1, %g.1)
  %while = (s32[]{:T(128)}, bf16[1,512,64]{1,2,0:T(8,128)}, f32[64]{0}) while(%tuple), condition=%cond, body=%body
  ROOT %all-reduce.3 = f32[]{:T(128)} all-reduce(%r), channel_id=10, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, to_apply=%add
}
'''  # noqa: E501


@pytest.mark.parametrize(('start', 'times'), [('0', 6), ('4', 2), ('6', 0)])
def test_text_of_the_tpu_compiler(start, times):
  assert rows(hlo.collectives(TPU.replace('START', start))) == [
      ('all-gather', 512 * 256 * 2, times, ('data',)), ('reduce-scatter', 64 * 4, times, ('data',)),
      ('all-reduce', 4, 1, ('data', 'model'))]


@pytest.mark.parametrize(('before', 'after'), [
    ('direction=LT', 'direction=NE'), ('%by = s32[]{:T(128)} constant(1)', '%by = s32[]{:T(128)} parameter(1)'),
    ('constant(START)', 'parameter(2)')])
def test_a_loop_that_does_not_count_to_a_constant_has_no_known_length(before, after):
  assert before in TPU
  found = hlo.collectives(TPU.replace(before, after).replace('START', '0'))
  assert [c.times for c in found] == [None, None, 1]


# As the GPU compiler writes it: everything in two parts, tuples of operands and results, computations on streams.
GPU = '''HloModule jit_step, is_scheduled=true, num_partitions=8

%call.1 (q: bf16[64]) -> bf16[16] {
  %q = bf16[64]{0} parameter(0)
  ROOT %rs = ((bf16[64]{0}), bf16[16]{0}) reduce-scatter-start(%q), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}

%body (s: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %s = (s32[], bf16[64]{0}) parameter(0)
  %start = ((bf16[64,512]{1,0}, bf16[64,512]{1,0}), (bf16[256,512]{1,0}, bf16[256,512]{1,0})) all-gather-start(%a, %b), channel_id=6, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %done = (bf16[256,512]{1,0}, bf16[256,512]{1,0}) all-gather-done(%start), replica_groups=[2,4]<=[4,2]T(1,0)
  %streamed = ((bf16[64]{0}), bf16[16]{0}, s32[]) call-start(%s), to_apply=%call.1
  %joined = bf16[16]{0} call-done(%streamed), to_apply=%call.1
  ROOT %t = (s32[], bf16[64]{0}) tuple(%i, %b)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %while = (s32[], bf16[64]{0}) while(%tuple), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %ar = (f32[8]{0}, s4[3]{0}) all-reduce-start(%p, %z), replica_groups={}, to_apply=%add
  %ar.done = (f32[8]{0}, s4[3]{0}) all-reduce-done(%ar)
  %ata = ((f8e4m3fn[16]{0}), f8e4m3fn[16]{0}) all-to-all-start(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %self = f32[8]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %cp = (f32[8]{0}, f32[8]{0}) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}
}
'''  # noqa: E501


def test_text_of_the_gpu_compiler():
  assert rows(hlo.collectives(GPU)) == [
      ('all-gather', 2 * 256 * 512 * 2, 3, ('data',)), ('reduce-scatter', 16 * 4 * 2, 3, ('data', 'model')),
      ('all-reduce', 8 * 4 + 2, 1, ('data', 'model')), ('all-to-all', 16, 1, ('model',)),
      ('collective-permute', 32, 1, ('model',))]


@pytest.mark.parametrize(('groups', 'expected'), [
    ('{{0,1},{2,3}}', ((0, 1), (2, 3))),
    ('[2,3]<=[6]', ((0, 1, 2), (3, 4, 5))),
    ('[2,3]<=[3,2]T(1,0)', ((0, 2, 4), (1, 3, 5))),
    ("mesh['a'=2,'b'=3] {'b'}", ((0, 1, 2), (3, 4, 5))),
    ("mesh['a'=2,'b'=3] {'a'}", ((0, 3), (1, 4), (2, 5))),
    ("mesh['a'=2,'b'=1,'c'=2] {'a','c'}", ((0, 1, 2, 3),)),
    ("mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'a'}", ((0, 1), (2, 3), (4, 5))),
    ("mesh['a'=4,'b'=2] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("mesh['a'=4,'b'=2] {'a':(2)2,'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
])
def test_groups_of_devices_are_written_in_several_ways(groups, expected):
  text = f'ENTRY %main (p: f32[2]) -> f32[2] {{\n  ROOT %x = f32[2]{{0}} all-reduce(%p), replica_groups={groups}\n}}\n'
  assert hlo.collectives(text)[0].groups == expected


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'No ENTRY computation in the HLO text'),
    ("ENTRY %m (p: f32[2]) -> f32[2] {\n  ROOT %x = f32[2] all-reduce(%p), replica_groups=odd\n}\n",
     'all-reduce x: cannot read its groups of devices'),
])
def test_what_cannot_be_read_is_said(text, message):
  with pytest.raises(ValueError, match=message):
    hlo.collectives(text)
