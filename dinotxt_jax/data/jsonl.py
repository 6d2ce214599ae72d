"""Image files with a JSONL caption index."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32, Int64

from dinotxt_jax.data.examples import (
    DEFAULT_CAPTION_KEY,
    SECTION,
    Example,
    captions_of,
    folder_of_images,
    image_bytes,
    no_file,
    nothing_left,
    shortened,
)
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import AddressLike, to_address
from dinotxt_jax.storage.byte_ranges import ByteRanges, stream
from dinotxt_jax.storage.retries import retried

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


class JsonlSource:
    """Image files and an index with a JSON object on each line.

    A line contains `image` (a path relative to `image_root`), `captions` (a list of texts) or
    `caption` (a text), and optionally `split`; `caption_columns` names other fields with captions.
    Every line is checked on construction. Only each line's offset and length stay in memory, 12
    bytes per example; the line is read again when the example is requested.
    """

    def __init__(
        self,
        path: AddressLike,
        *,
        image_root: AddressLike = "",
        split: str = "",
        caption_columns: Sequence[str] = (DEFAULT_CAPTION_KEY,),
        section: str = SECTION,
    ) -> None:
        self._path = to_address(path)
        if not retried(self._path.is_file):
            raise UserError(
                f"{no_file(self._path)}, expected an index for {section}.source=jsonl; correct "
                f"{section}.path."
            )
        self._root = folder_of_images(self._path, image_root, section)
        self._caption_columns = caption_columns
        self._index = ByteRanges(self._path)
        self._offsets, self._lengths = self._scan(split, section)

    def _scan(
        self, split: str, section: str
    ) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """Checks every line; returns the byte offsets and lengths of lines in `split`."""
        offsets, lengths = array("q"), array("i")
        splits = set()
        offset = 0
        with stream(self._index) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row_split = _parse_line(line, self._caption_columns, f"{self._path}:{number}")[
                        2
                    ]
                    splits.add(row_split)
                    if not split or row_split == split:
                        offsets.append(offset)
                        lengths.append(len(line))
                offset += len(line)
        if not offsets:
            raise nothing_left(self._path, split, splits, section)
        return np.frombuffer(offsets, np.int64), np.frombuffer(lengths, np.int32)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        name, captions = self._entry(index)
        return Example(image_bytes(self._root / name, name), captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._entry(index)[1]

    def key(self, index: int) -> str:
        """Returns an example's name, which is the image path."""
        return self._entry(index)[0]

    def _entry(self, index: int) -> tuple[str, tuple[str, ...]]:
        """Returns an example's (image path, captions)."""
        offset = int(self._offsets[index])
        line = self._index.read(offset, offset + int(self._lengths[index]))
        return _parse_line(line, self._caption_columns, f"{self._path}, example {index}")[:2]


def _parse_line(
    line: bytes, columns: Sequence[str], where: str
) -> tuple[str, tuple[str, ...], str]:
    """Parses an index line and returns (image path, captions, split)."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: this line is not JSON ({error}), expected one object per line; correct or "
            "remove it."
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: this line is {shortened(record)}, expected a JSON object with image and "
            "captions; correct or remove it."
        )
    name = record.get("image")
    if not isinstance(name, str) or not name:
        actual = shortened(name) if "image" in record else "missing"
        raise UserError(
            f"{where}: the field image is {actual}, expected an image path; correct or remove the "
            "line."
        )
    if DEFAULT_CAPTION_KEY not in record and "caption" in record:
        record[DEFAULT_CAPTION_KEY] = record["caption"]
    if not any(column in record for column in columns):
        raise UserError(
            f"{where}: the field {' or '.join(columns)} is missing, expected a list of texts, or "
            "a field caption with one text; add it or remove the line."
        )
    captions = captions_of({column: record.get(column) for column in columns}, where)
    split = record.get("split", "")
    if not isinstance(split, str):
        raise UserError(
            f"{where}: the field split is {shortened(split)}, expected a text; correct it."
        )
    return name, captions, split


def _open(config: DataConfig, section: str) -> JsonlSource:
    return JsonlSource(
        config.path,
        image_root=config.image_root,
        split=config.split,
        caption_columns=config.caption_columns,
        section=section,
    )


JSONL = SourceKind(reads=("path", "image_root", "split", "caption_key"), captions=_open)
