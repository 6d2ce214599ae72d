"""Pictures: training curves, and retrieval sheets.

matplotlib comes with the extra `[plots]`; only `training_curves` needs it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dinotxt_jax.errors import UserError

_INK, _RIGHT, _FAINT = (32, 32, 36), (20, 120, 60), (120, 120, 128)

_TITLES = {
    "loss": "loss",
    "logit_scale": "logit scale (logarithm)",
    "learning_rate": "learning rate",
    "pairs_per_second": "pairs per second",
}

Caption = tuple[str, float, bool]


def retrieval_sheet(
    entries: Sequence[tuple[UInt8[np.ndarray, "h w 3"], Sequence[Caption]]],
    path: Path,
    tile: int = 160,
) -> None:
    """Draws images, each beside the captions found for it, best first.

    Args:
        entries: (image, [(caption, cosine similarity, whether it belongs to the image), ...]).
        path: the PNG to write.
        tile: side of an image on the sheet, pixels.
    """
    columns = 2 if len(entries) > 4 else 1
    rows = -(-len(entries) // columns)
    cell = (tile + 460, tile + 20)
    sheet = Image.new("RGB", (columns * cell[0] + 20, rows * cell[1] + 44), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for number, (pixels, captions) in enumerate(entries):
        left = 20 + number % columns * cell[0]
        top = 20 + number // columns * cell[1]
        sheet.paste(
            Image.fromarray(pixels).resize((tile, tile), Image.Resampling.LANCZOS), (left, top)
        )
        y = top
        for text, similarity, own in captions:
            colour = _RIGHT if own else _INK
            draw.text((left + tile + 12, y), f"{similarity:.2f}", _FAINT, font)
            for line in textwrap.wrap(text, 46, max_lines=3, placeholder=" ..."):
                draw.text((left + tile + 70, y), line, colour, font)
                y += 18
            y += 6
    legend = "cosine similarity and caption, best first; green: the image's own caption"
    draw.text((20, sheet.height - 30), legend, _FAINT, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


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
