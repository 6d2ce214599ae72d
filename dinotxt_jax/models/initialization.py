"""Initial values of arrays, sampled on the host and identical on every mesh.

Values are sampled in blocks. A block contains consecutive rows of one layer (an array that is not
stacked counts as a single layer). The random generator for a block is Philox with the key

    sha256("SEED PATH LAYER BLOCK")    for example "0 text.blocks.mlp.fc1.kernel 11 3"

so that a value depends on the seed, on the array's path and shape, and on the position in the
array, but not on the mesh, on the number of processes, or on other arrays in the model. A process
samples only blocks that overlap the shards on its devices, and holds the host shards for one array
at a time. Nothing is compiled: compiling the same sampling took 11 CPU-seconds in every new run.
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
    """Fills an array with a number, or with numbers that broadcast to the array shape."""

    value: float | tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Normal:
    """Samples from N(0, stddev^2).

    The official `trunc_normal_(std=0.02)` truncates at -2 and 2, which is 100 standard deviations.
    No sample ever reaches these bounds, so this is the same distribution.
    """

    stddev: float


Initializer = Constant | Normal

# Elements per block: small enough that threads share the work, and large enough that creating a
# generator costs nothing compared with sampling the block.
_BLOCK = 2**18
# First and last index (exclusive) in every dimension.
Bounds = tuple[tuple[int, int], ...]


def initial_array(
    initializer: Initializer, abstract: jax.ShapeDtypeStruct, seed: int, path: str, stacked: bool
) -> jax.Array:
    """Returns an array with initial values, built shard by shard for the local devices.

    Args:
        initializer: distribution of the values.
        abstract: shape, dtype and sharding.
        seed: run seed.
        path: the array's dotted path in the model.
        stacked: whether the first dimension is the layer dimension.
    """
    shape, sharding = abstract.shape, abstract.sharding
    if isinstance(initializer, Constant):
        values = np.broadcast_to(np.asarray(initializer.value, abstract.dtype), shape)
        return jax.make_array_from_callback(shape, sharding, lambda index: values[index].copy())
    local_slices = sharding.addressable_devices_indices_map(shape).values()
    # One host buffer per distinct shard; replicas share a buffer because the bounds are the key.
    parts = {
        bounds: np.empty([last - first for first, last in bounds], abstract.dtype)
        for bounds in {_bounds(index, shape) for index in local_slices}
    }
    # Views of the buffers as [layers rows ...]. An unstacked array gets a leading dimension of 1.
    layered = shape if stacked else (1, *shape)
    views = {
        (bounds if stacked else ((0, 1), *bounds)): (part if stacked else part[None])
        for bounds, part in parts.items()
    }
    rows = max(1, _BLOCK // max(math.prod(layered[2:]), 1))

    def fill(place: tuple[int, int]) -> None:
        """Draws one block of rows of one layer into the local shards that overlap it."""
        layer, block = place
        first, last = block * rows, min((block + 1) * rows, layered[1])
        # Blocks that overlap no local shard are not sampled.
        overlapping = [bounds for bounds in views if _overlap(bounds, layer, first, last)]
        if not overlapping:
            return
        name = f"{seed} {path} {layer} {block}"
        # The whole block [rows ...] is sampled, so that values do not depend on the sharding.
        values = _normal(name, (last - first, *layered[2:])) * np.float32(initializer.stddev)
        for bounds in overlapping:
            # Copy the intersection of block rows [first, last) and shard rows [low, high).
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
    """Converts the slices in `index` to (first, last) pairs, which are hashable dict keys."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _overlap(bounds: Bounds, layer: int, first: int, last: int) -> bool:
    """Returns whether a shard overlaps rows `first` to `last` (exclusive) in a layer."""
    (first_layer, last_layer), (low, high), *_ = bounds
    return first_layer <= layer < last_layer and low < last and first < high


def _normal(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Samples N(0, 1) in float32 with a generator seeded by `name`."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)
