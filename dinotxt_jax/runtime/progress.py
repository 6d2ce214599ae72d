"""The progress bar that every long job shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from dinotxt_jax.runtime import processes

ItemT = TypeVar("ItemT")


def watched(items: Sequence[ItemT], unit: str, description: str) -> Iterator[ItemT]:
    """The items, a bar showing how many were taken."""
    with progress_bar(len(items), 0, unit, description) as bar:
        for item in items:
            yield item
            bar.update()


def progress_bar(
    total: int | None, initial: int, unit: str, description: str, unit_scale: bool = False
) -> tqdm:
    """A bar with rate and time left; of several processes the first one shows it.

    Args:
        total, initial: how many there are (None: unknown), and how many an earlier call has done.
        unit: what is counted. description: what is being done.
        unit_scale: counts are shown in thousands, millions, ...
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
