"""Repeats an action after storage errors that usually pass, with growing pauses."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from absl import logging

from dinotxt_jax.storage.faults import is_passing

ResultT = TypeVar("ResultT")

# Seconds before each further try; a random factor keeps many threads and hosts apart.
PAUSES = (0.2, 0.8, 3.0, 10.0)


class _Counter:
    """Counts from several threads."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.total += 1


_REPEATED = _Counter()


def repeated() -> int:
    """Returns how often this process has repeated an action so far."""
    return _REPEATED.total


def retried(action: Callable[[], ResultT]) -> ResultT:
    """Runs an action until it succeeds, fails with a lasting error, or has failed five times.

    Errors that usually pass are those of overloaded or restarting storage (`faults.is_passing`);
    the last one is raised as it is.
    """
    for pause in PAUSES:
        try:
            return action()
        except Exception as error:
            if not is_passing(error):
                raise
            _REPEATED.add()
            logging.warning("storage error (%s); trying again in about %.1f s", error, pause)
        time.sleep(pause * random.uniform(0.5, 1.5))
    return action()
