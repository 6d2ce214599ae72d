"""The progress bar that every long job shows."""

from __future__ import annotations

from tqdm import tqdm


def progress_bar(total: int, initial: int, unit: str, description: str) -> tqdm:
    """A bar with rate and time left.

    Args:
        total, initial: how many there are, and how many an earlier call has done.
        unit: what is counted. description: what is being done.
    """
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        dynamic_ncols=True,
        smoothing=0.05,
    )
