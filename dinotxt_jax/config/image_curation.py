"""Settings for curation by image: hierarchical k-means, sampling, near-duplicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.ranges import Choice, Range

CHOICES = ("random", "closest")
DISTANCE_DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ImageCurationConfig:
    """Curation by image embeddings (docs/curation_images.md)."""

    levels: Annotated[
        tuple[int, ...],
        Range(1, 2**31 - 1),
        "cluster: number of clusters per level, from the examples up",
    ] = (1000, 100, 10)
    rounds: Annotated[
        tuple[int, ...],
        Range(0, 1000),
        "cluster: resampling rounds per level: k-means again on the points that are closest to "
        "each centroid",
    ] = (0, 10, 10)
    nearest: Annotated[
        tuple[int, ...],
        Range(1, 2**31 - 1),
        "cluster: points per cluster and level that a resampling round uses (empty: half of the "
        "mean cluster size)",
    ] = ()
    coarse: Annotated[
        int,
        Range(0, 2**31 - 1),
        "cluster: first divide the examples into this many clusters and split each into its share "
        "of the first level, which costs far less for large levels (0: one stage)",
    ] = 0
    iterations: Annotated[
        int, Range(1, 100_000), "cluster: most Lloyd steps per k-means; it ends when nothing moves"
    ] = 50
    seeding_points: Annotated[
        int,
        Range(0, 2**31 - 1),
        "cluster: points per cluster from which k-means++ chooses initial centroids, sampled at "
        "random (0: all points)",
    ] = 16
    unit_norm: Annotated[
        bool, "cluster: scale points and centroids to length 1 (spherical k-means)"
    ] = True
    distances: Annotated[
        str,
        Choice(DISTANCE_DTYPES),
        "cluster: dtype of the products in distances, which are summed in float32 (auto: bfloat16 "
        "on accelerators, float32 on CPUs)",
    ] = "auto"
    memory_gib: Annotated[
        float,
        Range(1e-6, 1e6),
        "cluster, deduplicate: GiB of embeddings that are held at once; more are read again from "
        "disk or bucket in each pass",
    ] = 4.0
    draw: Annotated[
        str,
        Choice(CHOICES),
        "sample: examples that are taken from a cluster: random, or closest to the centroid",
    ] = "random"
    multiplier: Annotated[
        float,
        Range(1, 1000),
        "sample: examples may be used this many times, to draw more than the pool holds",
    ] = 1.0
    similarity: Annotated[
        float,
        Range(-1, 1),
        "deduplicate: cosine similarity above which two examples of a cluster are near-duplicates",
    ] = 0.95

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        count = len(self.levels)
        if not count:
            yield f"{key}.levels is empty, expected a number of clusters per level; set it."
            return
        for lower, upper in zip(self.levels, self.levels[1:], strict=False):
            if upper >= lower:
                yield (
                    f"{key}.levels is {self.levels}, expected fewer clusters on each level than on "
                    "the level before; correct it."
                )
                return
        if len(self.rounds) != count:
            yield (
                f"{key}.rounds has {len(self.rounds)} numbers, expected one for each of the "
                f"{count} levels in {key}.levels; set both."
            )
        elif self.coarse and self.rounds[0]:
            yield (
                f"{key}.rounds[0] is {self.rounds[0]}, expected 0 with {key}.coarse="
                f"{self.coarse}, since a first level in two stages is not resampled; set it to 0."
            )
        if self.nearest and len(self.nearest) != count:
            yield (
                f"{key}.nearest has {len(self.nearest)} numbers, expected none or one for each of "
                f"the {count} levels in {key}.levels; set both."
            )
        if self.coarse >= self.levels[0]:
            yield (
                f"{key}.coarse is {self.coarse}, expected fewer than the {self.levels[0]} clusters "
                "of the first level, into which they are split; lower it."
            )
