"""Parsing shared by the caption sets that were published as JSON files (COCO, Karpathy)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dinotxt_jax.data.examples import (
    Example,
    folder_of_images,
    image_bytes,
    no_file,
    nothing_left,
    shortened,
)
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike
from dinotxt_jax.storage.retries import retried

_KINDS = {str: "a text", int: "a whole number", list: "a list"}


class CaptionFileSource:
    """A source with image files and captions.

    Args:
        entries: for each image, the path relative to `root` and the captions.
        root: the image folder.
    """

    def __init__(self, entries: Sequence[tuple[str, tuple[str, ...]]], root: Address) -> None:
        self._entries = entries
        self._root = root

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        name, captions = self._entries[index]
        return Example(image_bytes(self._root / name, name), captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._entries[index][1]

    def key(self, index: int) -> str:
        """Returns an example's name, which is the image path."""
        return self._entries[index][0]


def caption_file_source(
    file: Address,
    image_root: AddressLike,
    entries: Sequence[tuple[str, tuple[str, ...]]],
    section: str,
) -> CaptionFileSource:
    """Opens a caption file's images; relative to `image_root`, or to the file's folder if empty."""
    if not entries:
        raise nothing_left(file, "", set(), section)
    return CaptionFileSource(entries, folder_of_images(file, image_root, section))


def parsed_json(file: Address, section: str) -> Any:
    """Parses a caption file.

    Raises:
        UserError: the file does not exist or is not JSON.
    """
    if not retried(file.is_file):
        raise UserError(f"{no_file(file)}, expected a caption file; correct {section}.path.")
    content = retried(file.read_bytes)
    if not content.strip():
        raise nothing_left(file, "", set(), section)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not JSON ({error}), expected an unchanged caption file; download it again, "
            f"or correct {section}.path or {section}.source."
        ) from error


def typed_field(holder: Any, key: str, kind: type, where: object, section: str) -> Any:
    """Returns `holder[key]`; raises `UserError` unless the value has type `kind`."""
    if not isinstance(holder, Mapping):
        raise UserError(
            f"{where}: there is {shortened(holder)}, expected an object with {key}; correct the "
            f"file, or {section}.source."
        )
    value = holder.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        actual = shortened(value) if key in holder else "missing"
        raise UserError(
            f"{where}: the field {key} is {actual}, expected {_KINDS[kind]}; correct the file, or "
            f"{section}.source."
        )
    return value


def filled_text(holder: Any, key: str, where: object, section: str) -> str:
    """Returns the text `holder[key]`; raises `UserError` if the text is empty."""
    text = typed_field(holder, key, str, where, section)
    if not text:
        raise UserError(f"{where}: the field {key} is empty, expected a text; correct the file.")
    return text
