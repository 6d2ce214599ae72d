"""Text on pictures: turns names and captions into drawable lines, cut or wrapped to fit."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable

from dinotxt_jax.visualize.fonts import can_shape, font_of, missing, warn_once

_ELLIPSIS = "…"
_NOT_DRAWN = "[…]"  # replaces letters that no font has
# Replacements for letters and signs that no font has.
_REPLACED = str.maketrans(
    {"–": "-", "—": "-", "ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "ł": "l"}
)
_JOINERS = "\u200c\u200d"  # they control how letters are joined in some scripts


def one_line(text: object, otherwise: str) -> str:
    """Converts a text to one line that can be drawn.

    Any white space becomes single blanks. If no font has all characters, accents and symbols
    without a glyph are removed, other letters become "[…]", and a warning names the fonts or
    libraries to install.

    Args:
        text: a name or a caption.
        otherwise: replacement for a text without a letter or digit. Followed by "(no font)", it
            also replaces a text in which no letter or digit can be drawn.
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
    drawable = plain.replace(_NOT_DRAWN, "")
    return plain if any(map(str.isalnum, drawable)) else f"{otherwise} (no font)"


def _visible(text: str) -> str:
    """Returns a text on one line, without control characters and lone surrogates."""
    signs = unicodedata.normalize("NFC", " ".join(text.split()))
    visible = [
        sign
        for sign in signs
        if unicodedata.category(sign) not in ("Cc", "Cf", "Cs") or sign in _JOINERS
    ]
    return " ".join("".join(visible).split())


def _plain(sign: str) -> str:
    """Returns a character, without accents if no font has it; drops symbols that no font has."""
    if not missing(sign):
        return sign
    parts = unicodedata.normalize("NFKD", sign.translate(_REPLACED))
    bare = "".join(part for part in parts if unicodedata.category(part) not in ("Mn", "Me"))
    if not missing(bare):
        return bare
    return sign if sign.isalnum() or unicodedata.category(sign) == "Mc" else ""


def _without(line: str, absent: frozenset[str]) -> str:
    """Replaces every run of absent characters in a line by "[…]"."""
    runs = itertools.groupby(line, absent.__contains__)
    return "".join(_NOT_DRAWN if gone else "".join(run) for gone, run in runs)


def width_of(line: str, size: int) -> float:
    """Returns the line width in pixels, in the font that `font_of` chooses."""
    return font_of(size, line).getlength(line)


def fitted(line: str, size: int, width: float) -> str:
    """Cuts a line to at most `width` pixels; a cut line ends in an ellipsis.

    Args:
        line: the text.
        size: font size, pixels.
        width: largest line width, pixels.
    """
    if len(line) <= _LONGEST and width_of(line, size) <= width:
        return line
    # Binary search for the cut, because a name may be a million characters long.
    low, high = 0, min(len(line), int(width) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if width_of(line[:middle].rstrip() + _ELLIPSIS, size) <= width:
            low = middle
        else:
            high = middle - 1
    return line[:low].rstrip() + _ELLIPSIS


_LONGEST = 20_000  # characters; no picture is this wide, and fonts reject much longer texts


def wrapped(text: str, size: int, width: float, most: int) -> list[str]:
    """Wraps a text into at most `most` lines of the given width; the last line is cut.

    Lines end between words, or within a word that is wider than a line (Chinese and Japanese have
    no blanks).
    """
    lines: list[str] = []
    remaining = text
    while remaining and len(lines) < most - 1:
        whole = fitted(remaining, size, width)
        if whole == remaining:
            break
        end = len(whole) - len(_ELLIPSIS)
        blank = remaining.rfind(" ", 0, end + 1)
        end = blank if blank > 0 else max(end, 1)
        lines.append(remaining[:end].rstrip())
        remaining = remaining[end:].lstrip()
    last = fitted(remaining, size, width)
    if last != remaining and " " in last:
        last = f"{last.rpartition(' ')[0]} {_ELLIPSIS}"
    return [*lines, last] if remaining else lines


def percent(share: float) -> str:
    """Formats a share from 0 to 1, such as "12.3%"; a non-zero share is never shown as zero."""
    if share == 0:
        return "0%"
    return "<0.1%" if share < 0.0005 else f"{100 * share:.1f}%"


def numbers_between(low: float, high: float) -> Callable[[float], str]:
    """Returns a number format for a `low` to `high` scale that resolves a quarter of the range."""
    step = (high - low) / 4 or abs(high)
    largest = max(abs(low), abs(high))
    if largest and not 1e-4 <= largest < 1e6:
        return "{:.3g}".format
    digits = 1 - math.floor(round(math.log10(step), 5)) if step else 0
    return f"{{:.{min(max(digits, 0), 9)}f}}".format
