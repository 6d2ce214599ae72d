"""Curation settings: which pool is curated, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.data import DataConfig
from dinotxt_jax.config.image_curation import ImageCurationConfig
from dinotxt_jax.config.ranges import Choice, Form, Range
from dinotxt_jax.config.sources import CAPTIONS
from dinotxt_jax.config.training import MeshConfig

COMBINATIONS = ("intersection", "union")
_LANGUAGE = Form(r"[a-z]{2,3}(-[a-z]+)*", "a language code of Wikipedia", "en")
_COUNT = Range(0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class MetadataConfig:
    """Metadata: the list of entries that captions are balanced over."""

    languages: Annotated[
        tuple[str, ...],
        _LANGUAGE,
        "languages with a list of their own; with several, the language of each caption is "
        "identified, and captions in other languages share the list `other`",
    ] = ("en",)
    wordnet: Annotated[
        tuple[str, ...],
        "lexicons of the package wn, such as oewn:2024, that `python -m wn download` has stored",
    ] = ()
    wikipedia: Annotated[
        str,
        "article dumps of Wikipedia (LANGUAGEwiki-*-pages-articles*.xml.bz2): a file, a folder or "
        "a glob (empty: the captions in `config.data` give the unigrams and bigrams)",
    ] = ""
    page_views: Annotated[
        str,
        "hourly page views of Wikimedia (pageviews-*.gz), which give the titles: a file, a folder "
        "or a glob",
    ] = ""
    examples: Annotated[
        int, _COUNT, "number of examples whose captions are counted, evenly spaced (0: all)"
    ] = 10_000_000
    min_count: Annotated[
        int, Range(1, 2**31 - 1), "least occurrences of a unigram or bigram (Wikipedia: 100)"
    ] = 5
    unigram_share: Annotated[
        float, Range(0, 1), "share of the unigrams that is used, most frequent first"
    ] = 1.0
    max_unigrams: Annotated[int, _COUNT, "maximum number of unigrams per language"] = 251_465
    bigrams_per_unigram: Annotated[
        float, Range(0, 100), "number of bigrams, best PMI first, per unigram that is used"
    ] = 0.4
    title_share: Annotated[
        float, Range(0, 1), "share of the titles that is used, most views first"
    ] = 1.0
    max_titles: Annotated[int, _COUNT, "maximum number of titles per language"] = 61_235
    min_hour_views: Annotated[int, _COUNT, "least views of a title in an hour that counts"] = 50
    min_views: Annotated[int, _COUNT, "least views of a title over all hours that count"] = 70
    max_entries: Annotated[
        int, Range(1, 2**31 - 1), "maximum number of entries per language; titles are left out last"
    ] = 500_000

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        if not all(self.languages) or len(set(self.languages)) < max(len(self.languages), 1):
            yield (
                f"{key}.languages is {self.languages!r}, expected different language codes, at "
                "least one; correct it."
            )


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """Balancing captions over the entries of the metadata."""

    tail_share: Annotated[
        float,
        Range(0, 1),
        "share of all matches that belong to rare entries, whose captions are all kept; the "
        "threshold t of each language follows from it",
    ] = 0.06
    threshold: Annotated[
        int,
        Range(0, 2**62),
        "the threshold t for the first language of the metadata, instead of `tail_share`; other "
        "languages get the same tail share (0: use `tail_share`)",
    ] = 0
    range_size: Annotated[
        int,
        Range(1, 2**31 - 1),
        "number of examples that a process matches and stores at a time",
    ] = 65_536


@dataclasses.dataclass(frozen=True)
class CurationPlanConfig:
    """Planning a curation."""

    pairs: Annotated[
        tuple[int, ...], Range(1, 2**62), "plan: numbers of pairs, or give --pairs"
    ] = (1_000_000, 100_000_000, 2_300_000_000)
    topology: Annotated[
        str,
        "plan: TPU topology that embeds and clusters, KIND:AxB or KIND:AxBxC; kinds are v4, v5e, "
        "v5p, v6e and tpu7x",
    ] = "v5p:4x4x8"
    backbone: Annotated[
        str, "plan: model directory that embeds, or the name of an architecture"
    ] = "dinov2_vitl14_reg"

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        if not self.pairs:
            yield f"{key}.pairs is empty, expected numbers of pairs; set it."


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
    workers: Annotated[
        int, Range(0, 1024), "number of processes for metadata and text (0: one per CPU)"
    ] = 0
    metadata: Annotated[MetadataConfig, "metadata"] = MetadataConfig()
    balance: Annotated[BalanceConfig, "balancing by text"] = BalanceConfig()
    combine: Annotated[
        str, Choice(COMBINATIONS), "combine: keep the examples of all lists, or of any list"
    ] = "intersection"
    image: Annotated[ImageCurationConfig, "curation by image"] = ImageCurationConfig()
    mesh: Annotated[MeshConfig, "embed, cluster: device mesh"] = MeshConfig()
    plan: Annotated[CurationPlanConfig, "planning"] = CurationPlanConfig()

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        # A list belongs to one whole pool, and could not be read for a mixture or a part of a pool.
        yield from self.data.training_only(f"{key}.data")
        yield from self.data.content_conflicts(f"{key}.data", CAPTIONS, "curation")
