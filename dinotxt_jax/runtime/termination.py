"""SIGTERM and Ctrl-C: a run saves the current step before it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from dinotxt_jax.runtime import processes

# The exit codes that shells report after these signals; launchers restart a run after SIGTERM.
EXIT_CODES = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}
NAMES = {128 + signal.SIGINT: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM"}


class Terminated(Exception):  # noqa: N818 (no error: the run ends as requested)
    """Work between two steps ends early because a signal arrived; all processes raise it.

    Attributes:
        exit_code: the exit code for the signal.
    """

    def __init__(self, exit_code: int):
        super().__init__(NAMES[exit_code])
        self.exit_code = exit_code


class Termination:
    """A context in which SIGTERM and the first Ctrl-C only set `exit_code`.

    Kubernetes, Slurm, a system that shuts down and `scripts/worker.sh stop` send SIGTERM, perhaps
    repeatedly, before they kill a process. A second Ctrl-C raises `KeyboardInterrupt` at once. The
    handlers raise nothing else, because an exception inside a library's callback can get lost.
    Only the main thread can install a signal handler; in other threads this context does nothing.

    Attributes:
        exit_code: the exit code for the received signal; 0 before a signal arrives.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._can = threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}
        self._at_once = False

    def __enter__(self) -> Self:
        if self._can:
            for number in EXIT_CODES:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None means a handler that JAX installed from C++, which Python cannot restore.
            signal.signal(number, handler or signal.SIG_DFL)
        self._before.clear()

    def check(self) -> None:
        """Raises `Terminated` if any process received a signal; all processes must call it."""
        if exit_code := int(processes.gathered([self.exit_code]).max()):
            raise Terminated(exit_code)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block with nothing to save: a signal raises `SystemExit` there, which cleans up."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.exit_code == EXIT_CODES[signal.SIGINT]
        if number == signal.SIGINT and (again or self._at_once):
            raise KeyboardInterrupt
        self.exit_code = EXIT_CODES[signal.Signals(number)]
        if self._at_once:
            raise SystemExit(self.exit_code)
        if number == signal.SIGINT:
            # Not print: the signal may have interrupted another print.
            message = "\nsaving the current step; press Ctrl-C again to end at once\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())


def ignore(worker: int, count: int) -> None:
    """Makes a worker process ignore signals: the parent process decides when the worker ends."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
