"""Where each sample of a tar file begins and ends.

A sample is a run of members with the same name up to the first dot, the key: `KEY.jpg`, `KEY.txt`,
`KEY.json` (the WebDataset convention, which img2dataset follows). The index of a tar is made once,
by reading its headers, and kept in the cache folder until the tar changes.
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
    """The samples of one tar.

    Attributes:
        size, version: `size_and_version` of the tar when it was indexed.
        spans: first block of each sample, and the block behind the sample. A block has 512 bytes.
        left_out: number of samples that cannot be used, by reason.
        problem: why the tar could not be read to the end; empty if it could.
    """

    size: int
    version: str
    spans: UInt32[np.ndarray, "n 2"]
    left_out: dict[str, int]
    problem: str


def name_parts(name: str) -> tuple[str, str]:
    """Splits the name of a member into key and ending (lower case, without the dot)."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def index_of(path: Address) -> TarIndex:
    """Returns the index of a tar, from the cache folder unless the tar has changed.

    Raises:
        UserError: the file is no tar.
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
            logging.warning("the index of %s is not kept, as %s: %s", path, file, error.strerror)
    return index


def scan(path: Address) -> TarIndex:
    """Reads all headers of a tar; of a remote one, everything, as requests for headers are slower.

    Raises:
        UserError: the file is no tar.
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
    """The files in a tar, in order; afterwards, `problem` says why the tar ends early, if so."""

    def __init__(self, path: Address, stream: BinaryIO, size: int):
        self._stream, self._size = stream, size
        self.problem = ""
        try:
            self._archive = tarfile.TarFile(fileobj=stream)
        except tarfile.ReadError as error:
            reason = "is empty" if not size else f"is no uncompressed tar ({error})"
            raise UserError(
                f"{path} {reason}, expected a tar of images and captions; decompress it, write it "
                "again, or remove it."
            ) from error

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            while (member := self._archive.next()) is not None:
                self._archive.members = []  # type: ignore[attr-defined] # it keeps all otherwise
                if member.size < 0:  # tarfile would go back and read the same headers for ever
                    self.problem = f"its header at byte {member.offset} is damaged"
                    return
                if _end(member) * BLOCK > self._size:
                    self.problem = f"it is truncated inside {member.name}"
                    return
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    yield member
        except (tarfile.TarError, ValueError) as error:  # ValueError: numbers in extended headers
            self.problem = f"it is truncated or damaged ({error})"
            return
        # tarfile takes a damaged header for the end, which is marked by blocks of zeros.
        self._stream.seek(self._archive.offset)
        if self._stream.read(BLOCK).strip(b"\0"):
            self.problem = f"its header at byte {self._archive.offset} is damaged"


def _span(members: list[tarfile.TarInfo]) -> tuple[tuple[int, int], str]:
    """Returns the blocks of a sample, and why it cannot be used (empty if it can)."""
    endings = [name_parts(member.name)[1] for member in members]
    images = sum(ending in IMAGE_ENDINGS for ending in endings)
    reason = ""
    if images != 1:
        reason = "several images" if images else "no image"
    elif not TEXT_ENDINGS.intersection(endings):
        reason = "no caption"
    elif len(set(endings)) < len(endings):
        reason = "two files of the same kind"
    return (members[0].offset // BLOCK, _end(members[-1])), reason


def _end(member: tarfile.TarInfo) -> int:
    """Returns the block behind a member."""
    return -(-(member.offset_data + member.size) // BLOCK)


def _store(file: Path, index: TarIndex) -> None:
    facts = index._asdict() | {"spans": checksum(index.spans)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as partial:
        np.savez(partial, spans=index.spans, facts=np.frombuffer(json.dumps(facts).encode(), "u1"))


def _stored(file: Path) -> TarIndex | None:
    """Returns a stored index, or None if there is none or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            spans, facts = stored["spans"], json.loads(stored["facts"].tobytes())
        index = TarIndex(**(facts | {"spans": spans}))
    except Exception:  # whatever numpy, zipfile or json raise: the index is made again
        return None
    return index if checksum(spans) == facts["spans"] else None
