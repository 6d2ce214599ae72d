"""Runs the ingestion stages as Apache Beam pipelines, for clusters (Dataflow, Flink, Spark).

Workers import this module, so they need the project, the extra `beam`, and access to the source and
the output folder. Shards, part files and duplicates files are byte-identical to those that `local`
writes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.metrics import Metrics

from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.duplicates import write_duplicates
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.shards import ShardWriter
from dinotxt_jax.runtime.beam_pipelines import BeamPipelines, WorkerDoFn


class BeamRunner:
    """Runs each stage as one pipeline.

    Args:
        pipelines: the Beam runner and pipeline options.
    """

    def __init__(self, pipelines: BeamPipelines):
        self._pipelines = pipelines

    def __call__(self, job: IngestionJob, source: Source, is_finding: bool) -> None:
        """Runs an ingestion; each worker opens the source itself.

        Args:
            job: the job.
            source: the source.
            is_finding: whether to find duplicates before writing the shards.

        Raises:
            UserError: the source has changed, or the pipeline failed.
        """
        if is_finding:
            self._find_duplicates(job)
        with self._pipelines.running() as pipeline:
            _ = (
                pipeline
                | "shards" >> beam.Create(job.shards)
                | "spread shards" >> beam.Reshuffle()
                | "write shards" >> beam.ParDo(_Write(functools.partial(_opened_writer, job)))
            )

    def _find_duplicates(self, job: IngestionJob) -> None:
        """Writes the duplicates file for every shard."""
        with self._pipelines.running() as pipeline:
            shards = pipeline | "shards" >> beam.Create(job.shards)
            repeated = (
                shards
                | "spread shards" >> beam.Reshuffle()
                | "hash" >> beam.ParDo(_Hash(functools.partial(_opened_writer, job)))
                | "group by hash" >> beam.GroupByKey()
                | "find repeated" >> beam.FlatMapTuple(_repeated)
                | "name shards" >> beam.Map(_in_shard, job.config.shard_size)
            )
            every_shard = shards | "all shards" >> beam.Map(_without_duplicate)
            _ = (
                (repeated, every_shard)
                | beam.Flatten()
                | "group by shard" >> beam.GroupByKey()
                | "write duplicates" >> beam.MapTuple(functools.partial(_write_duplicates, job))
            )


def _opened_writer(job: IngestionJob) -> ShardWriter:
    """Opens the source on a worker."""
    data = job.config.data
    source = open_source(data)
    if len(source) != job.examples:
        raise UserError(
            f"the source has {len(source)} examples on a worker, expected {job.examples}; give all "
            "workers access to the same files."
        )
    return ShardWriter(job, source, data.threads)


class _Write(WorkerDoFn):
    """Writes shards."""

    def process(self, shard: int) -> None:
        result = self.state.write(shard)
        Metrics.counter("ingestion", "examples").inc(result.examples)
        Metrics.counter("ingestion", "quarantined").inc(result.quarantined)


class _Hash(WorkerDoFn):
    """Yields (content hash, source index) for every example in a shard."""

    def process(self, shard: int) -> Iterator[tuple[bytes, int]]:
        yield from self.state.hashes(shard)


def _repeated(_: bytes, indices: Iterable[int]) -> Iterator[int]:
    """Yields every index except the smallest.

    Beam runners allow iterating over `indices` twice, so they need not fit in memory.
    """
    first = min(indices)
    yield from (index for index in indices if index != first)


def _in_shard(index: int, shard_size: int) -> tuple[int, int]:
    return divmod(index, shard_size)


# Placeholder index: GroupByKey then yields a group for shards without duplicates too.
_NO_DUPLICATE = -1


def _without_duplicate(shard: int) -> tuple[int, int]:
    return shard, _NO_DUPLICATE


def _write_duplicates(job: IngestionJob, shard: int, positions: Iterable[int]) -> None:
    write_duplicates(job, shard, (place for place in positions if place != _NO_DUPLICATE))
