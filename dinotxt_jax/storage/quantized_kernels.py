"""Kernels in 8 bits: how they are represented, and read from a model directory.

A kernel is stored in float32 or bfloat16 and held in memory as 8-bit numbers and one float32 factor
per output channel; `models.quantization` multiplies with them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from dinotxt_jax.storage.arrays import StoredArray

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


def without_kernels(abstract: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of `abstract` without the kernels that are wanted quantised and their factors.

    Args:
        abstract: nested dict of `jax.ShapeDtypeStruct`.
    """
    quantized_here = ("kernel", SCALE) if SCALE in abstract else ()
    return {
        name: without_kernels(value) if isinstance(value, Mapping) else value
        for name, value in abstract.items()
        if name not in quantized_here
    }


def with_kernels(
    arrays: Mapping[str, Any],
    abstract: Mapping[str, Any],
    stored: Mapping[tuple[str, ...], StoredArray],
    place: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Arrays read as `without_kernels` says, and the kernels of `abstract`, quantised.

    They are read and quantised a layer at a time, so that a backbone that fits memory only in a
    byte a number can be loaded; the dimensions that share a factor are those in which the abstract
    factors have size 1.

    Args:
        arrays: nested dict. abstract: what is wanted, of the same nesting.
        stored: arrays of the model directory by name.
        place: name of `arrays`.
    """
    result = {
        name: with_kernels(value, abstract[name], stored, (*place, name))
        if isinstance(value, Mapping)
        else value
        for name, value in arrays.items()
    }
    if SCALE in abstract:
        kernel, scale = abstract["kernel"], abstract[SCALE]
        axes = tuple(axis - 1 for axis, size in enumerate(scale.shape) if axis and size == 1)
        run = jax.jit(functools.partial(quantized, dtype=kernel.dtype.name, axes=axes))
        layers = stored[(*place, "kernel")]
        numbers, factors = np.empty(kernel.shape, kernel.dtype), np.empty(scale.shape, scale.dtype)
        for layer in range(len(numbers)):
            numbers[layer], factors[layer] = run(layers.read(layer))
        result["kernel"], result[SCALE] = _placed(numbers, kernel), _placed(factors, scale)
    return result


def _placed(array: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """On the devices of this process that hold a part of it."""
    if wanted.sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, wanted.sharding, lambda index: array[index])
