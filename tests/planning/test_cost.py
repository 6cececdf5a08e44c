"""Costs read off HLO text: trip counts, bytes of slices."""

import pytest

from multimodal.chips import CHIPS
from multimodal.planning.cost import cost_of
from multimodal.planning.hlo import UnknownTrips, arrays_of, parse
from multimodal.planning.predict import resource_of, roofline, time_by_resource
from multimodal.planning.targets import parse_target

# As libtpu writes it, shortened: a scan over six matrices, whose last round is peeled off.
TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=16

%fused_slice (p0: bf16[6,64,64], p1: s32[]) -> bf16[64,64] {
  %p0 = bf16[6,64,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %c0 = s32[]{:T(128)} constant(0)
  %ds = bf16[1,64,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %c0, %c0)
  ROOT %b = bf16[64,64]{1,0:T(8,128)(2,1)} bitcast(%ds)
}

%fused_dot (p0.1: bf16[32,64], p1.1: bf16[64,64]) -> bf16[32,64] {
  %p0.1 = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p1.1 = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[32,64]{1,0} convolution(%p0.1, %p1.1), dim_labels=bf_io->bf
}

%body (s: (s32[], bf16[32,64], bf16[6,64,64])) -> (s32[], bf16[32,64], bf16[6,64,64]) {
  %s = (s32[]{:T(128)}, bf16[32,64]{1,0}, bf16[6,64,64]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = bf16[32,64]{1,0:T(8,128)(2,1)} get-tuple-element(%s), index=1
  %ws = bf16[6,64,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%s), index=2
  %w = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} fusion(%ws, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(f)/jvp(Model.encode)/encoder_image/while/body/slice"}, backend_config={"window_config":{"estimated_cycles":"10"}}
  %y = bf16[32,64]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%fused_dot, metadata={op_name="jit(f)/transpose(jvp(Model.encode))/encoder_image/while/body/dot_general"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %r = bf16[32,64]{1,0:T(8,128)(2,1)} all-reduce(%y), channel_id=1, replica_groups=[4,4]<=[16], to_apply=%add
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %t = (s32[]{:T(128)}, bf16[32,64]{1,0}, bf16[6,64,64]{2,1,0}) tuple(%next, %r, %ws)
}

%condition (s.1: (s32[], bf16[32,64], bf16[6,64,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %s.1 = (s32[]{:T(128)}, bf16[32,64]{1,0}, bf16[6,64,64]{2,1,0}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

ENTRY %main (a: bf16[6,64,64], b: bf16[32,64]) -> bf16[32,64] {
  %a = bf16[6,64,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(1)
  %start = s32[]{:T(128)} constant(1)
  %from = s32[]{:T(128)} copy(%start)
  %init = (s32[]{:T(128)}, bf16[32,64]{1,0}, /*index=2*/bf16[6,64,64]{2,1,0}) tuple(%from, %b, %a)
  %loop = (s32[]{:T(128)}, bf16[32,64]{1,0}, bf16[6,64,64]{2,1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = bf16[32,64]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_cycles_are_those_of_all_rounds():
    cost = cost_of(parse(TEXT), devices=16)
    assert cost.cycles == 5 * (10 + 100) and cost.uncounted == 0
    assert {o.name: o.cycles for o in cost.operations if o.cycles} == {
        "backward encoder_image/dot_general": 500,
        "forward encoder_image/slice": 50,
    }
    assert [o.multiplies for o in cost.operations][:2] == [True, False]


def test_a_slice_of_a_stack_is_read_once_and_fast_memory_is_free():
    cost = cost_of(parse(TEXT), devices=16)
    by_name = {o.name.split("/")[-1]: o.bytes for o in cost.operations}
    index = 4
    assert by_name["slice"] == 5 * (64 * 64 * 2 + index)  # its result stays in VMEM, S(1)
    assert by_name["dot_general"] == 5 * 2 * 32 * 64 * 2


def test_a_loop_whose_rounds_are_unknown_is_no_guess():
    program = parse(TEXT.replace("constant(1)\n  %from", "iota()\n  %from"))
    with pytest.raises(UnknownTrips, match="loop"):
        cost_of(program, devices=16)


def test_an_open_loop_without_matrix_products_counts_once():
    text = TEXT.replace("constant(1)\n  %from", "iota()\n  %from").replace("convolution(", "add(")
    cost = cost_of(parse(text), devices=16)
    assert cost.cycles == 10 + 100 and cost.open_loops == 1
    assert cost_of(parse(TEXT), devices=16).open_loops == 0
    kernel = text.replace("dim_labels=bf_io->bf", 'custom_call_target="tpu_custom_call"')
    with pytest.raises(UnknownTrips):
        cost_of(parse(kernel), devices=16)


def test_arrays_of_types():
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], pred[4]{0})"
    assert arrays_of(text) == [(12, False), (4, True), (4, True)]


def test_what_binds():
    target = parse_target("tpu:v5e:4x4")
    cost = cost_of(parse(TEXT), devices=16)
    times = time_by_resource(cost, CHIPS["v5e"])
    assert sum(times.values()) == pytest.approx(cost.cycles / CHIPS["v5e"].clock)
    assert resource_of(cost.operations[0], CHIPS["v5e"]) == "matrix unit"
    bound = roofline(target, 16 * 197e12, 0.5 * 819e9, 0.25)
    assert (bound.bound, bound.binds) == (1.0, "compute")
    assert (bound.memory, bound.network) == (0.5, 0.25)
