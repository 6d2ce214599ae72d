"""Damages files as failing disks, crashes and interrupted copies do."""

from __future__ import annotations

from pathlib import Path


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
