"""Hierarchical balanced sampling (arXiv 2405.15613): equal shares for clusters on each level.

From the top level down, a cluster distributes the number of examples that it has to provide over
the clusters below it. All get equally many, but none more than it holds: min(cap, size), with the
highest cap that does not exceed the number. The remainder goes to clusters that hold more than the
cap, one example each, drawn at random. A cluster's size is the number of examples below it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.cluster_folder import ClusterFolder
from dinotxt_jax.curation.draws import hashes, uniform
from dinotxt_jax.curation.embeddings import check_pool
from dinotxt_jax.curation.gathering import ranks
from dinotxt_jax.curation.kmeans import Clustering
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import read_kept, write_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import check_no_folder


def sample_clusters(config: CurationConfig, files: Sequence[str], output: Address) -> str:
    """Writes a list of `target` examples, balanced over clusters; returns a sentence about it.

    Args:
        config: the pool, `target`, `seed`, and `draw` and `multiplier` in `image`.
        files: the folder of clusters, and lists; only examples in all lists are drawn.
        output: the list to write.

    Raises:
        UserError: the clusters or lists cannot be read or belong to another pool, or hold fewer
            examples than `target`.
    """
    if not files:
        raise UserError("no folder of clusters is given, expected one; name it after sample.")
    if not config.target:
        raise UserError(
            "config.target is 0, expected the number of examples to sample; set config.target."
        )
    check_no_folder(output)
    folder = ClusterFolder(to_address(files[0]))
    description, levels = folder.description(), folder.levels()
    source = open_source(config.data)
    identity = data_identity(source, config.data.threads)
    check_pool(description["pool"], identity, folder.path)
    allowed = levels[0].labels >= 0
    for file in files[1:]:
        kept = read_kept(to_address(file), "the lists to sample from")
        check_pool(kept.description["pool"], identity, to_address(file))
        allowed &= kept.rows.counts(len(source)) > 0
    counts = sampled_counts(levels, allowed, config)
    image = config.image
    origin = {
        "sample": config.target,
        "levels": [len(level.centroids) for level in levels],
        "draw": image.draw,
        "multiplier": image.multiplier,
        "seed": config.seed,
        "lists": list(files[1:]),
    }
    write_kept(output, counts, identity, origin)
    used = int((counts > 0).sum())
    return (
        f"{int(counts.sum())} examples are sampled, {used} different ones of {int(allowed.sum())} "
        f"in clusters, from {len(source)} in the pool."
    )


def sampled_counts(
    levels: Sequence[Clustering], allowed: Bool[np.ndarray, " n"], config: CurationConfig
) -> Int64[np.ndarray, " n"]:
    """Returns how often each example is sampled; the numbers add up to `config.target`.

    Args:
        levels: the levels, from the examples up.
        allowed: mask of the examples that may be sampled.
        config: `target`, `seed`, `image.draw` and `image.multiplier`.

    Raises:
        UserError: fewer examples may be sampled.
    """
    multiplier, target = config.image.multiplier, config.target
    leaf = np.where(allowed, levels[0].labels, -1)
    sizes = _sizes(levels, leaf)
    capacities = [np.floor(size * multiplier).astype(np.int64) for size in sizes]
    # Rounding down happens in the leaves; a cluster above holds what they hold together.
    for number, level in enumerate(levels[1:], start=1):
        capacities[number] = _sums(level.labels, capacities[number - 1], len(level.centroids))
    available = int(capacities[-1].sum())
    if target > available:
        times = f" times config.image.multiplier={multiplier:g}" if multiplier != 1 else ""
        raise UserError(
            f"config.target is {target}, expected at most {available}, the {int(allowed.sum())} "
            f"examples in clusters{times}; lower it, or raise config.image.multiplier."
        )
    targets = np.array([target])
    for number in range(len(levels) - 1, -1, -1):
        is_top = number == len(levels) - 1
        parents = np.zeros(len(sizes[number]), int) if is_top else levels[number + 1].labels
        draws = _draws(config.seed, f"level {number + 1}", len(sizes[number]))
        targets = distributed(capacities[number], parents, targets, draws)
    return _from_leaves(levels[0], leaf, sizes[0], targets, config)


def _sizes(
    levels: Sequence[Clustering], leaf: Int[np.ndarray, " n"]
) -> list[Int64[np.ndarray, " k"]]:
    """Returns the number of examples below each cluster, per level."""
    sizes = [np.bincount(leaf[leaf >= 0], minlength=len(levels[0].centroids))]
    for level in levels[1:]:
        sizes.append(_sums(level.labels, sizes[-1], len(level.centroids)))
    return sizes


def _sums(
    parents: Int[np.ndarray, " k"], values: Int64[np.ndarray, " k"], count: int
) -> Int64[np.ndarray, " p"]:
    """Returns the sum of values below each of `count` parents; -1 is no parent."""
    result = np.zeros(count, np.int64)
    below = parents >= 0
    np.add.at(result, parents[below], values[below])
    return result


def distributed(
    sizes: Int64[np.ndarray, " k"],
    parents: Int[np.ndarray, " k"],
    targets: Int64[np.ndarray, " p"],
    draws: Float64[np.ndarray, " k"],
) -> Int64[np.ndarray, " k"]:
    """Distributes the target of each parent over its clusters, as evenly as sizes allow.

    Args:
        sizes: most that each cluster can provide.
        parents: parent of each cluster; -1 for a cluster without one, which provides nothing.
        targets: number for each parent, at most the sum of the sizes of its clusters.
        draws: a different number for each cluster, which decides about the remainder.
    """
    low, high = np.zeros(len(targets), np.int64), np.array(targets)
    while (low < high).any():  # the highest cap per parent that does not exceed the target
        cap = (low + high + 1) // 2
        fits = _sums(parents, np.minimum(sizes, cap[parents]), len(targets)) <= targets
        low, high = np.where(fits, cap, low), np.where(fits, high, cap - 1)
    result = np.where(parents >= 0, np.minimum(sizes, low[parents]), 0)
    remainder = targets - _sums(parents, result, len(targets))
    # Clusters that hold more than the cap come first, in random order.
    larger = (parents >= 0) & (sizes > result)
    order = ranks(np.where(larger, parents, -1), draws)
    return result + (larger & (order < remainder[parents]))


def _from_leaves(
    level: Clustering,
    leaf: Int[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " k"],
    targets: Int64[np.ndarray, " k"],
    config: CurationConfig,
) -> Int64[np.ndarray, " n"]:
    """Returns how often each example is used, given the number for each cluster of level 1."""
    inside = leaf >= 0
    repeats = targets // np.maximum(sizes, 1)
    rest = targets - repeats * sizes
    is_closest = config.image.draw == "closest"
    keys = level.distances if is_closest else _draws(config.seed, "examples", len(leaf))
    order = ranks(leaf, keys)
    return np.where(inside, repeats[leaf] + (order < rest[leaf]), 0)


def _draws(seed: int, name: str, count: int) -> Float64[np.ndarray, " n"]:
    """Returns a random number for each index, which depends on seed, name and index only."""
    return uniform(np.repeat(hashes(seed, [name]), count), np.arange(count, dtype=np.uint64))
