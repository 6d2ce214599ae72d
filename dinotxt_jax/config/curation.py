"""Curation settings: which pool is curated, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.data import DataConfig
from dinotxt_jax.config.ranges import Choice, Range
from dinotxt_jax.config.sources import CAPTIONS

COMBINATIONS = ("intersection", "union")


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """Settings for choosing training examples from a pool."""

    data: Annotated[DataConfig, "the pool"] = DataConfig()
    seed: Annotated[
        int, Range(0, 2**63 - 1), "every draw is a hash of the seed and the example's name"
    ] = 0
    target: Annotated[
        int, Range(0, 2**62), "number of examples to keep (0: as many as the method keeps)"
    ] = 0
    combine: Annotated[
        str, Choice(COMBINATIONS), "combine: keep the examples of all lists, or of any list"
    ] = "intersection"

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        yield from self.data.content_conflicts(f"{key}.data", CAPTIONS, "curation")
