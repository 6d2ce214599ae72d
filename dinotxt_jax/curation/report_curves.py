"""Curves of the report: how evenly examples are distributed over entries or clusters."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int64

from dinotxt_jax.errors import UserError

_POINTS = 400  # points of a curve


def balance_curves(counts: Mapping[str, Int64[np.ndarray, " e"]], groups: str, of: str) -> bytes:
    """Draws counts by rank, and the share of the most frequent groups, as a PNG file.

    Args:
        counts: number of examples in each group, by the name of a selection, such as "before".
        groups: what the groups are, such as "entries".
        of: the elements of the groups, such as "captions".

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "the report needs matplotlib, which is not installed; run pip install "
            "'dinotxt_jax[plots]'."
        ) from error
    figure = Figure(figsize=(11, 4), layout="constrained")
    by_rank, shares = figure.subplots(1, 2)
    for label, numbers in counts.items():
        ordered = np.sort(numbers)[::-1]
        ranks = _ranks(len(ordered))
        by_rank.plot(ranks + 1, ordered[ranks], label=label)
        shares.plot(*_cumulative(ordered), label=label)
    by_rank.set(xscale="log", yscale="log", xlabel=f"{groups} by rank", ylabel=of)
    shares.plot([0, 100], [0, 100], color="0.6", linestyle="--", linewidth=1)
    shares.set(xlabel=f"largest {groups}, %", ylabel=f"share of all {of}, %")
    for axis in (by_rank, shares):
        axis.grid(alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def top_share(counts: Int64[np.ndarray, " e"]) -> float:
    """Returns the share of the total that the largest 1 % of groups have."""
    top = np.sort(counts)[::-1][: max(len(counts) // 100, 1)]
    return float(top.sum() / max(int(counts.sum()), 1))


def _ranks(groups: int) -> Int64[np.ndarray, " k"]:
    """Returns ranks from 0, evenly spaced on a logarithmic axis."""
    spaced = np.geomspace(1, max(groups, 1), _POINTS).astype(np.int64) - 1
    return np.unique(spaced[spaced < groups])


def _cumulative(
    ordered: Int64[np.ndarray, " e"],
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Returns shares of groups and of the total, in percent."""
    places = np.linspace(0, len(ordered), _POINTS).astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(ordered)])
    return 100 * places / max(len(ordered), 1), 100 * sums[places] / max(int(sums[-1]), 1)
