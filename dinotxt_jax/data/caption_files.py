"""Caption sets in JSON files as they were published: parsing that all formats share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinotxt_jax.data.examples import (
    Example,
    folder_of_images,
    image_bytes,
    nothing_left,
    shortened,
)
from dinotxt_jax.errors import UserError

_KINDS = {str: "a text", int: "a whole number", list: "a list"}


class CaptionFileSource:
    """Image files and their captions.

    Args:
        entries: path of each image relative to `root`, and its captions.
        root: the folder of the images.
    """

    def __init__(self, entries: Sequence[tuple[str, tuple[str, ...]]], root: Path) -> None:
        self._entries = entries
        self._root = root

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        name, captions = self._entries[index]
        return Example(image_bytes(self._root / name, name), captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._entries[index][1]


def caption_file_source(
    file: Path, image_root: str | Path, entries: Sequence[tuple[str, tuple[str, ...]]]
) -> CaptionFileSource:
    """The images of a caption file, whose paths are relative to `image_root` or to the file."""
    if not entries:
        raise nothing_left(file, "", set())
    return CaptionFileSource(entries, folder_of_images(file, image_root))


def parsed_json(file: Path) -> Any:
    """The content of a caption file.

    Raises:
        UserError: no such file, or not JSON.
    """
    if not file.is_file():
        raise UserError(
            f"{file} is not a file, expected one of captions; correct config.data.path."
        )
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not JSON ({error}), expected a caption file as it was published; get it "
            "again, or correct config.data.path."
        ) from error


def typed_field(holder: Any, key: str, kind: type, where: object) -> Any:
    """The value under `key` of a JSON object; a `UserError` unless it has the type `kind`."""
    if not isinstance(holder, Mapping):
        raise UserError(
            f"{where}: there is {shortened(holder)}, expected an object with {key}; correct the "
            "file, or config.data.source."
        )
    value = holder.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = shortened(value) if key in holder else "missing"
        raise UserError(
            f"{where}: the field {key} is {found}, expected {_KINDS[kind]}; correct the file, or "
            "config.data.source."
        )
    return value


def filled_text(holder: Any, key: str, where: object) -> str:
    """The text under `key` of a JSON object; a `UserError` if it is empty."""
    text = typed_field(holder, key, str, where)
    if not text:
        raise UserError(f"{where}: the field {key} is empty, expected a text; correct the file.")
    return text
