"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from dinotxt_jax.errors import UserError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it becomes `path` when the block ends without an error.

    It keeps the ending, by which some libraries choose the format.

    Raises:
        UserError: `path` is a folder.
    """
    check_no_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_no_folder(path: Path) -> None:
    """Raises `UserError` if a file that is to be written has the path of a folder.

    A command calls this before the work whose result goes into the file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file to write; add a file name.")


def write_text(path: Path, text: str) -> None:
    """Replaces a text file by another."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
