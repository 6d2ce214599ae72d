"""Runs an ingestion in processes on this machine."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.parallelism import decoding_threads
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.duplicates import find_duplicates, partition_bits
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.shards import ShardResult, ShardWriter
from dinotxt_jax.runtime.cpus import available_cpus
from dinotxt_jax.runtime.progress import progress_bar

# Shards per process that are submitted ahead, so that the queue does not grow with the input.
_AHEAD = 2


# Runs the stages of a job: (job, source, whether duplicates have to be found first).
IngestionRunner = Callable[[IngestionJob, Source, bool], None]
ShardAction = Callable[[ShardWriter, int], ShardResult]


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
    with _workers(workers, (job, source, threads)) as results_of:
        if is_finding:
            for _ in _watched(job, results_of(ShardWriter.hash), "hashing"):
                pass
            parts = 2 ** partition_bits(job.examples)
            with progress_bar(parts, 0, "part", "finding duplicates") as bar:
                for _ in find_duplicates(job):
                    bar.update()
        bad = 0
        for result in _watched(job, results_of(ShardWriter.write), "writing"):
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


@contextlib.contextmanager
def _workers(
    count: int, arguments: tuple[IngestionJob, Source, int]
) -> Iterator[Callable[[ShardAction], Iterator[ShardResult]]]:
    """Yields a function that runs an action for all shards and yields the results in any order."""
    shards = arguments[0].shards
    if count == 1:
        writer = ShardWriter(*arguments)
        yield lambda action: (action(writer, shard) for shard in shards)
        return
    with _worker_pool(count, arguments) as pool:
        yield lambda action: _in_pool(pool, action, shards, _AHEAD * count)


@contextlib.contextmanager
def _worker_pool(
    workers: int, arguments: tuple[IngestionJob, Source, int]
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Starts processes that end with the block, at once if it raises or if this process is killed.

    Raises:
        UserError: a process was killed.
    """
    # JAX has threads, with which a process cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (reader, *arguments))
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the ingestion was killed, probably for lack of memory; lower "
            "config.workers, config.data.threads or config.data.prefetch, and run the same command "
            "again."
        ) from error
    finally:
        writer.close()
        pool.shutdown(cancel_futures=True)
        reader.close()


def _in_pool(
    pool: concurrent.futures.ProcessPoolExecutor,
    action: ShardAction,
    shards: Sequence[int],
    ahead: int,
) -> Iterator[ShardResult]:
    """Yields results as they come; at most `ahead` shards are submitted at a time."""
    pending: set[concurrent.futures.Future[ShardResult]] = set()
    for shard in shards:
        pending.add(pool.submit(_run, action, shard))
        if len(pending) >= ahead:
            done, pending = _some(pending)
            yield from done
    while pending:
        done, pending = _some(pending)
        yield from done


def _some(
    pending: set[concurrent.futures.Future[ShardResult]],
) -> tuple[list[ShardResult], set[concurrent.futures.Future[ShardResult]]]:
    """Waits for results; returns those that are there, and the others."""
    done, left = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
    return [future.result() for future in done], left


# The writer of a worker process.
_WRITER: list[ShardWriter] = []


def _start(reader: Connection, job: IngestionJob, source: Source, threads: int) -> None:
    """Prepares a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinating process ends the workers
    threading.Thread(target=_end_with_parent, args=(reader,), daemon=True).start()
    _WRITER.append(ShardWriter(job, source, threads))


def _end_with_parent(reader: Connection) -> None:
    """Ends this process when the other end of the pipe is closed, on purpose or by a kill."""
    with contextlib.suppress(EOFError, OSError):
        reader.recv_bytes()
    os._exit(1)


def _run(action: ShardAction, shard: int) -> ShardResult:
    return action(_WRITER[0], shard)
