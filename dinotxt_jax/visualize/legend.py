"""Legends for class colours, and bars for colour scales."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from dinotxt_jax.visualize.colours import FAINT, HATCH, RULE, Colour, heat_colours
from dinotxt_jax.visualize.page import TEXT, write
from dinotxt_jax.visualize.text import fitted, numbers_between, width_of

LONGEST = 20
_CHIP, _SPACE, _LINE = TEXT, TEXT // 2, TEXT * 8 // 5
_COLUMN_SPACE = 2 * TEXT
_NAME = 14 * TEXT  # longer names are cut, so that one long name does not widen all columns
_TICKS = 5


@dataclasses.dataclass(frozen=True)
class Entry:
    """A legend line; without a colour, the chip is hatched."""

    name: str
    share: str
    colour: Colour | None


def draw_legend(entries: Sequence[Entry], width: int) -> Image.Image:
    """Draws chip, name and share for every entry, in as many columns as fit, read downwards.

    Entries after the first `LONGEST` are only counted.
    """
    more = f"... and {len(entries) - LONGEST} more" if len(entries) > LONGEST else ""
    entries = entries[:LONGEST]
    beside = 2 * _SPACE + _CHIP + max(width_of(entry.share, TEXT) for entry in entries)
    room = min(_NAME, max(width - beside, TEXT))
    names = [fitted(entry.name, TEXT, room) for entry in entries]
    cell = math.ceil(beside + max(width_of(text, TEXT) for text in [*names, more]))
    count = len(entries) + bool(more)
    columns = max((width + _COLUMN_SPACE) // (cell + _COLUMN_SPACE), 1)
    rows = -(-count // columns)
    columns = -(-count // rows)
    size = (columns * (cell + _COLUMN_SPACE) - _COLUMN_SPACE, rows * _LINE)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)

    def place(number: int) -> tuple[int, int]:
        return number // rows * (cell + _COLUMN_SPACE), number % rows * _LINE

    for number, (entry, name) in enumerate(zip(entries, names, strict=True)):
        left, top = place(number)
        picture.paste(_chip(entry.colour), (left, top + (_LINE - _CHIP) // 2))
        baseline = top + (_LINE + TEXT * 2 // 3) // 2
        left += _CHIP + _SPACE
        write(draw, (left, baseline), name)
        left += round(width_of(name, TEXT)) + _SPACE
        write(draw, (left, baseline), entry.share, FAINT)
    if more:
        left, top = place(len(entries))
        left += _CHIP + _SPACE
        write(draw, (left, top + (_LINE + TEXT * 2 // 3) // 2), more, FAINT)
    return picture


def _chip(colour: Colour | None) -> Image.Image:
    if colour is None:
        return Image.fromarray(hatched(_CHIP, _CHIP, 8))
    return Image.new("RGB", (_CHIP, _CHIP), colour)


def hatched(height: int, width: int, period: int) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a white image with diagonal lines, which marks pixels without a class."""
    lines = np.add.outer(np.arange(height), np.arange(width)) % period < max(period // 4, 1)
    return np.where(lines[..., None], HATCH, 255).astype(np.uint8)


def scale_bar(low: float, high: float, title: str, width: int) -> Image.Image:
    """Draws the heat map colours from `low` to `high`, with tick numbers and the title."""
    thick = TEXT * 2 // 3
    heading = TEXT * 3 // 2
    bar = Image.new("RGB", (width, heading + thick + TEXT * 3 // 2), "white")
    draw = ImageDraw.Draw(bar)
    write(draw, (0, TEXT), fitted(title, TEXT, width))
    written = numbers_between(low, high)
    if low == high:
        numbers = [written(low)]
        colours = np.zeros((thick, width))
    else:
        numbers = [written(float(number)) for number in np.linspace(low, high, _TICKS)]
        colours = np.broadcast_to(np.linspace(0, 1, width), (thick, width))
    bar.paste(Image.fromarray(heat_colours(colours)), (0, heading))
    bottom = heading + thick
    # Only the first and last number are drawn if all numbers would touch.
    if (
        max(width_of(text, TEXT) for text in numbers) * 1.3 * len(numbers) > width
        and len(numbers) > 1
    ):
        numbers = [numbers[0], *[""] * (len(numbers) - 2), numbers[-1]]
    for number, text in enumerate(numbers):
        share = number / max(len(numbers) - 1, 1)
        x = round(share * (width - 1))
        if text:
            draw.line((x, bottom, x, bottom + 5), RULE, 1)
        anchor = "ls" if number == 0 else "rs" if number == len(numbers) - 1 else "ms"
        write(draw, (x, bottom + TEXT + 4), text, FAINT, anchor=anchor)
    return bar
