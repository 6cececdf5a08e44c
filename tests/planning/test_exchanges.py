"""Exchanges read off HLO text: bytes, groups, and what runs beside them."""

import pytest

from multimodal.planning.cost import cost_of
from multimodal.planning.exchanges import Collective, group_size, merged, ring_bytes
from multimodal.planning.hlo import parse
from multimodal.planning.predict import exposed_seconds, network_seconds
from multimodal.planning.targets import parse_target
from tests.planning.test_cost import TEXT

SIZE = 1024 * 1024 * 2


def rows(*lines):
    """A program of an entry computation with these rows after its parameters, as libtpu writes."""
    head = (
        "%a = bf16[1024,1024]{1,0} parameter(0)",
        "%part = bf16[64,1024]{1,0} parameter(1)",
    )
    body = "\n".join(f"  {line}" for line in (*head, *lines))
    return f"""HloModule m, is_scheduled=true

%piece (q: bf16[64,1024]) -> bf16[1024,1024] {{
  %q = bf16[64,1024]{{1,0}} parameter(0)
  ROOT %g = bf16[1024,1024]{{1,0}} all-gather(%q), channel_id=7, replica_groups=[1,16]<=[16], dimensions={{0}}, frontend_attributes={{chain_id="4"}}
}}

%piece_and_product (q.1: bf16[64,1024], x: bf16[1024,1024]) -> bf16[1024,1024] {{
  %q.1 = bf16[64,1024]{{1,0}} parameter(0)
  %x = bf16[1024,1024]{{1,0}} parameter(1)
  %g.1 = bf16[1024,1024]{{1,0}} all-gather(%q.1), channel_id=7, replica_groups=[1,16]<=[16], dimensions={{0}}, frontend_attributes={{chain_id="4"}}
  ROOT %conv = bf16[1024,1024]{{1,0}} convolution(%x, %x), dim_labels=bf_io->bf
}}

ENTRY %main (a: bf16[1024,1024], part: bf16[64,1024]) -> bf16[1024,1024] {{
{body}
}}
"""  # noqa: E501


def product(name, cycles):
    config = f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    return f"%{name} = bf16[1024,1024]{{1,0}} convolution(%a, %a), dim_labels=bf_io->bf, {config}"


def test_exchanges_in_a_loop():
    (found,) = cost_of(parse(TEXT), devices=16).collectives
    assert (found.kind, found.group, found.count, found.beside) == ("all-reduce", 4, 5, 0)
    assert found.bytes == 5 * 2 * 32 * 64 * 2 * 3 / 4


def test_what_runs_between_start_and_done_is_beside():
    text = rows(
        product("before", 1000),
        "%s = (bf16[64,1024], bf16[1024,1024]) all-gather-start(%part), channel_id=3, "
        "replica_groups=[1,16]<=[16], dimensions={0}",
        product("p1", 10),
        product("p2", 20),
        "%d = bf16[1024,1024]{1,0} all-gather-done(%s)",
        product("after", 1000),
    )
    cost = cost_of(parse(text), devices=16)
    (found,) = cost.collectives
    assert (found.kind, found.count, found.beside) == ("all-gather", 1, 30)
    assert cost.cycles == 2030


def test_pieces_of_one_channel_are_one_exchange_beside_what_lies_between():
    config = 'backend_config={"window_config":{"estimated_cycles":"50"}}'
    text = rows(
        "%s = bf16[1024,1024]{1,0} fusion(%part), kind=kCustom, calls=%piece",
        f"%m = bf16[1024,1024]{{1,0}} fusion(%part, %a), calls=%piece_and_product, {config}",
        product("p", 5),
        "%d = bf16[1024,1024]{1,0} fusion(%part), kind=kCustom, calls=%piece",
        product("after", 1000),
    )
    (found,) = cost_of(parse(text), devices=16).collectives
    assert (found.count, found.bytes, found.beside) == (1, SIZE * 15 / 16, 55)


def test_two_at_a_time_share_what_runs_beside_them():
    start = "all-gather-start(%part), replica_groups=[1,16]<=[16], dimensions={0}, channel_id"
    text = rows(
        f"%s1 = (bf16[64,1024], bf16[1024,1024]) {start}=1",
        product("p1", 10),
        f"%s2 = (bf16[64,1024], bf16[1024,1024]) {start}=2",
        product("p2", 40),
        "%d1 = bf16[1024,1024]{1,0} all-gather-done(%s1)",
        "%d2 = bf16[1024,1024]{1,0} all-gather-done(%s2)",
    )
    found = cost_of(parse(text), devices=16).collectives
    assert sorted(c.beside for c in found) == [20, 30]
    assert merged(found) == [Collective("all-gather", 16, sum(c.bytes for c in found), 2, 50)]


def test_an_all_reduce_whose_arrays_are_sliced_scatters():
    reduce = "all-reduce(%a, %a), channel_id=1, replica_groups=[1,16]<=[16], to_apply=%add"
    text = rows(
        "%zero = s32[] constant(0)",
        f"%r = (bf16[1024,1024]{{1,0}}, bf16[1024,1024]{{1,0}}) {reduce}",
        "%r0 = bf16[1024,1024]{1,0} get-tuple-element(%r), index=0",
        "%d0 = bf16[64,1024]{1,0} dynamic-slice(%r0, %zero, %zero)",
    )
    (found,) = cost_of(parse(text), devices=16).collectives
    assert (found.kind, found.bytes) == ("reduce-scatter", 2 * SIZE * 15 / 16)
    (whole,) = cost_of(parse(text.split("  %d0")[0] + "}\n"), devices=16).collectives
    assert (whole.kind, whole.bytes) == ("all-reduce", 2 * found.bytes)


def test_exposed_is_what_no_operation_hides():
    target = parse_target("tpu:v5e:4x4")
    alone = Collective("all-gather", 16, 1e9, 1)
    seconds, clock = network_seconds(target, [alone]), target.chip.clock
    half, more = (Collective("all-gather", 16, 1e9, 1, x * seconds * clock) for x in (0.5, 2))
    assert exposed_seconds(target, [alone, half, more]) == pytest.approx(1.5 * seconds)
    assert network_seconds(target, [alone, half, more]) == pytest.approx(3 * seconds)


@pytest.mark.parametrize(
    "text, size",
    [
        ("replica_groups=[16,16]<=[256]", 16),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=8] {'axis_1'}, x=y", 8),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=8] {'axis_0','axis_1'}", 128),
        (
            "replica_groups=mesh['a'=1,'b'=16,'c'=4], device_ids=([16,4]T(1,0)) {'b'}, x={2}",
            16,
        ),
        ("replica_groups={}", 256),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_group_sizes(text, size):
    assert group_size(text, 256) == size


def test_reducing_costs_what_its_two_halves_do():
    n = 1000.0
    halves = ring_bytes("reduce-scatter", 8, n, n) + ring_bytes("all-gather", 8, n / 8, n)
    assert ring_bytes("all-reduce", 8, n, n) == halves
