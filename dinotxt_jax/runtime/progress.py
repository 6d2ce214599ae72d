"""Progress bars for long jobs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from dinotxt_jax.runtime import processes

ItemT = TypeVar("ItemT")

_TICK = 1.0  # seconds between two redraws of a bar that does not advance


class Bar(tqdm):
    """A bar whose elapsed time moves on a terminal, also while no item ends (a compilation).

    A file gets the redraws of `tqdm`, because there each would be a line, and one that says that
    the first call is compiled.
    """

    # Here, because tqdm draws before its `__init__` ends, and closes bars whose `__init__` fails.
    _stage: tuple[str, float] | None = None
    _ticker: threading.Thread | None = None

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._closed = threading.Event()
        if not self.disable and self.fp.isatty():
            self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()

    def _tick(self) -> None:
        while not self._closed.wait(_TICK):
            self.refresh()

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values of the line; a stage replaces what `set_postfix` has set."""
        values = dict(super().format_dict)
        if stage := self._stage:
            name, begun = stage
            seconds = "" if self._ticker is None else f": {int(time.monotonic() - begun)} s"
            values["postfix"] = f"{name}{seconds}"
        return values

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A block in which nothing can advance: shows `name` and its seconds on a terminal."""
        self._stage = name, time.monotonic()
        if self._ticker is not None:
            self.refresh()
        try:
            yield
        finally:
            self._stage = None

    def compiling(self, function: Callable[..., ItemT]) -> Callable[..., ItemT]:
        """Wraps a `jax.jit` function, so that the first call, which compiles it, is a stage."""
        first = True

        def call(*arguments: Any) -> ItemT:
            nonlocal first
            if not first:
                return function(*arguments)
            first = False
            with self.stage("compiling"):
                self.refresh()  # a file says, too, why nothing advances for a while
                return function(*arguments)

        return call

    def close(self) -> None:
        """Draws the bar a last time."""
        if self._ticker is not None:
            self._closed.set()
            self._ticker.join()  # it must not draw below what is printed next
        super().close()


def watched(items: Sequence[ItemT], unit: str, description: str) -> Iterator[ItemT]:
    """Yields the items and shows a progress bar."""
    with progress_bar(len(items), 0, unit, description) as bar:
        for item in items:
            yield item
            bar.update()


def progress_bar(
    total: int | None, initial: int, unit: str, description: str, unit_scale: bool = False
) -> Bar:
    """Creates a bar with rate and remaining time; only the first process shows it.

    Args:
        total: number of items; None if unknown.
        initial: items that an earlier run has finished.
        unit: item name.
        description: job name.
        unit_scale: show counts in thousands, millions, ...
    """
    return Bar(
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        desc=description,
        dynamic_ncols=True,
        smoothing=0.05,
        disable=not processes.is_first(),
    )
