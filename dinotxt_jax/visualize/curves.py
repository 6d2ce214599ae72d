"""Training curves with matplotlib, which comes with the extra `[plots]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinotxt_jax.errors import UserError

_TITLES = {
    "loss": "loss",
    "logit_scale": "logit scale (logarithm)",
    "learning_rate": "learning rate",
    "pairs_per_second": "pairs per second",
}


def training_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws loss, logit scale and learning rate, speed, and evaluation results over steps.

    Args:
        rows: lines of `metrics.jsonl`.
        path: the PNG to write.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "drawing curves needs matplotlib, which is not installed; run pip install matplotlib."
        ) from error
    trained = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if "loss" not in row]
    panels = [(name,) for name in _TITLES]
    results = tuple(
        sorted({key for row in evaluated for key in row if key.endswith("mean_recall")})
    )
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, names in zip(axes, (*panels, results), strict=False):
        for name in names:
            source = evaluated if names is results else trained
            points = [(row["step"], row[name]) for row in source if row.get(name) is not None]
            marker = "o" if names is results else None
            axis.plot(*zip(*points, strict=True), label=name, marker=marker, linewidth=1.5)
        axis.set_title("mean recall, %" if names is results else _TITLES[names[0]])
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=8)
    for axis in axes[5 if results else 4 :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=120)
