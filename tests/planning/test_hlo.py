"""Parsing programs as printed by XLA."""

from __future__ import annotations

import numpy as np
import pytest

from dinotxt_jax.planning.costs import memory_traffic, product_flops
from dinotxt_jax.planning.hlo import parse, replica_groups

# Shortened TPU compiler output: a loop of 24 iterations that contains a fusion with a batched
# product.
TEXT = """HloModule jit_step, is_scheduled=true

%fused (p0: bf16[24,8,16], p1: s32[], p2: bf16[4,3,8]) -> bf16[4,3,16] {
  %p0 = bf16[24,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = bf16[4,3,8]{2,1,0:T(8,128)(2,1)} parameter(2)
  %part = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8,16}
  %w = bf16[8,16,1]{1,0,2:T(8,128)(2,1)} bitcast(%part)
  ROOT %product = bf16[4,3,16]{2,1,0:T(8,128)(2,1)} convolution(%p2, %w), window={size=1}, \
dim_labels=b0f_io0->b0f
}

%body (state: (s32[], bf16[4,3,8], bf16[24,8,16])) -> (s32[], bf16[4,3,8], bf16[24,8,16]) {
  %state = (s32[]{:T(128)}, bf16[4,3,8]{2,1,0}, /*index=2*/bf16[24,8,16]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[4,3,8]{2,1,0} get-tuple-element(%state), index=1
  %ws = bf16[24,8,16]{2,1,0} get-tuple-element(%state), index=2
  %y = bf16[4,3,16]{2,1,0} fusion(%ws, %i, %x), kind=kOutput, calls=%fused
  %fast = bf16[4,3,8]{2,1,0:T(8,128)(2,1)S(1)} copy(%x)
  ROOT %next = (s32[]{:T(128)}, bf16[4,3,8]{2,1,0}, bf16[24,8,16]{2,1,0}) tuple(%i, %x, %ws)
}

%condition (state.1: (s32[], bf16[4,3,8], bf16[24,8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %state.1 = (s32[]{:T(128)}, bf16[4,3,8]{2,1,0}, bf16[24,8,16]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %more = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (x.1: bf16[4,3,8], ws.1: bf16[24,8,16]) -> bf16[4,3,8] {
  %x.1 = bf16[4,3,8]{2,1,0} parameter(0)
  %ws.1 = bf16[24,8,16]{2,1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[4,3,8]{2,1,0}, bf16[24,8,16]{2,1,0}) tuple(%zero, %x.1, %ws.1)
  %loop = (s32[]{:T(128)}, bf16[4,3,8]{2,1,0}, bf16[24,8,16]{2,1,0}) while(%start), \
condition=%condition, body=%body
  %a = f32[4,5,6]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %b = f32[4,7,6]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %scores = f32[4,5,7]{2,1,0} convolution(%a, %b), \
window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf
  ROOT %out = bf16[4,3,8]{2,1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_run_as_often_as_their_condition_says() -> None:
    program = parse(TEXT)
    runs = {instruction.name: times for _, instruction, times in program.runs()}
    assert (runs["product"], runs["y"], runs["loop"]) == (24, 24, 1)
    assert program.unknown_loops() == 0
    noted = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert {i.name: times for _, i, times in parse(noted).runs()}["product"] == 7
    unknown = parse(TEXT.replace("direction=LT", "direction=NE"))
    assert {i.name: times for _, i, times in unknown.runs()}["product"] == 1
    assert unknown.unknown_loops() == 1


def test_products_written_as_convolutions_count_their_real_terms() -> None:
    looped, batched = 24 * 2 * (4 * 3) * 8 * 16, 2 * 4 * 5 * 7 * 6
    assert product_flops(parse(TEXT)) == looped + batched


def test_memory_traffic_counts_the_slices_that_fusions_take() -> None:
    scores = 4 * (4 * 5 * 6 + 4 * 7 * 6 + 4 * 5 * 7)
    x, y, weights = 2 * 4 * 3 * 8, 2 * 4 * 3 * 16, 2 * 8 * 16
    fusion, compare = x + y + weights + 4, 4 + 4 + 1
    # `fast` is written to on-chip memory, which is not HBM, so that only x is read.
    assert memory_traffic(parse(TEXT)) == 24 * (fusion + x + compare) + scores


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, y",
            [[0, 2, 4, 6], [1, 3, 5, 7]],
        ),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ],
)
def test_groups_of_devices_are_read_in_all_notations(
    printed: str, expected: list[list[int]]
) -> None:
    actual = replica_groups(printed)
    assert actual is not None
    np.testing.assert_array_equal(np.sort(actual, axis=1), expected)


def test_no_groups_are_none() -> None:
    assert replica_groups("dimensions={0}") is None
