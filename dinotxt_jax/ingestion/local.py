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
from typing import Protocol

from dinotxt_jax.data.examples import Source
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.duplicates import find_duplicates, partition_bits
from dinotxt_jax.ingestion.job import IngestionJob
from dinotxt_jax.ingestion.shards import ShardResult, ShardWriter
from dinotxt_jax.runtime.progress import progress_bar

# Shards per process that are submitted ahead, so that the queue does not grow with the input.
_AHEAD = 2


class IngestionRunner(Protocol):
    """Runs the two stages of an ingestion, on this machine or on others."""

    def find_duplicates(self, job: IngestionJob, source: Source) -> None:
        """Writes the duplicates of every shard."""

    def write_shards(self, job: IngestionJob, source: Source) -> None:
        """Writes every shard that is missing or damaged.

        Raises:
            UserError: too many examples cannot be stored, or the source has changed.
        """


class LocalRunner:
    """Uses `config.workers` processes; with one, everything happens in this process."""

    def find_duplicates(self, job: IngestionJob, source: Source) -> None:
        for _ in _watched(job, source, ShardWriter.hash, "hashing"):
            pass
        with progress_bar(
            2 ** partition_bits(job.examples), 0, "part", "finding duplicates"
        ) as bar:
            for _ in find_duplicates(job):
                bar.update()

    def write_shards(self, job: IngestionJob, source: Source) -> None:
        bad = 0
        for result in _watched(job, source, ShardWriter.write, "writing"):
            bad += result.quarantined
            job.check_bad_fraction(bad, result.reason)


ShardAction = Callable[[ShardWriter, int], ShardResult]


def _watched(
    job: IngestionJob, source: Source, action: ShardAction, title: str
) -> Iterator[ShardResult]:
    """Yields the results of an action for all shards, in any order, with a progress bar."""
    workers = min(job.config.workers or os.cpu_count() or 1, len(job.shards))
    threads = -(-job.config.data.threads // workers)
    with contextlib.ExitStack() as stack:
        if workers == 1:
            writer = ShardWriter(job, source, threads)
            results: Iterator[ShardResult] = (action(writer, shard) for shard in job.shards)
        else:
            pool = stack.enter_context(_worker_pool(workers, (job, source, threads)))
            results = _in_pool(pool, action, job.shards, _AHEAD * workers)
        bar = stack.enter_context(progress_bar(job.examples, 0, "example", title, unit_scale=True))
        for result in results:
            yield result
            bar.update(result.examples)


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
