"""Indexes tar files: where each sample begins and ends.

A sample consists of consecutive members with the same name up to the first dot, the key:
`KEY.jpg`, `KEY.txt`, `KEY.json` (the WebDataset convention, which img2dataset follows). A tar is
indexed once, by reading the member headers, and the index stays in the cache folder until the tar
changes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt32

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, is_remote, size_and_version
from dinotxt_jax.storage.byte_ranges import ByteRanges, stream
from dinotxt_jax.storage.checksums import checksum
from dinotxt_jax.storage.downloads import cache_folder
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.retries import retried

IMAGE_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"))
TEXT_ENDINGS = frozenset(("txt", "json"))
BLOCK = tarfile.BLOCKSIZE


class TarIndex(NamedTuple):
    """The samples in a tar.

    Attributes:
        size, version: the tar's `size_and_version` at indexing time.
        spans: first block and end block (exclusive) for each sample. A block has 512 bytes.
        left_out: reason -> number of samples that cannot be used.
        problem: why the tar could not be read to the end; empty if it could.
    """

    size: int
    version: str
    spans: UInt32[np.ndarray, "n 2"]
    left_out: dict[str, int]
    problem: str


def name_parts(name: str) -> tuple[str, str]:
    """Splits a member name into key and ending (lower case, without the dot)."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def index_of(path: Address) -> TarIndex:
    """Returns a tar's index, from the cache folder unless the tar has changed.

    Raises:
        UserError: the file is not a tar.
    """
    version = retried(lambda: size_and_version(path))
    name = str(path if is_remote(path) else path.resolve())
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    file = cache_folder() / "tar_indexes" / f"{digest[:32]}.npz"
    index = _stored(file)
    if index is None or (index.size, index.version) != version:
        index = scan(path)
        try:
            _store(file, index)
        except OSError as error:
            logging.warning("cannot cache the index of %s in %s: %s", path, file, error.strerror)
    return index


def scan(path: Address) -> TarIndex:
    """Reads all member headers in a tar.

    A remote tar is read completely, because a request per header would be slower.

    Raises:
        UserError: the file is not a tar.
    """
    spans, left_out = array("I"), Counter[str]()
    ranges = ByteRanges(path)
    with stream(ranges) as content:
        members = _Members(path, content, ranges.size)
        for _, sample in groupby(members, lambda member: name_parts(member.name)[0]):
            span, reason = _span(list(sample))
            if reason:
                left_out[reason] += 1
            else:
                spans.extend(span)
    blocks = np.asarray(spans, np.uint32).reshape(-1, 2)
    return TarIndex(ranges.size, ranges.version, blocks, dict(left_out), members.problem)


class _Members:
    """Iterates over a tar's files; afterwards, `problem` says why the tar ends early (or is "")."""

    def __init__(self, path: Address, stream: BinaryIO, size: int):
        self._stream, self._size = stream, size
        self.problem = ""
        try:
            self._archive = tarfile.TarFile(fileobj=stream)
        except tarfile.ReadError as error:
            reason = "is empty" if not size else f"is not an uncompressed tar ({error})"
            raise UserError(
                f"{path} {reason}, expected a tar with images and captions; decompress it, write "
                "it again, or remove it."
            ) from error

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            while (member := self._archive.next()) is not None:
                self._archive.members = []  # type: ignore[attr-defined] # free memory: it keeps all
                if member.size < 0:  # tarfile would go back and read the same headers forever
                    self.problem = f"the header at byte {member.offset} is damaged"
                    return
                if _end(member) * BLOCK > self._size:
                    self.problem = f"it is truncated inside {member.name}"
                    return
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    yield member
        except (tarfile.TarError, ValueError) as error:  # ValueError: numbers in extended headers
            self.problem = f"it is truncated or damaged ({error})"
            return
        # tarfile stops at a damaged header as if it were the end; the real end is a zero block.
        self._stream.seek(self._archive.offset)
        if self._stream.read(BLOCK).strip(b"\0"):
            self.problem = f"the header at byte {self._archive.offset} is damaged"


def _span(members: list[tarfile.TarInfo]) -> tuple[tuple[int, int], str]:
    """Returns a sample's (first, end) blocks, and why it cannot be used ("" if it can)."""
    endings = [name_parts(member.name)[1] for member in members]
    images = sum(ending in IMAGE_ENDINGS for ending in endings)
    reason = ""
    if images != 1:
        reason = "several images" if images else "no image"
    elif not TEXT_ENDINGS.intersection(endings):
        reason = "no caption"
    elif len(set(endings)) < len(endings):
        reason = "two files with the same ending"
    return (members[0].offset // BLOCK, _end(members[-1])), reason


def _end(member: tarfile.TarInfo) -> int:
    """Returns the first block after a member."""
    return -(-(member.offset_data + member.size) // BLOCK)


def _store(file: Path, index: TarIndex) -> None:
    facts = index._asdict() | {"spans": checksum(index.spans)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as partial:
        np.savez(partial, spans=index.spans, facts=np.frombuffer(json.dumps(facts).encode(), "u1"))


def _stored(file: Path) -> TarIndex | None:
    """Returns a stored index, or None if it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            spans, facts = stored["spans"], json.loads(stored["facts"].tobytes())
        index = TarIndex(**(facts | {"spans": spans}))
    except Exception:  # any numpy, zipfile or json error means: make the index again
        return None
    return index if checksum(spans) == facts["spans"] else None
