"""Sample sheets: images with their captions, as they enter the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from dinotxt_jax.visualize.colours import INK
from dinotxt_jax.visualize.page import PAGE, Tile, grid, line, page_of, panel_side, sized, write
from dinotxt_jax.visualize.text import one_line, wrapped

_COLUMNS = 4
_TEXT = 20  # font height, pixels
_LINE = 26  # distance from one line to the next, pixels
_LINES = 5  # most lines per caption


def samples_sheet(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], captions: Sequence[str], title: str = ""
) -> Image.Image:
    """Draws images in a grid, each above its caption.

    Args:
        images: the images.
        captions: a caption for each image; the part that does not fit into five lines is cut.
        title: heading of the sheet.
    """
    side = panel_side(_COLUMNS)
    tiles = [
        Tile(_cell(pixels, caption, side)) for pixels, caption in zip(images, captions, strict=True)
    ]
    heading = [line(one_line(title, "samples"), PAGE)] if title else []
    return page_of([*heading, grid(tiles, _COLUMNS)])


def _cell(pixels: UInt8[np.ndarray, "h w 3"], caption: str, side: int) -> Image.Image:
    photo = sized(Image.fromarray(pixels), side)
    texts = wrapped(one_line(caption, "(no text)"), _TEXT, side, _LINES)
    cell = Image.new("RGB", (side, photo.height + _LINE * (_LINES + 1) // 2 * 2), "white")
    cell.paste(photo, (0, 0))
    draw = ImageDraw.Draw(cell)
    for number, text in enumerate(texts, start=1):
        write(draw, (0, photo.height + number * _LINE), text, INK, _TEXT)
    return cell
