"""A run that is told to end: it saves what it has before it does."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

# What shells report for a process that SIGTERM ended; launchers start such a run again.
EXIT_CODE = 128 + signal.SIGTERM


class Termination:
    """While its context is open, SIGTERM ends nothing but is noted in `requested`.

    Kubernetes, Slurm, a system that shuts down and `scripts/worker.sh stop` send it, perhaps more
    than once, some time before they end a process for good. Only the main thread of a process can
    do this; in others the signal does what it did.
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
            # None: what JAX sets where there are several processes, and Python cannot set again.
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def ignore(worker: int, count: int) -> None:
    """For workers: a signal to the whole process group leaves them to the process they work for."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
