"""Writes files atomically: a file is complete or absent."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from dinotxt_jax.errors import UserError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a path next to `path` to write to, and renames it to `path` if the block succeeds.

    The temporary path keeps the suffix, from which some libraries infer the format.

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
    """Raises `UserError` if `path`, where a file is to be written, is a folder.

    Commands call this before they compute the file's content.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file to write; add a file name.")


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
