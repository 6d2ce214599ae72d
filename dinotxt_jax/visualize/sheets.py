"""Retrieval sheets: images next to the captions that a model finds most similar."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from dinotxt_jax.visualize.colours import FAINT, INK, MISSED, RIGHT, Colour
from dinotxt_jax.visualize.page import MARGIN, PAGE, write
from dinotxt_jax.visualize.text import fitted, one_line, wrapped

_TEXT = 20  # font height, pixels
_LINE = 26  # distance from one line to the next, pixels
_BETWEEN = 8  # space between captions, pixels
_LABEL = 72  # width of the column for similarities and ranks, pixels
_LINES = 3  # most lines per caption


@dataclasses.dataclass(frozen=True)
class RetrievedCaptions:
    """An image and the captions that a model finds for it.

    Attributes:
        pixels: the image.
        captions: the most similar captions, best first: text, cosine similarity, and whether the
            caption belongs to the image.
        missed: if none of `captions` belongs to the image, the most similar caption that does:
            text, cosine similarity, and rank among all captions (1 for the first).
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    captions: Sequence[tuple[str, float, bool]]
    missed: tuple[str, float, int] | None = None


def retrieval_sheet(
    entries: Sequence[RetrievedCaptions],
    path: Path,
    *,
    captions: int,
    title: str = "",
    tile: int = 240,
) -> None:
    """Draws images, each next to its most similar captions.

    Args:
        entries: the images and their captions.
        path: the PNG to write.
        captions: number of captions that were compared with each image.
        title: model and data.
        tile: image side on the sheet, pixels.
    """
    columns = 2 if len(entries) > 4 else 1
    width = (PAGE - (columns - 1) * MARGIN) // columns
    cells = [_cell(entry, width, tile, captions) for entry in entries]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    top = MARGIN + (2 * _LINE if title else 0)
    bottom = top + sum(height + MARGIN for height in heights)
    sheet = Image.new("RGB", (PAGE + 2 * MARGIN, bottom + 2 * _LINE + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        heading = fitted(one_line(title, "retrieval"), _TEXT * 4 // 3, PAGE)
        write(draw, (MARGIN, MARGIN + _LINE), heading, INK, _TEXT * 4 // 3)
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + column * (width + MARGIN), top))
        top += height + MARGIN
    notes = (
        f"Next to each image: the most similar of all {captions} captions, best first, with their "
        "cosine similarities.",
        "Green captions belong to the image. If none is green, the most similar caption of the "
        "image follows in red.",
    )
    for number, note in enumerate(notes):
        place = (MARGIN, bottom + (number + 1) * _LINE)
        write(draw, place, fitted(note, _TEXT, PAGE), FAINT, _TEXT)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _cell(entry: RetrievedCaptions, width: int, tile: int, captions: int) -> Image.Image:
    """Draws one image next to the captions for it."""
    left = tile + _TEXT
    lines: list[tuple[int, int, str, Colour]] = []  # left, baseline, text, colour
    y = _TEXT

    def add(text: str, similarity: float, colour: Colour) -> None:
        nonlocal y
        lines.append((left, y, f"{similarity:.2f}", FAINT))
        for part in wrapped(one_line(text, "caption"), _TEXT, width - left - _LABEL, _LINES):
            lines.append((left + _LABEL, y, part, colour))
            y += _LINE
        y += _BETWEEN

    for text, similarity, belongs in entry.captions:
        add(text, similarity, RIGHT if belongs else INK)
    if entry.missed is not None:
        text, similarity, rank = entry.missed
        lines.append((left, y, f"the image's own caption has rank {rank} of {captions}:", MISSED))
        y += _LINE
        add(text, similarity, MISSED)
    cell = Image.new("RGB", (width, max(tile, y - _BETWEEN - _TEXT + _LINE // 4)), "white")
    square = Image.fromarray(entry.pixels).resize((tile, tile), Image.Resampling.LANCZOS)
    cell.paste(square, (0, 0))
    draw = ImageDraw.Draw(cell)
    for x, baseline, text, colour in lines:
        write(draw, (x, baseline), text, colour, _TEXT)
    return cell
