"""Storage faults: errors of files, disks and buckets as sentences with the right exit code."""

from __future__ import annotations

import errno
import os
import re

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
    r"(Error (?:reading|writing|opening)\b.*)",
    re.DOTALL,
)
_NUMBER = re.compile(r"os_error_code='(\d+)'")
# Errors of a storage or a machine that say nothing about the stored data.
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
}
_PASSING_STATUS = re.compile(
    r"\b(ABORTED|DEADLINE_EXCEEDED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE)\b"
)


def may_be_damaged(error: BaseException) -> bool:
    """Returns whether an error on reading may mean that the stored data is damaged.

    Otherwise reading may succeed later: the data is whole as far as the error tells.
    """
    if isinstance(error, OSError):
        return error.errno not in _PASSING
    if isinstance(error, MemoryError) or _PASSING_STATUS.search(str(error)):
        return False
    number = _NUMBER.search(str(error))
    return not number or int(number[1]) not in _PASSING


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
        path = re.search(r'local file "([^"]+)"', str(error))
        code = int(number[1]) if number else None
        reason = os.strerror(code) if code else " ".join(status[0].split())
        return _fault(code, path[1] if path else "", reason)
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
