"""White page layout: readable photo sizes, titled tiles in a grid, parts below each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from dinotxt_jax.errors import UserError
from dinotxt_jax.visualize.colours import FAINT, INK, Colour
from dinotxt_jax.visualize.fonts import font_of
from dinotxt_jax.visualize.text import fitted, width_of

PAGE = 1600  # approximate page width in pixels, suitable for a slide
MARGIN = 28
GAP = 20
TEXT = 24
_NARROWEST = 280  # least tile width in pixels, which leaves room for a title


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture with a title above it on the left and a note above it on the right."""

    picture: Image.Image
    title: str = ""
    note: str = ""


def sized(photo: Image.Image, side: int) -> Image.Image:
    """Resizes a photo so that the longer side has `side` pixels."""
    size = [max(round(length * side / max(photo.size)), 1) for length in photo.size]
    return photo.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def enlarged(
    values: Float[np.ndarray, "gh gw"],
    size: tuple[int, int],
    filter: Image.Resampling = Image.Resampling.BILINEAR,
) -> Float[np.ndarray, "h w"]:
    """Interpolates numbers on a grid to the picture size (width, height)."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, filter))


def panel_side(columns: int) -> int:
    """Returns the longer picture side, in pixels, for `columns` pictures per page width."""
    return max((PAGE - (columns - 1) * GAP) // columns, 160)


def checked_columns(columns: int, tiles: int) -> int:
    """Returns the number of tiles next to each other, at most the number of tiles.

    Raises:
        UserError: `columns` is less than 1.
    """
    if columns < 1:
        raise UserError(f"columns is {columns}, expected 1 or more; raise it.")
    return min(columns, tiles)


def grid(tiles: Sequence[Tile], columns: int) -> Image.Image:
    """Arranges tiles in rows without a margin; titles wider than the tile are cut."""
    cell = max(_NARROWEST, *(tile.picture.width for tile in tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heads = [TEXT * 3 // 2 if any(tile.title or tile.note for tile in row) else 0 for row in rows]
    heights = [
        head + max(tile.picture.height for tile in row)
        for head, row in zip(heads, rows, strict=True)
    ]
    page = Image.new(
        "RGB",
        (columns * (cell + GAP) - GAP, sum(heights) + (len(rows) - 1) * GAP),
        "white",
    )
    draw = ImageDraw.Draw(page)
    top = 0
    for row, head, height in zip(rows, heads, heights, strict=True):
        for number, tile in enumerate(row):
            left = number * (cell + GAP)
            room = max(tile.picture.width, _NARROWEST)
            if tile.note:
                write(draw, (left + room, top + TEXT), tile.note, FAINT, anchor="rs")
                room -= round(width_of(tile.note, TEXT)) + TEXT // 2
            write(draw, (left, top + TEXT), fitted(tile.title, TEXT, room))
            page.paste(tile.picture, (left, top + head))
        top += height + GAP
    return page


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    colour: Colour = INK,
    size: int = TEXT,
    *,
    anchor: str = "ls",
) -> None:
    """Writes a line in a font that has all characters of `text`; `place` is on the baseline."""
    draw.text(place, text, colour, font_of(size, text), anchor=anchor)


def line(text: str, width: int, size: int = TEXT, colour: Colour = INK) -> Image.Image:
    """Draws one text line, cut at `width` pixels."""
    fitted_text = fitted(text, size, width)
    strip = Image.new("RGB", (max(round(width_of(fitted_text, size)), 1), size * 5 // 4), "white")
    write(ImageDraw.Draw(strip), (0, size), fitted_text, colour, size)
    return strip


def page_of(parts: Sequence[Image.Image], gap: int = GAP, *, beside: bool = False) -> Image.Image:
    """Places parts below (or next to) each other on a white page with a margin."""
    widths, heights = ([part.size[axis] for part in parts] for axis in (0, 1))
    between = gap * (len(parts) - 1)
    size = (
        (sum(widths) + between, max(heights)) if beside else (max(widths), sum(heights) + between)
    )
    page = Image.new("RGB", (size[0] + 2 * MARGIN, size[1] + 2 * MARGIN), "white")
    place = MARGIN
    for part in parts:
        page.paste(part, (place, MARGIN) if beside else (MARGIN, place))
        place += gap + part.size[0 if beside else 1]
    return page
