"""Progress bars for long jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from dinotxt_jax.runtime import processes

ItemT = TypeVar("ItemT")


def watched(items: Sequence[ItemT], unit: str, description: str) -> Iterator[ItemT]:
    """Yields the items and shows a progress bar."""
    with progress_bar(len(items), 0, unit, description) as bar:
        for item in items:
            yield item
            bar.update()


def progress_bar(
    total: int | None, initial: int, unit: str, description: str, unit_scale: bool = False
) -> tqdm:
    """Creates a bar with rate and remaining time; only the first process shows it.

    Args:
        total: number of items; None if unknown.
        initial: number of items that an earlier run has finished.
        unit: name of an item.
        description: name of the job.
        unit_scale: show counts in thousands, millions, ...
    """
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        desc=description,
        dynamic_ncols=True,
        smoothing=0.05,
        disable=not processes.is_first(),
    )
