"""Addresses: local paths, and objects in buckets or on web servers.

The only module that knows which schemes exist and which library reads each of them. A local address
is a `pathlib.Path`; a remote one has the same methods. Where a library requires text (Orbax,
TensorStore), `str` of a remote address contains the scheme.

Remote errors are raised like those of a local file system, with an error number and the address,
so that `storage.faults` and `storage.retries` treat both alike.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec.config
import upath
import upath.registry
from upath.implementations import cloud, http

from dinotxt_jax.errors import UserError, closest

if TYPE_CHECKING:
    Address = Path  # a remote address has the same methods
else:
    Address = Path | upath.UPath
AddressLike = str | os.PathLike | Address


class _StrictFileSystem:
    """A file system of fsspec that says why an action failed.

    fsspec returns False from `exists` after any error, also where the connection or the permission
    is missing. A run that takes a lost connection for an empty work directory starts anew.
    """

    def __init__(self, fs: Any, scheme: str):
        self._fs, self._scheme = fs, scheme

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._fs, name)
        return self._named(value) if callable(value) else value

    def put_file(self, local: str, path: str) -> None:
        with _named_errors(self._scheme, path):
            self._fs.put_file(local, path)

    def get_file(self, path: str, local: str) -> None:
        with _named_errors(self._scheme, path):
            self._fs.get_file(path, local)

    def exists(self, path: str, **_: Any) -> bool:
        return self._kind(path) is not None

    def isfile(self, path: str) -> bool:
        return self._kind(path) == "file"

    def isdir(self, path: str) -> bool:
        return self._kind(path) == "directory"

    def _kind(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def _named(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with _named_errors(self._scheme, args[0] if args else ""):
                return method(*args, **options)

        return call


@contextlib.contextmanager
def _named_errors(scheme: str, path: object) -> Iterator[None]:
    """Raises the errors of a remote file system as errors of a local one, with the address."""
    try:
        yield
    except Exception as error:
        number, reason = _as_os_error(error)
        if number is None:
            raise
        name = path if isinstance(path, str) and "://" in path else f"{scheme}://{path}"
        raise OSError(number, reason, name) from error


_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_CONNECTION_LIBRARIES = ("aiohttp", "requests", "urllib3", "botocore", "aiobotocore")


def _as_os_error(error: Exception) -> tuple[int | None, str]:
    """Returns the error number that means the same as a remote error, and the reason as text."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        # fsspec raises it after any error of a web server.
        number, reason = _as_os_error(error.__cause__)
        if number is not None:
            return number, reason
    text = " ".join(str(error).split())[:200] or type(error).__name__
    # gcsfs has "code", aiohttp has "status".
    code = str(getattr(error, "code", None) or getattr(error, "status", None))
    status = int(code) if code.isdigit() else None
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, FileNotFoundError) or status == 404:
        return errno.ENOENT, "no such object, folder or bucket"
    if isinstance(error, FileExistsError):
        return errno.EEXIST, "it exists already"
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or text.startswith("Forbidden")
        or type(error).__module__.startswith("google.auth")
    ):
        return errno.EACCES, f"access is denied ({text})"
    if (
        status in _PASSING_STATUS
        or isinstance(error, TimeoutError | ConnectionError)
        or (status is None and library in _CONNECTION_LIBRARIES)
    ):
        return errno.ECONNABORTED, f"the storage did not answer ({text})"
    if status is not None and library in (*_CONNECTION_LIBRARIES, "gcsfs"):
        return errno.EPROTO, f"the storage answered with status {status} ({text})"
    if isinstance(error, OSError):
        return error.errno or errno.EIO, text
    return None, text


class _Strict(upath.UPath):
    """Uses a `_StrictFileSystem`, and reads and writes a whole object with one request.

    An object that is written so appears whole or not at all.
    """

    __slots__ = ()

    @property
    def fs(self) -> Any:
        return _StrictFileSystem(super().fs, self.protocol)

    def read_bytes(self) -> bytes:
        return bytes(self.fs.cat_file(self.path))

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        self.fs.pipe_file(self.path, data)
        return len(data)

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder in a bucket exists as soon as it holds an object."""


class _GcsPath(_Strict, cloud.GCSPath):
    __slots__ = ()


class _S3Path(_Strict, cloud.S3Path):
    __slots__ = ()


class _HttpPath(_Strict, http.HTTPPath):
    __slots__ = ()


class _Scheme(NamedTuple):
    """How objects with one scheme are read.

    Attributes:
        path: the class of addresses.
        module: the module that must be installed.
        extra: the extra of this project that installs it.
        is_for_output: whether Orbax and TensorStore write there too.
    """

    path: type[Any]
    module: str
    extra: str
    is_for_output: bool = False


_SCHEMES = {
    "gs": _Scheme(_GcsPath, "gcsfs", "gcs", is_for_output=True),
    "s3": _Scheme(_S3Path, "s3fs", "s3"),
    "https": _Scheme(_HttpPath, "aiohttp", "https"),
    "http": _Scheme(_HttpPath, "aiohttp", "https"),
}
for _name, _scheme in _SCHEMES.items():
    upath.registry.register_implementation(_name, _scheme.path, clobber=True)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{1,2})(.*)", re.DOTALL)


def to_address(text: AddressLike) -> Address:
    """Returns a path or an address as an object with the methods of `pathlib.Path`.

    Args:
        text: a local path, gs://BUCKET/..., s3://BUCKET/... or https://....

    Raises:
        UserError: the scheme is unknown, the bucket is missing, or a package is not installed.
    """
    if isinstance(text, Path | upath.UPath):
        return text
    text = os.fspath(text)
    matched = _ADDRESS.fullmatch(text)
    if matched is None or (len(matched[2]) == 1 and matched[1] not in _SCHEMES):
        return Path(text)
    name, slashes, rest = matched.groups()
    scheme = _SCHEMES.get(name)
    if scheme is None:
        names = ", ".join(f"{name}://" for name in _SCHEMES)
        suggestion = closest(name, tuple(_SCHEMES))
        advice = f"did you mean {suggestion}://?" if suggestion else "correct it."
        raise UserError(f"{text} has the scheme {name}://, expected a path or {names}; {advice}")
    if len(slashes) == 1 or not rest.partition("/")[0]:
        raise UserError(f"{text} names no bucket, expected {name}://BUCKET/...; correct it.")
    if importlib.util.find_spec(scheme.module) is None:
        raise UserError(
            f"{text} cannot be reached without {scheme.module}; install it with pip install "
            f"'dinotxt_jax[{scheme.extra}]'."
        )
    # Listings that fsspec caches hide what other processes write.
    fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return scheme.path(f"{name}://{rest.rstrip('/')}")


def is_remote(address: Address) -> bool:
    """Returns whether an address is not a local path."""
    return not isinstance(address, Path)


def has_folders(address: Address) -> bool:
    """Returns whether folders can be asked for and listed; web servers have files only."""
    return not isinstance(address, _HttpPath)


def to_output(text: AddressLike, flag: str) -> Address:
    """Returns the address of a file or folder that a command writes: local, or in gs://.

    Args:
        text: a path or an address.
        flag: the flag or setting that names it, for the message.

    Raises:
        UserError: nothing can be written there.
    """
    address = to_address(text)
    scheme = str(address).partition("://")[0]
    if is_remote(address) and not _SCHEMES[scheme].is_for_output:
        raise UserError(
            f"{flag} is {address}, but only data is read from {scheme}://; give a local folder or "
            "gs://BUCKET/...."
        )
    return address


def size_and_version(address: Address) -> tuple[int, str]:
    """Returns the size of a file or an object in bytes, and a text that changes with its content.

    The version is the generation of an object in gs://, the ETag of another object, or the
    modification time of a file.

    Raises:
        OSError: it does not exist, or the storage failed.
    """
    if not is_remote(address):
        status = address.stat()
        return status.st_size, str(status.st_mtime_ns)
    remote: Any = address
    facts = remote.fs.info(remote.path)
    keys = ("generation", "ETag", "etag", "LastModified", "mtime")
    return int(facts["size"] or 0), next((str(facts[key]) for key in keys if facts.get(key)), "")


def create(address: Address, text: str) -> None:
    """Writes a new file or object.

    Raises:
        FileExistsError: it exists already.
    """
    if is_remote(address):
        remote: Any = address
        remote.fs.pipe_file(remote.path, text.encode(), mode="create")
    else:
        with address.open("x", encoding="utf-8") as stream:
            stream.write(text)


def upload(file: Path, address: Address) -> None:
    """Copies a local file to a remote address, where it appears when it is complete."""
    remote: Any = address
    remote.fs.put_file(str(file), remote.path)


def remove_folder(address: Address) -> None:
    """Removes a folder with everything in it; does nothing if there is none."""
    if is_remote(address):
        remote: Any = address
        if remote.exists():
            remote.fs.rm(remote.path, recursive=True)
    else:
        shutil.rmtree(address, ignore_errors=True)


def move_folder(address: Address, target: Address) -> None:
    """Renames a folder; in a bucket, copies the objects and removes the old ones."""
    if is_remote(address):
        old: Any = address
        new: Any = target
        old.fs.mv(old.path, new.path, recursive=True)
    else:
        address.rename(target)
