"""Runs an ingestion in local processes; with several machines, each runs a share of the shards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.parallelism import decoding_threads
from dinotxt_jax.ingestion.duplicates import find_duplicates, partition_bits
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.shards import ShardResult, ShardWriter
from dinotxt_jax.runtime.cpus import available_cpus
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.runtime.team import Team
from dinotxt_jax.runtime.worker_pool import worker_pool

# Runs a job's stages. Arguments: (job, source, whether to find duplicates first).
IngestionRunner = Callable[[IngestionJob, Source, bool], None]
_LESS_MEMORY = "lower config.workers, config.data.threads or config.data.prefetch"


def run_in_processes(job: IngestionJob, source: Source, is_finding: bool) -> None:
    """Runs an ingestion in `config.workers` processes, or in this process if `workers` is 1.

    If several processes were started together (`runtime.processes`), all must call this: each
    process writes a share of the shards, and the first process finds the duplicates.

    Args:
        job: the job.
        source: the source.
        is_finding: whether to find duplicates before writing the shards.

    Raises:
        UserError: too many examples cannot be stored, the source has changed, or a process was
            killed.
    """
    team = Team()
    shards = team.mine(job.shards)
    workers = max(1, min(job.config.workers or available_cpus(), len(shards)))
    threads = -(-decoding_threads(job.config.data.threads) // workers)
    start = functools.partial(ShardWriter, job, source, threads)
    with worker_pool(workers, start, _LESS_MEMORY) as run:
        if is_finding:
            for _ in _watched(job, shards, run(ShardWriter.hash, shards), "hashing"):
                pass
            team.wait()
            team.only_first(functools.partial(_find_duplicates, job))
        bad = 0
        for result in _watched(job, shards, run(ShardWriter.write, shards), "writing"):
            bad += result.quarantined
            job.check_bad_fraction(bad, result.reason)
    team.wait()


def _find_duplicates(job: IngestionJob) -> None:
    parts = 2 ** partition_bits(job.examples)
    with progress_bar(parts, 0, "part", "finding duplicates") as bar:
        for _ in find_duplicates(job):
            bar.update()


def _watched(
    job: IngestionJob, shards: Sequence[int], results: Iterator[ShardResult], title: str
) -> Iterator[ShardResult]:
    """Yields the shard results, advancing a progress bar by each result's examples."""
    examples = sum(len(job.span(shard)) for shard in shards)
    with progress_bar(examples, 0, "example", title, unit_scale=True) as bar:
        for result in results:
            yield result
            bar.update(result.examples)
