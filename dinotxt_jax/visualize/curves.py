"""Training curves drawn with matplotlib, which the extra `[plots]` installs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinotxt_jax.errors import UserError
from dinotxt_jax.visualize.text import one_line

# The chance level for a result NAME is stored under NAME/chance.
CHANCE = "chance"
_COLUMNS = 3
_RESULTS = {
    "mean_recall": ("mean recall, %", "retrieval on held-out images; higher is better"),
    "top1": ("top-1 accuracy, %", "zero-shot classification; higher is better"),
    "mean_average_precision": ("mean average precision, %", "higher is better"),
    "mean_iou": ("mean IoU, %", "open-vocabulary segmentation; higher is better"),
}


@dataclasses.dataclass(frozen=True)
class _Line:
    """Points (step, value) with a label; `chance` is drawn as a dashed line."""

    label: str
    points: list[tuple[int, float]]
    chance: float | None = None


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A diagram with a sentence that explains it."""

    title: str
    meaning: str
    lines: list[_Line]
    marker: str | None = None


def training_curves(
    rows: Sequence[dict[str, Any]], path: Path, *, title: str = "", chance_loss: float | None = None
) -> None:
    """Draws loss, exp(logit_scale), learning rate, speed, and evaluation results over steps.

    Quantities that are absent from all rows get no panel.

    Args:
        rows: lines from `metrics.jsonl`. Chance levels for results are stored under the key
            "TASK/METRIC/chance".
        path: the PNG to write.
        title: the run name.
        chance_loss: loss for a model that cannot tell pairs apart, drawn as a dashed line.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "drawing curves needs matplotlib, which is not installed; run pip install matplotlib."
        ) from error
    panels = [*_training_panels(rows, chance_loss), *_result_panels(rows)]
    last_step = max((row["step"] for row in rows), default=1)
    per_row = _panels_per_row(len(panels))
    figure = Figure(figsize=(11, 0.6 + 3.1 * max(len(per_row), 1)), layout="constrained")
    grid = figure.add_gridspec(max(len(per_row), 1), math.lcm(*range(1, _COLUMNS + 1)))
    remaining_panels = iter(panels)
    for number, count in enumerate(per_row):
        width = grid.ncols // count
        for column in range(count):
            axis = figure.add_subplot(grid[number, column * width : (column + 1) * width])
            _draw(axis, next(remaining_panels), last_step)
    if title:
        figure.suptitle(f"training run: {one_line(title, 'run')}", fontsize=14)
    figure.savefig(path, dpi=120)


def _training_panels(rows: Sequence[dict[str, Any]], chance_loss: float | None) -> list[_Panel]:
    def points(name: str) -> list[tuple[int, float]]:
        return [(row["step"], row[name]) for row in rows if row.get(name) is not None]

    scale = [(step, math.exp(value)) for step, value in points("logit_scale")]
    panels = [
        _Panel("loss", "of the training batch; lower is better", [_Line("", points("loss"))]),
        # Metrics and messages have the logarithm, under the name logit_scale.
        _Panel("exp(logit_scale)", "multiplies cosine similarities; learned", [_Line("", scale)]),
        _Panel("learning rate", "warm-up, then decay", [_Line("", points("learning_rate"))]),
        _Panel(
            "pairs per second",
            "image-text pairs; the first step also compiles",
            [_Line("", points("pairs_per_second"))],
        ),
    ]
    if chance_loss is not None:
        line = dataclasses.replace(panels[0].lines[0], label="training", chance=chance_loss)
        panels[0] = dataclasses.replace(panels[0], lines=[line])
    return [panel for panel in panels if panel.lines[0].points]


def _result_panels(rows: Sequence[dict[str, Any]]) -> list[_Panel]:
    """Returns a panel for each headline metric, with a line for each task that reports it."""
    panels = []
    for metric, (title, meaning) in _RESULTS.items():
        names = sorted({name for row in rows for name in row if name.endswith(f"/{metric}")})
        lines = []
        for name in names:
            with_value = [row for row in rows if row.get(name) is not None]
            if with_value:
                points = [(row["step"], row[name]) for row in with_value]
                chance = with_value[-1].get(f"{name}/{CHANCE}")
                lines.append(_Line(name.removesuffix(f"/{metric}"), points, chance))
        if lines:
            panels.append(_Panel(title, meaning, lines, "o"))
    return panels


def _panels_per_row(count: int) -> list[int]:
    """Splits panels into rows with at most `_COLUMNS` each, as evenly as possible to avoid gaps."""
    rows = -(-count // _COLUMNS)
    return [count // rows + (number < count % rows) for number in range(rows)]


def _draw(axis: Any, panel: _Panel, last_step: int) -> None:
    for number, line in enumerate(panel.lines):
        colour = f"C{number}"
        steps, values = zip(*line.points, strict=True)
        # A single point would be invisible as a line.
        marker = panel.marker or ("o" if len(steps) == 1 else None)
        axis.plot(steps, values, color=colour, label=line.label, marker=marker, linewidth=1.5)
        if line.chance is not None:
            label = f"chance ({line.chance:.3g})"
            axis.axhline(line.chance, color=colour, linestyle="--", linewidth=1, label=label)
    axis.set_title(panel.title, fontsize=12, pad=18)
    axis.text(
        0.5, 1.02, panel.meaning, transform=axis.transAxes, ha="center", fontsize=8, color="0.4"
    )
    axis.set_xlim(0, last_step * 1.02)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if panel.marker:
        axis.set_ylim(bottom=0)
    if any(line.label for line in panel.lines):
        axis.legend(fontsize=8)
