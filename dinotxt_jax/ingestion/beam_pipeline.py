"""The stages of an ingestion as Apache Beam pipelines, for clusters (Dataflow, Flink, Spark).

Workers import this module, so they need the project, the extra `beam`, and access to the source and
the output folder. Shards, part files and duplicates are those that `local` writes, byte for byte.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable, Iterator
from types import TracebackType

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState
from apache_beam.utils.shared import Shared

from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.duplicates import write_duplicates
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.shards import ShardWriter

# Runners put the error of a worker into a text: the sentence ends at the line or before the step.
_SENTENCE = re.compile(r"UserError: (.*?)(?: \[while running|\\n|\n|$)")
_STEP = re.compile(r" \[while running.*", re.DOTALL)


class BeamRunner:
    """Runs each stage as one pipeline.

    Args:
        runner: name of the Beam runner.
        options: further options, as on a command line.

    Raises:
        UserError: the runner or an option cannot be used.
    """

    def __init__(self, runner: str, options: str):
        try:
            self._options = PipelineOptions([f"--runner={runner}", *shlex.split(options)])
            self._options.get_all_options()
            beam.Pipeline(options=self._options)  # looks for the runner and checks its options
        except (ValueError, ImportError, SystemExit) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"--runner={runner} --beam_options={options!r} cannot be used ({reason}), expected "
                "a runner of Apache Beam and options that it knows; correct them."
            ) from error

    def __call__(self, job: IngestionJob, source: Source, is_finding: bool) -> None:
        """Runs an ingestion; workers open the source themselves.

        Args:
            job: the job.
            source: the source.
            is_finding: find duplicates before the shards are written.

        Raises:
            UserError: the source has changed, or the pipeline failed.
        """
        if is_finding:
            self._find_duplicates(job)
        with _Running(self._options) as pipeline:
            _ = (
                pipeline
                | "shards" >> beam.Create(job.shards)
                | "spread shards" >> beam.Reshuffle()
                | "write shards" >> beam.ParDo(_Write(job))
            )

    def _find_duplicates(self, job: IngestionJob) -> None:
        """Writes the duplicates of every shard."""
        with _Running(self._options) as pipeline:
            shards = pipeline | "shards" >> beam.Create(job.shards)
            repeated = (
                shards
                | "spread shards" >> beam.Reshuffle()
                | "hash" >> beam.ParDo(_Hash(job))
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


class _Running:
    """A pipeline that runs when the block ends; errors in workers become `UserError` again."""

    def __init__(self, options: PipelineOptions):
        self._pipeline = beam.Pipeline(options=options)

    def __enter__(self) -> beam.Pipeline:
        return self._pipeline

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        try:
            state = self._pipeline.run().wait_until_finish()
        except UserError as failure:
            raise UserError(_STEP.sub("", str(failure)), failure.exit_code) from failure
        except Exception as failure:
            if sentence := _SENTENCE.search(str(failure)):
                raise UserError(sentence[1]) from failure
            raise
        if state != PipelineState.DONE:
            raise UserError(
                f"the pipeline ended in the state {state}, expected {PipelineState.DONE}; look at "
                "the runner's log, then run the same command again to continue."
            )


class _ShardDoFn(beam.DoFn):
    """Opens the source once per process."""

    def __init__(self, job: IngestionJob):
        self._job, self._shared = job, Shared()
        self._writer: ShardWriter | None = None

    def setup(self) -> None:
        self._writer = self._shared.acquire(self._opened)

    def _opened(self) -> ShardWriter:
        data = self._job.config.data
        source = open_source(data)
        if len(source) != self._job.examples:
            raise UserError(
                f"the source has {len(source)} examples on a worker, expected "
                f"{self._job.examples}; let all workers see the same files."
            )
        return ShardWriter(self._job, source, data.threads)


class _Write(_ShardDoFn):
    """Writes shards."""

    def process(self, shard: int) -> None:
        assert self._writer is not None
        result = self._writer.write(shard)
        Metrics.counter("ingestion", "examples").inc(result.examples)
        Metrics.counter("ingestion", "quarantined").inc(result.quarantined)


class _Hash(_ShardDoFn):
    """Yields (content hash, index) for the examples of shards."""

    def process(self, shard: int) -> Iterator[tuple[bytes, int]]:
        assert self._writer is not None
        yield from self._writer.hashes(shard)


def _repeated(_: bytes, indices: Iterable[int]) -> Iterator[int]:
    """Yields all indices but the first; a runner can read `indices` again without holding them."""
    first = min(indices)
    yield from (index for index in indices if index != first)


def _in_shard(index: int, shard_size: int) -> tuple[int, int]:
    return divmod(index, shard_size)


# Stands for no duplicate, so that every shard has a group.
_NO_DUPLICATE = -1


def _without_duplicate(shard: int) -> tuple[int, int]:
    return shard, _NO_DUPLICATE


def _write_duplicates(job: IngestionJob, shard: int, numbers: Iterable[int]) -> None:
    write_duplicates(job, shard, (number for number in numbers if number != _NO_DUPLICATE))
