"""Text on pictures: the font that comes with Pillow, and names made to fit."""

from __future__ import annotations

import functools
import math
import string
import unicodedata
from collections.abc import Callable

from PIL import ImageFont

_ELLIPSIS = "…"
# What Pillow's own font can draw: ASCII and a few signs.
_DRAWN = frozenset(string.printable) - set("\t\n\r\v\f") | set("‘’“”«»‹›°±©·™" + _ELLIPSIS)
_REPLACED = str.maketrans(
    {"–": "-", "—": "-", "ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "ł": "l"}
)


@functools.cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font; no file is read."""
    return ImageFont.load_default(size)  # type: ignore[return-value]


def one_line(text: object, otherwise: str) -> str:
    """A text as one line that the font can draw.

    White space of every kind becomes single blanks, accents are left out and what else the font
    does not have becomes "?"; `otherwise` stands for a text of which no letter or digit is left.
    """
    found = []
    for sign in " ".join(str(text).split()).translate(_REPLACED):
        if sign not in _DRAWN:
            parts = unicodedata.normalize("NFKD", sign)
            sign = "".join(part for part in parts if not _invisible(part))
            sign = sign if set(sign) <= _DRAWN else "?"
        found.append(sign)
    line = " ".join("".join(found).split())
    return line if any(sign.isalnum() for sign in line) else otherwise


def _invisible(sign: str) -> bool:
    """Combining marks, control characters, and those that only join or direct others."""
    return unicodedata.category(sign) in ("Mn", "Me", "Cc", "Cf")


def fitted(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A line cut so that it is at most so many pixels wide, with an ellipsis where it is cut."""
    if font.getlength(line) <= width:
        return line
    # By halves: a name may be a million characters long.
    low, high = 0, min(len(line), int(width) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(line[:middle].rstrip() + _ELLIPSIS) <= width:
            low = middle
        else:
            high = middle - 1
    return line[:low].rstrip() + _ELLIPSIS


def percent(share: float) -> str:
    """A share from 0 to 1, such as "12.3%"; what is not nothing does not look so."""
    if share == 0:
        return "0%"
    return "<0.1%" if share < 0.0005 else f"{100 * share:.1f}%"


def numbers_between(low: float, high: float) -> Callable[[float], str]:
    """Writes numbers of a scale from `low` to `high`, with digits enough for a quarter of it."""
    step = (high - low) / 4 or abs(high)
    largest = max(abs(low), abs(high))
    if largest and not 1e-4 <= largest < 1e6:
        return "{:.3g}".format
    digits = 1 - math.floor(round(math.log10(step), 5)) if step else 0
    return f"{{:.{min(max(digits, 0), 9)}f}}".format
