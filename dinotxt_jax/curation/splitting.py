"""The second stage of a first level: each coarse cluster is split by a k-means of its own.

With K clusters of n points, flat k-means costs n K distances per step. With C coarse clusters it
costs n C + n K / C, which for billions of points is the difference between possible and not (arXiv
2405.15613).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32, Int64

from dinotxt_jax import sharding
from dinotxt_jax.curation.cluster_folder import SPLIT_PREFIX, ClusterFolder
from dinotxt_jax.curation.draws import hashes
from dinotxt_jax.curation.gathering import ClusterGroup, cluster_groups, gathered_group
from dinotxt_jax.curation.kmeans import Clustering, Method, check_finite
from dinotxt_jax.curation.nearest import cluster_sums, nearest, unit
from dinotxt_jax.curation.points import HeldPoints, Points, padded_size
from dinotxt_jax.curation.seeding import DRAW_BLOCK, initial_centroids
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.runtime.team import Team


def shares(sizes: Int[np.ndarray, " c"], count: int) -> Int64[np.ndarray, " c"]:
    """Distributes `count` clusters over coarse clusters in proportion to their sizes.

    Each coarse cluster with points gets at least one, and none gets more than it has points.

    Args:
        sizes: points per coarse cluster; at least `count` in total.
        count: number of clusters, at least the number of coarse clusters with points.
    """
    ideal = count * sizes / sizes.sum()
    result = np.clip(np.floor(ideal).astype(np.int64), np.minimum(sizes, 1), sizes)
    while difference := count - int(result.sum()):
        change = 1 if difference > 0 else -1
        allowed = np.flatnonzero((result < sizes) if change > 0 else (result > 1))
        order = np.argsort(change * (result - ideal)[allowed], kind="stable")
        result[allowed[order[: abs(difference)]]] += change
    return result


def split_clusters(
    points: Points,
    coarse: Clustering,
    count: int,
    *,
    iterations: int,
    per_cluster: int,
    seed: int,
    method: Method,
    mesh: Mesh,
    memory: float,
    folder: ClusterFolder,
) -> Clustering:
    """Splits coarse clusters into `count` clusters; each point stays in its coarse cluster.

    With several processes, each splits its share of the groups of coarse clusters on its own
    devices, so that every group is read by one process only.

    Args:
        points: the points, read once per group of coarse clusters that fits in `memory`.
        coarse: the coarse clusters.
        count: number of clusters.
        iterations: most Lloyd steps per coarse cluster.
        per_cluster: points per cluster from which k-means++ chooses; 0 uses all points.
        seed: seed of all draws.
        method: how distances are computed.
        mesh: the mesh; each part of a batch splits a coarse cluster at a time.
        memory: most bytes of points that a process holds at once.
        folder: holds the finished groups of an interrupted run.
    """
    sizes = coarse.sizes
    counts = shares(sizes, count)
    groups = cluster_groups(sizes, memory / (points.width * points.itemsize))
    team = Team()
    mine = team.mine(range(len(groups)))
    if processes.several():
        mesh = sharding.make_mesh(devices=jax.local_devices())
    total = sum(int(sizes[groups[number]].sum()) for number in mine)
    with progress_bar(total, 0, "point", "splitting coarse clusters", True) as bar:
        for number in mine:
            clusters = groups[number]
            if not folder.exists(_group_name(clusters)):
                group = gathered_group(points, coarse.labels, clusters)
                done = _split_group(
                    group, clusters, counts, iterations, per_cluster, seed, method, mesh
                )
                folder.save_share(_group_name(clusters), **done)
            bar.update(int(sizes[clusters].sum()))
    team.wait()
    return _joined_groups(points, coarse.labels, sizes, groups, counts, folder)


def _group_name(clusters: range) -> str:
    """Returns the name of the file of a group.

    Groups depend on the memory limit, which may change between two runs, so that the name contains
    the coarse clusters: a file is read only for the same ones.
    """
    return f"{SPLIT_PREFIX}{clusters.start:07d}-{clusters.stop:07d}"


def _joined_groups(
    points: Points,
    labels: Int32[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " c"],
    groups: list[range],
    counts: Int64[np.ndarray, " c"],
    folder: ClusterFolder,
) -> Clustering:
    """Reads the clusters of all groups, which together hold every point once.

    Raises:
        UserError: a file is damaged or missing, or belongs to other coarse clusters.
    """
    offsets = np.cumsum(counts) - counts
    centroids = np.zeros((int(counts.sum()), points.width), np.float32)
    index, distances = np.full(len(points), -1, np.int32), np.zeros(len(points), np.float32)
    for clusters in groups:
        name = _group_name(clusters)
        done = folder.load(name)
        if not done:
            raise UserError(
                f"{folder.path} lacks {name}.npz, which another process wrote; give "
                "all processes a folder that they share, and run the same command again."
            )
        inside = slice(clusters.start, clusters.stop)
        expected = int(sizes[inside].sum()), int(counts[inside].sum())
        _check_group(done, labels, clusters, *expected, f"{folder.path / name}.npz")
        first = offsets[clusters.start]
        centroids[first : first + len(done["centroids"])] = done["centroids"]
        index[done["indices"]] = first + done["index"]
        distances[done["indices"]] = done["distances"]
    return Clustering(centroids, index, distances)


def _check_group(
    done: dict[str, np.ndarray],
    labels: Int32[np.ndarray, " n"],
    clusters: range,
    points: int,
    centroids: int,
    file: str,
) -> None:
    """Raises `UserError` if a file does not hold exactly the points of these coarse clusters.

    If coarse clusters are computed again, on another mesh, a few points may move to another one,
    and would then be in two groups or in none.

    Args:
        done: arrays of the file.
        labels: coarse cluster of each point.
        clusters: the coarse clusters that the file is for.
        points, centroids: number of points and of new clusters in `clusters`.
        file: the file, for the message.
    """
    stored = labels[done["indices"]]
    is_inside = (stored >= clusters.start) & (stored < clusters.stop)
    if (len(stored), len(done["centroids"])) != (points, centroids) or not is_inside.all():
        raise UserError(
            f"{file} was made from other coarse clusters: it holds {int(is_inside.sum())} of their "
            f"{points} points now, and {int((~is_inside).sum())} others; remove "
            f"{SPLIT_PREFIX}*.npz there, and run the same command again."
        )


def _split_group(
    group: ClusterGroup,
    clusters: range,
    counts: Int64[np.ndarray, " c"],
    iterations: int,
    per_cluster: int,
    seed: int,
    method: Method,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """Returns centroids, and indices, clusters (from 0 in the group) and distances of points."""
    check_finite(HeldPoints(group.rows, title="a point of the split, row"), group.rows)
    sizes, local_counts = np.diff(group.bounds), counts[clusters.start : clusters.stop]
    offsets = np.cumsum(local_counts) - local_counts
    centroids = np.zeros((int(local_counts.sum()), group.rows.shape[1]), np.float32)
    index, distances = np.zeros(len(group.rows), np.int32), np.zeros(len(group.rows), np.float32)
    for chosen in _batches(sizes, sharding.batch_parts(mesh)):
        inputs = _stacked(group, chosen, local_counts, clusters.start, seed)
        results = _split_on(mesh, inputs, iterations, per_cluster, method)
        for part, cluster in enumerate(chosen):
            rows = slice(group.bounds[cluster], group.bounds[cluster + 1])
            first, own = offsets[cluster], local_counts[cluster]
            centroids[first : first + own] = results[0][part, :own]
            index[rows] = first + results[1][part, : sizes[cluster]]
            distances[rows] = results[2][part, : sizes[cluster]]
    return {
        "centroids": centroids,
        "indices": group.indices,
        "index": index,
        "distances": distances,
    }


def _batches(sizes: Int64[np.ndarray, " c"], parts: int) -> Iterator[list[int]]:
    """Yields clusters with points, `parts` of similar size at a time."""
    order = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    for start in range(0, len(order), parts):
        yield order[start : start + parts]


def _stacked(
    group: ClusterGroup, chosen: list[int], counts: Int64[np.ndarray, " c"], first: int, seed: int
) -> list[np.ndarray]:
    """Returns points [g n d], weights [g n], live centroids [g k] and random keys [g 2]."""
    size = padded_size(int(np.diff(group.bounds)[chosen].max()), DRAW_BLOCK)
    most = padded_size(int(counts[chosen].max()), 1)
    points = np.zeros((len(chosen), size, group.rows.shape[1]), np.float32)
    weights = np.zeros((len(chosen), size), np.float32)
    for part, cluster in enumerate(chosen):
        rows = group.rows[group.bounds[cluster] : group.bounds[cluster + 1]]
        points[part, : len(rows)], weights[part, : len(rows)] = rows, 1
    live = np.arange(most) < counts[chosen][:, None]
    keys = hashes(seed, [f"split {first + cluster}" for cluster in chosen])
    return [points, weights, live, keys.view(np.uint32).reshape(-1, 2)]


def _split_on(
    mesh: Mesh, inputs: list[np.ndarray], iterations: int, per_cluster: int, method: Method
) -> list[np.ndarray]:
    parts = sharding.batch_parts(mesh)
    # Parts without a cluster repeat the last one.
    missing = parts - len(inputs[0])
    padded = [np.concatenate([rows, np.repeat(rows[-1:], missing, 0)]) for rows in inputs]
    placement = sharding.batch_sharding(mesh)
    run = _program(parts, iterations, per_cluster, method)
    with jax.set_mesh(mesh):
        results = run(*(processes.placed(rows, placement) for rows in padded))
    return [processes.on_host(result) for result in results]


@functools.lru_cache(maxsize=8)
def _program(parts: int, iterations: int, per_cluster: int, method: Method) -> Callable[..., Any]:
    """Returns a compiled function that splits one cluster on each part of the mesh."""

    def local(points: Array, weights: Array, live: Array, keys: Array) -> tuple[Array, ...]:
        key = jax.random.wrap_key_data(keys[0])
        results = _split_one(points[0], weights[0], live[0], key, iterations, per_cluster, method)
        return tuple(result[None] for result in results)

    def run(*inputs: Array) -> tuple[Array, ...]:
        batch = ("batch",)
        return sharding.batch_shards(parts).map(local, [batch] * 4, [batch] * 3)(*inputs)

    return jax.jit(run, compiler_options=compiler_options([method.dtype]))


def _seeding_rows(
    points: Float[Array, "n d"], weights: Float[Array, " n"], count: int, per_cluster: int
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
    """Returns evenly spaced points and their weights, from which initial centroids are chosen."""
    most = padded_size(per_cluster * count, DRAW_BLOCK)
    if not per_cluster or most >= len(points):
        return points, weights
    # The points come first, rows without a point after them.
    rows = jnp.floor((jnp.arange(most) + 0.5) * (jnp.sum(weights) / most)).astype("int32")
    return points[rows], jnp.ones(most)


def _split_one(
    points: Float[Array, "n d"],
    weights: Float[Array, " n"],
    live: Array,
    key: Array,
    iterations: int,
    per_cluster: int,
    method: Method,
) -> tuple[Array, Array, Array]:
    """Returns centroids [k d], and cluster and squared distance of each point, on one device."""
    points = unit(points) if method.unit_norm else points
    count = len(live)
    centroids = initial_centroids(*_seeding_rows(points, weights, count, per_cluster), key, count)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, centroids, _ = carry
        index, _ = nearest(points, centroids, live, method.dtype)
        sums, counts = cluster_sums(points, weights, index, count)
        moved = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts[:, None], 1), centroids)
        moved = unit(moved) if method.unit_norm else moved
        return number + 1, moved, jnp.any(moved != centroids)

    def is_moving(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < iterations) & carry[2]

    initial = (jnp.int32(0), centroids, jnp.bool_(True))
    _, centroids, _ = jax.lax.while_loop(is_moving, step, initial)
    index, distances = nearest(points, centroids, live, method.dtype)
    return centroids, index, distances
