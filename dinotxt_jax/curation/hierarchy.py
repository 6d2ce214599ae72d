"""Hierarchical k-means with resampling (arXiv 2405.15613): clusters of clusters of examples.

Level 1 clusters the embeddings, level t the centroids of level t - 1, each counted once however
many points it has. A resampling round takes the points closest to each centroid, runs k-means
on these alone, and assigns all points again, which spreads centroids evenly over the data instead
of concentrating them where examples are frequent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float

from dinotxt_jax import sharding
from dinotxt_jax.config import CurationConfig, flatten
from dinotxt_jax.curation.cluster_folder import SPLIT_PREFIX, ClusterFolder, level_name
from dinotxt_jax.curation.embeddings import Embeddings, check_pool
from dinotxt_jax.curation.gathering import ranks
from dinotxt_jax.curation.kmeans import Clustering, Method, assigned, lloyd, seeded
from dinotxt_jax.curation.points import HeldPoints, PlacedPoints, Points, gathered_rows
from dinotxt_jax.curation.splitting import split_clusters
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address, to_address

_GIB = 2**30
# Settings in `config.image` that change the clusters.
_DECISIVE = ("levels", "rounds", "nearest", "coarse", "iterations", "seeding_points", "unit_norm")


def cluster(config: CurationConfig, files: Sequence[str], output: Address) -> str:
    """Clusters the embeddings of a pool; returns a sentence about the result.

    Args:
        config: the pool, `image`, `mesh` and `seed`.
        files: the folder of embeddings.
        output: the folder of clusters; an interrupted run continues there, on any mesh.

    Raises:
        UserError: the embeddings cannot be read, belong to another pool, or are fewer than the
            clusters, or the folder holds other clusters.
    """
    if len(files) != 1:
        raise UserError(
            f"{len(files)} folders are given, expected one folder of embeddings; name it after "
            "cluster."
        )
    with processes.together():
        embeddings = Embeddings(to_address(files[0]))
        pool = data_identity(open_source(config.data), config.data.threads)
        check_pool(embeddings.description["pool"], pool, embeddings.folder)
    settings = dataclasses.asdict(config.image)
    folder = ClusterFolder(output)
    description = {
        "pool": pool,
        "embeddings": embeddings.identity,
        "settings": {key: settings[key] for key in _DECISIVE} | {"seed": config.seed},
    }
    # The division of the work follows from these; other settings are in the description.
    processes.check_same(
        flatten(config.image, "config.image") | flatten(config.mesh, "config.mesh")
    )
    folder.start(description)
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    levels = Hierarchy(config, folder, mesh).build(embeddings)
    empty = [int((level.sizes == 0).sum()) for level in levels]
    if any(empty):
        logging.warning(
            "%s clusters of the levels are empty: the points have fewer different values, or "
            "clusters lost all points",
            ", ".join(map(str, empty)),
        )
    clusters = ", ".join(str(len(level.centroids)) for level in levels)
    return f"{len(embeddings) - len(embeddings.missing)} examples are in {clusters} clusters."


class Hierarchy:
    """Computes levels of clusters, and continues where an interrupted run ended.

    Args:
        config: `image` and `seed`.
        folder: keeps all state.
        mesh: the mesh.
    """

    def __init__(self, config: CurationConfig, folder: ClusterFolder, mesh: Mesh) -> None:
        self._settings, self._seed = config.image, config.seed
        self._folder, self._mesh = folder, mesh
        self._method = Method.of(config.image.distances, config.image.unit_norm)
        self._memory = config.image.memory_gib * _GIB

    def build(self, points: Points) -> list[Clustering]:
        """Returns all levels, from the points up.

        Raises:
            UserError: a level has fewer points than clusters.
        """
        levels: list[Clustering] = []
        for number, count in enumerate(self._settings.levels, start=1):
            self._check_enough(points, number, count)
            level = self._folder.clustering(level_name(number))
            if level is None:
                level = self._level(points, number, count)
                self._folder.save_clustering(level_name(number), level)
                self._clean()
            levels.append(level)
            title = f"the centroid of level {number}, cluster"
            points = HeldPoints(level.centroids, level.sizes > 0, title)
        return levels

    def _check_enough(self, points: Points, number: int, count: int) -> None:
        available = int(points.present(0, len(points)).sum())
        if available < count:
            kind = "embeddings" if number == 1 else f"clusters of level {number - 1} with points"
            raise UserError(
                f"config.image.levels[{number - 1}] is {count}, but there are {available} {kind}, "
                "expected at least as many as clusters; lower it, or curate a larger pool."
            )

    def _level(self, points: Points, number: int, count: int) -> Clustering:
        if number == 1 and self._settings.coarse:
            return self._in_two_stages(points, count)
        placed = self._placed(points)
        rounds = self._settings.rounds[number - 1]
        state = self._folder.load("round")
        done, level = 0, None
        if state and int(state["level"]) == number:
            done = int(state["round"]) + 1
            level = Clustering(*(state[key] for key in Clustering._fields))
        for index in range(done, rounds + 1):
            name = f"level{number}.round{index}"
            title = f"level {number} of {len(self._settings.levels)}"
            title += f", round {index} of {rounds}" if rounds else ""
            if level is None:
                centroids = self._centroids(placed, count, name, title)
            else:
                chosen = np.flatnonzero(self._is_close(level, number))
                subset = HeldPoints(gathered_rows(points, chosen))
                centroids = self._centroids(self._placed(subset), count, name, title)
            level = assigned(placed, centroids, self._method, f"{title}, assigning")
            if rounds:
                self._folder.save_clustering("round", level, level=number, round=index)
        assert level is not None
        return level

    def _placed(self, points: Points) -> PlacedPoints:
        return PlacedPoints(points, self._mesh, self._memory)

    def _is_close(self, level: Clustering, number: int) -> Any:
        """Returns the mask of the points that a resampling round uses."""
        nearest = self._settings.nearest
        present = level.labels >= 0
        half = max(int(present.sum()) // (2 * len(level.centroids)), 1)
        most = nearest[number - 1] if nearest else half
        return present & (ranks(level.labels, level.distances) < most)

    def _centroids(
        self, placed: PlacedPoints, count: int, name: str, title: str
    ) -> Float[np.ndarray, "k d"]:
        """Runs k-means from the newest Lloyd step of this name, or from the beginning."""
        state = self._folder.load("lloyd")
        if state and str(state["name"]) == name:
            first, centroids = int(state["step"]), state["centroids"]
        else:
            per_cluster, first = self._settings.seeding_points, 0
            centroids = seeded(
                placed.points, count, name, self._seed, per_cluster, self._method, self._mesh
            )

        def save(step: int, centroids: Float[np.ndarray, "k d"]) -> None:
            self._folder.save("lloyd", name=np.array(name), step=step, centroids=centroids)

        steps = range(first, self._settings.iterations)
        return lloyd(placed, centroids, steps, self._method, title, save)

    def _in_two_stages(self, points: Points, count: int) -> Clustering:
        coarse = self._folder.clustering("coarse")
        if coarse is None:
            placed = self._placed(points)
            title = "level 1, coarse clusters"
            centroids = self._centroids(placed, self._settings.coarse, "coarse", title)
            coarse = assigned(placed, centroids, self._method, f"{title}, assigning")
            self._folder.save_clustering("coarse", coarse)
        return split_clusters(
            points,
            coarse,
            count,
            iterations=self._settings.iterations,
            per_cluster=self._settings.seeding_points,
            seed=self._seed,
            method=self._method,
            mesh=self._mesh,
            memory=self._memory,
            folder=self._folder,
        )

    def _clean(self) -> None:
        """Removes the state of a level that is finished."""
        self._folder.remove("lloyd")
        self._folder.remove("round")
        self._folder.remove("coarse")
        for name in self._folder.names(SPLIT_PREFIX):
            self._folder.remove(name)
        processes.wait()  # before another process looks for these files
