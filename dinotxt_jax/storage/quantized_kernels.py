"""8-bit kernels: quantisation, and reading quantised kernels from a model directory.

A kernel is stored in float32 or bfloat16 and held in memory as 8-bit numbers with one float32
factor per output channel; `models.quantization` multiplies with them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from dinotxt_jax.storage.pieces import StoredArray

SCALE = "kernel_scale"


def quantized(
    x: Float[Array, "..."], dtype: str, axes: tuple[int, ...]
) -> tuple[Num[Array, "..."], Float[Array, "..."]]:
    """Quantises `x` to 8-bit numbers and float32 factors whose product approximates `x`.

    Args:
        x: values.
        dtype: dtype for the numbers.
        axes: dimensions that share a factor; the factors have size 1 there.
    """
    integer = jnp.issubdtype(dtype, jnp.integer)
    largest = float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
    wide = x.astype("float32")
    scale = jnp.abs(wide).max(axes, keepdims=True) / largest
    # All-zero rows need a non-zero factor.
    scale = jnp.where(scale == 0, 1.0, scale)
    numbers = wide / scale
    return (jnp.round(numbers) if integer else numbers).astype(dtype), scale


def without_scales(abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces quantised kernels by the float32 kernels that are stored.

    Args:
        abstract: nested dict with `jax.ShapeDtypeStruct` leaves.
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
    """Removes quantised kernels and scale factors from a tree.

    Args:
        abstract: nested dict with `jax.ShapeDtypeStruct` leaves.
    """
    return {
        name: without_kernels(value) if isinstance(value, Mapping) else value
        for name, value in abstract.items()
        if name not in _quantized_names(abstract)
    }


def _quantized_names(abstract: Mapping[str, Any]) -> tuple[str, ...]:
    return ("kernel", SCALE) if SCALE in abstract else ()


def with_kernels(
    arrays: Mapping[str, Any],
    abstract: Mapping[str, Any],
    stored: Mapping[tuple[str, ...], StoredArray],
    place: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Adds the quantised kernels of `abstract` to arrays that were read without them.

    Kernels are read and quantised one layer at a time, so that a backbone can be loaded even if
    only the 8-bit version fits in memory. Dimensions in which the abstract factors have size 1
    share a factor.

    Args:
        arrays: nested dict, read according to `without_kernels`; empty dicts may be absent.
        abstract: the requested arrays, with the same nesting.
        stored: the model directory's arrays by path.
        place: path of `arrays`.
    """
    result = {
        name: with_kernels(arrays.get(name, {}), value, stored, (*place, name))
        if isinstance(value, Mapping)
        else arrays[name]
        for name, value in abstract.items()
        if name not in _quantized_names(abstract)
    }
    if SCALE in abstract:
        kernel, scale = abstract["kernel"], abstract[SCALE]
        axes = tuple(axis - 1 for axis, size in enumerate(scale.shape) if axis and size == 1)
        run = jax.jit(functools.partial(quantized, dtype=kernel.dtype.name, axes=axes))
        numbers, factors = np.empty(kernel.shape, kernel.dtype), np.empty(scale.shape, scale.dtype)
        for layer, values in enumerate(stored[(*place, "kernel")].layers()):
            numbers[layer], factors[layer] = run(values)
        result["kernel"], result[SCALE] = _placed(numbers, kernel), _placed(factors, scale)
    return result


def _placed(array: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    """Shards an array as `target` specifies; each process places the local shards."""
    if target.sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, target.sharding, lambda index: array[index])
