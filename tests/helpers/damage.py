"""Damages files as failing disks, crashes and interrupted copies do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dinotxt_jax.storage import pieces


def largest(folder: Path) -> Path:
    """Returns the largest file in a folder, which holds arrays."""
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flip(file: Path) -> None:
    """Inverts a byte in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


def truncate(file: Path) -> None:
    """Removes the second half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    """Removes the content, as after a power loss."""
    file.write_bytes(b"")


def empty_all(folder: Path) -> None:
    """Removes the content of all files."""
    for file in folder.rglob("*"):
        if file.is_file():
            empty(file)


def empty_folder(folder: Path) -> None:
    """Removes everything in a folder."""
    shutil.rmtree(folder)
    folder.mkdir()


CHECKPOINT_DAMAGES: dict[str, Callable[[Path], object]] = {
    "data truncated": lambda folder: truncate(largest(folder)),
    "data flipped": lambda folder: flip(largest(folder)),
    "data missing": lambda folder: largest(folder).unlink(),
    "manifest missing": lambda folder: (folder / "trainable/manifest.ocdbt").unlink(),
    "manifest flipped": lambda folder: flip(folder / "optimizer/manifest.ocdbt"),
    "metadata empty": lambda folder: empty(folder / "trainable/_METADATA"),
    "metadata missing": lambda folder: (folder / "trainable/_METADATA").unlink(),
    "checkpoint metadata empty": lambda folder: empty(folder / "_CHECKPOINT_METADATA"),
    "checkpoint metadata missing": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
    "part missing": lambda folder: shutil.rmtree(folder / "optimizer"),
    "empty folder": empty_folder,
    "all files empty": empty_all,
}
"""What can happen to a checkpoint folder, by name."""


def change_number(model: Path, place: tuple[str, ...]) -> None:
    """Changes the last bit of a number in a model directory, whose files stay readable."""
    array = pieces._open(model / "arrays", place)
    values = np.array(array.read().result())
    values.reshape(-1).view(np.uint32)[-1] ^= 1
    array.write(values).result()
