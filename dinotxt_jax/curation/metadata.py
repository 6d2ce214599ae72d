"""Metadata: a folder with one text file of entries per language, and their recipe.

    LANGUAGE.txt    one entry per line, UTF-8
    recipe.json     settings, sources, and the number of entries from each; written last

A single text file with one entry per line serves as well: a list that somebody else has made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from dinotxt_jax.curation.matching import is_only_punctuation
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike, to_address
from dinotxt_jax.storage.files import read_json, write_text
from dinotxt_jax.storage.retries import retried

RECIPE = "recipe.json"
_FORMAT = "dinotxt_jax metadata 1"
# Longer entries are dropped (arXiv 2507.22062); they are lines of text rather than names.
LONGEST_ENTRY = 256


class Metadata(NamedTuple):
    """The entries of all languages.

    Attributes:
        languages: codes, in the order of the lists.
        lists: entries of each language; the ID of an entry counts through all lists.
    """

    languages: tuple[str, ...]
    lists: tuple[tuple[str, ...], ...]

    @property
    def entries(self) -> tuple[str, ...]:
        """All entries, by ID."""
        return tuple(entry for entries in self.lists for entry in entries)

    @property
    def starts(self) -> list[int]:
        """The ID of the first entry of each language, and the number of all entries."""
        starts = [0]
        for entries in self.lists:
            starts.append(starts[-1] + len(entries))
        return starts

    @property
    def fingerprint(self) -> str:
        """A hash over languages and entries."""
        return hashlib.sha256(json.dumps([self.languages, self.lists]).encode()).hexdigest()


def cleaned_entries(candidates: Mapping[str, list[str]], most: int) -> dict[str, list[str]]:
    """Returns the new entries of each source, in order.

    Blank entries, entries with punctuation only, entries longer than 256 characters and exact
    repetitions are left out. Line breaks and runs of blanks become one blank.

    Args:
        candidates: texts by source; earlier sources come first.
        most: maximum number of entries together.
    """
    known: set[str] = set()
    result: dict[str, list[str]] = {}
    for name, texts in candidates.items():
        result[name] = []
        for text in texts:
            entry = " ".join(text.split())
            is_entry = len(entry) <= LONGEST_ENTRY and not is_only_punctuation(entry)
            if is_entry and entry not in known and len(known) < most:
                known.add(entry)
                result[name].append(entry)
    return result


def write_metadata(
    folder: Address, lists: Mapping[str, Mapping[str, list[str]]], recipe: Mapping[str, Any]
) -> None:
    """Writes lists and their recipe.

    Args:
        folder: the folder, which is created or holds older metadata.
        lists: entries by source, for each language.
        recipe: settings and sources, as JSON values.
    """
    (folder / RECIPE).unlink(missing_ok=True)
    for language, sources in lists.items():
        entries = [entry for texts in sources.values() for entry in texts]
        write_text(folder / f"{language}.txt", "".join(f"{entry}\n" for entry in entries))
    numbers = {
        language: {name: len(entries) for name, entries in sources.items()}
        for language, sources in lists.items()
    }
    content = {"format": _FORMAT, "entries": numbers, **recipe}
    write_text(folder / RECIPE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_metadata(path: AddressLike) -> Metadata:
    """Reads a folder with lists, or a single list.

    Raises:
        UserError: there is none, it is unfinished or damaged, or a list has no entry, a repeated
            one, or one of punctuation only.
    """
    address = to_address(path)
    if retried(address.is_file):
        return Metadata((address.stem,), (_read_list(address),))
    if not retried((address / RECIPE).is_file):
        raise UserError(
            f"there is no metadata in {path}, expected a text file with one entry per line, or a "
            f"folder with {RECIPE}; write it with python -m dinotxt_jax.curate metadata "
            f"--output={path}."
        )
    cure = f"write it again with python -m dinotxt_jax.curate metadata --output={path}"
    recipe = read_json(address / RECIPE, "a recipe of metadata", cure)
    numbers = recipe.get("entries")
    if recipe.get("format") != _FORMAT or not isinstance(numbers, dict) or not numbers:
        raise UserError(f"{address / RECIPE} is no recipe of metadata ({_FORMAT}); {cure}.")
    lists = []
    for language, by_source in numbers.items():
        entries = _read_list(address / f"{language}.txt")
        if len(entries) != sum(by_source.values()):
            raise UserError(
                f"{address / language}.txt has {len(entries)} entries, expected "
                f"{sum(by_source.values())} as in {RECIPE}; {cure}, or give the file itself if you "
                "have changed it."
            )
        lists.append(entries)
    return Metadata(tuple(numbers), tuple(lists))


def _read_list(file: Address) -> tuple[str, ...]:
    try:
        text = retried(file.read_bytes).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"there is no file {file}, expected a list of entries; restore it."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    # `splitlines` would also split at characters that entries may contain.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    known: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if is_only_punctuation(line):
            raise UserError(
                f"{file}, line {number} is {line!r}, expected more than punctuation, which nearly "
                "every caption has; remove the line."
            )
        if line in known:
            raise UserError(
                f"{file}, line {number} repeats the entry {line[:60]!r} of line {known[line]}; "
                "remove one of them."
            )
        known[line] = number
    if not known:
        raise UserError(f"{file} has no entry, expected one per line; add entries.")
    return tuple(known)
