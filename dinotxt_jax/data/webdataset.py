"""Tar files with images and captions in the WebDataset convention, read in place."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import (
    DEFAULT_CAPTION_KEY,
    SECTION,
    Example,
    captions_or_bad,
    check_records,
    shortened,
)
from dinotxt_jax.data.file_lists import data_files
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.tar_index import BLOCK, IMAGE_ENDINGS, TEXT_ENDINGS, index_of, name_parts
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.progress import watched
from dinotxt_jax.storage.addresses import Address, AddressLike
from dinotxt_jax.storage.byte_ranges import ByteRanges

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

# Headers are read in several threads, because storage may have a high latency.
_THREADS = 8
_USED_ENDINGS = IMAGE_ENDINGS | TEXT_ENDINGS
_MOST_OPEN = 128


class _Sample(NamedTuple):
    key: str
    image: bytes
    captions: tuple[str, ...]


class WebDatasetSource:
    """Tar files in which the members `KEY.jpg` and `KEY.txt` or `KEY.json` form a sample.

    A sample's members must be consecutive. Samples are indexed once (`tar_index`), with 8 bytes
    per sample, and then read at random positions. A sample with unreadable captions counts as a bad
    image.

    Args:
        path: a tar, a folder (all `*.tar`) or a glob; files are read in sorted name order.
        caption_columns: keys in `KEY.json`; "txt" stands for the content of `KEY.txt`. If the
            default key is missing, the caption is the content of `KEY.txt`, falling back to the key
            "caption" in `KEY.json` (which img2dataset writes).
        section: command-line name for the data settings, for messages.

    Raises:
        UserError: a file is missing or not a tar, or there is no usable sample.
    """

    def __init__(
        self,
        path: AddressLike,
        *,
        caption_columns: Sequence[str] = (DEFAULT_CAPTION_KEY,),
        section: str = SECTION,
    ) -> None:
        self._caption_columns = caption_columns
        self._files = data_files(path, ".tar", "tar", f"{section}.path")
        indexes, left_out = [], Counter[str]()
        threads = ThreadPoolExecutor(_THREADS)
        try:
            for file, index in zip(
                watched(self._files, "tar", "indexing"),
                threads.map(index_of, self._files),
                strict=True,
            ):
                indexes.append(index)
                left_out.update(index.left_out)
                if index.problem:
                    logging.warning(
                        "%s: using only the %d samples before the damage, because %s",
                        *(file, len(index.spans), index.problem),
                    )
        finally:
            threads.shutdown(cancel_futures=True)
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.most_common())
        self._versions = [(index.size, index.version) for index in indexes]
        self._spans = np.concatenate([index.spans for index in indexes])
        self._bounds = np.cumsum([len(index.spans) for index in indexes])
        if not len(self._spans):
            raise UserError(
                f"{path} has no usable sample ({reasons or 'no files'}), expected consecutive "
                "members KEY.jpg and KEY.txt or KEY.json; write the tars again, or correct "
                f"{section}.path."
            )
        if reasons:
            logging.warning(
                "%s: skipped %d samples (%s); using %d",
                *(path, left_out.total(), reasons, len(self)),
            )
        check_records(self._sample, len(self))

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Example:
        sample = self._sample(index)
        return Example(sample.image, sample.captions, sample.key)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._sample(index).captions

    def key(self, index: int) -> str:
        """Returns an example's name, TAR/KEY."""
        return self._sample(index).key

    def _sample(self, index: int) -> _Sample:
        number = int(np.searchsorted(self._bounds, index, "right"))
        file = self._files[number]
        first, end = (int(block) * BLOCK for block in self._spans[index])
        content = _opened(file, *self._versions[number]).read(first, end)
        where = f"{file}, sample {index - (int(self._bounds[number - 1]) if number else 0)}"
        key, members = _parsed(content, where)
        image = next((members[ending] for ending in members if ending in IMAGE_ENDINGS), None)
        if image is None:
            raise BadImageError(f"{where}: there is no image; write the tar again.")
        return _Sample(
            f"{file.name}/{key}", image, _captions(members, self._caption_columns, where)
        )


@functools.lru_cache(maxsize=_MOST_OPEN)
def _opened(path: Address, size: int, version: str) -> ByteRanges:
    return ByteRanges(path, (size, version))


def _parsed(content: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """Returns a sample's key, and the image and text contents by file ending."""
    members, key = {}, ""
    try:
        for member in _headers(content):
            key, ending = name_parts(member.name)
            if ending in _USED_ENDINGS:
                members[ending] = content[member.offset_data : member.offset_data + member.size]
    except (tarfile.TarError, ValueError) as error:
        raise BadImageError(f"{where}: it is damaged ({error}); write the tar again.") from error
    return key, members


def _headers(content: bytes) -> list[tarfile.TarInfo]:
    """Returns a sample's files, with their data offsets.

    Parses the headers directly, because opening a `TarFile` takes ten times as long; falls back to
    `TarFile` if a member is not a regular file.
    """
    members: list[tarfile.TarInfo] = []
    offset = 0
    while offset < len(content):
        header = content[offset : offset + BLOCK]
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has a negative size")
        member.offset_data = offset + BLOCK
        offset = member.offset_data + -(-member.size // BLOCK) * BLOCK
        if member.type == tarfile.XHDTYPE:
            extra = content[member.offset_data : member.offset_data + member.size]
            if b" path=" not in extra and b" size=" not in extra:
                continue  # the extended header only sets the next member's time or owner
        if not member.isreg():
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
                return [member for member in archive if member.isreg()]
        members.append(member)
    return members


def _captions(members: dict[str, bytes], columns: Sequence[str], where: str) -> tuple[str, ...]:
    record: Any = {}
    try:
        if "json" in members:
            record = json.loads(members["json"])
        text = members["txt"].decode().strip() if "txt" in members else None
    except (ValueError, RecursionError) as error:
        raise BadImageError(
            f"{where}: the caption is not valid UTF-8 or JSON ({error}); correct or remove it."
        ) from error
    if not isinstance(record, dict):
        raise BadImageError(f"{where}: the JSON is {shortened(record)}, expected an object.")
    values = {"txt": text} | record
    if values.get(DEFAULT_CAPTION_KEY) is None:
        values[DEFAULT_CAPTION_KEY] = text if text is not None else record.get("caption")
    return captions_or_bad({column: values.get(column) for column in columns}, where)


def _open(config: DataConfig, section: str) -> WebDatasetSource:
    return WebDatasetSource(config.path, caption_columns=config.caption_columns, section=section)


WEBDATASET = SourceKind(reads=("path", "caption_key"), captions=_open)
