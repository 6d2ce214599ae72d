"""Removes near-duplicates: examples of a cluster whose embeddings are almost equal.

Near-duplicates lie in the same cluster of level 1, so that only its examples are compared
(SemDeDup, arXiv 2303.09540). Of two near-duplicates the one that comes first in the pool is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.cluster_folder import ClusterFolder, level_name
from dinotxt_jax.curation.embeddings import Embeddings, check_pool
from dinotxt_jax.curation.gathering import cluster_groups, gathered_group
from dinotxt_jax.curation.nearest import unit
from dinotxt_jax.curation.points import Points
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import write_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import check_no_folder

# Rows of one tile of similarities.
_TILE = 1024


def deduplicate(config: CurationConfig, files: Sequence[str], output: Address) -> str:
    """Writes a list without near-duplicates; returns a sentence about the result.

    Args:
        config: the pool, and `similarity` and `memory_gib` in `image`.
        files: the folder of embeddings and the folder of their clusters.
        output: the list to write. Examples without an embedding are not in it.

    Raises:
        UserError: the folders cannot be read, or belong to another pool.
    """
    if len(files) != 2:
        raise UserError(
            f"{len(files)} folders are given, expected the folder of embeddings and the folder of "
            "clusters; name them after deduplicate."
        )
    check_no_folder(output)
    embeddings, folder = Embeddings(to_address(files[0])), ClusterFolder(to_address(files[1]))
    identity = data_identity(open_source(config.data), config.data.threads)
    description = folder.description()
    for path, pool in ((files[0], embeddings.description["pool"]), (files[1], description["pool"])):
        check_pool(pool, identity, to_address(path))
    if description["embeddings"] != embeddings.identity:
        raise UserError(
            f"{files[1]} was made from other embeddings than {files[0]}; name the embeddings that "
            "were clustered."
        )
    level = folder.clustering(level_name(1))
    if level is None:
        raise UserError(
            f"{files[1]} lacks level 1, expected a finished level; run the same python -m "
            "dinotxt_jax.curate cluster again to complete it."
        )
    memory = config.image.memory_gib * 2**30
    kept = without_duplicates(embeddings, level.labels, config.image.similarity, memory)
    origin = {"deduplicate": config.image.similarity}
    write_kept(output, kept.astype(np.int64), identity, origin)
    present = int((level.labels >= 0).sum())
    return f"{int(kept.sum())} of {present} examples are no near-duplicates of earlier ones."


def without_duplicates(
    points: Points, index: np.ndarray, similarity: float, memory: float
) -> Bool[np.ndarray, " n"]:
    """Returns the mask of the points without an earlier near-duplicate in their cluster.

    Args:
        points: the points, read once per group of clusters that fits in `memory`.
        index: cluster of each point; -1 for rows without a point, which are left out.
        similarity: cosine similarity above which two points are near-duplicates.
        memory: most bytes of points that are held at once.
    """
    sizes = np.bincount(index[index >= 0])
    kept = np.zeros(len(points), bool)
    groups = cluster_groups(sizes, memory / (points.width * points.itemsize))
    with progress_bar(int(sizes.sum()), 0, "point", "comparing", True) as bar:
        for clusters in groups:
            group = gathered_group(points, index, clusters)
            for low, high in zip(group.bounds[:-1], group.bounds[1:], strict=True):
                duplicates = _duplicates(group.rows[low:high], similarity)
                kept[group.indices[low:high]] = ~duplicates
                bar.update(int(high - low))
    return kept


def _duplicates(rows: Float[np.ndarray, "m d"], similarity: float) -> Bool[np.ndarray, " m"]:
    """Returns the mask of the rows that have an earlier near-duplicate."""
    count = len(rows)
    padded = np.pad(rows.astype(np.float32), ((0, -count % _TILE), (0, 0)))
    tiles = [unit(tile) for tile in jnp.asarray(padded).reshape(-1, _TILE, padded.shape[1])]
    found, compare = np.zeros(len(padded), bool), _tile_program()
    for later in range(len(tiles)):
        mask = jnp.zeros(_TILE, bool)
        for earlier in range(later + 1):
            mask |= compare(tiles[later], tiles[earlier], later == earlier, similarity)
        found[later * _TILE : (later + 1) * _TILE] = mask
    return found[:count]


@functools.cache
def _tile_program() -> Callable[..., Bool[Array, " t"]]:
    """Returns the compiled comparison of two tiles.

    It takes a tile, an earlier or the same tile, whether it is the same, and the similarity, and
    returns the mask of the rows that are near-duplicates of earlier rows.
    """

    def compare(
        later: Float[Array, "t d"], earlier: Float[Array, "t d"], is_same: Array, similarity: Array
    ) -> Bool[Array, " t"]:
        products = jnp.matmul(later, earlier.T, precision=jax.lax.Precision.HIGHEST)
        before = jnp.tril(jnp.ones(products.shape, bool), -1) | ~is_same
        return jnp.any((products > similarity) & before, axis=-1)

    return jax.jit(compare, compiler_options=compiler_options(["float32"]))
