"""FLOPs against numbers worked out by hand."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from models import initialized

from dinotxt_jax.config.architecture import BlockConfig
from dinotxt_jax.models.blocks import Block, apply_stack, stack
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.runtime.flops import matmul_flops

X = jax.ShapeDtypeStruct((4, 8), "float32")
W = jax.ShapeDtypeStruct((3, 8, 8), "float32")
PRODUCT = 2 * 4 * 8 * 8


def scanned(x: Any, w: Any, remat: bool = False) -> Any:
    def body(x: Any, w: Any) -> Any:
        return jax.nn.relu(x @ w), None

    return jax.lax.scan(jax.checkpoint(body) if remat else body, x, w)[0].sum()


def test_a_product_counts_two_operations_a_term() -> None:
    assert matmul_flops(lambda x: jnp.einsum("bn,mn->bm", x, x), X) == 2 * 4 * 4 * 8
    batched = jax.ShapeDtypeStruct((5, 4, 8), "float32")
    assert matmul_flops(lambda x: jnp.einsum("gbn,gmn->gbm", x, x), batched) == 5 * 2 * 4 * 4 * 8
    assert matmul_flops(lambda x: jnp.tanh(x).sum(), X) == 0


def test_a_scan_counts_as_often_as_it_runs() -> None:
    assert matmul_flops(scanned, X, W) == 3 * PRODUCT
    assert matmul_flops(jax.jit(scanned), X, W) == 3 * PRODUCT


def test_the_backward_pass_and_recomputation_are_counted() -> None:
    gradient = jax.grad(scanned, argnums=(0, 1))
    assert matmul_flops(gradient, X, W) == 3 * 3 * PRODUCT
    again = jax.grad(functools.partial(scanned, remat=True), argnums=(0, 1))
    assert matmul_flops(again, X, W) == 4 * 3 * PRODUCT


def test_the_dearest_branch_of_a_conditional_counts() -> None:
    def either(x: Any) -> Any:
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x.T @ x, lambda: x)

    assert matmul_flops(either, X) == 2 * (2 * 4 * 4 * 8)


def test_custom_derivatives_are_looked_into() -> None:
    @jax.custom_vjp
    def double(x: Any) -> Any:
        return x @ x.T

    double.defvjp(lambda x: (x @ x.T, x), lambda x, g: (g @ x @ x.T @ x,))

    @jax.custom_jvp
    def plain(x: Any) -> Any:
        return x @ x.T

    plain.defjvp(lambda primals, tangents: (plain(*primals), plain(*tangents)))
    square = 2 * 4 * 4 * 8
    assert matmul_flops(double, X) == matmul_flops(plain, X) == square
    assert matmul_flops(jax.grad(lambda x: double(x).sum()), X) == 4 * square


def test_loops_of_constant_length_count_and_others_are_refused() -> None:
    def loop(x: Any, times: Any) -> Any:
        return jax.lax.fori_loop(0, times, lambda _, x: x @ x.T @ x, x)

    assert matmul_flops(lambda x: loop(x, 5), X) == 5 * 2 * 2 * 4 * 4 * 8
    with pytest.raises(ValueError, match="a while loop"):
        matmul_flops(loop, X, jax.ShapeDtypeStruct((), "int32"))


def test_convolutions_count_by_their_kernel() -> None:
    image = jax.ShapeDtypeStruct((2, 6, 6, 4), "float32")
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 8), "float32")

    def convolve(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    assert matmul_flops(convolve, image, kernel) == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 2)


@pytest.mark.parametrize("manual", [{"a", "b"}, {"a"}])
def test_work_per_device_is_counted_for_all_devices(manual: set[str]) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def local(x: Any) -> Any:
        return jax.shard_map(
            lambda x: x @ jnp.ones((8, 8)),
            mesh=mesh,
            in_specs=PartitionSpec("a"),
            out_specs=PartitionSpec("a"),
            axis_names=manual,
        )(x)

    # All inputs are equal over b: where b is manual too, the devices along b repeat the work.
    times = 2 if "b" in manual else 1
    assert matmul_flops(local, jax.ShapeDtypeStruct((16, 8), "float32")) == times * 2 * 16 * 64


def test_kernels_count_for_the_whole_grid() -> None:
    def kernel(x: Any, y: Any) -> None:
        y[...] = x[...] @ x[...].T

    def call(x: Any) -> Any:
        return pl.pallas_call(
            kernel,
            grid=(6,),
            in_specs=[pl.BlockSpec((4, 8), lambda i: (i, 0))],
            out_specs=pl.BlockSpec((4, 4), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((24, 4), "float32"),
            interpret=True,
        )(x)

    assert matmul_flops(call, jax.ShapeDtypeStruct((24, 8), "float32")) == 6 * 2 * 4 * 4 * 8


def test_fused_attention_counts_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{fused}.check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(f"{fused}.check_is_flash_attention", lambda *_, **__: True)

    def attend(x: Any) -> Any:
        y = jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation="cudnn")
        return y.astype("float32").sum()

    x = jax.ShapeDtypeStruct((2, 128, 4, 64), "bfloat16")
    product = 2 * (2 * 4 * 128 * 128 * 64)
    assert matmul_flops(attend, x) == 2 * product
    assert matmul_flops(jax.grad(attend), x) == (2 + 5) * product


def test_stacked_blocks_count_every_block() -> None:
    config = BlockConfig(dim=64, num_heads=2, mlp_hidden_dim=256)

    def run(x: Any) -> Any:
        blocks = initialized(stack(Block(config, dtypes=DTypes()), 5))
        return apply_stack(blocks, x)[0]

    token = 4 * 64 * 64 + 2 * 64 * 256 + 2 * 32 * 64
    x = jax.ShapeDtypeStruct((2, 32, 64), "float32")
    assert matmul_flops(run, x) == 5 * 2 * (2 * 32) * token
