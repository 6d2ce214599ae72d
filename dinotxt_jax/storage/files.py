"""Writes files and folders atomically: each is complete or absent."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import (
    Address,
    AddressLike,
    is_remote,
    remove_folder,
    to_address,
    upload,
)
from dinotxt_jax.storage.retries import retried


@contextlib.contextmanager
def new_file(path: Address) -> Iterator[Path]:
    """Yields a local path to write to; the file appears under `path` if the block succeeds.

    The temporary file is next to `path` and is renamed, or, for a remote address, in the folder for
    temporary files and is uploaded. It keeps the suffix, from which some libraries infer the
    format.

    Raises:
        UserError: `path` is a folder.
        OSError: the file cannot be written; the error names `path`, not the temporary file.
    """
    check_no_folder(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="dinotxt_jax-") as folder:
            local = Path(folder) / path.name
            yield local
            retried(lambda: upload(local, path))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.filename == str(partial):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_no_folder(path: Address) -> None:
    """Raises `UserError` if `path`, where a file is to be written, is a folder.

    Commands call this before they compute the file's content.
    """
    if retried(path.is_dir):
        raise UserError(f"{path} is a folder, expected a file to write; add a file name.")


def write_text(path: Address, text: str) -> None:
    """Replaces a text file atomically."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: AddressLike, content: str, cure: str) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: the file.
        content: the expected content, for the error.
        cure: the advice in the error.

    Raises:
        UserError: the file holds no JSON object, as after a crash or a lost disk.
    """
    try:
        value = json.loads(retried(to_address(path).read_bytes))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}), expected {content}; {cure}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, expected {content}; {cure}.")
    return value


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder and renames it to `path` only if the block ends without an error.

    Buckets cannot rename folders: see `model_directory.new_model_directory`.

    If there are several processes, all must enter the block; they get the same folder. Folders that
    killed processes left behind for the same path are removed first (`remove_abandoned`).

    Args:
        path: the final path.
        overwrite: replace an existing folder; otherwise it causes a `FileExistsError`.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(path)
    # The name is unique because another run may be writing the same path.
    unique = processes.gathered_texts(f"{_host()}-{uuid.uuid4().hex[:8]}")[0]
    partial = path.parent / f".{path.name}.{unique}.partial"
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path)
            stack.enter_context(_in_use(partial))
            partial.mkdir()
        processes.wait()
        try:
            yield partial
        except BaseException:
            if processes.is_first():
                remove_folder(partial)
            raise
        processes.wait()  # until all processes have written
        if processes.is_first():
            _rename(partial, path, unique)
        processes.wait()


def _rename(partial: Path, path: Path, unique: str) -> None:
    if path.exists():
        # Rename the old folder before deleting it, so that a complete folder exists at any time.
        old = path.parent / f".{path.name}.{unique}.old"
        path.rename(old)
        partial.rename(path)
        remove_folder(old)
    else:
        partial.rename(path)


# An unfinished folder from another host counts as abandoned after this many seconds without a
# change, because not every network file system shows locks that other hosts hold.
_PATIENCE = 3600.0


def remove_abandoned(path: Address) -> None:
    """Removes temporary folders that killed processes left behind while writing `path`.

    A folder that a running process is writing is locked and is kept. Nothing is renamed in buckets,
    so nothing is removed there.
    """
    if is_remote(path) or not path.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(.+)-[0-9a-f]{{8}}\.(partial|old)")
    for folder in path.parent.iterdir():
        name = pattern.fullmatch(folder.name)
        if not name or not folder.is_dir() or _is_living(folder, host=name[1]):
            continue
        # If `path` is absent, the renamed old folder is the only complete one.
        if name[2] == "partial" or path.exists():
            remove_folder(folder)
            _lock_file(folder).unlink(missing_ok=True)


def _is_living(folder: Path, host: str) -> bool:
    """Returns whether a process is still writing an unfinished folder."""
    newest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
    if host != _host() and time.time() - newest < _PATIENCE:
        return True
    try:
        with filelock.FileLock(_lock_file(folder), timeout=0):
            return False
    except (filelock.Timeout, OSError, NotImplementedError):
        return True


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes until the block or this process ends."""
    file = _lock_file(folder)
    lock = filelock.FileLock(file)
    with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        file.unlink(missing_ok=True)


def _lock_file(folder: Path) -> Path:
    """Returns the lock file for an unfinished folder and for the folder that it will replace."""
    return folder.with_suffix(".lock")


def _host() -> str:
    """Returns this host's name in a form that is valid in file names."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())
