"""Writes a shard: records, and a part file with counts, checksum, statistics and quarantine."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from dinotxt_jax.config.ingestion import NONE
from dinotxt_jax.data.array_records import write_packed
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.duplicates import read_duplicates, write_hashes
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.records import Quarantined, content_hash, to_record
from dinotxt_jax.ingestion.statistics import PairStatistics
from dinotxt_jax.storage.addresses import size_and_version
from dinotxt_jax.storage.checksums import is_verifying
from dinotxt_jax.storage.downloads import sha256_of
from dinotxt_jax.storage.files import new_file, read_json, write_text
from dinotxt_jax.storage.retries import retried

# Examples per thread task: larger chunks use more memory, smaller chunks are slow for tiny images.
_CHUNK = 8


class ShardResult(NamedTuple):
    """A finished shard's counts, reported to the coordinating process.

    Attributes:
        examples: number of source examples.
        quarantined: number of source examples that cannot be stored.
        reason: why the first quarantined example cannot be stored; empty without quarantine.
    """

    examples: int
    quarantined: int
    reason: str


class ShardWriter:
    """Reads input ranges and writes shards; any process can write any shard.

    Args:
        job: the job.
        source: the source, opened with the job's settings.
        threads: number of reading threads (0: none).
    """

    def __init__(self, job: IngestionJob, source: Source, threads: int):
        self._job, self._source, self._threads = job, source, threads

    def write(self, shard: int) -> ShardResult:
        """Writes a shard and the part file, unless both exist and are complete.

        Raises:
            UserError: the source has changed since it was opened.
            OSError: the storage failed.
        """
        part = self._finished(shard)
        if part is None:
            part = self._written(shard)
            write_text(self._job.part_file(shard), json.dumps(part) + "\n")
        reasons = part["quarantined"]
        return ShardResult(part["examples"], len(reasons), rejection(reasons[0]) if reasons else "")

    def hash(self, shard: int) -> ShardResult:
        """Writes a shard's content hashes, unless the file exists."""
        if not retried(self._job.hashes_file(shard).is_file):
            write_hashes(self._job, shard, self.hashes(shard))
        return ShardResult(len(self._job.span(shard)), 0, "")

    def hashes(self, shard: int) -> Iterator[tuple[bytes, int]]:
        """Yields (content hash, source index) for a shard's readable examples."""
        hashed = functools.partial(content_hash, self._source, config=self._job.config)
        span = self._job.span(shard)
        for index, content in zip(span, self._in_order(hashed, list(span)), strict=True):
            if content is not None:
                yield content, index

    def _in_order(self, function: Any, indices: list[int]) -> Iterator[Any]:
        """Yields function(index) for each index, computed ahead in threads."""
        chunks = [indices[first : first + _CHUNK] for first in range(0, len(indices), _CHUNK)]
        ahead = max(1, self._job.config.data.prefetch // _CHUNK)

        def results(chunk: list[int]) -> list[Any]:
            return [function(index) for index in chunk]

        for chunk_results in in_threads(chunks, results, self._threads, ahead) if chunks else ():
            yield from chunk_results

    def _written(self, shard: int) -> dict[str, Any]:
        """Writes a shard's ArrayRecord file and returns the content for the part file."""
        job, span = self._job, self._job.span(shard)
        duplicates: frozenset[int] = frozenset()
        if job.config.deduplicate != NONE:
            duplicates = read_duplicates(job, shard)
        indices = [index for index in span if index not in duplicates]
        statistics, quarantined = PairStatistics(), []

        def records() -> Iterator[bytes]:
            make = functools.partial(to_record, self._source, config=job.config)
            for made in self._in_order(make, indices):
                if isinstance(made, Quarantined):
                    quarantined.append(dataclasses.asdict(made))
                else:
                    statistics.add(made)
                    yield made.record

        file = job.shard_file(shard)
        with new_file(file) as partial:
            count = write_packed(partial, records())
            size, digest = partial.stat().st_size, sha256_of(partial)
        return {
            "name": file.name,
            "examples": len(span),
            "records": count,
            "bytes": size,
            "sha256": digest,
            "duplicates": len(duplicates),
            "quarantined": quarantined,
            "statistics": statistics.to_json(),
        }

    def _finished(self, shard: int) -> dict[str, Any] | None:
        """Returns the part file's content if both the part file and the shard are complete."""
        try:
            part = read_part(self._job, shard)
            size, _ = retried(lambda: size_and_version(self._job.shard_file(shard)))
        except FileNotFoundError:
            return None
        except UserError as error:
            logging.warning("%s Writing the shard again.", error)
            return None
        file = self._job.shard_file(shard)
        is_intact = size == part["bytes"]
        if is_intact and is_verifying():
            is_intact = retried(lambda: sha256_of(file)) == part["sha256"]
        if not is_intact:
            logging.warning("%s does not have the recorded size and checksum; rewriting it", file)
        return part if is_intact else None


def read_part(job: IngestionJob, shard: int) -> dict[str, Any]:
    """Reads a shard's part file.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is damaged.
    """
    file = job.part_file(shard)
    part = read_json(file, "the counts of a shard", "run the same command again")
    if part.keys() != _FIELDS:
        raise UserError(
            f"{file} has the fields {', '.join(part)}, expected {', '.join(sorted(_FIELDS))}; run "
            "the same command again."
        )
    return part


_FIELDS = {
    "name",
    "examples",
    "records",
    "bytes",
    "sha256",
    "duplicates",
    "quarantined",
    "statistics",
}


def rejection(quarantined: Mapping[str, Any]) -> str:
    """Describes a quarantined example in a few words: index, key and reason."""
    name = f" ({quarantined['key']})" if quarantined["key"] else ""
    return f"example {quarantined['index']}{name}: {quarantined['reason']}"
