"""k-means on a mesh: greedy k-means++ and Lloyd's algorithm, continued after an interruption.

Points may be larger than the memory of all devices (`points.PlacedPoints`). Centroids are on every
device. A cluster that loses all its points keeps its centroid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Int64

from dinotxt_jax import sharding
from dinotxt_jax.curation.draws import hashes, uniform
from dinotxt_jax.curation.nearest import cluster_sums, distance_dtype, nearest, unit
from dinotxt_jax.curation.points import (
    CHUNK,
    PlacedChunk,
    PlacedPoints,
    Points,
    chunk_starts,
    gathered_rows,
    padded_rows,
    sampled_indices,
)
from dinotxt_jax.curation.seeding import initial_centroids
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.runtime.progress import progress_bar


class Method(NamedTuple):
    """How distances are computed.

    Attributes:
        dtype: dtype of the products, "float32" or "bfloat16".
        unit_norm: scale points and centroids to length 1.
    """

    dtype: str
    unit_norm: bool

    @classmethod
    def of(cls, distances: str, unit_norm: bool) -> Method:
        """Returns the method that settings of `config.image` describe."""
        return cls(distance_dtype(distances), unit_norm)


class Clustering(NamedTuple):
    """Points in clusters.

    Attributes:
        centroids: float32 [k d].
        labels: cluster of each point; -1 for rows without a point.
        distances: squared distance of each point to its centroid.
    """

    centroids: Float[np.ndarray, "k d"]
    labels: Int32[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]

    @property
    def sizes(self) -> Int64[np.ndarray, " k"]:
        """Number of points in each cluster."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.centroids))


def seeded(
    points: Points, count: int, name: str, seed: int, per_cluster: int, method: Method, mesh: Mesh
) -> Float[np.ndarray, "k d"]:
    """Returns initial centroids, chosen by greedy k-means++ from a sample of the points.

    Args:
        points: the points.
        count: number of centroids.
        name: a name for the k-means, which its draws depend on.
        seed: seed of all draws.
        per_cluster: points in the sample per centroid; 0 uses all points.
        method: how distances are computed.
        mesh: the mesh.
    """
    key = hashes(seed, [name])
    most = len(points) if per_cluster == 0 else min(count * per_cluster, len(points))
    draws = uniform(np.repeat(key, most), np.arange(most, dtype=np.uint64))
    rows = gathered_rows(points, sampled_indices(points, most, draws)).astype(np.float32)
    check_finite(points, rows)
    if method.unit_norm:
        rows = np.asarray(unit(jnp.asarray(rows)))
    padded, weights = padded_rows(rows, sharding.batch_parts(mesh))
    placement = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        centroids = initial_centroids(
            processes.placed(padded, placement),
            processes.placed(weights, placement),
            jax.random.key(int(key[0] >> np.uint64(32))),
            count,
        )
    return processes.on_host(centroids)


def check_finite(points: Points, rows: Float[np.ndarray, "m d"]) -> None:
    """Raises `UserError` if rows or, then, points are not finite; names the first such point."""
    if np.isfinite(rows).all():
        return
    for start in chunk_starts(points):
        chunk = points.read(start, min(start + CHUNK, len(points)))
        finite = np.isfinite(chunk).all(1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise UserError(
                f"{points.name(row)} is not finite, expected numbers; embed this data again with a "
                "model that is whole."
            )


def lloyd(
    placed: PlacedPoints,
    centroids: Float[np.ndarray, "k d"],
    steps: range,
    method: Method,
    title: str,
    save: Callable[[int, Float[np.ndarray, "k d"]], None],
) -> Float[np.ndarray, "k d"]:
    """Moves each centroid to the mean of its points, until nothing moves or `steps` are made.

    Args:
        placed: the points.
        centroids: centroids before the first of `steps`.
        steps: numbers of the steps to make.
        method: how distances are computed.
        title: name for the progress bar.
        save: takes the number of finished steps and the centroids, after each step.

    Raises:
        UserError: points are not finite.
    """
    current = processes.placed(centroids, sharding.replicated(placed.mesh))
    with progress_bar(steps.stop, steps.start, "step", title) as bar, jax.set_mesh(placed.mesh):
        for step in steps:
            moved, inertia, is_same = _lloyd_step(placed, current, method)
            check_finite(placed.points, np.asarray(inertia)[None, None])
            current = moved
            save(step + 1, processes.on_host(current))
            bar.set_postfix(inertia=f"{inertia:.6g}")
            bar.update()
            if is_same:
                break
    return processes.on_host(current)


def _lloyd_step(
    placed: PlacedPoints, centroids: Float[Array, "k d"], method: Method
) -> tuple[Float[Array, "k d"], float, bool]:
    """Returns the moved centroids, the inertia before, and whether no centroid moved."""
    start, add, move = _programs(placed.mesh, method, *centroids.shape, placed.chunk)
    totals, inertias = start(), []
    for chunk in placed.chunks():
        totals, inertia = add(centroids, chunk, totals)
        inertias.append(inertia)
    moved, is_same = move(centroids, totals)
    return moved, float(np.sum(np.asarray(jax.device_get(inertias), np.float64))), bool(is_same)


@functools.lru_cache(maxsize=64)
def _programs(
    mesh: Mesh, method: Method, count: int, width: int, rows: int
) -> tuple[Callable[..., Any], ...]:
    """Returns compiled functions: zero sums, add one chunk to them, and make centroids of them.

    Sums are kept per part of the mesh and added up once per step, not once per chunk.

    Args:
        mesh: the mesh, which is set.
        method: how distances are computed.
        count, width: shape of the centroids.
        rows: rows of a chunk.
    """
    shards = sharding.batch_shards(rows)
    options = compiler_options([method.dtype])

    def start() -> tuple[Array, Array]:
        sums, counts = jnp.zeros((shards.count, count, width)), jnp.zeros((shards.count, count))
        return (
            sharding.constrain(sums, "batch", None, None),
            sharding.constrain(counts.astype("int32"), "batch", None),
        )

    def move(centroids: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, counts = (jnp.sum(total, axis=0) for total in totals)
        moved = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts[:, None], 1), centroids)
        if method.unit_norm:
            moved = unit(moved)
        return sharding.constrain(moved, None, None), jnp.all(moved == centroids)

    add = functools.partial(add_chunk, method)
    compiled = jax.jit(add, compiler_options=options, donate_argnums=2)
    return jax.jit(start), compiled, jax.jit(move)


def add_chunk(
    method: Method,
    centroids: Float[Array, "k d"],
    chunk: PlacedChunk,
    totals: tuple[Float[Array, "p k d"], Int32[Array, "p k"]],
) -> tuple[tuple[Float[Array, "p k d"], Int32[Array, "p k"]], Float[Array, ""]]:
    """Assigns the points of a chunk and adds them to the totals: the inner loop of a Lloyd step.

    Args:
        method: how distances are computed.
        centroids: the centroids, on every device.
        chunk: the chunk.
        totals: sum and number of the points of each cluster, per part of the mesh, which is set.

    Returns:
        The new totals, and the sum of squared distances of the chunk.
    """
    count, batch = len(centroids), ("batch",)
    shards = sharding.batch_shards(len(chunk.points))

    def local(centroids: Array, points: Array, weights: Array) -> tuple[Array, Array, Array]:
        prepared = _prepared(points, method)
        index, distances = nearest(prepared, centroids, jnp.ones(count, bool), method.dtype)
        sums, counts = cluster_sums(prepared, weights, index, count)
        return sums[None], counts[None], shards.sum(jnp.sum(distances * weights))

    run = shards.map(local, [(None,), batch, batch], [batch, batch, ()])
    sums, counts, inertia = run(centroids, *chunk)
    return (sums + totals[0], counts + totals[1]), inertia


def _prepared(points: Float[Array, "n d"], method: Method) -> Float[Array, "n d"]:
    points = points.astype("float32")
    return unit(points) if method.unit_norm else points


@functools.partial(jax.jit, static_argnames=("method",))
def _assigned(
    centroids: Float[Array, "k d"], chunk: PlacedChunk, method: Method
) -> tuple[Int32[Array, " n"], Float[Array, " n"]]:
    shards = sharding.batch_shards(len(chunk.points))

    def local(centroids: Array, points: Array, weights: Array) -> tuple[Array, Array]:
        live = jnp.ones(len(centroids), bool)
        index, distances = nearest(_prepared(points, method), centroids, live, method.dtype)
        return jnp.where(weights > 0, index, -1), distances * weights

    batch = ("batch",)
    return shards.map(local, [(None,), batch, batch], [batch, batch])(centroids, *chunk)


def assigned(
    placed: PlacedPoints, centroids: Float[np.ndarray, "k d"], method: Method, title: str
) -> Clustering:
    """Returns the nearest centroid of every point.

    Raises:
        UserError: points are not finite.
    """
    current = processes.placed(centroids, sharding.replicated(placed.mesh))
    labels: list[np.ndarray] = []
    distances: list[np.ndarray] = []
    with progress_bar(len(placed), 0, "point", title, True) as bar, jax.set_mesh(placed.mesh):
        for chunk in placed.chunks():
            parts = map(processes.on_host, _assigned(current, chunk, method))
            for blocks, block in zip((labels, distances), parts, strict=True):
                blocks.append(block)
            bar.update(min(placed.chunk, len(placed) - bar.n))
    found = (np.concatenate(blocks)[: len(placed)] for blocks in (labels, distances))
    result = Clustering(centroids, *found)
    check_finite(placed.points, result.distances[:, None])
    return result
