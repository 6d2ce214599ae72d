"""Initial values of arrays: drawn on the host, and the same on every mesh.

Values are drawn in blocks of consecutive rows of a layer (an array that is not stacked is a single
layer). The generator of a block is Philox with the key

    sha256("SEED PATH LAYER BLOCK")    for example "0 text.blocks.mlp.fc1.kernel 11 3"

so that a value depends on the seed, on the array's path and shape, and on its place in the array,
but not on the mesh, on the number of processes, or on the other arrays of the model. A process
draws only blocks that its devices hold a part of, and keeps its parts of one array at a time.
Nothing is compiled: compiling the same draws took 11 CPU-seconds in every new run.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Constant:
    """Fills an array with a number, or with numbers that broadcast to its shape."""

    value: float | tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Normal:
    """Draws from N(0, stddev^2).

    The official `trunc_normal_(std=0.02)` cuts at -2 and 2, which is 100 standard deviations: no
    draw ever reaches that, so this is the same distribution.
    """

    stddev: float


Initializer = Constant | Normal

# Elements of a block: small enough that threads share the work, large enough that setting up a
# generator costs nothing beside its draws.
_BLOCK = 2**18
# First and last index (exclusive) on every dimension.
Bounds = tuple[tuple[int, int], ...]


def initial_array(
    initializer: Initializer, abstract: jax.ShapeDtypeStruct, seed: int, path: str, stacked: bool
) -> jax.Array:
    """An array with its initial values, every device's part made for that device.

    Args:
        initializer: distribution of the values.
        abstract: shape, dtype and sharding.
        seed: seed of the run.
        path: names that lead to the array in the model, with dots between them.
        stacked: the first dimension counts layers.
    """
    shape, sharding = abstract.shape, abstract.sharding
    if isinstance(initializer, Constant):
        values = np.broadcast_to(np.asarray(initializer.value, abstract.dtype), shape)
        return jax.make_array_from_callback(shape, sharding, lambda index: values[index].copy())
    held = sharding.addressable_devices_indices_map(shape).values()
    parts = {
        bounds: np.empty([last - first for first, last in bounds], abstract.dtype)
        for bounds in {_bounds(index, shape) for index in held}
    }
    # Seen as [layers rows ...], whether the array is stacked or not.
    layered = shape if stacked else (1, *shape)
    views = {
        (bounds if stacked else ((0, 1), *bounds)): (part if stacked else part[None])
        for bounds, part in parts.items()
    }
    rows = max(1, _BLOCK // max(math.prod(layered[2:]), 1))

    def fill(place: tuple[int, int]) -> None:
        layer, block = place
        first, last = block * rows, min((block + 1) * rows, layered[1])
        overlapping = [bounds for bounds in views if _overlap(bounds, layer, first, last)]
        if not overlapping:
            return
        name = f"{seed} {path} {layer} {block}"
        values = _normal(name, (last - first, *layered[2:])) * np.float32(initializer.stddev)
        for bounds in overlapping:
            (first_layer, _), (low, high), *others = bounds
            low_row, high_row = max(low, first), min(high, last)
            columns = tuple(slice(*pair) for pair in others)
            part = values[(slice(low_row - first, high_row - first), *columns)]
            views[bounds][layer - first_layer, low_row - low : high_row - low] = part

    places = itertools.product(range(layered[0]), range(math.ceil(layered[1] / rows)))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, places):
            pass
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[_bounds(index, shape)])


def _bounds(index: Any, shape: Sequence[int]) -> Bounds:
    """The slices of `index` as numbers, which can be the key of a dict."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _overlap(bounds: Bounds, layer: int, first: int, last: int) -> bool:
    """Whether a part holds elements of rows `first` to `last` of a layer."""
    (first_layer, last_layer), (low, high), *_ = bounds
    return first_layer <= layer < last_layer and low < last and first < high


def _normal(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Draws from N(0, 1), float32, by a generator that the name determines."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)
