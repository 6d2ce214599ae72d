"""The report about clusters: sizes per level, before and after each list, and their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int32, Int64

from dinotxt_jax.curation.cluster_folder import ClusterFolder
from dinotxt_jax.curation.embeddings import check_pool
from dinotxt_jax.curation.gathering import ranks
from dinotxt_jax.curation.kmeans import Clustering
from dinotxt_jax.curation.report_curves import balance_curves, top_share
from dinotxt_jax.curation.report_pool import ReportPool, spaced
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.retries import retried
from dinotxt_jax.visualize.web_page import Table, picture_element, text_element

# Clusters per level, and images of each.
_CLUSTERS, _IMAGES = 8, 8
_POOL = "pool"
# Number of examples in each cluster of a level, by the name of a list, and of the pool.
_Counts = Mapping[str, Int64[np.ndarray, " k"]]


def is_cluster_folder(path: Address) -> bool:
    """Returns whether a path is a folder that the step `cluster` has written."""
    return retried((path / "clusters.json").is_file)


def cluster_section(pool: ReportPool, path: Address) -> list[str]:
    """Returns the elements about a folder of clusters, in the pool and in each list.

    Raises:
        UserError: a file is damaged, a level is missing, another pool is configured, or
            matplotlib is not installed.
    """
    folder = ClusterFolder(path)
    check_pool(folder.description()["pool"], pool.identity, path)
    levels = folder.levels()
    elements = [
        text_element("h2", f"Clusters: {path}"),
        text_element(
            "p",
            f"{int((levels[0].labels >= 0).sum()):,} of {len(pool.source):,} examples are in "
            f"clusters on {len(levels)} levels.",
        ),
    ]
    below = levels[0].labels  # the cluster of each example on the current level
    for number, level in enumerate(levels, start=1):
        if number > 1:
            below = np.where(below >= 0, level.labels[below], -1)
        elements += _level(pool, number, levels[0], below, len(level.centroids))
    return elements


def _level(
    pool: ReportPool, number: int, leaves: Clustering, labels: Int32[np.ndarray, " n"], size: int
) -> Iterator[str]:
    """Yields the elements about one level.

    Args:
        pool: the pool and its lists.
        number: number of the level, from 1.
        leaves: the clusters of level 1.
        labels: cluster of each example on this level; -1 for none.
        size: number of clusters.
    """
    counts = _counts(pool, labels, size)
    yield text_element("h3", f"Level {number}: {size:,} clusters")
    yield _numbers(counts)
    yield text_element(
        "p",
        "Left: clusters from the largest to the smallest. Right: share of all examples that the "
        "largest clusters have together; the nearer to the diagonal, the more balanced.",
    )
    picture = balance_curves(counts, "clusters", "examples")
    yield picture_element(picture, f"examples by cluster, level {number}")
    yield text_element(
        "p",
        "Clusters from the largest to the smallest, evenly spaced by rank, with the images closest "
        "to their centroids"
        + (", from different clusters of level 1 where there are several." if number > 1 else "."),
    )
    nearest = ranks(leaves.labels, leaves.distances)
    largest = np.argsort(-counts[_POOL], kind="stable")
    for cluster in spaced(largest[counts[_POOL][largest] > 0], _CLUSTERS).tolist():
        numbers = ", ".join(f"{name} {values[cluster]:,}" for name, values in counts.items())
        yield text_element("h4", f"Cluster {cluster}: {numbers}")
        members = np.flatnonzero(labels == cluster)
        yield pool.gallery(members[np.argsort(nearest[members], kind="stable")[:_IMAGES]])


def _counts(pool: ReportPool, labels: Int32[np.ndarray, " n"], size: int) -> _Counts:
    inside = labels >= 0
    counts = {_POOL: np.bincount(labels[inside], minlength=size)}
    for name, kept in pool.lists.items():
        times = kept.rows.counts(kept.examples)
        sums = np.bincount(labels[inside], weights=times[inside], minlength=size)
        counts[name] = sums.astype(np.int64)
    return counts


def _numbers(counts: _Counts) -> str:
    rows = [
        [
            name,
            f"{values.sum():,}",
            f"{int((values == 0).sum()):,}",
            f"{values.max():,}",
            f"{int(np.median(values)):,}",
            f"{top_share(values):.1%}",
        ]
        for name, values in counts.items()
    ]
    heading = [
        "",
        "examples",
        "clusters without one",
        "largest cluster",
        "median cluster",
        "share of the largest 1 % of clusters",
    ]
    return Table([heading, *rows]).html()
