"""Storage faults: errors of files, disks and buckets as sentences with the right exit code."""

from __future__ import annotations

import errno
import http.client
import os
import re
import urllib.error
from collections.abc import Iterator

from dinotxt_jax.errors import STORAGE, USER, UserError

# Errors in a path that the user gave, or permissions: running the command again cannot help.
_WRONG_PATH = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EROFS,
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# TensorStore and Orbax raise ValueError for failed reads and writes. The text starts with the
# status; for local files it contains the error number.
_STATUS = re.compile(
    r"\b(ABORTED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|NOT_FOUND|OUT_OF_RANGE"
    r"|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): "
    r"((?:Error|Failed) (?:reading|writing|opening|to open)\b.*)",
    re.DOTALL,
)
_NUMBER = re.compile(r"os_error_code='(\d+)'")
# Errors of overloaded, restarting or briefly lost storage: the same action may succeed soon.
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETIMEDOUT,
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}
# Errors that last, but say nothing about the stored data either.
_NOT_ABOUT_DATA = {errno.EACCES, errno.EPERM, errno.ENOMEM}
_PASSING_STATUS = re.compile(r"\b(ABORTED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|UNAVAILABLE)\b")
_DENIED_STATUS = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b")
_PASSING_HTTP = {408, 429, 500, 502, 503, 504}


def is_passing(error: BaseException) -> bool:
    """Returns whether an action that failed with this error may succeed if it is repeated.

    Libraries wrap the errors of a storage, so the causes count as well.
    """
    return any(map(_is_passing, chain(error)))


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, and the errors while which or from which it was raised."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def reason(error: BaseException) -> str:
    """Returns the text of the error from which a library raised this one, as one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0]
    return text[:300] or type(error).__name__


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _PASSING_HTTP
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        return _is_passing(error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return True  # the connection ended in the middle of an answer
    number = _number(error)
    if number is not None:
        return number in _PASSING
    if isinstance(error, OSError):  # without a number
        return isinstance(error, ConnectionError | TimeoutError)
    # TensorStore raises ValueError; JAX raises RuntimeError where a device is out of memory.
    return isinstance(error, ValueError) and bool(_PASSING_STATUS.search(str(error)))


def may_be_damaged(error: BaseException) -> bool:
    """Returns whether an error on reading may mean that the stored data is damaged.

    Otherwise reading may succeed later: the data is whole as far as the error tells.
    """
    return not (is_passing(error) or any(map(_is_refusal, chain(error))))


def _is_refusal(error: BaseException) -> bool:
    """Returns whether the machine or the storage refused the action, for lack of memory or rights.

    JAX raises RuntimeError where a device is out of memory.
    """
    full = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    denied = _number(error) in _NOT_ABOUT_DATA or _DENIED_STATUS.search(str(error))
    return isinstance(error, MemoryError) or full or bool(denied)


def _number(error: BaseException) -> int | None:
    """Returns the error number of the operating system, which libraries put into their text."""
    if isinstance(error, OSError):
        return error.errno
    number = _NUMBER.search(str(error))
    return int(number[1]) if number else None


def storage_fault(error: BaseException) -> UserError | None:
    """Returns the sentence for an error from a file system or a bucket; None for other errors.

    Exit code 2 means that a path or a permission must be changed, 74 that the storage failed.
    """
    if isinstance(error, BrokenPipeError):
        return None  # the reader of the output has ended
    if isinstance(error, OSError):
        # Libraries raise OSError without a number for other reasons, such as an unknown format.
        if error.errno is None and not isinstance(error, ConnectionError | TimeoutError):
            return None
        return _fault(error.errno, str(error.filename or ""), error.strerror or str(error))
    if isinstance(error, ValueError) and (status := _STATUS.search(str(error))):
        number = _NUMBER.search(str(error))
        path = re.search(r'(?:local file|Failed writing:) "([^"]+)"', str(error))
        code = int(number[1]) if number else None
        text = os.strerror(code) if code else " ".join(status[0].split())
        return _fault(code, path[1] if path else "", text)
    return None


def _fault(number: int | None, path: str, reason: str) -> UserError:
    where = f"{path}: " if path else ""
    if number in _WRONG_PATH:
        return UserError(f"{where}{reason}; correct the path.", USER)
    if number in _FULL:
        return UserError(
            f"{where}{reason}; free space there, then run the same command again.", STORAGE
        )
    return UserError(
        f"{where}{reason}; the storage failed: run the same command again once it works.", STORAGE
    )
