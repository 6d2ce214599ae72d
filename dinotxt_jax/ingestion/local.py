"""Runs an ingestion in processes on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.parallelism import decoding_threads
from dinotxt_jax.ingestion.duplicates import find_duplicates, partition_bits
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.shards import ShardResult, ShardWriter
from dinotxt_jax.runtime.cpus import available_cpus
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.runtime.worker_pool import worker_pool

# Runs the stages of a job: (job, source, whether duplicates have to be found first).
IngestionRunner = Callable[[IngestionJob, Source, bool], None]
_LESS_MEMORY = "lower config.workers, config.data.threads or config.data.prefetch"


def run_in_processes(job: IngestionJob, source: Source, is_finding: bool) -> None:
    """Runs an ingestion in `config.workers` processes; one worker is this process itself.

    Args:
        job: the job.
        source: the source.
        is_finding: find duplicates before the shards are written.

    Raises:
        UserError: too many examples cannot be stored, the source has changed, or a process was
            killed.
    """
    workers = min(job.config.workers or available_cpus(), len(job.shards))
    threads = -(-decoding_threads(job.config.data.threads) // workers)
    start = functools.partial(ShardWriter, job, source, threads)
    with worker_pool(workers, start, _LESS_MEMORY) as run:
        if is_finding:
            for _ in _watched(job, run(ShardWriter.hash, job.shards), "hashing"):
                pass
            parts = 2 ** partition_bits(job.examples)
            with progress_bar(parts, 0, "part", "finding duplicates") as bar:
                for _ in find_duplicates(job):
                    bar.update()
        bad = 0
        for result in _watched(job, run(ShardWriter.write, job.shards), "writing"):
            bad += result.quarantined
            job.check_bad_fraction(bad, result.reason)


def _watched(
    job: IngestionJob, results: Iterator[ShardResult], title: str
) -> Iterator[ShardResult]:
    """Yields results of shards and shows a progress bar."""
    with progress_bar(job.examples, 0, "example", title, unit_scale=True) as bar:
        for result in results:
            yield result
            bar.update(result.examples)
