"""Draws bars for the memory and time that plans need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinotxt_jax.errors import UserError
from dinotxt_jax.planning.estimates import Plan
from dinotxt_jax.runtime.chips import GIB

_PARTS = ("frozen", "trainable", "optimizer", "batch", "temporaries", "program", "outputs")
# Smaller fractions of the memory are left out, because their bars would be invisible.
_SEEN = 1e-3
_RESOURCES = ("compute", "hbm", "ici", "dcn")


def check_drawing() -> None:
    """Raises `UserError` if matplotlib (in the extra `[plots]`) is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "drawing plan.png needs matplotlib, which is not installed; run pip install "
            "matplotlib, or omit --output."
        ) from error


def draw(plans: Sequence[Plan], path: Path) -> None:
    """Draws two panels: memory per device with the limit, and time per resource.

    Args:
        plans: the plans, with a row of bars each.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.0 + 0.7 * len(plans)), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = range(len(plans))
    start = [0.0] * len(plans)
    for part in _PARTS:
        widths = [memory_by_part(plan).get(part, 0.0) / GIB for plan in plans]
        if any(
            width > _SEEN * plan.memory.limit / GIB
            for width, plan in zip(widths, plans, strict=True)
        ):
            left.barh(rows, widths, left=start, label=part)
            start = [left_end + width for left_end, width in zip(start, widths, strict=True)]
    for row, plan in zip(rows, plans, strict=True):
        limit = plan.memory.limit / GIB
        left.plot([limit, limit], [row - 0.45, row + 0.45], color="black", linewidth=2)
    left.set_xlabel("GiB per device (line: available)")
    height = 0.8 / len(_RESOURCES)
    for number, resource in enumerate(_RESOURCES):
        times = [1e3 * plan.seconds.get(resource, 0.0) for plan in plans]
        if any(times):
            bar_rows = [row - 0.3 + number * height for row in rows]
            right.barh(bar_rows, times, height=height, label=resource)
    right.set_xlabel("ms per step at peak rates, independently (estimated)")
    for axis in (left, right):
        axis.set_yticks(rows, [plan.target.name for plan in plans])
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    figure.savefig(path, dpi=120)


def memory_by_part(plan: Plan) -> dict[str, float]:
    """Returns bytes per device by part; if the step did not fit, the excess is temporaries."""
    memory, parts = plan.memory, dict(plan.parts)
    if memory.refused:
        return parts | {"temporaries": max(memory.refused - sum(parts.values()), 0.0)}
    # The compiler pads arguments; count the padding in the largest part.
    largest = max(parts, key=lambda name: parts[name])
    parts[largest] += memory.arguments - sum(parts.values())
    return parts | {
        "temporaries": memory.temporaries,
        "program": memory.code,
        "outputs": memory.outputs,
    }
