"""Retrieval sheets: images beside the captions found for them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from dinotxt_jax.visualize.colours import FAINT, INK, RIGHT
from dinotxt_jax.visualize.text import font_of

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
    font = font_of(15)
    for number, (pixels, captions) in enumerate(entries):
        left = 20 + number % columns * cell[0]
        top = 20 + number // columns * cell[1]
        sheet.paste(
            Image.fromarray(pixels).resize((tile, tile), Image.Resampling.LANCZOS), (left, top)
        )
        y = top
        for text, similarity, own in captions:
            colour = RIGHT if own else INK
            draw.text((left + tile + 12, y), f"{similarity:.2f}", FAINT, font)
            for line in textwrap.wrap(text, 46, max_lines=3, placeholder=" ..."):
                draw.text((left + tile + 70, y), line, colour, font)
                y += 18
            y += 6
    legend = "cosine similarity and caption, best first; green: the image's own caption"
    draw.text((20, sheet.height - 30), legend, FAINT, font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
