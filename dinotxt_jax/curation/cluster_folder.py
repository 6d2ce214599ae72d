"""Folders of clusters: one file per finished level, and the state of the unfinished one.

    clusters.json   description: the pool, the embeddings, and the settings that decide the result
    level1.npz      centroids [k d], and the cluster and squared distance of each example
    level2.npz      the same for the clusters of level 1, and so on
    lloyd.npz       centroids after the newest Lloyd step
    round.npz       clusters after the newest resampling round
    splitA-B.npz    clusters of a first level in two stages, for coarse clusters A to B (exclusive)

Each file appears whole; zip files hold checksums, which are compared when they are read.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinotxt_jax.config import flatten
from dinotxt_jax.curation.kmeans import Clustering
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file, read_json, write_text
from dinotxt_jax.storage.retries import retried

CLUSTERS_FORMAT = "dinotxt_jax clusters 1"
SPLIT_PREFIX = "split"
_CURE = "cluster the embeddings with python -m dinotxt_jax.curate cluster, or correct the path"


def level_name(number: int) -> str:
    """Returns the name of the file of a level, from 1."""
    return f"level{number}"


class ClusterFolder:
    """A folder of clusters.

    Args:
        path: the folder.
    """

    def __init__(self, path: Address) -> None:
        self.path = path

    def start(self, description: Mapping[str, Any]) -> None:
        """Writes clusters.json, or compares the existing file with this run.

        If there are several processes, all must call it.

        Raises:
            UserError: the folder holds clusters of other embeddings or with other settings.
        """
        file = self.path / "clusters.json"
        expected = json.loads(json.dumps({"format": CLUSTERS_FORMAT, **description}))
        with processes.together():
            exists = retried(file.exists)
            if exists:
                self._check_same(expected)
        if not exists and processes.is_first():
            write_text(file, json.dumps(expected, indent=2) + "\n")
        processes.check_shared(file)

    def _check_same(self, expected: Mapping[str, Any]) -> None:
        stored, now = flatten(self.description(), ""), flatten(expected, "")
        changed = [key for key in now if stored.get(key) != now[key]]
        if changed:
            key = changed[0]
            raise UserError(
                f"{self.path} holds clusters with {key.lstrip('.')} {stored.get(key)!r}, expected "
                f"{now[key]!r}; name a new folder with --output, or use the same embeddings and "
                "settings."
            )

    def description(self) -> dict[str, Any]:
        """Reads clusters.json.

        Raises:
            UserError: the folder holds no clusters.
        """
        file = self.path / "clusters.json"
        if not retried(file.exists):
            raise UserError(
                f"{self.path} holds no clusters.json, expected a folder of clusters; {_CURE}."
            )
        description = read_json(file, "the description of clusters", _CURE)
        if description.get("format") != CLUSTERS_FORMAT:
            raise UserError(
                f"{file} has the format {description.get('format')!r}, expected "
                f"{CLUSTERS_FORMAT!r}; {_CURE}."
            )
        return description

    def levels(self) -> list[Clustering]:
        """Reads all levels.

        Raises:
            UserError: the folder holds no clusters, or not all levels.
        """
        levels = []
        count = len(self.description()["settings"]["levels"])
        for number in range(1, count + 1):
            level = self.clustering(level_name(number))
            if level is None:
                raise UserError(
                    f"{self.path} lacks level {number} of {count}, expected all levels; run the "
                    "same python -m dinotxt_jax.curate cluster again to complete them."
                )
            levels.append(level)
        return levels

    def save(self, name: str, /, **arrays: Any) -> None:
        """Writes arrays to a file; only the first process writes."""
        if processes.is_first():
            self.save_share(name, **arrays)

    def save_share(self, name: str, /, **arrays: Any) -> None:
        """Writes arrays to a file that belongs to this process."""
        with new_file(self.path / f"{name}.npz") as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Returns the arrays of a file; empty if there is none.

        Raises:
            UserError: the file is damaged.
        """
        file = self.path / f"{name}.npz"
        if not self.exists(name):
            return {}
        try:
            with np.load(io.BytesIO(retried(file.read_bytes)), allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{file} is damaged ({error}), expected the arrays that were written; remove it, "
                "and run python -m dinotxt_jax.curate cluster again, which computes it again."
            ) from error

    def exists(self, name: str) -> bool:
        """Returns whether there is a file with this name."""
        return retried((self.path / f"{name}.npz").exists)

    def names(self, prefix: str) -> list[str]:
        """Returns the names of the files that begin with a prefix."""
        files = retried(lambda: sorted(file.name for file in self.path.iterdir()))
        return [
            name.removesuffix(".npz")
            for name in files
            if name.startswith(prefix) and name.endswith(".npz")
        ]

    def remove(self, name: str) -> None:
        """Removes a file; only the first process does."""
        if processes.is_first():
            (self.path / f"{name}.npz").unlink(missing_ok=True)

    def save_clustering(self, name: str, clustering: Clustering, /, **more: Any) -> None:
        """Writes clusters, and further arrays."""
        self.save(name, **clustering._asdict(), **more)

    def clustering(self, name: str) -> Clustering | None:
        """Returns the clusters of a file, or None if there is none."""
        arrays = self.load(name)
        return Clustering(*(arrays[key] for key in Clustering._fields)) if arrays else None
