"""Local copies of remote objects and of byte ranges of them, bounded in size.

Ranges and whole files each have a folder with the same limit; the least recently used copies are
removed when it is exceeded. Several processes may share the folders. A copy belongs to one version
of an object, so that a changed object is read again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.progress import watched
from dinotxt_jax.storage.addresses import Address, is_remote, size_and_version
from dinotxt_jax.storage.downloads import cache_folder
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.retries import retried

LIMIT_VARIABLE = "DINOTXT_CACHE_GIB"
DEFAULT_LIMIT = 20.0
# Ranges are counted and removed after a process has written this share of the limit.
_SHARE = 1 / 16


def limit() -> int:
    """Returns the limit of each folder in bytes; 0 keeps no ranges.

    Raises:
        UserError: the variable is not a number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        gib = float(text or DEFAULT_LIMIT)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 2**20:
        raise UserError(
            f"{LIMIT_VARIABLE} is {text!r}, expected a size in GiB, such as {DEFAULT_LIMIT:g}, or "
            "0 to keep no byte ranges; correct or unset it."
        )
    return int(gib * 2**30)


def ranges_folder() -> Path:
    """Returns the folder that holds byte ranges."""
    return cache_folder() / "ranges"


def files_folder() -> Path:
    """Returns the folder that holds whole objects."""
    return cache_folder() / "files"


def cached_range(
    address: Address, version: str, first: int, end: int, fetch: Callable[[], bytes]
) -> bytes:
    """Returns a byte range of an object from its local copy, or else from `fetch`, which is kept.

    A copy that is damaged is replaced. A full or unwritable disk does not prevent reading.

    Args:
        address: the object.
        version: its version, as in `size_and_version`.
        first, end: the range.
        fetch: reads the range from the object.
    """
    file = _file(ranges_folder(), f"{address} {version} {first} {end}")
    try:
        stored = file.read_bytes()
        content = stored[_SUM:]
        if len(content) == end - first and stored[:_SUM] == _sum(content):
            os.utime(file)
            return content
    except OSError:
        pass
    content = fetch()
    if limit() and len(content) == end - first:
        try:
            with new_file(file) as partial:
                partial.write_bytes(_sum(content) + content)
            _USE.add(len(content))
        except OSError:
            pass
    return content


def local_copies(addresses: Sequence[Address], setting: str) -> list[Path]:
    """Returns local paths with the contents of files or objects; each object is copied once.

    Libraries that open paths themselves, and cannot read from a bucket, read these.

    Args:
        addresses: the files or objects.
        setting: the flag or setting that names them, for the message.

    Raises:
        UserError: all together are larger than the limit, or one changes meanwhile.
        OSError: an object does not exist, or the storage failed.
    """
    remote = [address for address in addresses if is_remote(address)]
    versions = {
        address: retried(functools.partial(size_and_version, address)) for address in remote
    }
    total = sum(size for size, _ in versions.values())
    if total > limit():
        raise UserError(
            f"{setting} names objects with {total / 2**30:.3g} GiB together, which are copied "
            f"before they are read, but {LIMIT_VARIABLE} allows {limit() / 2**30:.3g} GiB; raise "
            "it (--cache_gib=), or keep the data as webdataset, which is read in place."
        )
    missing = [a for a in remote if not _is_whole(_copy_of(a, versions[a]), versions[a])]
    if missing:
        remove_unused(files_folder(), limit() - total)
    for address in watched(missing, "object", "copying") if missing else ():
        _copy(address, versions[address])
    return [
        _copy_of(address, versions[address]) if address in versions else address
        for address in addresses
    ]


def _copy_of(address: Address, version: tuple[int, str]) -> Path:
    return _file(files_folder(), f"{address} {version[1]}") / address.name


def _is_whole(file: Path, version: tuple[int, str]) -> bool:
    """Returns whether a copy exists with the right size, and marks it as used."""
    if not file.is_file() or file.stat().st_size != version[0]:
        return False
    os.utime(file)
    return True


def _copy(address: Address, version: tuple[int, str]) -> None:
    remote: Any = address
    with new_file(_copy_of(address, version)) as partial:
        retried(lambda: remote.fs.get_file(remote.path, str(partial)))
        if partial.stat().st_size != version[0]:
            raise UserError(
                f"{address} has changed while it was read; run the command again when the object "
                "is complete."
            )


_SUM = 4


def _sum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_SUM, "little")


def _file(folder: Path, name: str) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:40]
    return folder / digest[:2] / digest[2:]


class _Use:
    """Counts the bytes of ranges that this process has written, and removes old ones at times."""

    def __init__(self) -> None:
        self._written = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._written += size
            is_due = self._written > _SHARE * limit()
            if is_due:
                self._written = 0
        if is_due:
            remove_unused(ranges_folder(), limit())


_USE = _Use()


def remove_unused(folder: Path, most: int) -> None:
    """Removes the least recently used files below a folder until they have at most `most` bytes."""
    copies = []
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent) / name
            try:
                status = file.stat()
            except OSError:  # another process also removes copies
                continue
            copies.append((status.st_mtime_ns, status.st_size, file))
    kept = 0
    for _, size, file in sorted(copies, reverse=True):
        kept += size
        if kept > most:
            file.unlink(missing_ok=True)
