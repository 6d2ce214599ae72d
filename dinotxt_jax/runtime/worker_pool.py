"""Processes on this machine that work on the parts of a job and end with it.

Each process prepares a state once (an open source, an automaton), on which it runs the actions.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from dinotxt_jax.errors import UserError

# Parts per process that are submitted ahead, so that the queue does not grow with the input.
_AHEAD = 2

ResultT = TypeVar("ResultT")


class PartRunner(Protocol):
    """Runs an action for parts and yields the results in any order."""

    def __call__(
        self, action: Callable[[Any, Any], ResultT], parts: Iterable[Any], /
    ) -> Iterator[ResultT]: ...


@contextlib.contextmanager
def worker_pool(count: int, start: Callable[[], Any], killed: str) -> Iterator[PartRunner]:
    """Yields a function that runs an action in processes; one worker is this process itself.

    The processes end with the block, at once if it raises or if this process is killed.

    Args:
        count: number of processes.
        start: prepares the state of a process; it is pickled.
        killed: advice for the message if a process was killed, such as "lower config.workers".

    Raises:
        UserError: a process was killed.
    """
    if count == 1:
        state = start()
        yield lambda action, parts: (action(state, part) for part in parts)
        return
    # JAX has threads, with which a process cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _start, (reader, start))
    try:
        yield lambda action, parts: _in_pool(pool, action, parts, _AHEAD * count)
        pool.shutdown()
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker process was killed, probably for lack of memory; {killed}, and run the same "
            "command again."
        ) from error
    finally:
        writer.close()
        pool.shutdown(cancel_futures=True)
        reader.close()


def _in_pool(
    pool: concurrent.futures.ProcessPoolExecutor,
    action: Callable[[Any, Any], ResultT],
    parts: Iterable[Any],
    ahead: int,
) -> Iterator[ResultT]:
    """Yields results as they come; at most `ahead` parts are submitted at a time."""
    pending: set[concurrent.futures.Future[ResultT]] = set()
    for part in parts:
        pending.add(pool.submit(_run, action, part))
        if len(pending) >= ahead:
            done, pending = _finished(pending)
            yield from done
    while pending:
        done, pending = _finished(pending)
        yield from done


def _finished(
    pending: set[concurrent.futures.Future[ResultT]],
) -> tuple[list[ResultT], set[concurrent.futures.Future[ResultT]]]:
    """Waits for results; returns those that are there, and the others."""
    done, left = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
    return [future.result() for future in done], left


# The state of a worker process.
_STATE: list[Any] = []


def _start(reader: Connection, start: Callable[[], Any]) -> None:
    """Prepares a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinating process ends the workers
    threading.Thread(target=_end_with_parent, args=(reader,), daemon=True).start()
    _STATE.append(start())


def _end_with_parent(reader: Connection) -> None:
    """Ends this process when the other end of the pipe is closed, on purpose or by a kill."""
    with contextlib.suppress(EOFError, OSError):
        reader.recv_bytes()
    os._exit(1)


def _run(action: Callable[[Any, Any], ResultT], part: Any) -> ResultT:
    return action(_STATE[0], part)
