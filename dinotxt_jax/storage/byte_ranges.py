"""Reads byte ranges of files and of objects in buckets or on web servers."""

from __future__ import annotations

import io
import os
import threading
import time
from typing import Any, BinaryIO

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, is_remote, size_and_version
from dinotxt_jax.storage.object_cache import cached_range
from dinotxt_jax.storage.retries import retried

# Seconds after which the version of an object is asked for again. A file is asked at every read.
_FRESH = 10.0
# Bytes that are requested at a time when an object is read from beginning to end.
_PIECE = 2**22


class ByteRanges:
    """A file or an object that is read at any position, from any thread.

    Ranges of objects are kept in the local cache (`object_cache`). The file is closed when nothing
    refers to this object any more.

    Args:
        address: the file or object.
        version: the `size_and_version` that it must have; None takes the present one.
        watch: raise an error if the content changes after that.

    Attributes:
        address: the file or object.
        size: size in bytes.
        version: the version.

    Raises:
        UserError: it has another version.
        OSError: it does not exist, or the storage failed.
    """

    def __init__(
        self, address: Address, version: tuple[int, str] | None = None, *, watch: bool = True
    ):
        self.address, self._watch = address, watch
        self._open()
        self.size, self.version = version or self._current()
        self._checked = 0.0
        self._lock = threading.Lock()
        self._check()

    def read(self, first: int, end: int, *, keep: bool = True) -> bytes:
        """Returns the bytes from `first` to `end`; fewer if the content ends before.

        Args:
            first, end: the range.
            keep: keep a range of an object in the local cache.

        Raises:
            UserError: the content has changed.
            OSError: the storage failed repeatedly.
        """
        self._check()
        if self._stream is not None:
            descriptor = self._stream.fileno()
            # pread does not move the shared file position, so threads need no lock.
            return retried(lambda: os.pread(descriptor, end - first, first))
        end = min(end, self.size)
        if first >= end:
            return b""
        if not keep:
            return self._fetch(first, end)
        return cached_range(self.address, self.version, first, end, lambda: self._fetch(first, end))

    def _fetch(self, first: int, end: int) -> bytes:
        remote: Any = self.address
        content = retried(lambda: remote.fs.cat_file(remote.path, start=first, end=end))
        if len(content) != end - first:
            raise self._changed()
        return bytes(content)

    def _open(self) -> None:
        self._stream = None if is_remote(self.address) else retried(self._open_file)

    def _open_file(self) -> BinaryIO:
        return self.address.open("rb", buffering=0)

    def _current(self) -> tuple[int, str]:
        if self._stream is not None:
            status = os.fstat(self._stream.fileno())
            return status.st_size, str(status.st_mtime_ns)
        return size_and_version(self.address)

    def _check(self) -> None:
        """Raises `UserError` if the content has changed."""
        if not self._watch:
            return
        if self._stream is None:
            with self._lock:
                now = time.monotonic()
                if self._checked and now - self._checked < _FRESH:
                    return
                self._checked = now
        if retried(self._current) != (self.size, self.version):
            self._checked = 0.0
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"{self.address} has changed since this command opened it; run the command again when "
            "the file is complete."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_stream", "_lock")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        self._open()

    def __del__(self) -> None:
        opened = getattr(self, "_stream", None)
        if opened is not None:
            opened.close()


class _RawRanges(io.RawIOBase):
    """A `ByteRanges` as a stream without a buffer."""

    def __init__(self, ranges: ByteRanges, keep: bool):
        super().__init__()
        self._ranges, self._keep, self._position = ranges, keep, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ranges.size}
        self._position = starts[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._ranges.read(self._position, self._position + len(buffer), keep=self._keep)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def raw_stream(ranges: ByteRanges, *, keep: bool) -> io.RawIOBase:
    """Returns a stream that makes one request for each read.

    Args:
        ranges: the file or object.
        keep: keep ranges of an object in the local cache.
    """
    return _RawRanges(ranges, keep)


def stream(ranges: ByteRanges) -> BinaryIO:
    """Returns a stream from the beginning to the end of a file or an object."""
    if is_remote(ranges.address):
        return io.BufferedReader(_RawRanges(ranges, keep=False), _PIECE)
    return ranges.address.open("rb")
