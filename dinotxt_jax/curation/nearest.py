"""The centroid nearest to each point, in tiles that bound the memory; the core of k-means."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

# Rows and centroids of one tile of distances. On CPUs a tile of 8 MB stays in the cache while its
# minima are searched.
_ROWS = 2048
_CENTROIDS = 1024


def distance_dtype(setting: str) -> str:
    """Returns the dtype of the products in distances for `config.image.distances`."""
    if setting != "auto":
        return setting
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def unit(points: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Scales rows to length 1; rows of zeros stay zero."""
    norms = jnp.linalg.norm(points, axis=-1, keepdims=True)
    return points / jnp.where(norms > 0, norms, 1)


def nearest(
    points: Float[Array, "n d"],
    centroids: Float[Array, "k d"],
    live: Bool[Array, " k"],
    dtype: str,
) -> tuple[Int32[Array, " n"], Float[Array, " n"]]:
    """Returns the index of the nearest centroid and the squared distance to it, for each point.

    The search multiplies in `dtype` and sums in float32: |x - c|^2 - |x|^2 = |c|^2 - 2 x.c, with
    both rounded to `dtype`, is the exact order of the rounded points. The distance to the centroid
    found is then computed in float32, where close points lose no digits.

    Args:
        points: float32.
        centroids: float32.
        live: mask of the centroids that may be chosen.
        dtype: "float32" or "bfloat16".
    """
    rounded = centroids.astype(dtype)
    norms = jnp.sum(jnp.square(rounded.astype("float32")), axis=-1)
    norms = jnp.where(live, norms, jnp.inf)
    size = min(_CENTROIDS, len(centroids))
    padding = -len(centroids) % size
    # Tiles [d size] of -2 c, an exact factor. CPUs multiply by a transposed copy faster than by a
    # transposed view, into which the compiler would turn it.
    tiles = jnp.pad(-2 * rounded, ((0, padding), (0, 0))).reshape(-1, size, centroids.shape[-1])
    tiles = jax.lax.optimization_barrier(jnp.swapaxes(tiles, 1, 2))
    tile_norms = jnp.pad(norms, (0, padding), constant_values=jnp.inf).reshape(-1, size)

    def block(points: Float[Array, "r d"]) -> tuple[Int32[Array, " r"], Float[Array, " r"]]:
        """Returns the nearest centroid of each row, tile by tile of centroids, and the distance."""
        rows = points.astype(dtype)

        def tile(
            best: tuple[Float[Array, " r"], Int32[Array, " r"]], inputs: tuple[Array, Array, Array]
        ) -> tuple[tuple[Float[Array, " r"], Int32[Array, " r"]], None]:
            start, candidates, squares = inputs
            scores = squares + _products(rows, candidates)
            lowest, first = _minimum(scores)
            index = jnp.where(lowest < best[0], start + first, best[1])
            return (jnp.minimum(lowest, best[0]), index), None

        initial = (jnp.full(len(rows), jnp.inf), jnp.zeros(len(rows), "int32"))
        starts = jnp.arange(0, len(tiles) * size, size, dtype="int32")
        (_, index), _ = jax.lax.scan(tile, initial, (starts, tiles, tile_norms))
        return index, jnp.sum(jnp.square(points - centroids[index]), axis=-1)

    index, distances = jax.lax.map(block, _blocks(points))
    return index.reshape(-1)[: len(points)], distances.reshape(-1)[: len(points)]


def _minimum(scores: Float[Array, "r k"]) -> tuple[Float[Array, " r"], Int32[Array, " r"]]:
    """Returns the lowest score of each row and its first column."""

    def in_two_passes(scores: Array) -> tuple[Array, Array]:
        """Searches the value, then the place: CPUs compute argmin without SIMD, 8 times slower."""
        lowest = jnp.min(scores, axis=-1)
        columns = jnp.arange(scores.shape[-1], dtype="int32")
        # A row without an equal score holds NaN, which the distance shows.
        places = jnp.where(scores == lowest[:, None], columns, scores.shape[-1] - 1)
        return lowest, jnp.min(places, axis=-1)

    def at_once(scores: Array) -> tuple[Array, Array]:
        first = jnp.argmin(scores, axis=-1).astype("int32")
        return jnp.take_along_axis(scores, first[:, None], axis=-1)[:, 0], first

    return jax.lax.platform_dependent(scores, cpu=in_two_passes, default=at_once)


def _products(rows: Float[Array, "r d"], tile: Float[Array, "d k"]) -> Float[Array, "r k"]:
    return jnp.matmul(
        rows, tile, precision=jax.lax.Precision.HIGHEST, preferred_element_type="float32"
    )


def _blocks(points: Float[Array, "n d"]) -> Float[Array, "b r d"]:
    """Splits rows into equal blocks of at most `_ROWS`, padded with zeros."""
    rows = -(-len(points) // -(-len(points) // _ROWS))
    return jnp.pad(points, ((0, -len(points) % rows), (0, 0))).reshape(-1, rows, points.shape[-1])


def cluster_sums(
    points: Float[Array, "n d"],
    weights: Float[Array, " n"],
    index: Int32[Array, " n"],
    count: int,
) -> tuple[Float[Array, "k d"], Int32[Array, " k"]]:
    """Returns the sum and the number of the points in each cluster.

    Args:
        points: float32.
        weights: 1 for points, 0 for rows without a point.
        index: cluster of each point.
        count: number of clusters.
    """
    sums = jax.ops.segment_sum(points * weights[:, None], index, count)
    return sums, jax.ops.segment_sum(weights.astype("int32"), index, count)
