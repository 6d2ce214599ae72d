"""Downloads files once into the cache folder, completely and with verified checksums.

The cache folder is `$DINOTXT_CACHE`, or `~/.cache/dinotxt_jax`.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import filelock

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import AddressLike, to_address
from dinotxt_jax.storage.retries import retried

CACHE_VARIABLE = "DINOTXT_CACHE"
_TIMEOUT = 60.0
_PIECE = 2**20


def cache_folder() -> Path:
    """Returns the folder that keeps downloads."""
    return Path(os.environ.get(CACHE_VARIABLE, "~/.cache/dinotxt_jax")).expanduser()


def sha256_of(path: AddressLike, progress: Callable[[int], object] = lambda _: None) -> str:
    """Returns a file's sha256 in hexadecimal; calls `progress` with each piece size in bytes."""
    digest = hashlib.sha256()
    with to_address(path).open("rb") as file:
        while piece := file.read(4 * _PIECE):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def check_sha256(path: AddressLike, expected: str, cure: str) -> None:
    """Raises `UserError` unless a file has this sha256; `cure` tells the user how to fix it."""
    sizes: list[int] = []
    actual = sha256_of(path, sizes.append)
    if actual != expected:
        raise UserError(
            f"{path} holds {sum(sizes)} bytes with sha256 {actual}, but {expected} is expected; "
            f"{cure}."
        )


def download(url: str, path: Path, sha256: str = "") -> Path:
    """Downloads a file, unless `path` exists already, and returns `path`.

    The file appears under `path` when it is complete. An interrupted download resumes if the server
    supports it.

    Args:
        url: http(s).
        path: where to keep the file.
        sha256: expected checksum; "" checks only the length.

    Raises:
        UserError: the download failed, or the file has another checksum or length.
    """
    cure = f"fetch {url} yourself and put it at {path}"
    if path.is_file():
        if sha256:
            check_sha256(path, sha256, f"delete it, or {cure}")
        return path
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():  # another process may have finished first
                retried(lambda: _fetch(url, partial))
                if sha256:
                    check_sha256(partial, sha256, f"{url} sent another file; {cure}")
                partial.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url} could not be downloaded ({error}); try again, or {cure}."
        ) from error
    except UserError:
        partial.unlink(missing_ok=True)  # complete but wrong: resuming would not help
        raise
    return path


def _fetch(url: str, partial: Path) -> None:
    """Appends the response to `partial`, resuming an earlier attempt if possible."""
    # The ETag identifies the version that `partial` began with; another version starts over.
    version = partial.with_name(f"{partial.name}.etag")
    done = partial.stat().st_size if partial.exists() and version.exists() else 0
    headers = {"Range": f"bytes={done}-", "If-Range": version.read_text()} if done else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if done and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink()
            return _fetch(url, partial)
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        if response.headers.get("ETag"):
            version.write_text(response.headers["ETag"])
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        name = partial.name.removesuffix(".partial")
        with (
            partial.open("ab" if done else "wb") as file,
            progress_bar(total, done, "B", f"downloading {name}", unit_scale=True) as bar,
        ):
            while piece := response.read(_PIECE):
                file.write(piece)
                bar.update(len(piece))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")
    version.unlink(missing_ok=True)
