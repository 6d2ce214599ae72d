"""Ingestion settings: which source is copied, and how its images are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.data import DataConfig
from dinotxt_jax.config.ranges import Choice, Range
from dinotxt_jax.config.sources import CAPTIONS

# Setting -> Pillow's name of the image format.
ENCODINGS = {"jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}
KEEP = "keep"
# Values of `deduplicate`.
NONE, IMAGE, PAIR = "none", "image", "pair"


@dataclasses.dataclass(frozen=True)
class IngestionConfig:
    """Settings for copying a source into ArrayRecord shards."""

    # Without a default, so that a forgotten source is a sentence and no folder of drawn scenes.
    data: Annotated[DataConfig, "the examples to copy"] = DataConfig(source="")
    shard_size: Annotated[
        int, Range(1, 1_000_000), "number of source examples per shard (shards hold those kept)"
    ] = 10_000
    resize: Annotated[
        int,
        Range(0, 16_384),
        "maximum short side of stored images, pixels; larger images are reduced, smaller images "
        "are not enlarged (0: keep all sizes)",
    ] = 0
    encoding: Annotated[
        str,
        Choice((KEEP, *ENCODINGS)),
        "format of stored images; images that have this format and need no resizing are stored "
        "unchanged (keep: the format of the source; pixels become PNG)",
    ] = KEEP
    quality: Annotated[int, Range(1, 100), "quality of images that are encoded as JPEG or WebP"] = (
        90
    )
    verify: Annotated[
        bool,
        "whether every image is decoded, so that damaged ones go into the quarantine; otherwise "
        "only the header of an image that is stored unchanged is read",
    ] = True
    deduplicate: Annotated[
        str,
        Choice((NONE, IMAGE, PAIR)),
        "examples left out because an earlier one has exactly the same image file (image), or the "
        "same image file and captions (pair); this reads the source twice",
    ] = NONE
    workers: Annotated[int, Range(0, 1024), "number of processes (0: one per CPU core)"] = 0

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        yield from self.data.training_only(f"{key}.data")
        yield from self.data.content_conflicts(f"{key}.data", CAPTIONS, "ingestion")
        if self.data.workers > 0:
            yield (
                f"{key}.data.workers is {self.data.workers}, expected 0, because ingestion has "
                f"its own processes; set {key}.workers instead."
            )
