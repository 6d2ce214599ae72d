"""Finds a font that has the characters of a text.

Pillow's own font has little beyond ASCII. A text is drawn with the first font that has all of its
characters: a file that the environment variable DINOTXT_FONT names, Pillow's own font, then the
fonts in the usual folders of the system and those that come with matplotlib (DejaVu).
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
_OWN = ""  # stands for Pillow's own font, which is no file
# Styles that are taken only where no plain font has the characters.
_STYLES = (
    *("bold", "italic", "oblique", "mono", "serif", "condensed", "narrow", "light", "thin"),
    *("black", "heavy", "medium", "display", "math", "emoji", "symbol"),
)
_NO_CHARACTER = "\U0010ffff"  # every font draws it as a missing character
_PROBE_SIZE = 24
_REGULAR = b"Regular"  # of variable fonts, of which some are thin unless told otherwise


def font_of(size: int, text: str) -> ImageFont.FreeTypeFont:
    """The font for a text: the first that has all of its characters, or the most of them."""
    file, _ = _choose(text)
    font = _loaded(file, size)
    assert font is not None  # a chosen file is one that could be loaded
    return font


def missing(text: str) -> frozenset[str]:
    """The characters of a text that `font_of` has no glyph for."""
    return _choose(text)[1]


def can_shape(text: str) -> bool:
    """Whether the letters of a text can be put in order and joined.

    Scripts that are written from right to left, and those whose vowel signs change places, need
    the library Raqm.
    """
    needs_raqm = any(
        unicodedata.bidirectional(sign) in ("R", "AL") or unicodedata.category(sign) == "Mc"
        for sign in text
    )
    return not needs_raqm or _has_raqm()


def warn_once(text: str) -> None:
    """Logs what to install so that a text can be drawn, for the first text with this reason."""
    advice = (
        "install fonts that have the characters (Debian, Ubuntu: apt install fonts-noto-core "
        f"fonts-noto-cjk), or name a font file in {VARIABLE}."
        if can_shape(text)
        else "install the library FriBiDi (Debian, Ubuntu: apt install libfribidi0), which Pillow "
        "needs for this script."
    )
    if advice not in _given_advice:
        _given_advice.add(advice)
        logging.warning("pictures cannot show the text %r; %s", text[:60], advice)


_given_advice: set[str] = set()


@functools.cache
def _has_raqm() -> bool:
    return bool(features.check("raqm"))


def _choose(text: str) -> tuple[str, frozenset[str]]:
    return _chosen(frozenset(text), os.environ.get(VARIABLE, ""), tuple(_folders()))


@functools.lru_cache(maxsize=4096)
def _chosen(
    signs: frozenset[str], named: str, folders: tuple[Path, ...]
) -> tuple[str, frozenset[str]]:
    """The file of the font for these characters, and those that the font has not.

    Args:
        signs: the characters.
        named: the value of DINOTXT_FONT.
        folders: searched for font files.
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
    """The files that DINOTXT_FONT names; those that are no fonts are logged and passed over."""
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
    """The usual folders of fonts, and that of matplotlib, which is not imported for it."""
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
    """Font files below some folders; plain sans-serif fonts come first."""
    files = [
        Path(folder) / name
        for top in folders
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith(_ENDINGS) and "lastresort" not in name.lower()
    ]
    return tuple(map(str, sorted(files, key=_preference)))


def _preference(file: Path) -> tuple[int, bool, str, str]:
    # "sansserif" is no style, and neither is the "serif" of it.
    name = file.stem.lower().replace("sansserif", "sans").replace("sans-serif", "sans")
    return sum(style in name for style in _STYLES), "sans" not in name, name, str(file)


@functools.lru_cache(maxsize=256)
def _loaded(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    """A font, or None for a file that is none or has no outlines."""
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
    """Whether a font has a glyph for a character: it is not drawn as a missing one is."""
    font = _loaded(file, _PROBE_SIZE)
    if font is None:
        return False
    return sign == " " or _shape(font, sign) != _shape(font, _NO_CHARACTER)


def _shape(font: ImageFont.FreeTypeFont, sign: str) -> tuple[tuple[int, int], bytes]:
    # Raqm would compose an accented letter of two glyphs, often badly, where the font has none.
    basic = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    mask = basic.getmask(sign)
    return mask.size, bytes(mask)
