"""Finds the metadata entries that occur in captions, by the rule of MetaCLIP.

An entry matches a caption if it is a substring of it, case-sensitively, after both have been
prepared: see `folded` and `bordered`. Overlapping occurrences all count; each entry counts once per
caption (arXiv 2309.16671, section 3; arXiv 2507.22062 for the borders by script).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from dinotxt_jax.errors import UserError

# In a caption, each of these stands between two blanks; each space character is one blank.
_SEPARATED = ",.;:?!`"
_SPACES = "\t\n\r"
# Captions that are searched together, and the byte between them, which no text in UTF-8 has.
_TOGETHER, _BETWEEN = 256, b"\xff"
PUNCTUATION = frozenset(string.punctuation + "，。、；：？！“”‘’（）【】《》〈〉「」『』～—")
# Unicode blocks of scripts that put no blanks between words: first and last code point.
_UNSPACED = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # CJK and Kangxi radicals
    (0x2FF0, 0x2FFF),  # ideographic description characters
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0x9FFF),  # CJK unified ideographs
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0x20000, 0x2A6DF),  # CJK extension B
    (0x2A700, 0x2EBEF),  # CJK extensions C to F
)


def is_unspaced(character: str) -> bool:
    """Returns whether a character belongs to a script that puts no blanks between words."""
    code = ord(character)
    return code >= _UNSPACED[0][0] and any(first <= code <= last for first, last in _UNSPACED)


def is_only_punctuation(text: str) -> bool:
    """Returns whether a text has no character besides punctuation and blanks."""
    return all(character in PUNCTUATION or character.isspace() for character in text)


def folded(caption: str) -> str:
    """Returns a caption as it is searched.

    Each tab and line break becomes a blank, each of , . ; : ? ! ` gets a blank on both sides, and
    so do the ends of the caption. Runs of blanks stay: "a, b" becomes " a ,  b ".
    """
    # Ten calls take a tenth of the time of `str.translate` with replacements of several characters.
    for space in _SPACES:
        caption = caption.replace(space, " ")
    for sign in _SEPARATED:
        caption = caption.replace(sign, f" {sign} ")
    return f" {caption} "


def bordered(entry: str) -> str:
    """Returns an entry as it is searched for.

    A side gets a blank, so that words match as a whole, unless it is punctuation or belongs to a
    script without blanks (Chinese characters, Thai, Lao, Burmese, Khmer, Tibetan).
    """
    first, last = ("" if _has_border(entry[side]) else " " for side in (0, -1))
    return f"{first}{entry}{last}"


def _has_border(character: str) -> bool:
    return character in PUNCTUATION or is_unspaced(character)


class Matches(NamedTuple):
    """The matched entries of each caption, in compressed rows.

    Attributes:
        ends: where the entries of each caption end; they begin where those before end.
        entries: IDs of entries, ascending within a caption and without repetition.
    """

    ends: Int64[np.ndarray, " n"]
    entries: Int32[np.ndarray, " m"]

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Number of matched entries of each caption."""
        return np.diff(self.ends, prepend=0)

    def of(self, row: int) -> list[int]:
        """Returns the entries of a caption."""
        start = int(self.ends[row - 1]) if row else 0
        return [int(entry) for entry in self.entries[start : self.ends[row]]]


def joined_matches(parts: Iterable[Matches]) -> Matches:
    """Joins the matches of several groups of captions."""
    parts = [Matches(np.zeros(0, np.int64), np.zeros(0, np.int32)), *parts]
    sizes = [len(part.entries) for part in parts]
    starts = itertools.accumulate(sizes[:-1], initial=0)
    ends = [part.ends + start for part, start in zip(parts, starts, strict=True)]
    return Matches(np.concatenate(ends), np.concatenate([part.entries for part in parts]))


class EntryMatcher:
    """Finds entries in captions with one automaton (Aho and Corasick, 1975).

    Time per caption does not depend on the number of entries; 500,000 entries take 49 to 70 MB.

    Args:
        entries: entries without repetition; the position of an entry is its ID.

    Raises:
        UserError: the extra `curation` is not installed, or an entry is blank.
    """

    def __init__(self, entries: Sequence[str]):
        try:
            import ahocorasick_rs
        except ImportError as error:
            raise UserError(
                "matching captions needs ahocorasick_rs, which is not installed; run pip install "
                "'dinotxt_jax[curation]'."
            ) from error
        for number, entry in enumerate(entries, 1):
            if not entry.strip():
                raise UserError(
                    f"entry {number} of the metadata is {entry!r}, expected a text that is not "
                    "blank; remove it."
                )
        self._entries = max(len(entries), 1)
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            [_encoded(bordered(entry)) for entry in entries],
            # The noncontiguous one, which is the default for many patterns, takes twice the time.
            implementation=ahocorasick_rs.Implementation.ContiguousNFA,
        )

    def match(self, captions: Iterable[str]) -> Matches:
        """Returns the entries in each caption.

        Raises:
            UserError: a caption is not a text.
        """
        texts = [_encoded(_searched(caption, n)) for n, caption in enumerate(captions, 1)]
        return joined_matches(
            self._match(texts[start : start + _TOGETHER])
            for start in range(0, len(texts), _TOGETHER)
        )

    def _match(self, texts: list[bytes]) -> Matches:
        """Searches texts as one, which is faster than a call for each."""
        with _without_garbage_collection():
            occurrences = self._automaton.find_matches_as_indexes(
                _BETWEEN.join(texts), overlapping=True
            )
            numbers = itertools.chain.from_iterable(occurrences)
            found = np.fromiter(numbers, np.int64, 3 * len(occurrences)).reshape(-1, 3)
            del occurrences
        ends = np.cumsum([len(text) + len(_BETWEEN) for text in texts])
        rows = np.searchsorted(ends, found[:, 1], "right")
        # Sorted by caption, then by entry, without repetition.
        rows, entries = np.divmod(np.unique(rows * self._entries + found[:, 0]), self._entries)
        lengths = np.bincount(rows, minlength=len(texts))
        return Matches(np.cumsum(lengths), entries.astype(np.int32))


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for cycles, of which a list of tuples of numbers has none.

    The many new tuples would set it off again and again, which doubles the time of a search.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _searched(caption: str, number: int) -> str:
    """Returns a folded caption.

    Raises:
        UserError: it is not a text.
    """
    if not isinstance(caption, str):
        raise UserError(
            f"caption {number} is of type {type(caption).__name__}, expected a text; correct or "
            "remove it."
        )
    return folded(caption)


def _encoded(text: str) -> bytes:
    # Captions from the web contain halves of surrogate pairs, which strict UTF-8 refuses.
    return text.encode("utf-8", "surrogatepass")
