"""Products of a frozen backbone in 8 bits: kernels quantised once, activations as they come.

A kernel is stored as 8-bit numbers and one float32 factor per output channel; activations get a
factor per token when they meet it. Both are the largest magnitude over what the product sums up,
so that sums are of 8-bit numbers alone (int8: exact in int32; float8: in float32) and the factors
multiply the result. (Qwix 0.1.8 does the same arithmetic but leaves kernels of stacked, scanned
blocks as they are: it looks for parameters of the module that runs, and a scan makes its own.)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

# What products of a frozen backbone may run in; "none": in its dtype.
PRODUCTS = ("none", "int8", "float8_e4m3fn")
SCALE = "kernel_scale"


def quantized(
    x: Float[Array, "..."], dtype: str, axes: tuple[int, ...]
) -> tuple[Num[Array, "..."], Float[Array, "..."]]:
    """8-bit numbers and float32 factors whose product is near `x`.

    Args:
        x: values.
        dtype: of the numbers.
        axes: dimensions that share a factor; the factors have size 1 there.
    """
    integer = jnp.issubdtype(dtype, jnp.integer)
    largest = float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
    wide = x.astype("float32")
    scale = jnp.abs(wide).max(axes, keepdims=True) / largest
    # Zeros alone need a factor too.
    scale = jnp.where(scale == 0, 1.0, scale)
    numbers = wide / scale
    return (jnp.round(numbers) if integer else numbers).astype(dtype), scale


def product(
    x: Float[Array, "..."], kernel: Num[Array, "..."], scale: Float[Array, "..."], contracted: int
) -> Float[Array, "..."]:
    """`x @ kernel` over the last dimensions of `x` and the first of the kernel, in float32.

    Args:
        x: activations.
        kernel, scale: what `quantized` made of a kernel over the dimensions that are contracted.
        contracted: how many those are.
    """
    last = tuple(range(x.ndim - contracted, x.ndim))
    first = tuple(range(contracted))
    numbers, factors = quantized(x, kernel.dtype.name, last)
    sums = jax.lax.dot_general(
        numbers,
        kernel,
        ((last, first), ((), ())),
        preferred_element_type="int32" if jnp.issubdtype(kernel.dtype, jnp.integer) else "float32",
    )
    outputs = kernel.ndim - contracted
    by_token = factors.reshape(*x.shape[: x.ndim - contracted], *(1,) * outputs)
    return sums.astype("float32") * by_token * scale.squeeze(first)


def without_scales(abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and places of arrays that may be quantised, as they are stored: in float32.

    Args:
        abstract: nested dict of `jax.ShapeDtypeStruct`.
    """
    plain = {
        name: without_scales(value) if isinstance(value, Mapping) else value
        for name, value in abstract.items()
        if name != SCALE
    }
    if SCALE in abstract:
        kernel = abstract["kernel"]
        plain["kernel"] = jax.ShapeDtypeStruct(kernel.shape, "float32", sharding=kernel.sharding)
    return plain


def with_scales(arrays: Mapping[str, Any], abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays read as `without_scales` says, quantised where `abstract` is.

    Each kernel is quantised where it lies and its float32 numbers are given up; the dimensions
    that share a factor are those in which the abstract factors have size 1.
    """
    result = {
        name: with_scales(value, abstract[name]) if isinstance(value, Mapping) else value
        for name, value in arrays.items()
    }
    if SCALE in abstract:
        kernel, scale = abstract["kernel"], abstract[SCALE]
        axes = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
        run = jax.jit(
            functools.partial(quantized, dtype=kernel.dtype.name, axes=axes),
            out_shardings=(kernel.sharding, scale.sharding),
        )
        result["kernel"], result[SCALE] = jax.block_until_ready(run(arrays["kernel"]))
        arrays["kernel"].delete()
    return result
