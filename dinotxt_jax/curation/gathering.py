"""Points of the same cluster together, in groups that fit in memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from dinotxt_jax.curation.points import Points, chunk_starts
from dinotxt_jax.data.pipeline import in_threads

_THREADS = 2
_AHEAD = 2


class ClusterGroup(NamedTuple):
    """The points of consecutive clusters, sorted by cluster and then by index.

    Attributes:
        rows: the points, as stored.
        indices: index of each point.
        bounds: first row of each cluster, and the number of rows.
    """

    rows: Float[np.ndarray, "m d"]
    indices: Int64[np.ndarray, " m"]
    bounds: Int64[np.ndarray, " c1"]


def cluster_groups(sizes: Int[np.ndarray, " k"], most: float) -> list[range]:
    """Divides clusters into groups of at most `most` points; a larger cluster is its own group."""
    groups, first, total = [], 0, 0
    for cluster, size in enumerate(sizes.tolist()):
        if total and total + size > most:
            groups.append(range(first, cluster))
            first, total = cluster, 0
        total += size
    return [*groups, range(first, len(sizes))]


def gathered_group(points: Points, index: Int32[np.ndarray, " n"], clusters: range) -> ClusterGroup:
    """Reads all points once and returns the points of some clusters.

    Args:
        points: the points.
        index: cluster of each point; -1 for rows without a point.
        clusters: the clusters.
    """
    starts = chunk_starts(points)

    def read(start: int) -> tuple[Float[np.ndarray, "p d"], Int64[np.ndarray, " p"]]:
        labels = index[start : start + starts.step]
        chosen = np.flatnonzero((labels >= clusters.start) & (labels < clusters.stop))
        if not len(chosen):
            return points.read(start, start), chosen
        rows = points.read(start + int(chosen[0]), start + int(chosen[-1]) + 1)
        return rows[chosen - chosen[0]], start + chosen

    parts = list(in_threads(starts, read, _THREADS, _AHEAD))
    indices = np.concatenate([part[1] for part in parts])
    order = np.argsort(index[indices], kind="stable")
    labels = index[indices][order]
    bounds = np.searchsorted(labels, np.arange(clusters.start, clusters.stop + 1))
    rows = np.concatenate([part[0] for part in parts])
    return ClusterGroup(rows[order], indices[order], bounds)


def ranks(groups: Int[np.ndarray, " n"], keys: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Returns the rank of each element within its group, by ascending key."""
    order = np.lexsort((keys, groups))
    ordered = groups[order]
    starts = np.searchsorted(ordered, ordered)
    result = np.empty(len(groups), np.int64)
    result[order] = np.arange(len(groups)) - starts
    return result
