"""Reads `.npz` files (big_vision, TIPS) one array at a time; object arrays are refused."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np

from dinotxt_jax.errors import UserError
from weights_convert.messages import quoted

_ENDING = ".npy"
_DAMAGED = (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True)
class NpzArray:
    """An array in an `.npz` file, read on request."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """Reads the array; zip members have checksums, which are verified."""
        member = self.name + _ENDING
        with (
            _reading(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(member) as stream,
        ):
            return np.lib.format.read_array(stream, allow_pickle=False).view(self.dtype)


def is_npz(path: Path) -> bool:
    """Returns whether a zip holds nothing but `.npy` members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _DAMAGED:
        return path.suffix.lower() == ".npz"
    return bool(names) and all(name.endswith(_ENDING) for name in names)


def open_npz(path: Path) -> dict[str, NpzArray]:
    """Returns all arrays of a file, by name; reads only their headers.

    Raises:
        UserError: the file is damaged, or holds objects instead of numbers.
    """
    arrays = {}
    with _reading(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(_ENDING)
            with archive.open(member) as stream:
                shape, dtype = _header(stream)
            if dtype.hasobject:
                raise UserError(
                    f"{path} stores {quoted(name)} as Python objects, which are not read; save "
                    "numbers."
                )
            arrays[name] = NpzArray(path, name, shape, _widened(dtype))
    return arrays


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array has the .npy version {version}")
    shape, _, dtype = read(stream)
    return shape, dtype


def _widened(dtype: np.dtype) -> np.dtype:
    """Returns the dtype of the numbers; numpy stores bfloat16 as two bytes without a name."""
    return np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns errors of a damaged file into a sentence."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(
            f"{path} is no complete .npz file ({quoted(str(error))}); download it again."
        ) from error
