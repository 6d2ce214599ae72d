"""Writes files and folders atomically: each is complete or absent."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock
from etils import epath

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a path next to `path` to write to, and renames it to `path` if the block succeeds.

    The temporary path keeps the suffix, from which some libraries infer the format.

    Raises:
        UserError: `path` is a folder.
        OSError: it cannot be written; the error names `path`, not the temporary file.
    """
    check_no_folder(path)
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


def check_no_folder(path: Path) -> None:
    """Raises `UserError` if `path`, where a file is to be written, is a folder.

    Commands call this before they compute the file's content.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file to write; add a file name.")


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: epath.Path, overwrite: bool = False) -> Iterator[epath.Path]:
    """A folder that appears under its name only when the block ends without an error.

    Of several processes all must enter the block; they get the same folder. Folders that killed
    processes left behind for the same path are removed first (`remove_abandoned`).

    Args:
        path: the final name.
        overwrite: replace a folder of that name; otherwise one is a `FileExistsError`.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(path)
    # Another run may be writing the same.
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
                partial.rmtree()
            raise
        processes.wait()  # until all have written
        if processes.is_first():
            _rename(partial, path, unique)
        processes.wait()


def _rename(partial: epath.Path, path: epath.Path, unique: str) -> None:
    if path.exists():
        # Set aside before it is deleted, so that there is a complete folder at any time.
        old = path.parent / f".{path.name}.{unique}.old"
        path.rename(old)
        partial.rename(path)
        old.rmtree()
    else:
        partial.rename(path)


# Seconds without a change after which the unfinished folder of another host counts as abandoned:
# not every network file system shows the locks of other hosts.
_PATIENCE = 3600.0


def remove_abandoned(path: epath.PathLike) -> None:
    """Removes what killed processes left behind when they wrote the folder `path`.

    A folder that a living process writes is locked and stays. Buckets have no locks, so everything
    stays there.
    """
    path = epath.Path(path)
    if "://" in str(path) or not path.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(.+)-[0-9a-f]{{8}}\.(partial|old)")
    for folder in Path(path.parent).iterdir():
        name = pattern.fullmatch(folder.name)
        if not name or not folder.is_dir() or _is_living(folder, host=name[1]):
            continue
        # An old folder that was set aside and not replaced is the only complete one.
        if name[2] == "partial" or path.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _lock_file(folder).unlink(missing_ok=True)


def _is_living(folder: Path, host: str) -> bool:
    """Whether a process still writes an unfinished folder."""
    newest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
    if host != _host() and time.time() - newest < _PATIENCE:
        return True
    try:
        with filelock.FileLock(_lock_file(folder), timeout=0):
            return False
    except (filelock.Timeout, OSError, NotImplementedError):
        return True


@contextlib.contextmanager
def _in_use(folder: epath.Path) -> Iterator[None]:
    """Tells other processes that this one writes a folder, until the block or the process ends."""
    if "://" in str(folder):
        yield
        return
    file = _lock_file(Path(folder))
    lock = filelock.FileLock(file)
    with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        file.unlink(missing_ok=True)


def _lock_file(folder: Path) -> Path:
    """The lock of an unfinished folder, and of the folder that it is going to replace."""
    return folder.with_suffix(".lock")


def _host() -> str:
    """The name of this host, as a part of file names."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())
