"""Finds a font that has all characters of a text.

Pillow's default font has little beyond ASCII. A text is drawn with the first font that has all
characters, in this order: files that the environment variable DINOTXT_FONT names, Pillow's default
font, then fonts in the usual system folders and the fonts that come with matplotlib (DejaVu).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from absl import logging
from PIL import ImageFont, features

VARIABLE = "DINOTXT_FONT"
_ENDINGS = (".ttf", ".otf", ".ttc")
_OWN = ""  # stands for Pillow's default font, which is not a file
# Styles that are used only if no plain font has the characters.
_STYLES = (
    *("bold", "italic", "oblique", "mono", "serif", "condensed", "narrow", "light", "thin"),
    *("black", "heavy", "medium", "display", "math", "emoji", "symbol"),
)
_NO_CHARACTER = "\U0010ffff"  # every font draws it as a missing character
_PROBE_SIZE = 24
_REGULAR = b"Regular"  # variation name; some variable fonts are thin by default


def font_of(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Returns the first font that has all characters in a text, or else the most characters."""
    file, _ = _choose(text)
    font = _loaded(file, size)
    assert font is not None  # only files that could be loaded are chosen
    return font


def missing(text: str) -> frozenset[str]:
    """Returns the characters of a text for which `font_of` has no glyph."""
    return _choose(text)[1]


def can_shape(text: str) -> bool:
    """Returns whether the letters in a text can be ordered and joined correctly.

    Right-to-left scripts and scripts with reordered vowel signs need the library Raqm.
    """
    needs_raqm = any(
        unicodedata.bidirectional(sign) in ("R", "AL") or unicodedata.category(sign) == "Mc"
        for sign in text
    )
    return not needs_raqm or _has_raqm()


def warn_once(text: str) -> None:
    """Logs how to make a text drawable, only for the first text with the same cause."""
    advice = (
        "install fonts that have the characters (Debian, Ubuntu: apt install fonts-noto-core "
        f"fonts-noto-cjk), or name a font file in {VARIABLE}."
        if can_shape(text)
        else "install the library FriBiDi (Debian, Ubuntu: apt install libfribidi0), which Pillow "
        "needs for this script."
    )
    if advice not in _logged_advice:
        _logged_advice.add(advice)
        logging.warning("pictures cannot show the text %r; %s", text[:60], advice)


_logged_advice: set[str] = set()


@functools.cache
def _has_raqm() -> bool:
    return bool(features.check("raqm"))


def _choose(text: str) -> tuple[str, frozenset[str]]:
    return _chosen(frozenset(text), os.environ.get(VARIABLE, ""), tuple(_folders()))


@functools.lru_cache(maxsize=4096)
def _chosen(
    signs: frozenset[str], named: str, folders: tuple[Path, ...]
) -> tuple[str, frozenset[str]]:
    """Returns the font file for these characters, and the characters that the font lacks.

    Args:
        signs: the characters.
        named: the DINOTXT_FONT value.
        folders: the folders to search for font files.
    """
    best: tuple[str, frozenset[str]] = (_OWN, signs)
    for file in _files(named, folders):
        absent = frozenset(sign for sign in signs if not _has(file, sign))
        if not absent:
            return file, absent
        if len(absent) < len(best[1]):
            best = file, absent
    return best


def _files(named: str, folders: tuple[Path, ...]) -> Iterator[str]:
    yield from _named_files(named)
    yield _OWN
    yield from _files_below(folders)


@functools.cache
def _named_files(setting: str) -> tuple[str, ...]:
    """Returns the files that DINOTXT_FONT names; warns about each file that is not a font."""
    files = tuple(file for file in setting.split(os.pathsep) if file)
    for file in files:
        if _loaded(file, _PROBE_SIZE) is None:
            logging.warning(
                "%s names %s, which cannot be read as a font; name a TrueType or OpenType file.",
                VARIABLE,
                file,
            )
    return files


def _folders() -> Iterator[Path]:
    """Yields the usual font folders and matplotlib's font folder, without importing matplotlib."""
    home = Path.home()
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        yield Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"
    if sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"))
    elif sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", str(home / "AppData/Local"))
        yield Path(local) / "Microsoft/Windows/Fonts"
        yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
    else:
        yield home / ".fonts"
        yield Path(os.environ.get("XDG_DATA_HOME", str(home / ".local/share"))) / "fonts"
        shared = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share")
        yield from (Path(folder) / "fonts" for folder in shared.split(":") if folder)


@functools.cache
def _files_below(folders: tuple[Path, ...]) -> tuple[str, ...]:
    """Returns the font files below the given folders; plain sans-serif fonts come first."""
    files = [
        Path(folder) / name
        for top in folders
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith(_ENDINGS) and "lastresort" not in name.lower()
    ]
    return tuple(map(str, sorted(files, key=_preference)))


def _preference(file: Path) -> tuple[int, bool, str, str]:
    # "sansserif" is not a style, and the "serif" in it must not count as one.
    name = file.stem.lower().replace("sansserif", "sans").replace("sans-serif", "sans")
    return sum(style in name for style in _STYLES), "sans" not in name, name, str(file)


@functools.lru_cache(maxsize=256)
def _loaded(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Loads a font; returns None if the file is not a font or has no outlines."""
    if file == _OWN:
        return ImageFont.load_default(size)  # type: ignore[return-value]
    try:
        font = ImageFont.truetype(file, size)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):  # raised by fonts that are not variable
        if _REGULAR in font.get_variation_names():
            font.set_variation_by_name(_REGULAR)
    return font


@functools.cache
def _has(file: str, sign: str) -> bool:
    """Returns whether a font has a glyph, that is, draws it unlike a missing character."""
    font = _loaded(file, _PROBE_SIZE)
    if font is None:
        return False
    return sign == " " or _shape(font, sign) != _shape(font, _NO_CHARACTER)


def _shape(font: ImageFont.FreeTypeFont, sign: str) -> tuple[tuple[int, int], bytes]:
    # If the font lacks an accented letter, Raqm would compose it from two glyphs, often badly.
    basic = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    mask = basic.getmask(sign)
    return mask.size, bytes(mask)
