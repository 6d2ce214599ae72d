"""Text on pictures: names and captions as lines that can be drawn, cut or wrapped to fit."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable

from dinotxt_jax.visualize.fonts import can_shape, font_of, missing, warn_once

_ELLIPSIS = "…"
_NOT_DRAWN = "[…]"  # stands for letters that no font has
# What may stand for letters and signs that no font has.
_REPLACED = str.maketrans(
    {"–": "-", "—": "-", "ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "ł": "l"}
)
_JOINERS = "\u200c\u200d"  # they decide how letters of some scripts are joined


def one_line(text: object, otherwise: str) -> str:
    """A text as one line that can be drawn.

    White space of every kind becomes single blanks. Where no font has all of the characters,
    accents and symbols without a glyph are left out and other letters become "[…]", and a warning
    says what to install.

    Args:
        text: a name or a caption.
        otherwise: stands for a text without a letter or digit, and, followed by "(no font)", for a
            text of which no letter or digit can be drawn.
    """
    line = _visible(str(text))
    if not any(map(str.isalnum, line)):
        return otherwise
    if not can_shape(line):
        warn_once(line)
        return f"{otherwise} (no font)"
    if not missing(line):
        return line
    plain = _visible("".join(_plain(sign) for sign in line))
    absent = missing(plain)
    if absent:
        warn_once(line)
        plain = _without(plain, absent)
    left = plain.replace(_NOT_DRAWN, "")
    return plain if any(map(str.isalnum, left)) else f"{otherwise} (no font)"


def _visible(text: str) -> str:
    """A text without control characters and lone surrogates, on one line."""
    signs = unicodedata.normalize("NFC", " ".join(text.split()))
    kept = [
        sign
        for sign in signs
        if unicodedata.category(sign) not in ("Cc", "Cf", "Cs") or sign in _JOINERS
    ]
    return " ".join("".join(kept).split())


def _plain(sign: str) -> str:
    """A character that a font has, or what stands for it: without accents; nothing for symbols."""
    if not missing(sign):
        return sign
    parts = unicodedata.normalize("NFKD", sign.translate(_REPLACED))
    bare = "".join(part for part in parts if unicodedata.category(part) not in ("Mn", "Me"))
    if not missing(bare):
        return bare
    return sign if sign.isalnum() or unicodedata.category(sign) == "Mc" else ""


def _without(line: str, absent: frozenset[str]) -> str:
    """A line in which "[…]" stands for every run of absent characters."""
    runs = itertools.groupby(line, absent.__contains__)
    return "".join(_NOT_DRAWN if gone else "".join(run) for gone, run in runs)


def width_of(line: str, size: int) -> float:
    """The width of a line in pixels, in the font that it is drawn with."""
    return font_of(size, line).getlength(line)


def fitted(line: str, size: int, width: float) -> str:
    """A line cut so that it is at most so many pixels wide, with an ellipsis where it is cut.

    Args:
        line: the text.
        size: of the font, pixels.
        width: pixels.
    """
    if len(line) <= _LONGEST and width_of(line, size) <= width:
        return line
    # By halves: a name may be a million characters long.
    low, high = 0, min(len(line), int(width) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if width_of(line[:middle].rstrip() + _ELLIPSIS, size) <= width:
            low = middle
        else:
            high = middle - 1
    return line[:low].rstrip() + _ELLIPSIS


_LONGEST = 20_000  # characters: no picture is as wide, and fonts refuse texts that are much longer


def wrapped(text: str, size: int, width: float, most: int) -> list[str]:
    """A text in at most so many lines of a width; the last one is cut.

    Lines end between words, or within one that is wider than a line (Chinese and Japanese have no
    blanks).
    """
    lines: list[str] = []
    rest = text
    while rest and len(lines) < most - 1:
        whole = fitted(rest, size, width)
        if whole == rest:
            break
        end = len(whole) - len(_ELLIPSIS)
        blank = rest.rfind(" ", 0, end + 1)
        end = blank if blank > 0 else max(end, 1)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    last = fitted(rest, size, width)
    if last != rest and " " in last:
        last = f"{last.rpartition(' ')[0]} {_ELLIPSIS}"
    return [*lines, last] if rest else lines


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
