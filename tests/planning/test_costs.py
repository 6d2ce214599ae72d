"""Costs of compiled programs, on eight simulated devices, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinotxt_jax.planning import costs
from dinotxt_jax.planning.hlo import Program, parse

SHAPE = {"data": 4, "fsdp": 2}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh(tuple(SHAPE.values()), tuple(SHAPE), axis_types=(AxisType.Auto,) * 2)


def compiled(
    mesh: Mesh, function: Callable[..., Any], *arrays: tuple[tuple[int, ...], PartitionSpec]
) -> Program:
    arguments = [
        jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))
        for shape, spec in arrays
    ]
    with jax.set_mesh(mesh):
        return parse(jax.jit(function).lower(*arguments).compile().as_text())


def sent(program: Program) -> dict[tuple[str, str], tuple[int, float]]:
    result = costs.collectives(program, SHAPE)
    return {(row.kind, row.axes): (row.count, row.bytes) for row in result}


def shard_mapped(mesh: Mesh, function: Callable[..., Any], spec: PartitionSpec, out: Any) -> Any:
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)


P = PartitionSpec
X = ((16, 32), P("data", "fsdp"))
PART = 4 * 4 * 16  # bytes of X on one device


def test_each_kind_of_collective_counts_its_bytes_and_axis(mesh: Mesh) -> None:
    def gather(x: Any) -> Any:
        return jax.lax.all_gather(x, "fsdp", axis=1, tiled=True)

    def scatter(x: Any) -> Any:
        return jax.lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True)

    cases = {
        ("all-gather", "fsdp"): (gather, P("data", None), PART),
        ("reduce-scatter", "data"): (scatter, P("data", "fsdp"), PART * 3 / 4),
        ("all-reduce", "data"): (lambda x: jax.lax.psum(x, "data"), P(), 2 * PART * 3 / 4),
        ("all-reduce", "data+fsdp"): (
            lambda x: jax.lax.psum(x, ("data", "fsdp")),
            P(),
            2 * PART * 7 / 8,
        ),
        ("all-to-all", "data"): (
            lambda x: jax.lax.all_to_all(x, "data", 0, 1, tiled=True),
            P(None, ("fsdp", "data")),
            PART * 3 / 4,
        ),
        ("collective-permute", "fsdp"): (
            lambda x: jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]),
            P("data", "fsdp"),
            PART,
        ),
    }
    for key, (function, out, expected) in cases.items():
        program = compiled(mesh, shard_mapped(mesh, function, X[1], out), X)
        assert sent(program) == {key: (1, expected)}, key


def test_collectives_in_a_loop_count_as_often_as_it_runs(mesh: Mesh) -> None:
    def body(x: Any, _: Any) -> Any:
        return jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)]) + 1, None

    def loop(x: Any) -> Any:
        return jax.lax.scan(body, x, None, length=11)[0]

    program = compiled(mesh, shard_mapped(mesh, loop, X[1], X[1]), X)
    assert sent(program) == {("collective-permute", "data"): (11, 11 * PART)}


def test_traffic_between_slices_is_counted_separately() -> None:
    # As printed by the TPU compiler for two slices of four devices each.
    program = parse(
        """HloModule jit_step
ENTRY %main (x: f32[16,8]) -> f32[64,8] {
  %x = f32[16,8]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[16,8]{1,0}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[16,8]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %all = f32[64,8]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
}
"""
    )
    near, far = costs.collectives(program, {"data": 4, "fsdp": 2})
    assert (near.kind, near.axes, near.bytes, near.dcn_bytes) == (
        "all-gather",
        "data+fsdp",
        1536,
        0,
    )
    assert (far.kind, far.axes, far.bytes) == ("all-reduce", costs.BETWEEN_SLICES, 512)
    assert far.dcn_bytes == far.bytes


def test_an_exchange_that_several_fusions_push_on_is_one() -> None:
    computation = """
%fused.{n} (p.{n}: f32[16,8]) -> f32[64,8] {{
  %p.{n} = f32[16,8]{{1,0}} parameter(0)
  ROOT %all.{n} = f32[64,8]{{1,0}} all-gather(%p.{n}), channel_id=3, replica_groups={{{{0,1,2,3}}}}
}}
"""
    fusion = "  %y.{n} = f32[64,8]{{1,0}} fusion(%x), kind=kCustom, calls=%fused.{n}\n"
    text = "HloModule jit_step\n" + "".join(computation.format(n=n) for n in range(3))
    text += "ENTRY %main (x: f32[16,8]) -> f32[64,8] {\n  %x = f32[16,8]{1,0} parameter(0)\n"
    program = parse(text + "".join(fusion.format(n=n) for n in range(3)) + "}\n")
    (row,) = costs.collectives(program, {"data": 4})
    assert (row.kind, row.count, row.bytes) == ("all-gather", 1, 1536)


def test_products_are_counted_per_device_and_per_iteration(mesh: Mesh) -> None:
    def run(x: Any, ws: Any) -> Any:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    program = compiled(mesh, run, ((512, 256), P("data")), ((3, 256, 256), P()))
    assert costs.product_flops(program) == 3 * 2 * (512 / 4) * 256 * 256
    assert program.unknown_loops() == 0
