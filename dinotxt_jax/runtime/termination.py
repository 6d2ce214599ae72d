"""SIGTERM handling: lets a run save its state before it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

# The exit code that shells report after SIGTERM; launchers restart such a run.
EXIT_CODE = 128 + signal.SIGTERM


class Termination:
    """A context in which SIGTERM only sets `requested`.

    Kubernetes, Slurm, a system that shuts down and `scripts/worker.sh stop` send SIGTERM, perhaps
    repeatedly, before they kill a process. Only the main thread can install a signal handler; in
    other threads this context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._can = threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def __enter__(self) -> Self:
        if self._can:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._can:
            # None means a handler that JAX installed from C++, which Python cannot restore.
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def ignore(worker: int, count: int) -> None:
    """Makes a worker process ignore SIGTERM: its parent decides when the worker ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
